"""An ONNX graph as a torch module: trainable, prunable, exportable.

The rules it keeps:

1. Layers with weights are real ones (``nn.Conv2d``, ``nn.Linear`` …), named after the
   nodes of the graph; ``module.meta["onnx_names"]`` has the names as ONNX writes them.
2. The module takes the graph's inputs in their order and gives its outputs by name.
3. It gives the numbers of ONNX Runtime: compared on seeded data before it is handed
   out; the lineage has the difference.
4. A graph that was exported for batch 1 takes any batch where that has a meaning; the
   lineage says whether.
5. What is not known to torch is an error that names operator and node.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from device_agent.contract.tensors import Array, Feeds, TensorSpec

from ..errors import BackendError, MachineLacks, ModelError, one_line
from ..model import Model, Step
from .preparation import QDQ_OPSET, at_opset, opset_of, to_bytes
from .protos import describe

if TYPE_CHECKING:
    from .torched_site import Value

TOLERANCE = 1e-3
"""Largest difference to ONNX Runtime, in parts of the largest output, that passes for
rounding; what is measured is usually below 1e-6."""
BATCH = 3
"""Samples at once, to see whether a module takes more than one."""


def module_of(model: Model) -> Model:
    """``model`` (level graph) at level module, with the same inputs and outputs.

    Raises:
        ModelError: an operator has no counterpart, an input has a variable dimension
            besides the batch, or the module gives other numbers than the graph.
        MachineLacks: torch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MachineLacks(
            "torch is not installed; install it with: pip install 'edgeml[torch]'"
        ) from error
    try:
        proto = at_opset(model.payload, QDQ_OPSET)
    except BackendError as error:
        raise ModelError(f"the graph cannot become a torch module: {error}") from error
    module = Importer(proto, model.inputs).module()
    with torch.no_grad():
        error_, variable = _checked(module, model)
    step = Step(
        "torch",
        {
            "layers": sum(1 for node in module.graph.nodes if node.op == "call_module"),
            "operators": len(proto.graph.node),
            "batch": "variable" if variable else "1",
            # two digits: the last ones depend on the CPU that measured them
            "import_error": float(f"{error_:.1e}"),
        },
    )
    return model.after(step, level="module", payload=module, origin=None)


