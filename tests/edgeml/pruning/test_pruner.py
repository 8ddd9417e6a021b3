"""What is asked for, what is done, and what is said of the rest."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import kinds  # noqa: E402

from device_agent.contract.tensors import TensorSpec  # noqa: E402
from edgeml.errors import PassError  # noqa: E402
from edgeml.pruning.cutting import widths  # noqa: E402
from edgeml.pruning.pruner import Order, Pruner, example_of  # noqa: E402

X = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def pruned(kind: str, **order: object) -> Pruner:
    pruner = Pruner(kinds.ALL[kind](), (X,), Order(**order))
    pruner.round(1.0)
    return pruner


def test_channels_before_and_after() -> None:
    pruner = pruned("residual", ratio=0.5, scope="layer")
    assert pruner.changed()["blocks.2.first.0"] == [64, 32]
    assert pruner.unchanged().keys() == {"head"}


def test_what_is_kept_is_not_touched() -> None:
    before = kinds.residual().blocks[1].second[0].weight
    pruner = pruned("residual", ratio=0.5, keep=["blocks.1.second"])
    after = pruner.module.blocks[1].second[0].weight
    assert torch.equal(before, after)
    reasons = pruner.unchanged()
    assert reasons["blocks.1.first.0"] == "blocks.1.second.0 is kept"
    assert reasons["blocks.2.second.0"] == "blocks.1.second.0 is kept"
    assert "blocks.2.first.0" in pruner.changed()


def test_a_layers_own_ratio() -> None:
    pruner = pruned("transformer", ratio=0.0, ratios={"layers.1.attention": 0.5})
    assert pruner.changed() == {
        "layers.1.attention": [4, 2], "layers.1.attention.q": [64, 32],
        "layers.1.attention.k": [64, 32], "layers.1.attention.v": [64, 32],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("ratios", "reason"),
    [
        ({"head": 0.5}, "head cannot be pruned: no layer reads its channels"),
        ({"stem.1": 0.5}, "stem.1 cannot be pruned: it makes no channels of its own"),
        ({"stem.0": 0.5, "blocks.0.second.0": 0.3},
         "stem.0 and blocks.0.second.0 lose the same channels"),
        ({"blocks.0.frist": 0.5}, "no layer 'blocks.0.frist'; did you mean"),
    ],
)  # fmt: skip
def test_a_ratio_that_cannot_be(ratios: dict, reason: str) -> None:
    with pytest.raises(PassError, match=reason):
        pruned("residual", ratio=0.5, ratios=ratios)


def test_an_unknown_layer_is_not_kept() -> None:
    with pytest.raises(PassError, match="keep: the model has no layer 'stam'; did you"):
        pruned("residual", ratio=0.5, keep=["stam"])


def test_nothing_can_go_and_why() -> None:
    pruner = pruned("plain", ratio=0.5, multiple=128)
    with pytest.raises(
        PassError, match=r"features\.0\.0: it has 32 channels, and what s"
    ):
        pruner.check()
    small = pruned("plain", ratio=0.01)
    with pytest.raises(PassError, match=r"a share of 0\.01 is less than half of 16"):
        small.check()
    pruned("plain", ratio=0.0).check()
    bare = Pruner(torch.nn.ReLU(), (X,), Order(0.5))
    bare.round(1.0)
    with pytest.raises(PassError, match="it has no convolution and no linear layer"):
        bare.check()
    linear = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    bare = Pruner(linear, (X,), Order(0.5))
    bare.round(1.0)
    with pytest.raises(PassError, match="1: no layer reads its channels: they are the"):
        bare.check()


def test_bn_scale_has_nothing_to_say_of_a_layer_without() -> None:
    pruner = pruned("plain", ratio=0.5, importance="bn_scale")
    assert "no batch norm" in pruner.unchanged()["hidden"]
    with pytest.raises(PassError, match="hidden cannot be pruned: it has no batch no"):
        pruned("plain", ratio=0.5, ratios={"hidden": 0.5}, importance="bn_scale")


def test_rounds_come_to_the_same_share() -> None:
    pruner = Pruner(kinds.depthwise(), (X,), Order(0.5, scope="layer"))
    for part in (0.25, 0.5, 0.75, 1.0):
        pruner.round(part)
        pruner.module(X)
    once = pruned("depthwise", ratio=0.5, scope="layer")
    assert widths(pruner.module) == widths(once.module)


def test_weights_that_are_not_finite_are_refused() -> None:
    module = kinds.plain()
    with torch.no_grad():
        module.hidden.weight[0, 0] = torch.nan
    with pytest.raises(PassError, match="its weights or gradients are not finite"):
        Pruner(module, (X,), Order(0.5)).round(1.0)


def test_examples_fit_their_inputs() -> None:
    specs = (
        TensorSpec(name="x", datatype="FP32", shape=(-1, 3)),
        TensorSpec(name="n", datatype="INT64", shape=(2, -1)),
    )
    x, n = example_of(specs)
    assert x.shape == (1, 3) and x.dtype == torch.float32 and x.any()
    assert n.shape == (2, 1) and n.dtype == torch.int64 and not n.any()
    assert torch.equal(x, example_of(specs)[0])
