"""Losses: which one for which labels, and their values against the formulas."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import learning  # noqa: E402

from edgeml.errors import PassError  # noqa: E402
from edgeml.training.batches import Batch  # noqa: E402
from edgeml.training.losses import (  # noqa: E402
    distillation,
    hint,
    regressor,
    task_loss,
)
from edgeml.training.task import Samples, numbered  # noqa: E402

functional = torch.nn.functional


def labelled(labels, count=2):
    """A task with these labels."""
    samples = Samples({"x": np.zeros((count, 1), np.float32)}, labels)
    return replace(learning.task(), train=samples)


def loss_of(labels, output):
    """The default loss of all samples in one batch."""
    task = labelled(labels, len(output))
    known = numbered(task.train).labels
    kind = torch.float32 if known.dtype.kind == "f" else torch.int64
    batch = Batch({}, torch.tensor(known.tolist(), dtype=kind), np.arange(len(output)))
    return task_loss({"loss": ""}, task)({"first": output, "other": output * 0}, batch)


LOGITS = torch.tensor([[1.0, 2.0, -1.0], [0.5, 0.0, 3.0]])
WANTED = functional.cross_entropy(LOGITS, torch.tensor([1, 2]))


@pytest.mark.parametrize(
    "labels",
    [np.array([1, 2]), np.array([1.0, 2.0]), np.array([1, 2], np.uint8)],
    ids=["int", "whole floats", "bytes"],
)
@pytest.mark.parametrize(
    "output",
    [LOGITS, LOGITS.softmax(1), LOGITS[:, :, None, None], LOGITS.double()],
    ids=["logits", "softmax", "unit dimensions", "double"],
)
def test_classes_have_cross_entropy(labels, output):
    assert torch.allclose(loss_of(labels, output), WANTED)


def test_text_is_numbered_by_name():
    labels = np.array(["cat", "ant", "bee"])
    output = torch.randn(3, 3)
    wanted = functional.cross_entropy(output, torch.tensor([2, 0, 1]))
    assert torch.allclose(loss_of(labels, output), wanted)


@pytest.mark.parametrize("labels", [np.array([0, 1]), np.array(["no", "yes"])])
@pytest.mark.parametrize("shape", [(2,), (2, 1), (2, 1, 1)])
def test_yes_and_no_have_binary_cross_entropy(labels, shape):
    logits = torch.tensor([-1.5, 2.0])
    wanted = functional.binary_cross_entropy_with_logits(logits, torch.tensor([0.0, 1]))
    assert torch.allclose(loss_of(labels, logits.reshape(shape)), wanted)
    assert torch.allclose(loss_of(labels, logits.sigmoid().reshape(shape)), wanted)


@pytest.mark.parametrize(
    ("labels", "output"),
    [
        (np.array([0.5, 2.0]), torch.tensor([1.0, 1.0])),
        (np.array([0.5, 2.0]), torch.tensor([[1.0], [1.0]])),
        (np.array([3, 7]), torch.tensor([1.0, 1.0])),
        (np.array([[0.5, 1], [2.0, 1]]), torch.ones(2, 2)),
    ],
)
def test_numbers_have_squared_error(labels, output):
    flat = output.numpy().reshape(labels.shape)
    assert loss_of(labels, output) == pytest.approx(((flat - labels) ** 2).mean())


def test_a_softmax_that_is_sure_of_the_wrong_class_stays_finite():
    output = torch.tensor([[1.0, 0.0]], requires_grad=True)
    loss_of(np.array([1]), output).backward()
    assert torch.isfinite(output.grad).all()


@pytest.mark.parametrize(
    ("labels", "output", "message"),
    [
        (np.array([0, 3]), torch.zeros(2, 3), "labels have 4 classes and .* scores 3"),
        (np.array(["a", "b"]), torch.zeros(2, 3), "labels have 2 classes and .* 3"),
        (np.array([0.5, 1.5]), torch.zeros(2, 3), "have no loss by themselves; give"),
        (np.array([1, 0]), torch.zeros(2, 3, 4), r"output of shape \[2, 3, 4\] have"),
        (np.array(["a", "b", "c"]), torch.zeros(3), "have no loss by themselves"),
    ],
)
def test_labels_and_outputs_that_do_not_fit(labels, output, message):
    with pytest.raises(PassError, match=message):
        loss_of(labels, output)


def test_without_labels_there_must_be_a_loss():
    with pytest.raises(PassError, match="have no labels; name their key or column"):
        task_loss({"loss": ""}, labelled(None))


def test_distillation_is_hintons():
    student, teacher = torch.randn(4, 5), torch.randn(4, 5)
    soft = functional.kl_div(
        (student / 3).log_softmax(1), (teacher / 3).softmax(1), reduction="batchmean"
    )
    assert torch.allclose(distillation(student, teacher, 3.0), soft * 9)
    assert torch.allclose(
        distillation(student.softmax(1), teacher.softmax(1), 3.0), soft * 9, atol=1e-5
    )
    assert distillation(teacher, teacher, 3.0).abs() < 1e-6


def test_a_teacher_gets_no_gradient():
    student, teacher = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    distillation(student, teacher, 2.0).backward()
    assert student.grad is not None and teacher.grad is None


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((2, 4, 5, 5), (2, 8, 5, 5), "Conv2d"),
        ((2, 7, 4), (2, 7, 8), "Linear"),
        ((2, 4), (2, 8), "Linear"),
        ((2, 4, 5, 5), (2, 4, 5, 5), "Identity"),
    ],
)
def test_hints_bring_the_width_to_the_teachers(student, teacher, kind):
    mine, theirs = torch.randn(student), torch.randn(teacher)
    regress = regressor(mine, theirs)
    assert type(regress).__name__ == kind
    found = hint(mine, theirs, regress)
    assert torch.allclose(found, ((regress(mine) - theirs) ** 2).mean())


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 4, 5, 5), (2, 8, 3, 3)), ((2, 4), (2, 4, 5))]
)
def test_hints_of_other_shapes_are_refused(student, teacher):
    with pytest.raises(PassError, match="that differ in width alone"):
        regressor(torch.randn(student), torch.randn(teacher))
