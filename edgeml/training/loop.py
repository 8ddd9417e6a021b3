"""The training loop: one for every pass that trains.

The rules it keeps:

1. The same module, samples, options and seed give the same bytes on one machine's CPU,
   whether the run was killed and resumed or not.
2. What a ``kill -9`` loses is at most ``checkpoint_s`` of work.
3. The weights that stay are those of the epoch with the best score on the held-out
   samples, the beginning included; of equal ones the later.
4. Weights that are not finite never stay: they are an error.
"""

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..cache import digest_of
from ..errors import PassError
from ..intake.modules import named_outputs, torch_here
from .batches import Augment, Batch, Batches, outputs_of
from .checkpoint import Checkpoints, digest_of_tensors, restore, snapshot
from .log import Log, Row
from .optimizer import Optimizer, rate_at
from .repeatable import repeatable, seed_everything
from .task import Samples, Task

if TYPE_CHECKING:
    from torch import Tensor

Loss = Callable[["dict[str, Tensor]", Batch], "Tensor"]
"""(outputs by name, batch) → a scalar. One that is a ``torch.nn.Module`` has those of
its parameters trained that require gradients (the regressors of hints)."""
Outputs = Callable[[Any], "dict[str, Tensor]"]

SAID_EVERY_S = 3.0
"""Seconds between two words of progress."""


@dataclass(frozen=True)
class LoopOptions:
    """How to train; names and meanings are those of the recipe's passes."""

    epochs: int
    batch: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    optimizer: Literal["adamw", "sgd"] = "adamw"
    schedule: Literal["cosine", "constant"] = "cosine"
    patience: int = 0
    checkpoint_s: float = 30.0

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> "LoopOptions":
        """The options among the parameters of a pass."""
        names = LoopOptions.__dataclass_fields__
        return LoopOptions(**{name: parameters[name] for name in names})


@dataclass(frozen=True)
class Trained:
    """What a training came to; scores are on held-out samples, higher is better.

    ``epochs`` were run; the weights are those after ``best_epoch`` (0: the beginning).
    """

    epochs: int
    best_epoch: int
    steps: int
    score_before: float
    score: float
    batch: int
    device: str

    def facts(self) -> dict[str, Any]:
        """What is told in the lineage; apart from the names of parameters."""
        return {
            "epochs_run": self.epochs,
            "best_epoch": self.best_epoch,
            "steps": self.steps,
            "batch_run": self.batch,
            "holdout_before": self.score_before,
            "holdout_after": self.score,
            "trained_on": self.device,
        }


def train(
    module: Any,
    names: Sequence[str],
    task: Task,
    options: LoopOptions,
    loss: Loss,
    *,
    augment: Augment | None = None,
    name: str = "train",
    after_step: Callable[[], None] | None = None,
    outputs: Outputs = named_outputs,
) -> Trained:
    """Train ``module`` in place; it is left with its best weights, in ``eval`` mode.

    Args:
        module: a ``torch.nn.Module``; parameters that require gradients are trained.
        names: its inputs, in the order of ``forward``.
        task: samples, score, seed; where checkpoints are kept and found again.
        options: how.
        loss: what is made small.
        augment: changes the inputs of every batch before they are used.
        name: folder of the checkpoints and the log below ``task.work``, and what
            progress calls it.
        after_step: called after every step (keeps pruned weights at zero).
        outputs: what ``forward`` returned, by name.

    Raises:
        PassError: nothing can be trained, or the weights became NaN or infinite.
    """
    with repeatable():
        run = _Run(module, names, task, options, loss, augment, name, outputs)
        return run.trained(after_step or _nothing)


def _nothing() -> None:
    """After a step nothing more is to be done."""


