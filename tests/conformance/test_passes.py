"""Every pass of the table keeps the promises of ``edgeml/passes/base.py``."""

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest

import edgeml.passes
from edgeml.errors import MachineLacks, PassError, RecipeError
from edgeml.model import Model, Step
from edgeml.passes import PASSES, load_pass, ordered
from edgeml.passes.base import Context, Pass, digest
from edgeml.recipes.keys import Key, Table, text
from edgeml.recipes.verbs import VERBS

torch = pytest.importorskip("torch")

import learning  # noqa: E402
from torch import nn  # noqa: E402

from device_agent.contract.tensors import TensorSpec  # noqa: E402
from edgeml.intake.state import packed, unpacked  # noqa: E402
from edgeml.training.batches import Batches  # noqa: E402
from edgeml.training.checkpoint import Checkpoints  # noqa: E402

SMALL = {"epochs": 2, "batch": 16, "learning_rate": 0.01}
PARAMETERS: dict[str, dict] = {
    "train": SMALL,
    "prune": {**SMALL, "ratio": 0.5, "rounds": 2},
    "distill": SMALL,
    "qat": SMALL,
    "export": {},
}
"""What makes each pass quick; a new one is added here."""
TRAINING = [verb for verb in PASSES if "epochs" in PARAMETERS[verb]]