class Importer:
    """Builds the module of one graph.

    ``operators`` are tried before the common table: by them quantized graphs become
    trainable ones. ``layers``: whether constant weights go into ``nn`` layers.
    """

    def __init__(
        self,
        proto: Any,
        inputs: Sequence[TensorSpec],
        operators: Mapping[str, Callable[..., Any]] | None = None,
        layers: bool = True,
    ) -> None:
        import onnx

        from .torched_site import Building

        self.proto = proto
        if proto.functions:
            self.proto = onnx.inliner.inline_local_functions(proto)
        self.building = Building()
        self.operators = dict(operators or {})
        self._inputs = inputs
        self._layers = layers
        self._opset = opset_of(proto)
        self._values: dict[str, Value] = {}
        graph = self.proto.graph
        self._makers = {name: node for node in graph.node for name in node.output}
        self._readers = Counter(name for node in graph.node for name in node.input)
        self._readers.update(value.name for value in graph.output)

    def module(self) -> Any:
        """The module, in ``eval`` mode."""
        import torch

        from .torched_site import Constant

        for spec in self._inputs:
            self._values[spec.name] = self.building.input(spec.name, _zeros(spec))
        for tensor in self.proto.graph.initializer:
            self._values[tensor.name] = Constant(_tensor(tensor), tensor.name)
        for node in self.proto.graph.node:
            self._import(node)
        graph = self.building.graph
        graph.output(
            {item.name: self._argument(item.name) for item in self.proto.graph.output}
        )
        for node in graph.nodes:
            node.meta.clear()
        made = torch.fx.GraphModule(self.building.root, graph)
        made.graph.eliminate_dead_code()
        made = torch.fx.GraphModule(made, made.graph)  # only what is read
        made.meta["onnx_names"] = dict(self.building.names)
        return made.eval()

    def value(self, name: str) -> "Value":
        """What a tensor of the graph has become; it is made first where need be."""
        if name not in self._values:
            if name not in self._makers:
                raise ModelError(f"no node of the graph makes {name!r}")
            self._import(self._makers[name])
        return self._values[name]

    def _argument(self, name: str) -> Any:
        from .torched_site import Constant, Dims, sizes_tensor

        value = self.value(name)
        if isinstance(value, Constant):
            return self.building.attribute(value)
        if isinstance(value, Dims):
            return self.building.call(sizes_tensor, list(value.sizes), value.scalar)
        return value.node

    def _import(self, node: Any) -> None:
        if all(name in self._values for name in node.output if name):
            return
        try:
            made = self._made(node)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"{describe(node)} cannot become torch: {one_line(error)}"
            ) from error
        for name, value in zip(node.output, made, strict=False):
            if name:
                self._values[name] = value
        lacking = [name for name in node.output if name and name not in self._values]
        if lacking:
            raise ModelError(
                f"{describe(node)} cannot become torch: its output {lacking[0]!r} has "
                "no counterpart"
            )

    def _made(self, node: Any) -> list["Value"]:
        from .torched_ops import OPERATORS
        from .torched_shapes import DIMS, OF_SIZES
        from .torched_site import Computed, Constant, Dims, Site

        kind = node.op_type
        attributes = {one.name: _attribute(one) for one in node.attribute}
        if kind == "Constant":
            return [Constant(_constant(attributes), node.output[0])]
        values = [self.value(name) if name else None for name in node.input]
        at = Site(
            self.building, node, attributes, values, self._readers, self._opset,
            self._layers,
        )  # fmt: skip
        function = self.operators.get(kind) or OPERATORS.get(kind)
        if function is None or node.domain not in ("", "ai.onnx"):
            raise ModelError(f"{describe(node)} has no counterpart in torch")
        if kind not in self.operators and kind != "Shape":
            given = [value for value in values if value is not None]
            sizes = any(isinstance(value, Dims) for value in given)
            if not any(isinstance(value, Computed) for value in given):
                if sizes and kind in DIMS:
                    return [DIMS[kind](at)]
                if not (sizes and kind in OF_SIZES):
                    return self._folded(node, given)
        made = function(at)
        return made if isinstance(made, list) else [made]

    def _folded(self, node: Any, given: Sequence["Value"]) -> list["Value"]:
        """The outputs of a node whose inputs are all known."""
        import onnx
        from onnx.reference import ReferenceEvaluator

        from .torched_site import Computed, Constant

        names = list(dict.fromkeys(name for name in node.input if name))
        feeds = {}
        for name in names:
            value = self._values[name]
            assert not isinstance(value, Computed), "all inputs are known"
            feeds[name] = value.tensor.numpy()
        outputs = [name for name in node.output if name]
        graph = onnx.helper.make_graph(
            [node], "one",
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in names],
            [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        )  # fmt: skip
        one = onnx.helper.make_model(graph, opset_imports=self.proto.opset_import)
        found = ReferenceEvaluator(one).run(None, feeds)
        return [
            Constant(_from_numpy(array), name)
            for name, array in zip(outputs, found, strict=True)
        ]


def _zeros(spec: TensorSpec) -> Any:
    import torch

    if any(size < 1 for size in spec.shape[1:]):
        raise ModelError(
            f"input {spec.name!r} has the shape {list(spec.shape)}; a torch module is "
            "made for fixed shapes, the batch apart: give them in [model] inputs"
        )
    shape = [abs(size) if place == 0 else size for place, size in enumerate(spec.shape)]
    return torch.from_numpy(np.zeros(shape, spec.dtype))


