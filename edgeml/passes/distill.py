"""Distill: a small network learns what a large one answers.

1. The student is a factory's network, or the model as the passes before left it; the
   teacher a factory's, or the model as it was before it was made smaller.
2. Loss: ``alpha`` parts the teacher's softened answer, the rest the labels; without
   labels all of it is the teacher's. Hints add the squared error between layers,
   through a learned map where their widths differ; the maps are dropped afterwards.
3. The best epoch is told by the recipe's metric; without labels by the loss itself.

References:
    Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015.
    Romero et al.: FitNets: Hints for Thin Deep Nets, 2015.
"""

import copy
import difflib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np

from device_agent.contract.signals import Kind
from device_agent.contract.tensors import Array, TensorSpec

from ..errors import PassError
from ..intake.modules import torch_here
from ..model import Level, Model, Step
from ..training.batches import Batch
from ..training.hooks import augmentation
from ..training.loop import LoopOptions, Loss, train
from ..training.losses import hint, regressor, task_loss
from ..training.task import Samples, Task
from ..training.teacher import (
    Answer,
    Taps,
    Teacher,
    in_batches,
    readings,
    same_answers,
    soft_loss,
)
from .base import Context, Pass

LAYERS_SHOWN = 8
"""Names of layers that a refusal lists."""


class Distill(Pass):
    """Module → a module that learned from a teacher."""

    verb = "distill"
    takes: ClassVar[Level] = "module"
    gives: ClassVar[Level] = "module"
    lossy = True

    def requires(self, model: Model, context: Context) -> None:
        """No parameters that contradict each other, and a teacher."""
        own = self.parameters
        for role in ("student", "teacher"):
            if own[f"{role}_weights"] and not own[role]:
                raise PassError(
                    f"{role}_weights go with {role} = 'module:factory', and it is empty"
                )
            if own[role] and context.factory is None:
                raise PassError(f"{role} {own[role]!r}: there is no recipe to find it")
        if own["loss"] and not own["labels"]:
            raise PassError("loss is for the labels, and labels = false")
        if own["teacher"]:
            return
        if context.source is None:
            raise PassError("there is no teacher; expected teacher = 'module:factory'")
        if context.source.payload is model.payload and not own["student"]:
            raise PassError(
                "teacher and student are the same network: nothing made the model "
                "smaller before; name a student, or prune first"
            )

    def run(self, model: Model, context: Context) -> Model:
        """Let the student learn."""
        own = self.parameters
        student, teacher = self._pair(model, context)
        _check_outputs(student, teacher)
        _check_layers(student.payload, own["hints"].keys(), "student")
        _check_layers(teacher.payload, own["hints"].values(), "teacher")
        student = replace(student, payload=copy.deepcopy(student.payload).eval())
        facts = {
            "student_params": _count(student.payload),
            "teacher_params": _count(teacher.payload),
        }
        if own["epochs"]:
            task = context.trained_on()
            facts |= Lesson(student, teacher, own, task).given()
        return model.after(
            Step(self.verb, {**own, **facts}),
            payload=student.payload, inputs=student.inputs, outputs=student.outputs,
        )  # fmt: skip

    def ensures(self, before: Model, after: Model, context: Context) -> None:
        """The student takes what the model took, whatever the size of the batch."""
        wanted, found = (
            {spec.name: (spec.datatype, *spec.shape[1:]) for spec in one.inputs}
            for one in (before, after)
        )
        if wanted != found:
            raise PassError(f"the student takes {found}; expected {wanted}")

    def _pair(self, model: Model, context: Context) -> tuple[Model, Model]:
        """Student and teacher; a factory that draws its weights is seeded."""
        own, source = self.parameters, context.source

        def made(role: str) -> Model:
            assert context.factory is not None, "requires() saw to it"
            with _seeded(context.seed):
                return context.factory(own[role], own[f"{role}_weights"])

        student = made("student") if own["student"] else model
        teacher = made("teacher") if own["teacher"] else source
        assert teacher is not None, "requires() saw to it"
        return student, teacher


