"""Pruning as a pass: smaller, exact after export, and as accurate once fine-tuned."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torch_pruning")

import kinds  # noqa: E402

from edgeml.errors import PassError, RecipeError  # noqa: E402
from edgeml.model import Model  # noqa: E402
from edgeml.passes import load_pass  # noqa: E402
from edgeml.passes.base import Context, digest  # noqa: E402
from edgeml.pruning import pruner  # noqa: E402
from edgeml.training.task import Samples, Task  # noqa: E402

BY_HAND = {"epochs": 0}
ALL = 1300
EPOCHS = {"transformer": 8}
"""Digits to train on."""
LONG = pytest.mark.long
SOON = {("residual", 0.6), ("depthwise", 0.6)}
"""Kinds and ratios whose export is in the default run; each takes seconds."""
TUNED = {"epochs": 2, "batch": 32, "learning_rate": 3e-3}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def top1(outputs: Mapping[str, Any], labels: Any) -> float:
    return float((outputs["output"].argmax(1) == labels).mean())


@cache
def digits() -> Task:
    """Scikit-learn's digits, three times as large, on 28 x 28."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    large = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((3, 3)))
    x = np.pad(large, ((0, 0), (2, 2), (2, 2)))[:, None].astype(np.float32)
    order = np.random.default_rng(0).permutation(len(x))
    train, held = order[:ALL], order[ALL:]
    return Task(
        Samples({"x": x[train]}, labels[train]), Samples({"x": x[held]}, labels[held]),
        top1, Path(),
    )  # fmt: skip


def few(count: int = 64) -> Task:
    task = digits()
    places = np.arange(count)
    held = task.holdout if count == ALL else task.holdout.take(places)
    return replace(task, train=task.train.take(places), holdout=held)


@cache
def trained(kind: str, count: int = 256) -> Model:
    """Well on all samples; on few of them so that weights are no longer random."""
    epochs = EPOCHS.get(kind, 4) if count == ALL else 1
    given = {"epochs": epochs, "batch": 32, "learning_rate": 3e-3}
    context = Context(task=few(count))
    return load_pass("train", given)(kinds.network(kind), context)


def prune(model: Model, task: Task | None = None, **given: Any) -> Model:
    return load_pass("prune", BY_HAND | given)(model, Context(task=task))


def facts(model: Model) -> dict[str, Any]:
    return model.lineage[-1].parameters


@pytest.mark.parametrize(
    ("kind", "ratio"),
    [
        pytest.param(kind, ratio, marks=() if (kind, ratio) in SOON else LONG)
        for kind in kinds.KINDS
        for ratio in (0, 0.3, 0.6, 0.9)
    ],
)
def test_the_export_is_exact(kind: str, ratio: float) -> None:
    import onnxruntime

    model = kinds.network(kind)
    after = prune(model, ratio=ratio)
    graph = load_pass("export")(after)
    assert graph.lineage[-1].parameters["export_error"] <= 1e-5
    assert graph.lineage[-1].parameters["batch"] == "variable"
    session = onnxruntime.InferenceSession(graph.payload.SerializeToString())
    x = digits().holdout.inputs["x"][:5]
    (found,) = session.run(None, {"x": x})
    wanted = after.payload(torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())
    told = facts(after)
    if ratio:
        assert told["macs_after"] < (1 - ratio / 2) * told["macs_before"]
    else:
        assert digest(after) == digest(model) and not told["channels"]


@pytest.mark.parametrize("kind", kinds.ALL)
def test_facts_are_true(kind: str) -> None:
    model = kinds.network(kind)
    after = prune(model, ratio=0.5)
    told = facts(after)
    assert json.loads(json.dumps(told)) == told
    sizes = [sum(p.numel() for p in m.payload.parameters()) for m in (model, after)]
    assert [told["parameters_before"], told["parameters_after"]] == sizes
    assert sizes[1] < 0.6 * sizes[0]
    for name, (before, now) in told["channels"].items():
        part = after.payload.get_submodule(name)
        for attribute in ("out_channels", "out_features", "num_heads", "heads"):
            if hasattr(part, attribute):
                assert getattr(part, attribute) == now < before
                break
        else:
            pytest.fail(f"{name} has no channels")
        if hasattr(part, "weight"):
            assert part.weight.shape[0] == now and now % 16 == 0
    assert told["not_pruned"].keys() == {"head"}
    assert told["multiple"] == 16
    assert (after.inputs, after.outputs) == (model.inputs, model.outputs)


