"""The user's own loss and augmentation: used as they are, refused by name."""

import pytest

torch = pytest.importorskip("torch")

import learning  # noqa: E402

from edgeml.errors import PassError  # noqa: E402
from edgeml.training.hooks import augmentation, hook, own_loss  # noqa: E402
from edgeml.training.loop import Batch, train  # noqa: E402
from edgeml.training.losses import task_loss  # noqa: E402

CODE = """
import torch

def smooth(outputs, labels):
    return torch.nn.functional.cross_entropy(
        outputs["output"], labels, label_smoothing=0.1
    )

def flip(inputs, generator):
    picked = torch.rand(len(inputs["x"]), generator=generator) < 0.5
    x = inputs["x"].clone()
    x[picked] = x[picked].flip(-1)
    return {"x": x}

def constant(outputs, labels): return torch.zeros(())
def vector(outputs, labels): return outputs["output"].sum(1)
def number(outputs, labels): return 0.5
def raises(*given): raise ValueError("no\\nway")
def nothing(inputs, generator): return None
def cropped(inputs, generator): return {"x": inputs["x"][..., :3]}
def renamed(inputs, generator): return {"y": inputs["x"]}
def listed(inputs, generator): return {"x": inputs["x"].tolist()}
kept = 3
"""


@pytest.fixture(autouse=True)
def own_code(tmp_path):
    (tmp_path / "my_hooks.py").write_text(CODE)
    (tmp_path / "my_broken.py").write_text("raise RuntimeError('broken')")


def batch():
    return Batch({}, torch.tensor([0, 2]), [0, 1])


def outputs():
    return {"output": torch.randn(2, 3, requires_grad=True)}


def test_hooks_train(tmp_path):
    task = learning.task()
    parameters = {"loss": "my_hooks:smooth", "augment": "my_hooks:flip"}
    found = []
    for _ in range(2):
        module = learning.net()
        trained = train(
            module, ["x"], task, learning.options(epochs=8),
            task_loss(parameters, task, tmp_path),
            augment=augmentation(parameters, tmp_path),
        )  # fmt: skip
        found.append(learning.fingerprint(module))
    assert found[0] == found[1]
    assert trained.score > trained.score_before


def test_the_loss_is_the_users(tmp_path):
    given = outputs()
    found = own_loss("my_hooks:smooth", tmp_path)(given, batch())
    wanted = torch.nn.functional.cross_entropy(
        given["output"], torch.tensor([0, 2]), label_smoothing=0.1
    )
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("constant", "gave a number that does not depend on the weights"),
        ("vector", r"gave a Tensor of shape \[2\]; expected a tensor of one number"),
        ("number", "gave a float; expected a tensor of one number"),
        ("raises", "raised ValueError: no way$"),
    ],
)
def test_losses_that_are_none(tmp_path, name, message):
    with pytest.raises(PassError, match=f"loss my_hooks:{name} {message}"):
        own_loss(f"my_hooks:{name}", tmp_path)(outputs(), batch())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised ValueError: no way$"),
        ("nothing", "gave a NoneType; expected the inputs by name"),
        ("cropped", r"gave the shapes \{'x': \(2, 1, 6, 3\)\}; expected .* 6, 6\)"),
        ("renamed", "gave the shapes .'y'.*; expected .'x'"),
        ("listed", "gave the shapes .'x': \\(\\).; expected"),
    ],
)
def test_augmentations_that_are_none(tmp_path, name, message):
    augment = augmentation({"augment": f"my_hooks:{name}"}, tmp_path)
    with pytest.raises(PassError, match=f"augment my_hooks:{name} {message}"):
        augment({"x": torch.zeros(2, 1, 6, 6)}, torch.Generator())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("my_hooks:absent", "loss my_hooks:absent cannot be loaded: AttributeError"),
        ("my_absent:x", "cannot be loaded: ModuleNotFoundError: No module named"),
        ("my_broken:x", "cannot be loaded: RuntimeError: broken"),
        ("my_hooks:kept", "loss my_hooks:kept is a int, no function"),
    ],
)
def test_hooks_that_are_not_there(tmp_path, source, message):
    with pytest.raises(PassError, match=message):
        hook(source, tmp_path, "loss")


def test_no_augmentation_is_none(tmp_path):
    assert augmentation({"augment": ""}, tmp_path) is None
