"""Distillation on scikit-learn's digits: what it learns, from what, and refusals."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from device_agent.contract.tensors import TensorSpec  # noqa: E402
from edgeml.errors import PassError  # noqa: E402
from edgeml.intake.importer import load_model  # noqa: E402
from edgeml.model import Model, Step  # noqa: E402
from edgeml.passes import load_pass  # noqa: E402
from edgeml.passes.base import Context, digest  # noqa: E402
from edgeml.training.task import Samples, Task  # noqa: E402
from edgeml.training.teacher import (  # noqa: E402
    Teacher,
    readings,
    same_answers,
    soft_loss,
)

FEW = 150
FACTORIES = """
import torch
from torch import nn

def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))

def three():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
"""


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def as_model(module: Any, shape: tuple[int, ...] = (1, 8, 8), out: int = 10) -> Model:
    return Model(
        level="module",
        payload=module.eval(),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1, *shape)),),
        outputs=(TensorSpec(name="output", datatype="FP32", shape=(1, out)),),
        lineage=(Step("load", {}),),
    )


def mlp(hidden: int, seed: int = 0, *tail: Any) -> Any:
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, hidden), nn.ReLU(), nn.Linear(hidden, 10), *tail
    )


def convolutional(width: int, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    nn = torch.nn
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(64 * width, 10),
    )  # fmt: skip


def top1(outputs: Mapping[str, Any], labels: Any) -> float:
    return float((next(iter(outputs.values())).argmax(1) == labels).mean())


@cache
def digits() -> tuple[Samples, Samples]:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    order = np.random.default_rng(0).permutation(len(images))
    train, held = order[:1300], order[1300:]
    return (
        Samples({"x": images[train]}, labels[train]),
        Samples({"x": images[held]}, labels[held]),
    )


def task(train: Samples | None = None, **more: Any) -> Task:
    full, held = digits()
    return Task(train or full, held, top1, Path(), **more)


def unlabelled(samples: Samples) -> Samples:
    return Samples(samples.inputs)


def few() -> Samples:
    return digits()[0].take(np.arange(FEW))


@cache
def teacher() -> Model:
    """Has seen all labels."""
    torch.set_num_threads(1)
    own = {"epochs": 15, "batch": 64, "learning_rate": 5e-3}
    return load_pass("train", own)(as_model(mlp(128)), Context(task=task()))


def distilled(model: Model, context: Context, **own: Any) -> Model:
    return load_pass("distill", {"epochs": 10, "batch": 64, **own})(model, context)


def judged(model: Model) -> float:
    held = digits()[1]
    with torch.no_grad():
        output = model.payload(torch.from_numpy(held.inputs["x"]))
    return top1({"output": output.numpy()}, held.labels)


def facts(model: Model) -> dict[str, Any]:
    return model.lineage[-1].parameters


# --- the loss --------------------------------------------------------------------


def softmax(scores: np.ndarray) -> np.ndarray:
    powers = np.exp(scores - scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def hinton(student: np.ndarray, teacher: np.ndarray, temperature: float) -> float:
    """T² KL(teacher || student) of the softened answers, written out."""
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    return float(temperature**2 * (p * (np.log(p) - np.log(q))).sum(1).mean())


def made(shape: tuple[int, ...], seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, shape)


def loss_of(student: np.ndarray, teacher: np.ndarray, kind: str, t: float) -> float:
    given = [torch.from_numpy(one.astype(np.float32)) for one in (student, teacher)]
    return float(soft_loss(*given, kind, t))


@pytest.mark.parametrize("temperature", [1.0, 4.0, 20.0])
def test_the_loss_is_hintons(temperature: float) -> None:
    student, wanted = made((6, 5), 1), made((6, 5), 2)
    expected = hinton(student, wanted, temperature)
    assert loss_of(student, wanted, "logits", temperature) == pytest.approx(
        expected, rel=1e-4
    )
    # a softmax inside the model: its logarithms are logits
    soft = softmax(student), softmax(wanted)
    assert loss_of(*soft, "probabilities", temperature) == pytest.approx(
        expected, rel=1e-3
    )


def test_a_single_probability_is_two_classes() -> None:
    student, wanted = (softmax(made((6, 2), seed)) for seed in (1, 2))
    expected = hinton(np.log(student), np.log(wanted), 4.0)
    found = loss_of(student[:, 1:], wanted[:, 1:], "probability", 4.0)
    assert found == pytest.approx(expected, rel=1e-3)


def test_values_are_compared_by_their_square() -> None:
    student, wanted = made((6, 1), 1), made((6, 1), 2)
    for kind in ("values", "tensor"):
        assert loss_of(student, wanted, kind, 4.0) == pytest.approx(
            ((student - wanted) ** 2).mean(), rel=1e-5
        )


def test_how_outputs_are_read() -> None:
    outputs = {
        "scores": torch.from_numpy(made((6, 4), 0)),
        "soft": torch.from_numpy(softmax(made((6, 4), 0))),
        "answer": torch.arange(6),
    }
    assert readings(outputs, None) == {"scores": "logits", "soft": "probabilities"}
    classes = np.arange(6.0)
    assert readings(outputs, classes)["scores"] == "logits"
    for quantities in (classes + 0.5, np.zeros((6, 4))):
        assert readings(outputs, quantities)["scores"] == "tensor"
    with pytest.raises(PassError, match="classes and no scores"):
        readings({"answer": torch.arange(6)}, None)


def test_same_values_are_within_a_twentieth_of_the_deviation() -> None:
    wanted = torch.tensor([[0.0], [2.0]])
    deviation = float(wanted.std())
    found = same_answers(wanted + 0.04 * deviation, wanted, "values")
    assert found.tolist() == [True, True]
    assert not same_answers(wanted + 0.06 * deviation, wanted, "values").any()


# --- what it learns --------------------------------------------------------------


@pytest.mark.long
def test_unlabelled_samples_teach_more_than_a_few_labels() -> None:
    own = {"batch": 64, "learning_rate": 1e-2}  # and 400 steps for both
    alone = load_pass("train", {**own, "epochs": 200})(
        as_model(mlp(24)), Context(task=task(few()))
    )
    context = Context(task=task(unlabelled(digits()[0])), source=teacher())
    taught = distilled(as_model(mlp(24)), context, **own, epochs=20)
    told = facts(taught)
    assert facts(alone)["steps"] == told["steps"] == 400
    assert judged(taught) >= judged(alone) + 0.02
    assert judged(taught) >= judged(teacher()) - 0.02
    assert told["agreement_after"] > told["agreement_before"]
    assert told["score_after"] == pytest.approx(judged(taught))
    assert told["teacher_score"] == pytest.approx(judged(teacher()))
    assert told["student_params"] == 24 * 65 + 25 * 10
    assert told["teacher_params"] == 128 * 65 + 129 * 10


def test_labels_that_must_not_be_used_change_nothing() -> None:
    train = digits()[0]
    wrong = replace(train, labels=(train.labels + 1) % 10)
    kept = [
        distilled(
            as_model(mlp(24)), Context(task=task(samples), source=teacher()),
            labels=False, epochs=2,
        )
        for samples in (wrong, unlabelled(train))
    ]  # fmt: skip
    assert digest(kept[0]) == digest(kept[1])
    astray = distilled(
        as_model(mlp(24)), Context(task=task(wrong), source=teacher()),
        epochs=2, alpha=0.0,
    )  # fmt: skip
    assert digest(astray) != digest(kept[0])


def test_a_regression_learns_the_teachers_values() -> None:
    images = digits()[0].inputs["x"]
    ink = images.mean((1, 2, 3), keepdims=True).reshape(-1, 1)
    torch.manual_seed(0)
    nn = torch.nn
    wanted = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with torch.no_grad():
        wanted[1].weight.fill_(1 / 64)
        wanted[1].bias.zero_()
    narrow = nn.Sequential(nn.Flatten(), nn.Linear(64, 2), nn.Linear(2, 1))
    context = Context(
        task=Task(
            Samples({"x": images[:1000]}),
            Samples({"x": images[1000:]}, ink[1000:, 0]),
            lambda outputs, labels: (
                -float(np.abs(outputs["output"][:, 0] - labels).mean())
            ),
            Path(),
        ),
        source=as_model(wanted, out=1),
    )
    after = distilled(as_model(narrow, out=1), context, learning_rate=1e-2)
    told = facts(after)
    assert told["score_after"] > 0.2 * told["score_before"]
    assert told["agreement_after"] > told["agreement_before"]


def test_a_factory_makes_the_student(tmp_path: Path) -> None:
    (tmp_path / "students.py").write_text(FACTORIES)

    def factory(source: str, weights: str) -> Model:
        return load_model(source, weights or None, tmp_path, {"x": [1, 1, 8, 8]})

    context = Context(task=task(), source=teacher(), factory=factory)
    own = {"student": "students:narrow", "epochs": 2}
    one, two = (distilled(teacher(), context, **own) for _ in range(2))
    assert digest(one) == digest(two)
    assert facts(one)["student"] == "students:narrow"
    assert facts(one)["student_params"] == 24 * 65 + 25 * 10
    with pytest.raises(PassError, match=r"outputs are \[\[3\]\] per sample"):
        distilled(teacher(), context, student="students:three")


def test_a_student_that_takes_other_inputs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "students.py").write_text(FACTORIES)
    shapes = {"x": [1, 4, 16]}
    context = Context(
        source=teacher(),
        factory=lambda source, _: load_model(source, None, tmp_path, shapes),
    )
    with pytest.raises(PassError, match=r"the student takes .*4, 16.*; expected"):
        distilled(teacher(), context, student="students:narrow", epochs=0)


# --- hints -----------------------------------------------------------------------


@cache
def hinted(weight: float, wide: bool) -> tuple[Model, float]:
    """A student after hints, and how far its layer is from the teacher's."""
    source = as_model(convolutional(8, seed=3))
    student = as_model(convolutional(8 if wide else 4, seed=4))
    context = Context(task=task(), source=source)
    after = distilled(
        student, context, hints={"0": "0"}, hint_weight=weight, epochs=5,
        learning_rate=1e-2,
    )  # fmt: skip
    x = torch.from_numpy(digits()[1].inputs["x"])
    with torch.no_grad():
        mine, theirs = (
            one.payload[0](x).movedim(1, -1).flatten(0, -2).numpy()
            for one in (after, source)
        )
    if not wide:  # the best map there is
        mine = np.hstack([mine, np.ones((len(mine), 1))])
        mine = mine @ np.linalg.lstsq(mine, theirs, rcond=None)[0]
    return after, float(((mine - theirs) ** 2).mean())