@dataclass
class _State:
    """How far a run is; all of it goes into checkpoints."""

    step: int = 0
    epoch: int = 0
    best_epoch: int = 0
    best_score: float = float("-inf")
    score_before: float = float("-inf")
    stale: int = 0
    loss_sum: float = 0.0
    finished: bool = False
    rows: list[Row] = field(default_factory=list)

    def packed(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def unpacked(given: dict[str, Any]) -> "_State":
        rows = [Row(**row) for row in given.pop("rows")]
        return _State(**given, rows=rows)


class _Run:
    def __init__(
        self,
        module: Any,
        names: Sequence[str],
        task: Task,
        options: LoopOptions,
        loss: Loss,
        augment: Augment | None,
        name: str,
        outputs: Outputs,
    ) -> None:
        torch = torch_here()
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        # channels_last is what kernels of torch 2.13 crash on
        module.to(self._device, memory_format=torch.contiguous_format)
        self._module, self._names = module, tuple(names)
        self._task, self._options, self._name = task, options, name
        self._loss, self._outputs = loss, outputs
        self._extra = loss if isinstance(loss, torch.nn.Module) else torch.nn.Module()
        self._extra.to(self._device)
        self._batches = Batches(
            task.train, options.batch, task.seed, self._device, augment
        )
        self._steps = self._batches.steps * options.epochs
        self._optimizer = self._made_optimizer()
        folder = None if task.work is None else task.work / name
        identity = "" if folder is None else self._identity()
        self._checkpoints = Checkpoints(folder, identity, options.checkpoint_s)
        self._folder = folder
        self._state = _State()
        self._best: dict[str, Any] = {}
        self._said_at = 0.0

    def trained(self, after_step: Callable[[], None]) -> Trained:
        self._begin()
        state = self._state
        with closing(Log(self._folder, state.rows)) as log:
            while not state.finished:
                self._epoch(after_step)
                self._judge(log)
                if self._checkpoints.due():
                    self._save()
        restore(self._module, self._best)
        self._optimizer.forget_gradients()
        self._save()
        self._module.to("cpu").eval()
        self._task.progress.result(
            f"{self._name}: held out {state.score_before:.4f} → {state.best_score:.4f} "
            f"(best epoch {state.best_epoch} of {state.epoch})"
        )
        return Trained(
            epochs=state.epoch,
            best_epoch=state.best_epoch,
            steps=state.step,
            score_before=state.score_before,
            score=state.best_score,
            batch=self._batches.size,
            device=self._device,
        )

    def _made_optimizer(self) -> Optimizer:
        every = {id(one): one for one in self._module.parameters()}
        every |= {id(one): one for one in self._extra.parameters()}
        if not any(one.requires_grad for one in every.values()):
            raise PassError(
                "the model has no parameter that requires a gradient; expected at "
                "least one to train"
            )
        options = self._options
        return Optimizer(
            every.values(), options.optimizer, options.weight_decay, self._device
        )

    def _identity(self) -> str:
        """What must be the same for a checkpoint to be of this run."""
        options = asdict(self._options)
        options.pop("checkpoint_s")
        return digest_of(
            {
                "options": options,
                "seed": self._task.seed,
                "device": self._device,
                "names": self._names,
                "module": digest_of_tensors(self._module),
                "loss": digest_of_tensors(self._extra),
                "samples": [
                    _digest_of_samples(one)
                    for one in (self._task.train, self._task.holdout)
                ],
            }
        )

    def _begin(self) -> None:
        found = self._checkpoints.load()
        if found is None:
            self._state.score_before = self._state.best_score = self._score()
            self._best = snapshot(self._module)
            self._state.finished = self._options.epochs == 0
            return
        self._state = _State.unpacked(found["state"])
        self._best = found["best"]
        if self._state.finished:
            return
        restore(self._module, found["module"])
        restore(self._extra, found["extra"])
        self._optimizer.restore(found["optimizer"])
        self._task.progress.result(
            f"{self._name}: goes on in epoch {self._state.epoch + 1} of "
            f"{self._options.epochs}"
        )

    def _save(self) -> None:
        content = {"state": self._state.packed(), "best": self._best}
        if not self._state.finished:
            content |= {
                "module": snapshot(self._module),
                "extra": snapshot(self._extra),
                "optimizer": self._optimizer.state(),
            }
        self._checkpoints.save(content)

    def _epoch(self, after_step: Callable[[], None]) -> None:
        """The rest of the epoch that the run is in."""
        state, options = self._state, self._options
        self._module.train()
        self._extra.train()
        total = torch_here().zeros((), dtype=torch_here().float64, device=self._device)
        total += state.loss_sum
        start = state.step - state.epoch * self._batches.steps
        for place in range(start, self._batches.steps):
            seed_everything(self._task.seed, state.step)
            batch = self._batches.batch(state.epoch, place)
            with self._optimizer.autocast():
                loss = self._loss(self._forward(batch), batch)
            rate = rate_at(
                state.step, self._steps, options.learning_rate, options.schedule
            )
            self._optimizer.step(loss, rate)
            after_step()
            state.step += 1
            total += loss.detach()
            due = self._checkpoints.due()
            if due or time.monotonic() - self._said_at > SAID_EVERY_S:
                state.loss_sum = self._finite(total)
                self._say()
                if due:
                    self._save()
        state.loss_sum = self._finite(total)

    def _forward(self, batch: Batch) -> "dict[str, Tensor]":
        return self._outputs(self._module(*(batch.inputs[n] for n in self._names)))

    def _finite(self, total: "Tensor") -> float:
        """The sum of losses, which is NaN as soon as one was."""
        found = float(total)
        if not math.isfinite(found):
            self._refuse(f"the loss became {found}")
        return found

    def _refuse(self, what: str) -> None:
        raise PassError(
            f"{what} in epoch {self._state.epoch + 1} (step {self._state.step}); "
            f"lower learning_rate (it is {self._options.learning_rate:g}), or look for "
            "samples or a loss that are not finite"
        )

    def _judge(self, log: Log) -> None:
        """Score what the epoch came to, keep it if it is best, and end it."""
        state, options = self._state, self._options
        self._check_weights()
        score = self._score()
        state.epoch += 1
        state.stale = 0 if score > state.best_score else state.stale + 1
        if score >= state.best_score:
            state.best_score, state.best_epoch = score, state.epoch
            self._best = snapshot(self._module)
        state.finished = state.epoch == options.epochs or (
            0 < options.patience <= state.stale
        )
        rate = rate_at(
            state.step - 1, self._steps, options.learning_rate, options.schedule
        )
        loss = state.loss_sum / self._batches.steps
        row = Row(state.epoch, state.step, rate, loss, score, state.best_epoch)
        state.rows.append(row)
        log.write(row)
        state.loss_sum = 0.0

    def _check_weights(self) -> None:
        torch = torch_here()
        for name, one in self._module.named_parameters():
            if not torch.isfinite(one).all():
                self._refuse(f"the weights of {name} became NaN or infinite")
        for name, one in self._module.named_buffers():
            if torch.isnan(one).any():  # infinite ones may be meant: a causal mask
                self._refuse(f"{name} became NaN")

    def _score(self) -> float:
        """What the module is worth on the held-out samples."""
        self._module.eval()
        samples = self._task.holdout
        outputs = outputs_of(
            lambda *given: self._outputs(self._module(*given)),
            self._names, samples, self._batches.size, self._device,
        )  # fmt: skip
        score = float(self._task.score(outputs, samples.labels))
        if math.isnan(score):
            raise PassError(
                f"the metric is NaN on {len(samples)} held-out samples; expected a "
                "number: look at the metric, or give more training samples"
            )
        return score

    def _say(self) -> None:
        state, progress = self._state, self._task.progress
        self._said_at = time.monotonic()
        done = state.step - state.epoch * self._batches.steps
        progress.stage(
            f"{self._name}: epoch {state.epoch + 1} of {self._options.epochs}, "
            f"loss {state.loss_sum / max(done, 1):.4f}, held out "
            f"{state.rows[-1].score if state.rows else state.score_before:.4f}"
        )
        progress.step(state.step, self._steps)


def _digest_of_samples(samples: Samples) -> str:
    digest = hashlib.sha256()
    for name, array in [*sorted(samples.inputs.items()), ("", samples.labels)]:
        if array is not None:
            digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
    return digest.hexdigest()


__all__ = ["Augment", "Batch", "LoopOptions", "Loss", "Trained", "train"]