def _tensor(proto: Any) -> Any:
    from onnx import numpy_helper

    return _from_numpy(numpy_helper.to_array(proto))


def _from_numpy(array: Any) -> Any:
    import torch

    found = np.array(array)  # a copy that can be written to; scalars become arrays
    if found.dtype.kind not in "biufc":
        raise ModelError(f"torch has no tensors of {found.dtype}")
    return torch.from_numpy(found)


def _attribute(attribute: Any) -> Any:
    from onnx.helper import get_attribute_value

    if attribute.HasField("t"):
        return _tensor(attribute.t)
    found = get_attribute_value(attribute)
    return list(found) if isinstance(found, list | tuple) else found


def _constant(attributes: Mapping[str, Any]) -> Any:
    import torch

    for name, found in attributes.items():
        if name == "value":
            return found
        kind = torch.float32 if "float" in name else torch.int64
        if name in ("value_float", "value_floats", "value_int", "value_ints"):
            return torch.tensor(found, dtype=kind)
    raise ModelError("a Constant of strings has no counterpart in torch")


def _checked(module: Any, model: Model) -> tuple[float, bool]:
    """The difference to ONNX Runtime, and whether the batch may vary.

    Raises:
        ModelError: the difference is no rounding.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        to_bytes(model.payload), options, providers=["CPUExecutionProvider"]
    )
    samples = [_seeded(model.inputs, seed) for seed in range(BATCH)]
    wanted = [session.run(None, feed) for feed in samples]
    names = [spec.name for spec in model.inputs]
    found = [_run(module, names, feed) for feed in samples]
    error = max(
        difference(one, other)
        for left, right in zip(wanted, found, strict=True)
        for one, other in zip(left, right, strict=True)
    )
    if not error <= TOLERANCE:
        raise ModelError(
            f"as a torch module the graph gives other numbers: {error:.1e} of the "
            f"largest output; expected at most {TOLERANCE:.0e}"
        )
    return error, _takes_batches(module, names, samples, found)


def _takes_batches(
    module: Any, names: Sequence[str], samples: Sequence[Feeds], single: Any
) -> bool:
    if any(feed[name].shape[:1] != (1,) for feed in samples for name in names):
        return False
    stacked = {name: np.concatenate([feed[name] for feed in samples]) for name in names}
    try:
        together = _run(module, names, stacked)
    except (RuntimeError, ValueError, IndexError, TypeError):
        return False  # sizes of one sample are written into the graph
    return all(
        difference(np.concatenate(parts), whole) <= TOLERANCE
        for parts, whole in zip(zip(*single, strict=True), together, strict=True)
    )


def _run(module: Any, names: Sequence[str], feed: Feeds) -> list[Array]:
    import torch

    outputs = module(*(torch.from_numpy(feed[name]) for name in names))
    return [value.numpy() for value in outputs.values()]


def _seeded(inputs: Sequence[TensorSpec], seed: int) -> Feeds:
    """Random numbers for float inputs, zeros for others: they may be places."""
    random = np.random.default_rng(seed)
    return {
        spec.name: random.standard_normal(_zeros(spec).shape).astype(spec.dtype)
        if spec.dtype.kind == "f"
        else np.zeros(_zeros(spec).shape, spec.dtype)
        for spec in inputs
    }


def difference(wanted: Array, found: Array) -> float:
    """Largest difference in parts of the largest wanted number; inf: not alike."""
    if wanted.shape != found.shape or wanted.dtype != found.dtype:
        return float("inf")
    if not wanted.size:
        return 0.0
    left, right = wanted.astype(np.float64), found.astype(np.float64)
    if not np.array_equal(np.isfinite(left), np.isfinite(right)):
        return float("inf")
    finite = np.isfinite(left)
    apart = np.abs(left[finite] - right[finite]).max(initial=0.0)
    size = np.abs(left[finite]).max(initial=0.0)
    return float(apart / size) if size else float(apart)