@pytest.mark.parametrize("wide", [True, False])
def test_hints_bring_layers_together(wide: bool) -> None:
    (_, without), (after, with_hints) = hinted(0.0, wide), hinted(100.0, wide)
    assert with_hints < (0.1 if wide else 0.75) * without
    # only the network itself is left: no map, no hook
    fresh = convolutional(8 if wide else 4)
    assert after.payload.state_dict().keys() == fresh.state_dict().keys()
    for part in after.payload.modules():
        assert not part._forward_hooks
    assert not after.payload.training


def test_hints_leave_the_teacher_without_hooks() -> None:
    source = as_model(convolutional(8))
    before = digest(source)
    distilled(
        as_model(convolutional(4)), Context(task=task(few()), source=source),
        hints={"1": "1"}, epochs=1,
    )  # fmt: skip
    assert digest(source) == before
    assert not any(part._forward_hooks for part in source.payload.modules())


# --- promises --------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_nothing_else_changes() -> None:
    student = as_model(mlp(24))
    before, state = digest(student), torch.get_rng_state()
    own = {"hints": {"1": "1"}, "epochs": 2}
    one, two, other = (
        distilled(student, Context(task=task(seed=seed), source=teacher()), **own)
        for seed in (0, 0, 1)
    )
    assert digest(one) == digest(two) != digest(other)
    assert one.lineage == two.lineage
    assert digest(student) == before
    assert torch.equal(torch.get_rng_state(), state)


