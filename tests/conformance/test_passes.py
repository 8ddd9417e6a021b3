"""Every pass of the table keeps the promises of ``edgeml/passes/base.py``."""

from pathlib import Path
from typing import ClassVar

import pytest

import edgeml.passes
from edgeml.errors import MachineLacks, PassError, RecipeError
from edgeml.model import Model, Step
from edgeml.passes import PASSES, load_pass, ordered
from edgeml.passes.base import Pass, digest

torch = pytest.importorskip("torch")

from device_agent.contract.tensors import TensorSpec  # noqa: E402


def _model(level: str = "module") -> Model:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    model = Model(
        level="module",
        payload=module,
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(1, 4)),),
        outputs=(TensorSpec(name="output", datatype="FP32", shape=(1, 3)),),
        lineage=(Step("load", {}),),
    )
    return model if level == "module" else load_pass("export")(model)


def test_table_and_folder_agree():
    folder = Path(edgeml.passes.__file__).parent
    files = {path.stem for path in folder.glob("*.py")} - {"__init__", "base"}
    assert files == set(PASSES)
    assert all(load_pass(verb).verb == verb for verb in PASSES)


@pytest.mark.parametrize("verb", PASSES)
def test_it_keeps_its_promises(verb):
    step = load_pass(verb)
    before = _model(step.takes)
    kept = digest(before), before.lineage
    after = step(before)
    assert after.level == step.gives
    assert (digest(before), before.lineage) == kept
    assert after.lineage[:-1] == before.lineage and after.lineage[-1].verb == verb
    assert digest(load_pass(verb)(before)) == digest(after)


@pytest.mark.parametrize("verb", PASSES)
def test_it_refuses_the_other_level(verb):
    step = load_pass(verb)
    other = _model("graph" if step.takes == "module" else "module")
    with pytest.raises(PassError, match=f"pass '{verb}' failed: it takes a model"):
        step(other)


@pytest.mark.parametrize("verb", PASSES)
def test_it_refuses_unknown_parameters(verb):
    with pytest.raises(RecipeError, match="has no parameter nonsense"):
        load_pass(verb, {"nonsense": 1})


class _Odd(Pass):
    verb, takes, gives = "odd", "module", "module"
    defaults: ClassVar = {"how": "well"}

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


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("changes", "changed the model that came in"),
        ("trains", "changed the model that came in"),
        ("forgets", "did not add exactly its own step"),
        ("raises", r"pass 'odd' failed: ZeroDivisionError \(ran before: load\)"),
    ],
)
def test_a_pass_that_breaks_its_word_is_caught(how, reason):
    with pytest.raises(PassError, match=reason):
        _Odd({"how": how})(_model())


def test_what_the_machine_lacks_stays_that():
    with pytest.raises(MachineLacks, match="no gcc"):
        _Odd({"how": "lacks"})(_model())


def test_order():
    export, odd = load_pass("export"), _Odd({})
    assert ordered([odd, export], "module") == []
    assert ordered([], "graph") == []
    assert "end at level module" in ordered([odd], "module")[0]
    assert "pass 2 (odd) takes" in ordered([export, odd], "module")[0]


def test_an_unknown_pass_names_the_known():
    with pytest.raises(RecipeError, match="no pass 'prun' in this version; known: exp"):
        load_pass("prun")