class Lesson:
    """One student, whose module is changed, one teacher, whose is not, and a task."""

    def __init__(
        self, student: Model, teacher: Model, own: Mapping[str, Any], task: Task
    ) -> None:
        self._student, self._own, self._task = student, own, task
        self._hints: dict[str, str] = dict(own["hints"])
        names = [spec.name for spec in teacher.inputs]
        self._teacher = Teacher(teacher.payload, names, self._hints.values())
        self._answers = self._teacher.outputs(task.holdout, own["batch"])
        self._kinds: dict[str, Kind] = readings(self._answers, task.holdout.labels)

    def given(self) -> dict[str, Any]:
        """Teach; what was measured on the held-out samples.

        Raises:
            PassError: the hints or the labels do not fit.
        """
        own, task = self._own, self._task
        augment = augmentation(own, task.folder)
        if augment is None:
            self._teacher.remember(task.train, own["batch"], task.progress)
        before = self._judged("before")
        taught = task if own["labels"] and task.train.labels is not None else (
            replace(
                task, train=_unlabelled(task.train), holdout=_unlabelled(task.holdout),
                score=self._closeness,
            )
        )  # fmt: skip
        taps = Taps(self._student.payload, self._hints)
        try:
            trained = train(
                self._student.payload, [spec.name for spec in self._student.inputs],
                taught, LoopOptions.of(own), self._loss(taught, taps),
                augment=augment, name=Distill.verb,
            )  # fmt: skip
        finally:
            taps.close()
        scores = {**before, **self._judged("after")}
        if task.holdout.labels is not None:
            scores["teacher_score"] = self._score(self._answers)
        return {**trained.facts(), **scores}

    def _loss(self, task: Task, taps: Taps) -> Loss:
        """The teacher's part, the labels' part where there are some, and the hints."""
        own, torch = self._own, torch_here()
        labelled = task.train.labels is not None and own["alpha"] < 1
        by_labels = task_loss(own, task) if labelled else None
        share = own["alpha"] if labelled else 1.0
        maps = self._maps(taps)

        def loss(outputs: dict[str, Any], batch: Batch) -> Any:
            told = self._teacher.told(batch.inputs, batch.places)
            total = share * self._soft(outputs, told.outputs)
            if by_labels is not None:
                total = total + (1 - share) * by_labels(outputs, batch)
            if maps:
                total = total + own["hint_weight"] * self._apart(taps, told, maps)
            return total

        if not maps:
            return loss
        # a loss that is a module has its parameters trained by the loop
        learned = torch.nn.ModuleList(maps)
        learned.forward = loss
        found: Loss = learned
        return found

    def _soft(self, outputs: Mapping[str, Any], told: Mapping[str, Any]) -> Any:
        """The teacher's part of the loss: all outputs that are scores or values."""
        paired = dict(zip(told, outputs.values(), strict=True))
        return sum(
            soft_loss(paired[name], told[name], kind, self._own["temperature"])
            for name, kind in self._kinds.items()
        )

    def _apart(self, taps: Taps, told: Answer, maps: list[Any]) -> Any:
        """How far the hinted layers are from the teacher's."""
        return sum(
            hint(taps.take(mine), told.layers[theirs], through)
            for (mine, theirs), through in zip(self._hints.items(), maps, strict=True)
        )

    def _maps(self, taps: Taps) -> list[Any]:
        """What brings each hinted layer to the width of the teacher's.

        Raises:
            PassError: the layers differ in more than their width.
        """
        if not self._hints:
            return []
        module, torch = self._student.payload, torch_here()
        few = self._task.train.take(np.arange(min(2, len(self._task.train))))
        inputs = next(iter(in_batches(few, len(few))))
        told = self._teacher.answer(inputs)
        with torch.no_grad():
            module.to(next(iter(inputs.values())).device)
            module(*(inputs[spec.name] for spec in self._student.inputs))
        with _seeded(self._task.seed):
            return [
                _map(mine, taps.take(mine), theirs, told.layers[theirs])
                for mine, theirs in self._hints.items()
            ]

    def _judged(self, when: str) -> dict[str, float]:
        """The student on the held-out samples: as the metric sees it, and the teacher.

        ``agreement`` is the share of samples with the teacher's answer.
        """
        given = self._outputs()
        name, kind = next(iter(self._kinds.items()))
        same = same_answers(given[name], self._answers[name], kind)
        found = {f"agreement_{when}": float(same.float().mean())}
        if self._task.holdout.labels is not None:
            found[f"score_{when}"] = self._score(given)
        return found

    def _outputs(self) -> dict[str, Any]:
        """The student's outputs for the held-out samples, by the teacher's names."""
        student = Teacher(
            self._student.payload, [spec.name for spec in self._student.inputs]
        )
        given = student.outputs(self._task.holdout, self._own["batch"])
        return dict(zip(self._answers, given.values(), strict=True))

    def _score(self, outputs: Mapping[str, Any]) -> float:
        arrays = {name: tensor.float().numpy() for name, tensor in outputs.items()}
        return float(self._task.score(arrays, self._task.holdout.labels))

    def _closeness(self, outputs: Mapping[str, Array], _labels: Array | None) -> float:
        """What tells the best epoch where there are no labels: the loss, negated."""
        torch = torch_here()
        given = {name: torch.from_numpy(array) for name, array in outputs.items()}
        return -float(self._soft(given, self._answers))


def _unlabelled(samples: Samples) -> Samples:
    return Samples(samples.inputs)


def _map(mine: str, features: Any, theirs: str, wanted: Any) -> Any:
    try:
        return regressor(features, wanted)
    except PassError as error:
        raise PassError(f"hints: {mine!r} = {theirs!r}: {error}") from error


def _check_outputs(student: Model, teacher: Model) -> None:
    """Each output of the student has one of the teacher's to learn from."""

    def shapes(specs: tuple[TensorSpec, ...]) -> list[list[int]]:
        return [list(spec.shape[1:]) for spec in specs]

    if shapes(student.outputs) != shapes(teacher.outputs):
        raise PassError(
            f"the student's outputs are {shapes(student.outputs)} per sample and the "
            f"teacher's {shapes(teacher.outputs)}; expected the same"
        )


def _check_layers(module: Any, layers: Iterable[str], whose: str) -> None:
    known = [name for name, _ in module.named_modules() if name]
    for layer in layers:
        if layer not in known:
            close = difflib.get_close_matches(layer, known, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            more = ", …" if len(known) > LAYERS_SHOWN else ""
            raise PassError(
                f"hints: the {whose} has no layer {layer!r}{meant} (it has "
                f"{', '.join(known[:LAYERS_SHOWN])}{more})"
            )


def _count(module: Any) -> int:
    return sum(one.numel() for one in module.parameters())


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """What draws weights within draws the same ones every time."""
    torch = torch_here()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