def test_augmented_batches_are_answered_anew(tmp_path: Path) -> None:
    (tmp_path / "flips.py").write_text(
        "def flipped(inputs, generator):\n"
        "    return {name: one.flip(-1) for name, one in inputs.items()}\n"
    )
    train = digits()[0]
    upside = Samples({"x": train.inputs["x"][..., ::-1].copy()}, train.labels)
    augmented = Context(
        task=replace(task(), folder=tmp_path), source=teacher()
    )  # fmt: skip
    plain = Context(task=task(upside), source=teacher())
    own = {"epochs": 2, "labels": False}
    one = distilled(as_model(mlp(24)), augmented, augment="flips:flipped", **own)
    two = distilled(as_model(mlp(24)), plain, **own)
    for mine, theirs in zip(
        one.payload.parameters(), two.payload.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_what_is_too_large_to_remember_is_answered_anew(monkeypatch) -> None:
    context = Context(task=task(few()), source=teacher())
    remembered = distilled(as_model(mlp(24)), context, epochs=2)
    monkeypatch.setattr("edgeml.training.teacher.REMEMBERED_BYTES_MAX", 10)
    anew = distilled(as_model(mlp(24)), context, epochs=2)
    for mine, theirs in zip(
        remembered.payload.parameters(), anew.payload.parameters(), strict=True
    ):
        assert torch.allclose(mine, theirs, atol=1e-5)


def test_remembered_answers_are_those_of_the_samples() -> None:
    from edgeml.progress import Silent

    samples = few()
    one = Teacher(teacher().payload, ["x"], ["1"])
    places = np.array([140, 3, 77])
    inputs = {"x": torch.from_numpy(samples.inputs["x"][places])}
    anew = one.told(inputs, places)
    one.remember(samples, 64, Silent())
    again = one.told(inputs, places)
    assert torch.allclose(anew.outputs["output"], again.outputs["output"], atol=1e-6)
    assert torch.allclose(anew.layers["1"], again.layers["1"], atol=1e-6)


def test_without_epochs_nothing_is_learned() -> None:
    student = as_model(mlp(24))
    after = distilled(student, Context(source=teacher()), epochs=0)
    assert after.lineage[-1].verb == "distill"
    assert digest(after) == digest(student)


# --- refusals --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        ({"student_weights": "w.safetensors"}, "student_weights go with student ="),
        ({"teacher_weights": "w.safetensors"}, "teacher_weights go with teacher ="),
        ({"teacher": "networks:big"}, "there is no recipe to find it"),
        ({"loss": "m:f", "labels": False}, "loss is for the labels, and labels = f"),
        ({"hints": {"4": "1"}}, r"the student has no layer '4' \(it has 0, 1, 2, 3\)"),
        ({"hints": {"1": "linear"}}, "the teacher has no layer 'linear'"),
        ({"hints": {"0": "1"}}, None),
        ({"hints": {"": "1"}}, "the student has no layer ''"),
    ],
    ids=str,
)
def test_refusals(own: dict[str, Any], reason: str | None) -> None:
    context = Context(task=task(few()), source=teacher())
    if reason is None:  # a map of widths there may be
        distilled(as_model(mlp(24)), context, epochs=1, **own)
        return
    with pytest.raises(PassError, match=reason):
        distilled(as_model(mlp(24)), context, **own)


def test_hints_of_other_shapes_are_refused() -> None:
    nn = torch.nn
    torch.manual_seed(0)
    strided = nn.Sequential(
        nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 10)
    )
    context = Context(task=task(few()), source=as_model(convolutional(8)))
    with pytest.raises(PassError, match=r"hints: '0' = '0': .* differ in width alone"):
        distilled(as_model(strided), context, hints={"0": "0"})


def test_a_layer_that_is_not_called_is_refused() -> None:
    student = mlp(24)
    student[1].spare = torch.nn.Linear(2, 2)
    context = Context(task=task(few()), source=teacher())
    with pytest.raises(PassError, match=r"'1.spare' is not called in the forward"):
        distilled(as_model(student), context, hints={"1.spare": "1"})


def test_a_teacher_there_must_be_and_not_the_student() -> None:
    student = as_model(mlp(24))
    with pytest.raises(PassError, match="there is no teacher"):
        distilled(student, Context(task=task()))
    with pytest.raises(PassError, match="teacher and student are the same network"):
        distilled(student, Context(task=task(), source=student))
    with pytest.raises(PassError, match="there are no training samples"):
        distilled(student, Context(source=teacher()))
