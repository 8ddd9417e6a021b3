"""A pruned or trained module as bytes, and made again from them: the very same."""

import copy
import json
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import kinds  # noqa: E402
from torch import nn  # noqa: E402

from edgeml.errors import ModelError  # noqa: E402
from edgeml.intake.state import packed, unpacked  # noqa: E402
from edgeml.model import Model, Step  # noqa: E402
from edgeml.passes import load_pass  # noqa: E402
from edgeml.passes.base import digest  # noqa: E402

X = torch.randn(1, 1, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pruned(model: Model, ratio: float) -> Model:
    given = {"ratio": ratio, "epochs": 0, "channel_multiple": 4}
    return load_pass("prune", given)(model)


def outputs(model: Model) -> list:
    given = model.payload(X)
    return list(given.values()) if isinstance(given, dict) else [given]


def same(one: Model, other: Model) -> None:
    assert digest(one) == digest(other)
    assert (one.inputs, one.outputs, one.lineage) == (
        other.inputs, other.outputs, other.lineage,
    )  # fmt: skip
    for left, right in zip(outputs(one), outputs(other), strict=True):
        assert torch.equal(left, right)
    assert not other.payload.training


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=pytest.mark.long) if kind == "transformer" else kind
        for kind in kinds.ALL
    ],
)
@pytest.mark.parametrize(
    "ratio", [0.6, *(pytest.param(r, marks=pytest.mark.long) for r in (0.0, 0.3, 0.9))]
)
def test_a_pruned_network_is_restored_exactly(kind: str, ratio: float) -> None:
    fresh = kinds.ALL[kind]
    after = pruned(kinds.network(kind), ratio)
    raw = packed(after, fresh())
    again = unpacked(raw, lambda _: fresh())
    same(after, again)
    assert packed(again, fresh()) == raw
    if kind == "transformer" and ratio == 0.6:
        graphs = [load_pass("export")(model) for model in (after, again)]
        assert digest(graphs[0]) == digest(graphs[1])


@pytest.mark.parametrize(
    "kind",
    [
        "residual",
        *(
            pytest.param(kind, marks=pytest.mark.long)
            for kind in kinds.ALL
            if kind != "residual"
        ),
    ],
)
def test_one_that_came_as_onnx_too(kind: str) -> None:
    from edgeml.graphs.torched import module_of

    graph = load_pass("export")(kinds.network(kind))
    after = pruned(module_of(graph), 0.6)
    raw = packed(after, module_of(graph).payload)
    again = unpacked(raw, lambda _: module_of(graph).payload)
    same(after, again)
    assert packed(again, module_of(graph).payload) == raw


def test_a_restored_network_learns_like_the_first() -> None:
    after = pruned(kinds.network("residual"), 0.6)
    again = unpacked(packed(after, kinds.residual()), lambda _: kinds.residual())
    for model in (after, again):
        model.payload.train()
        optimizer = torch.optim.SGD(model.payload.parameters(), 0.1)
        model.payload(X.expand(4, -1, -1, -1)).square().sum().backward()
        optimizer.step()
    assert digest(after) == digest(again)


def test_frozen_stays_frozen_and_tied_stays_tied() -> None:
    def fresh() -> nn.Module:
        module = nn.Sequential(
            nn.Flatten(), nn.Linear(784, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        )
        module[3].weight = module[2].weight
        module[1].requires_grad_(False)
        return module

    model = kinds.model_of(kinds.seeded(fresh))
    again = unpacked(packed(model, fresh()), lambda _: fresh()).payload
    assert again[3].weight is again[2].weight
    assert not again[1].weight.requires_grad and again[2].weight.requires_grad
    assert torch.equal(again[2].weight, model.payload[2].weight)


def test_what_is_fresh_is_told_by_the_model() -> None:
    after = pruned(kinds.network("dense"), 0.6)
    after = after.after(Step("distill", {"student": "mine:small"}))
    seen = []

    def fresh(model: Model) -> nn.Module:
        seen.append((model.payload, model.lineage[-1].parameters))
        return kinds.dense()

    unpacked(packed(after, kinds.dense()), fresh)
    assert seen == [(None, {"student": "mine:small"})]


def test_only_numbers_are_packed() -> None:
    after = pruned(kinds.network("encoder"), 0.6)
    line, _, _ = packed(after, kinds.encoder()).partition(b"\n")
    found = json.loads(line)["attributes"]
    heads = after.payload.layers[0].self_attn.num_heads
    assert found["layers.0.self_attn"] == dict.fromkeys(
        ("embed_dim", "kdim", "vdim"), 16 * heads
    ) | {"num_heads": heads}
    assert found["norm"] == {"normalized_shape": [16 * heads]}


def test_another_factory_is_refused() -> None:
    raw = packed(pruned(kinds.network("plain"), 0.3), kinds.plain())
    with pytest.raises(ModelError, match=r"makes other layers than before: .*features"):
        unpacked(raw, lambda _: kinds.dense())


def test_the_packed_is_not_touched() -> None:
    after = pruned(kinds.network("plain"), 0.6)
    before = copy.deepcopy(after.payload)
    packed(after, kinds.plain())
    for name, tensor in after.payload.state_dict().items():
        assert torch.equal(tensor, before.state_dict()[name])
