"""Prune: a network with fewer channels, heads and hidden units, really smaller.

1. Inputs and outputs stay as they are; what stays in between is smaller tensors, so
   every runtime is faster for it. What cannot be pruned is told with its reason.
2. ``rounds`` times: cut a part, take batch norms' statistics anew where there are
   samples, then fine-tune. The epochs are those of all rounds together; the last rounds
   get what does not divide.
3. ``structured = false`` zeroes single weights, and holds them at zero while it
   fine-tunes. No runtime here is faster for that; the lineage says so.

References:
    Fang et al.: DepGraph: Towards Any Structural Pruning, 2023.
    Molchanov et al.: Importance Estimation for Neural Network Pruning, 2019.
"""

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any, ClassVar

from ..errors import PassError
from ..intake.modules import named_outputs
from ..model import Level, Model, Step
from ..pruning import sparsity
from ..pruning.pruner import Order, Pruner, example_of, known_layers
from ..pruning.recalibration import recalibrate
from ..pruning.size import macs_of, parameters_of
from ..training.batches import Batches
from ..training.hooks import augmentation
from ..training.loop import LoopOptions, train
from ..training.losses import task_loss
from .base import Context, Pass

MULTIPLE = 16
"""Of channel counts where neither recipe nor task says: vectors of 8 and 16 floats."""
TAYLOR_BATCHES = 8
NORM_BATCHES = 32
NO_FASTER = (
    "no faster: zeros are computed like other numbers; only the compressed bundle is "
    "smaller"
)


class Prune(Pass):
    """Module → a smaller module."""

    verb = "prune"
    takes: ClassVar[Level] = "module"
    gives: ClassVar[Level] = "module"
    lossy = True

    def requires(self, model: Model, context: Context) -> None:
        """Samples where it trains or ranks by gradients; names that exist."""
        own = self.parameters
        if own["importance"] == "taylor" and context.task is None:
            raise PassError(
                "importance = 'taylor' needs training samples; name them in the recipe "
                "([data] train), or take l1, l2 or bn_scale"
            )
        if own["importance"] == "bn_scale" and not own["structured"]:
            raise PassError(
                "importance = 'bn_scale' ranks channels; with structured = false "
                "expected l1, l2 or taylor"
            )
        if own["epochs"]:
            context.trained_on()
        known_layers(model.payload, own["keep"], "keep")
        known_layers(model.payload, own["ratios"], "ratios")

    def run(self, model: Model, context: Context) -> Model:
        """Prune a copy, and fine-tune it after each round."""
        module = copy.deepcopy(model.payload).eval()
        work = _Work(module, model, self.parameters, context)
        facts = work.structured() if self.parameters["structured"] else work.sparse()
        told = {**self.parameters, "keep": list(self.parameters["keep"]), **facts}
        return model.after(Step(self.verb, told), payload=module.eval())

    def ensures(self, before: Model, after: Model, context: Context) -> None:
        """The same outputs in shape, finite, from a smaller network."""
        example = example_of(before.inputs)
        wanted, found = (
            named_outputs(one.payload(*example)) for one in (before, after)
        )
        shapes, now = (
            {name: list(value.shape) for name, value in one.items()}
            for one in (wanted, found)
        )
        if shapes != now:
            raise PassError(f"the outputs are {now}; expected {shapes}")
        odd = [name for name, value in found.items() if not value.isfinite().all()]
        if odd:
            raise PassError(f"output {odd[0]} is not finite")
        facts = after.lineage[-1].parameters
        if self.parameters["structured"] and facts["channels"]:
            for what in ("parameters", "macs"):
                was, is_now = facts[f"{what}_before"], facts[f"{what}_after"]
                if is_now >= was:
                    raise PassError(f"it has {is_now} {what}; expected less than {was}")


