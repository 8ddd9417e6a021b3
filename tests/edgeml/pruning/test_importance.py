"""What a channel's score says: the useless score least."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import kinds  # noqa: E402

from edgeml.pruning.cutting import mask  # noqa: E402
from edgeml.pruning.groups import find  # noqa: E402
from edgeml.pruning.importance import magnitude, norm_scale, taylor  # noqa: E402
from edgeml.pruning.proof import proved  # noqa: E402

X = torch.randn(64, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def groups_of(module: torch.nn.Module) -> list:
    return proved(module, (X[:1],), find(module, (X[:1],))).groups


@pytest.mark.parametrize("power", [1, 2])
def test_small_weights_matter_least(power: int) -> None:
    module = kinds.residual()
    with torch.no_grad():
        module.blocks[0].first[0].weight[[3, 7]] *= 1e-3
        module.blocks[0].second[0].weight[:, [3, 7]] *= 1e-3
    scores = magnitude(module, groups_of(module), power)["blocks.0.first.0"]
    assert set(np.argsort(scores)[:2]) == {3, 7}
    assert scores.mean() == pytest.approx(1)


def test_norms_are_those_of_the_definition() -> None:
    module = kinds.plain()
    groups = groups_of(module)
    hidden, head = module.hidden.weight.detach(), module.head.weight.detach()
    for power in (1, 2):
        made, read = hidden.norm(power, dim=1), head.norm(power, dim=0)
        wanted = made * read / (made * read).mean()
        found = magnitude(module, groups, power)["hidden"]
        np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5)


def test_weights_before_a_batch_norm_say_nothing() -> None:
    module = kinds.residual()
    groups = groups_of(module)
    before = magnitude(module, groups, 2)["blocks.0.first.0"]
    with torch.no_grad():
        module.blocks[0].first[0].weight[3] *= 1e-3
    after = magnitude(module, groups, 2)["blocks.0.first.0"]
    np.testing.assert_array_equal(before, after)
    with torch.no_grad():
        module.blocks[0].first[1].weight[3] *= 1e-3
    assert magnitude(module, groups, 2)["blocks.0.first.0"].argmin() == 3


def test_a_flattened_channel_sums_its_nine_numbers() -> None:
    module = kinds.plain()
    groups = groups_of(module)
    with torch.no_grad():
        module.hidden.weight[:, 45:54] = 0
        module.features[6][0].weight[5] = 0
    assert magnitude(module, groups, 2)["features.6.0"].argmin() == 5


def test_a_batch_norms_scale() -> None:
    module = kinds.plain()
    groups = groups_of(module)
    with torch.no_grad():
        module.features[2][1].weight.copy_(torch.arange(64.0) - 32)
    scores, without = norm_scale(module, groups)
    assert without == ["hidden"]
    np.testing.assert_allclose(
        scores["features.2.0"], np.abs(np.arange(64) - 32) / 16, rtol=1e-6
    )


def test_taylor_tells_the_change_of_the_loss() -> None:
    module = kinds.transformer()
    groups = groups_of(module)
    module.double()
    labels = torch.arange(64) % 10
    with torch.no_grad():  # first order: exact where a channel does little
        module.layers[1].attention.out.weight *= 1e-3
        module.layers[2].mlp[2].weight *= 1e-3

    def loss(one: torch.nn.Module) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(one(X.double()), labels)

    def backward() -> object:
        loss(module).backward()
        yield

    scores = taylor(module, groups, backward())
    with torch.no_grad():
        before = loss(module).item()
        for name in ("layers.1.attention", "layers.2.mlp.0"):
            real = []
            for channel in range(4):
                without = copy.deepcopy(module)
                mask(without, groups, {name: [channel]})
                real.append((loss(without).item() - before) ** 2)
            np.testing.assert_allclose(scores[name][:4], real, rtol=0.02)


def test_heads_are_ranked() -> None:
    module = kinds.encoder()
    groups = groups_of(module)
    with torch.no_grad():
        module.layers[0].self_attn.in_proj_weight[16:32] *= 0.01
        module.layers[0].self_attn.out_proj.weight[:, 16:32] *= 0.01
    assert magnitude(module, groups, 2)["layers.0.self_attn"].argmin() == 1
