"""QAT: a graph is fine-tuned with the rounding of int8 inside.

1. A quantized (QDQ) graph is trained as it is, from the ranges that it has; a float one
   is quantized first by ONNX Runtime's MinMax calibration in the wanted scheme.
2. What comes out is the same quantized graph with other weights, biases and scales: no
   node is added, so what the backend makes of it computes what was trained.
3. The result is never worse on held-out samples than the quantized graph before.
"""

from typing import Any, ClassVar

from device_agent.contract.tensors import Feeds

from ..errors import PassError
from ..graphs.preparation import prepare
from ..graphs.protos import is_quantized
from ..model import Level, Model, Step
from ..quantizers import ort
from ..training.hooks import augmentation
from ..training.loop import LoopOptions, train
from ..training.losses import task_loss
from ..training.simulation import Simulation
from .base import Context, Pass

CALIBRATION = 128
"""At most so many training samples give the ranges when no feeds were given."""
SCHEMES = {"auto": "u8", "u8s8": "u8", "s8s8": "s8"}
"""Word of the recipe → type of activations; weights are s8, per channel."""


class Qat(Pass):
    """Graph → quantized graph."""

    verb = "qat"
    takes: ClassVar[Level] = "graph"
    gives: ClassVar[Level] = "graph"
    lossy = True

    def run(self, model: Model, context: Context) -> Model:
        """Quantize where need be, train, write back; without epochs only the first."""
        parameters = self.parameters
        given = is_quantized(model.payload)
        proto = model.payload if given else self._quantized(model, context)
        facts: dict[str, Any] = {"begins": "as given" if given else "ort minmax"}
        if parameters["epochs"]:
            task = context.trained_on()
            simulation = Simulation(proto, model.inputs)
            trained = train(
                simulation.module,
                [spec.name for spec in model.inputs],
                task,
                LoopOptions.of(parameters),
                task_loss(parameters, task),
                augment=augmentation(parameters, task.folder),
                name=self.verb,
            )
            facts |= trained.facts()
            proto = simulation.written()
        return model.after(
            Step(self.verb, {**parameters, **facts}), payload=proto, origin=None
        )

    def _quantized(self, model: Model, context: Context) -> Any:
        feeds = context.feeds or _first(context)
        prepared = prepare(model.payload)
        return ort.quantize_static(
            prepared,
            ort.calibrate(prepared, feeds, "minmax"),
            activation=SCHEMES[self.parameters["scheme"]],
        )

    def ensures(self, before: Model, after: Model, context: Context) -> None:
        """The checker accepts the graph, and it is quantized."""
        import onnx

        onnx.checker.check_model(after.payload)
        if not is_quantized(after.payload):
            raise PassError("nothing in the graph is quantized")


def _first(context: Context) -> tuple[Feeds, ...]:
    """The first training samples, one by one."""
    inputs = context.trained_on().train.inputs
    count = min(CALIBRATION, *(len(array) for array in inputs.values()))
    return tuple(
        {name: array[place : place + 1] for name, array in inputs.items()}
        for place in range(count)
    )