class _Work:
    """One copy of a module, on its way to be smaller."""

    def __init__(
        self, module: Any, model: Model, own: dict[str, Any], context: Context
    ) -> None:
        self._module, self._model, self._own = module, model, own
        self._task = context.task
        self._example = example_of(model.inputs)

    def structured(self) -> dict[str, Any]:
        """Cut channels; what was measured."""
        own = self._own
        asked = own["channel_multiple"]
        multiple = asked or (self._task.channel_multiple if self._task else MULTIPLE)
        before = parameters_of(self._module), macs_of(self._module, self._example)
        pruner = Pruner(
            self._module,
            self._example,
            Order(
                own["ratio"], own["ratios"], own["scope"], own["importance"],
                own["keep"], multiple,
            ),
        )  # fmt: skip
        tuned, norms = [], 0
        for number in range(own["rounds"]):
            self._say(f"round {number + 1} of {own['rounds']}")
            pruner.round((number + 1) / own["rounds"], self._backward)
            if number + 1 == own["rounds"]:
                pruner.check()
            norms = self._recalibrated() if pruner.changed() else 0
            tuned += self._tuned(number)
        return {
            "parameters_before": before[0],
            "parameters_after": parameters_of(self._module),
            "macs_before": before[1],
            "macs_after": macs_of(self._module, self._example),
            "multiple": multiple,
            "channels": pruner.changed(),
            "not_pruned": pruner.unchanged(),
            "norms_recalibrated": norms,
            "fine_tuned": tuned,
        }

    def sparse(self) -> dict[str, Any]:
        """Zero single weights; what was measured."""
        own = self._own
        weights = sparsity.weights_of(self._module, own["keep"])
        if not weights:
            raise PassError("nothing can be pruned; no convolution or linear layer")
        odd = sorted(own["ratios"].keys() - weights.keys())
        if odd:
            raise PassError(
                f"ratios: {odd[0]} cannot be pruned: expected a convolution or a "
                "linear layer that is not kept"
            )
        tuned = []
        masks: dict[str, Any] = {}
        for number in range(own["rounds"]):
            part = (number + 1) / own["rounds"]
            scores = self._weight_scores(own["keep"])
            masks = sparsity.masks_of(
                scores,
                part * own["ratio"],
                {name: part * share for name, share in own["ratios"].items()},
                own["scope"],
            )
            sparsity.apply(self._module, masks)
            tuned += self._tuned(number, masks)
        sparsity.apply(self._module, masks)
        total = sum(mask.numel() for mask in masks.values())
        zeros = total - sum(int(mask.sum()) for mask in masks.values())
        return {
            "weights": total,
            "zeros": zeros,
            "parameters_before": parameters_of(self._module),
            "parameters_after": parameters_of(self._module),
            "speed": NO_FASTER,
            "fine_tuned": tuned,
        }

    def _weight_scores(self, keep: Any) -> dict[str, Any]:
        """Layer → score of each weight: its size, or what the loss loses by it."""
        weights = sparsity.weights_of(self._module, keep)
        if self._own["importance"] != "taylor":
            return {name: one.detach().abs() for name, one in weights.items()}
        scores = {name: one.detach().abs() * 0 for name, one in weights.items()}
        for _ in self._backward():
            for name, one in weights.items():
                if one.grad is not None:
                    scores[name] += (one * one.grad).detach().abs()
        return scores

    def _backward(self) -> Iterator[None]:
        """The gradients of a few batches, in ``eval`` mode, one after the other."""
        assert self._task is not None, "requires() saw to it"
        task, own, module = self._task, self._own, self._module
        names = [spec.name for spec in self._model.inputs]
        loss = task_loss(own, task)
        frozen = [one for one in module.parameters() if not one.requires_grad]
        batches = Batches(task.train, own["batch"], task.seed).epoch(0)
        try:
            for one in frozen:
                one.requires_grad_(one.is_floating_point())
            for batch in islice(batches, TAYLOR_BATCHES):
                module.zero_grad(set_to_none=True)
                outputs = named_outputs(module(*(batch.inputs[n] for n in names)))
                loss(outputs, batch).backward()
                yield
        finally:
            module.zero_grad(set_to_none=True)
            for one in frozen:
                one.requires_grad_(False)

    def _recalibrated(self) -> int:
        """Take the statistics of batch norms anew; of how many."""
        task = self._task
        if task is None or not len(task.train):
            return 0
        names = [spec.name for spec in self._model.inputs]
        batches = Batches(task.train, self._own["batch"], task.seed).epoch(0)
        return recalibrate(
            self._module,
            ([one.inputs[n] for n in names] for one in islice(batches, NORM_BATCHES)),
        )

    def _tuned(self, number: int, masks: dict[str, Any] | None = None) -> list[Any]:
        """Fine-tune after a round; what the training came to, in a list, or nothing."""
        own = self._own
        rounds = own["rounds"]
        epochs = (
            own["epochs"] * (number + 1) // rounds - own["epochs"] * number // rounds
        )
        if not epochs:
            return []
        assert self._task is not None, "requires() saw to it"
        trained = train(
            self._module,
            [spec.name for spec in self._model.inputs],
            self._task,
            LoopOptions.of({**own, "epochs": epochs}),
            task_loss(own, self._task),
            augment=augmentation(own, self._task.folder),
            name=f"{Prune.verb}{number + 1}",
            after_step=(lambda: sparsity.apply(self._module, masks)) if masks else None,
        )
        return [trained.facts()]

    def _say(self, what: str) -> None:
        if self._task is not None:
            self._task.progress.stage(f"{Prune.verb}: {what}")