def _network(width: int) -> torch.nn.Module:
    """The same weights every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3), nn.ReLU(), nn.Dropout(0.1), nn.Flatten(),
            nn.Linear(width * 4, 3),
        ).eval()  # fmt: skip


def _model(level: str = "module", width: int = 32) -> Model:
    model = Model(
        level="module",
        payload=_network(width),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1, 1, 6, 6)),),
        outputs=(TensorSpec(name="output", datatype="FP32", shape=(1, 3)),),
        lineage=(Step("load", {}),),
    )
    return model if level == "module" else _exported(width)


@cache
def _exported(width: int) -> Model:
    return load_pass("export")(_model(width=width))


def _context(work: Path | None = None, seed: int = 0) -> Context:
    """Samples, and a wider network as what the model was before."""
    task = learning.task(work, seed)
    return Context(seed=seed, task=task, source=_model(width=48))


def _done(verb: str, context: Context | None = None) -> Model:
    step = load_pass(verb, PARAMETERS[verb])
    return step(_model(step.takes), context or _context())


_once = cache(_done)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    assert torch.get_num_threads() == 1, "a pass changed it and did not put it back"
    torch.set_num_threads(threads)


def test_table_and_folder_agree():
    folder = Path(edgeml.passes.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert files == set(PASSES) == set(PARAMETERS)
    assert all(load_pass(verb).verb == verb for verb in PASSES)


@pytest.mark.parametrize("verb", PASSES)
def test_it_keeps_its_promises(verb):
    step = load_pass(verb, PARAMETERS[verb])
    before = _model(step.takes)
    kept = digest(before), before.lineage
    drawn = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    after = step(before, _context())
    assert after.level == step.gives
    assert (digest(before), before.lineage) == kept
    assert after.lineage[:-1] == before.lineage and after.lineage[-1].verb == verb
    assert torch.equal(torch.get_rng_state(), drawn[0])
    assert (np.random.get_state()[1] == drawn[1]).all()
    assert random.getstate() == drawn[2]
    if step.gives == "module":
        assert not any(part.training for part in after.payload.modules())


@pytest.mark.parametrize("verb", PASSES)
def test_its_lineage_is_json_and_names_its_parameters(verb):
    told = _once(verb).lineage[-1].parameters
    assert json.loads(json.dumps(told)) == told
    shared = PARAMETERS[verb].keys() & told.keys()
    assert {key: told[key] for key in shared} == PARAMETERS[verb]


@pytest.mark.parametrize("verb", PASSES)
def test_the_same_seed_gives_the_same_result_twice(verb):
    first, again = _once(verb), _done(verb)
    assert digest(first) == digest(again)
    assert first.lineage == again.lineage
    assert (first.inputs, first.outputs) == (again.inputs, again.outputs)


@pytest.mark.parametrize("verb", TRAINING)
def test_another_seed_gives_another_result(verb):
    assert digest(_done(verb, _context(seed=1))) != digest(_once(verb))


class _Killed(BaseException):
    """Nothing that a pass may catch."""


@pytest.mark.parametrize("share", [0.3, 0.8])
@pytest.mark.parametrize("verb", TRAINING)
def test_killed_and_run_again_it_goes_on_and_gives_the_same(
    verb, share, tmp_path, monkeypatch
):
    real, made = Batches.batch, []
    looked_at = type("LookedAt", (Batches,), {"batch": real})  # and not trained on

    def counted(batches, *place):
        made.append(place)
        if len(made) == limit:
            raise _Killed
        return real(batches, *place)

    limit = 0
    monkeypatch.setattr(Batches, "batch", counted)
    monkeypatch.setattr(Checkpoints, "due", lambda self: self._path is not None)
    monkeypatch.setattr("edgeml.passes.prune.Batches", looked_at)
    wanted = _once(verb)
    told = wanted.lineage[-1].parameters
    steps = told.get("steps") or sum(one["steps"] for one in told["fine_tuned"])
    made.clear()
    limit = 1 + int(steps * share)
    with pytest.raises(_Killed):
        _done(verb, _context(tmp_path / "killed"))
    limit = 0
    made.clear()
    resumed = _done(verb, _context(tmp_path / "killed"))
    assert digest(resumed) == digest(wanted)
    assert resumed.lineage == wanted.lineage
    assert len(made) == steps - int(steps * share)


@pytest.mark.parametrize("verb", PASSES)
def test_its_result_can_be_stored_and_is_the_same(verb):
    after = _once(verb)
    if after.level == "graph":
        raw = after.payload.SerializeToString(deterministic=True)
        again = replace(after, payload=onnx.load_from_string(raw))
    else:
        raw = packed(after, _network(32))
        again = unpacked(raw, lambda model: _network(32))
    assert digest(again) == digest(after)
    assert again.lineage == after.lineage


@pytest.mark.parametrize("verb", [v for v in PASSES if load_pass(v).gives == "module"])
def test_its_result_is_exported_exactly(verb):
    graph = load_pass("export")(_once(verb))
    assert graph.lineage[-1].parameters["export_error"] <= 1e-5


@pytest.mark.parametrize("verb", TRAINING)
def test_without_samples_it_says_what_to_name(verb):
    step = load_pass(verb, PARAMETERS[verb])
    with pytest.raises(PassError, match=r"no training samples; name .*\[data\] tra"):
        step(_model(step.takes), replace(_context(), task=None))


@pytest.mark.parametrize("verb", PASSES)
def test_it_refuses_the_other_level(verb):
    step = load_pass(verb)
    other = _model("graph" if step.takes == "module" else "module")
    with pytest.raises(PassError, match=f"pass '{verb}' failed: it takes a model"):
        step(other)


@pytest.mark.parametrize("verb", PASSES)
def test_it_refuses_unknown_parameters(verb):
    with pytest.raises(RecipeError, match="nonsense: unknown key"):
        load_pass(verb, {"nonsense": 1})


class _Odd(Pass):
    verb, takes, gives = "odd", "module", "module"

    def run(self, model, context):
        match self.parameters["how"]:
            case "changes":
                with torch.no_grad():
                    model.payload[0].weight.add_(1)
            case "trains":
                model.payload.train()
            case "forgets":
                return model
            case "raises":
                raise ZeroDivisionError
            case "lacks":
                raise MachineLacks("no gcc")
        return model.after(Step("odd"))


@pytest.fixture
def odd(monkeypatch):
    """A pass that breaks its word, in the table of parameters as others are."""
    how = Key("how", text("way to be odd"), "What it does wrong.", "well")
    monkeypatch.setitem(VERBS, "odd", Table((how,)))
    return lambda how: _Odd({"how": how})


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("changes", "changed the model that came in"),
        ("trains", "changed the model that came in"),
        ("forgets", "did not add exactly its own step"),
        ("raises", r"pass 'odd' failed: ZeroDivisionError \(ran before: load\)"),
    ],
)
def test_a_pass_that_breaks_its_word_is_caught(odd, how, reason):
    with pytest.raises(PassError, match=reason):
        odd(how)(_model())


def test_what_the_machine_lacks_stays_that(odd):
    with pytest.raises(MachineLacks, match="no gcc"):
        odd("lacks")(_model())


def test_order(odd):
    export, odd = load_pass("export"), odd("well")
    assert ordered([odd, export], "module") == []
    assert ordered([], "graph") == []
    assert "end at level module" in ordered([odd], "module")[0]
    assert "pass 2 (odd) takes" in ordered([export, odd], "module")[0]


def test_an_unknown_pass_names_the_known():
    with pytest.raises(RecipeError, match="no pass 'prun' in this version; known: tr"):
        load_pass("prun")