@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_every_importance_and_twice_the_same(importance: str) -> None:
    model, task = trained("residual"), few()
    given = {"importance": importance, "ratio": 0.5, "epochs": 1, "rounds": 2}
    first, second = (prune(model, task, **given) for _ in range(2))
    assert digest(first) == digest(second)
    assert first.lineage == second.lineage
    assert facts(first)["parameters_after"] < facts(first)["parameters_before"]


def test_each_importance_chooses_others() -> None:
    model, task = trained("plain"), few()
    found = {
        digest(prune(model, task, importance=how, ratio=0.5, scope="layer"))
        for how in ("l1", "l2", "taylor", "bn_scale")
    }
    assert len(found) == 4


@pytest.mark.long
@pytest.mark.parametrize("kind", kinds.KINDS)
def test_fine_tuning_brings_the_accuracy_back(kind: str) -> None:
    task = digits()
    model = trained(kind, ALL)
    before = facts(model)["holdout_after"]
    given = {"ratio": 0.6, "rounds": 2, **TUNED, "epochs": 4}
    after = prune(model, task, **given)
    tuned = facts(after)["fine_tuned"]
    assert [one["epochs_run"] for one in tuned] == [2, 2]
    assert facts(after)["macs_after"] < 0.4 * facts(after)["macs_before"]
    hurt = min(one["holdout_before"] for one in tuned)
    assert before > 0.8 and hurt < before - 0.02
    assert tuned[-1]["holdout_after"] > before - 0.02


@pytest.mark.long
@pytest.mark.parametrize("kind", ["plain", "residual", "depthwise"])
@pytest.mark.parametrize("importance", ["l2", "taylor"])
def test_what_goes_matters_least(kind: str, importance: str) -> None:
    """In each layer alone, and in all together, the opposite choice costs more."""
    task, model = digits(), trained(kind, ALL)
    given = {"importance": importance, "scope": "layer", "channel_multiple": 2}
    lost: dict[str, dict[str, float]] = {}
    for name, sign in (("least", 1), ("most", -1)):
        with pytest.MonkeyPatch.context() as patch:
            for ranking in (pruner.magnitude, pruner.taylor):
                patch.setattr(pruner, ranking.__name__, turned(ranking, sign))
            every = prune(model, task, ratio=0.3, **given)
            singly = {
                layer: prune(model, task, ratio=0.0, ratios={layer: 0.3}, **given)
                for layer in facts(every)["channels"]
                if "depthwise" not in layer
            }
        lost[name] = {k: loss(m, task) for k, m in {"all": every, **singly}.items()}
    better = [lost["least"][layer] < lost["most"][layer] for layer in lost["least"]]
    assert better[0] and np.mean(better) > 0.8, lost


@pytest.mark.long
@pytest.mark.xfail(
    strict=True,
    reason="open: without samples the lost statistics cost more than the choice saves",
)
def test_a_trained_choice_is_better_than_the_worst() -> None:
    """All layers at once, blindly: .25 of the right choice, .52 of the opposite."""
    task, model = digits(), trained("residual", ALL)
    x = torch.from_numpy(task.holdout.inputs["x"])
    scores = {}
    for name, sign in (("least", 1), ("most", -1)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pruner, "magnitude", turned(pruner.magnitude, sign))
            after = prune(model, ratio=0.2, scope="layer", channel_multiple=2)
        given = {"output": after.payload(x).detach().numpy()}
        scores[name] = top1(given, task.holdout.labels)
    assert scores["least"] > scores["most"] + 0.05


def turned(ranking: Callable[..., Any], sign: int) -> Callable[..., Any]:
    return lambda *given: {name: sign * one for name, one in ranking(*given).items()}


def loss(model: Model, task: Task) -> float:
    """Cross-entropy on the held-out digits."""
    with torch.no_grad():
        found = model.payload(torch.from_numpy(task.holdout.inputs["x"]))
    wanted = torch.from_numpy(np.asarray(task.holdout.labels)).long()
    return float(torch.nn.functional.cross_entropy(found, wanted))


@pytest.mark.long
def test_norms_know_what_is_left() -> None:
    """Without fine-tuning: statistics taken anew are worth a lot of accuracy."""
    task, model = digits(), trained("residual", ALL)
    blind, seen = (
        prune(model, given, ratio=0.3, scope="layer") for given in (None, task)
    )
    assert facts(blind)["norms_recalibrated"] == 0 < facts(seen)["norms_recalibrated"]
    assert facts(blind)["channels"] == facts(seen)["channels"]
    assert loss(seen, task) < 0.5 * loss(blind, task)


