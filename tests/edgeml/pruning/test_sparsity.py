"""Single weights that become zero."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from edgeml.pruning import sparsity  # noqa: E402


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


def scores(module: nn.Module) -> dict:
    weights = sparsity.weights_of(module, ())
    return {name: one.detach().abs() for name, one in weights.items()}


def test_the_smallest_share_becomes_zero() -> None:
    module = net()
    with torch.no_grad():
        module[0].weight.copy_(torch.arange(1, 37.0).reshape(4, 1, 3, 3))
        module[3].weight.copy_(torch.arange(37, 85.0).reshape(3, 16))
    masks = sparsity.masks_of(scores(module), 0.5, {}, "global")
    sparsity.apply(module, masks)
    assert not module[0].weight.any()
    assert sorted(module[3].weight.flatten().tolist())[:7] == [0] * 6 + [43.0]
    assert module[0].bias.all() and module[3].bias.all()


def test_each_layer_its_share_or_its_own() -> None:
    module = net()
    masks = sparsity.masks_of(scores(module), 0.25, {"3": 0.75}, "layer")
    assert int((~masks["0"]).sum()) == 9 and int((~masks["3"]).sum()) == 36


def test_kept_layers_are_no_part_of_it() -> None:
    assert sparsity.weights_of(net(), ["0"]).keys() == {"3"}
    nested = nn.Sequential(net(), nn.Linear(3, 3))
    assert sparsity.weights_of(nested, ["0"]).keys() == {"1"}


def test_equal_weights_go_in_order() -> None:
    one = {"a": torch.ones(1000)}
    masks = sparsity.masks_of(one, 0.3, {}, "layer")["a"]
    assert not masks[:300].any() and masks[300:].all()