@pytest.mark.long
def test_it_is_faster() -> None:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = kinds.network("plain")
    x = {"x": np.zeros((1, 1, 28, 28), np.float32)}
    sessions = [
        onnxruntime.InferenceSession(
            load_pass("export")(one).payload.SerializeToString(), options
        )
        for one in (model, prune(model, ratio=0.6))
    ]
    taken: list[list[float]] = [[], []]
    for _ in range(200):
        for session, times in zip(sessions, taken, strict=True):
            begun = time.perf_counter()
            session.run(None, x)
            times.append(time.perf_counter() - begun)
    whole, pruned = map(np.median, taken)
    assert pruned < 0.6 * whole


def test_epochs_are_shared_by_the_rounds() -> None:
    given = {"ratio": 0.6, "rounds": 3, "epochs": 4, "batch": 32}
    told = facts(prune(kinds.network("dense"), few(), **given))["fine_tuned"]
    assert [one["epochs_run"] for one in told] == [1, 1, 2]


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    """A second run finds the checkpoints of the first and trains nothing again."""
    model = kinds.network("dense")
    given = {"ratio": 0.6, "rounds": 2, "epochs": 2, "batch": 32}
    task = replace(few(), work=tmp_path)
    undisturbed = prune(model, few(), **given)
    first = prune(model, task, **given)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("log.csv")}
    assert {path.parent.name for path in written} == {"prune1", "prune2"}
    second = prune(model, task, **given)
    assert digest(first) == digest(second) == digest(undisturbed)
    assert first.lineage == second.lineage == undisturbed.lineage


def test_the_multiple_is_the_targets_unless_told() -> None:
    model, task = kinds.network("plain"), replace(few(), channel_multiple=32)
    assert facts(prune(model, task, ratio=0.5))["multiple"] == 32
    told = facts(prune(model, task, ratio=0.5, channel_multiple=4, scope="layer"))
    assert told["multiple"] == 4
    assert told["channels"]["features.4.0"] == [96, 48]


def test_single_weights_stay_zero_and_nothing_is_faster() -> None:
    model = trained("residual")
    given = {"structured": False, "ratio": 0.8, "rounds": 2, **TUNED}
    after = prune(model, few(256), **given)
    told = facts(after)
    assert told["speed"].startswith("no faster")
    weights = [
        part.weight for part in after.payload.modules()
        if isinstance(part, torch.nn.Conv2d | torch.nn.Linear)
    ]  # fmt: skip
    zeros = sum(int((weight == 0).sum()) for weight in weights)
    total = sum(weight.numel() for weight in weights)
    assert told["zeros"] == zeros == int(0.8 * total) and told["weights"] == total
    assert [w.shape for w in weights] == [
        p.weight.shape for p in model.payload.modules()
        if isinstance(p, torch.nn.Conv2d | torch.nn.Linear)
    ]  # fmt: skip
    by_loss = prune(model, few(), structured=False, importance="taylor", ratio=0.5)
    assert facts(by_loss)["zeros"] >= int(0.5 * total)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"epochs": 1}, "there are no training samples"),
        ({"importance": "taylor"}, "importance = 'taylor' needs training samples"),
        ({"importance": "bn_scale", "structured": False}, "ranks channels"),
        ({"keep": ["haed"]}, "keep: the model has no layer 'haed'; did you mean 'hea"),
        ({"ratios": {"head": 0.5}}, "head cannot be pruned: no layer reads its chan"),
        ({"ratios": {"stem.1": 0.5}, "structured": False}, r"stem\.1 cannot be pruned"),
        ({"channel_multiple": 512}, r"nothing can be pruned;.*stem\.0: it has 32 chan"),
    ],
)
def test_refusals(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(PassError, match=reason):
        prune(kinds.network("residual"), **given)


def test_parameters_are_checked() -> None:
    with pytest.raises(RecipeError, match="ratio"):
        load_pass("prune", {"ratio": 1.0})


def test_frozen_layers_stay_frozen() -> None:
    model = kinds.network("plain")
    model.payload.features.requires_grad_(False)
    after = prune(model, few(), ratio=0.5, importance="taylor")
    frozen = [n for n, p in after.payload.named_parameters() if not p.requires_grad]
    assert frozen and all(name.startswith("features") for name in frozen)
    assert model.payload.hidden.weight.grad is None


def test_a_model_that_came_as_onnx() -> None:
    from edgeml.graphs.torched import module_of

    model = module_of(load_pass("export")(kinds.network("depthwise")))
    after = prune(model, ratio=0.6)
    whole = facts(prune(kinds.network("depthwise"), ratio=0.6))
    assert facts(after)["macs_after"] < 1.3 * whole["macs_after"]
    graph = load_pass("export")(after)
    assert graph.lineage[-1].parameters["export_error"] <= 1e-5


def test_importing_the_pass_imports_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, edgeml.passes.prune; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
