"""The recipe's pass ``qat`` on a target's quantized graph: in a child, and cached."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from digits import write

from edgeml.cache import Cache
from edgeml.errors import PassError, RecipeError
from edgeml.graphs.preparation import prepare
from edgeml.graphs.protos import is_quantized
from edgeml.intake.importer import load_model
from edgeml.model import Model
from edgeml.passing import graph_of
from edgeml.progress import Silent
from edgeml.quantizers import ort
from edgeml.recipes.recipe import read_recipe
from edgeml.tuning import Tuner, activations, tuner_of

pytest.importorskip("torch")

RECIPE = """
[model]
source = "model.onnx"
name = "digits"
version = "1.0.0"

[data]
calibration = "train.npz"
validation = "held.npz"
train = "train.npz"
label = "y"

[metric]
name = "top1"

[[pass]]
verb = "qat"
epochs = {epochs}
scheme = "{scheme}"
learning_rate = {rate}

[build]
targets = ["cpu-x86_64"]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tuning")
    write(made, channels=4)
    return made


@pytest.fixture(scope="module")
def quantized(folder: Path) -> Model:
    model = load_model("model.onnx", None, folder, {})
    with np.load(folder / "train.npz") as arrays:
        feeds = [{"image": one[None]} for one in arrays["x"][:16]]
    prepared = prepare(model.payload)
    ranges = ort.calibrate(prepared, feeds, "minmax")
    return replace(model, payload=ort.quantize_static(prepared, ranges))


def tuner(
    folder: Path, epochs: int = 1, scheme: str = "auto", rate: float = 1e-3
) -> Tuner | None:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(epochs=epochs, scheme=scheme, rate=rate))
    return tuner_of(read_recipe(path), Cache(folder / "cache"), {}, "data")


def test_it_is_there_when_the_recipe_has_the_pass_and_trains(folder: Path) -> None:
    made = tuner(folder)
    assert made is not None
    assert made.parameters["epochs"] == 1
    assert made.parameters["batch"] == 128, "the pass's own default"
    assert tuner(folder, epochs=0) is None


def test_it_takes_the_scheme_that_was_asked_for(folder: Path, quantized: Model) -> None:
    assert activations(quantized.payload) == {"UINT8"}
    taken = {
        scheme: made.takes(quantized)
        for scheme in ("auto", "u8s8", "s8s8")
        if (made := tuner(folder, scheme=scheme))
    }
    assert taken == {"auto": True, "u8s8": True, "s8s8": False}


@pytest.mark.long
def test_a_child_trains_it_once(folder: Path, quantized: Model) -> None:
    made = tuner(folder)
    assert made is not None
    first = made.tuned(quantized, Silent())
    assert first.lineage[-1].verb == "qat"
    assert first.lineage[-1].parameters["epochs_run"] == 1
    assert first.payload.graph.node == quantized.payload.graph.node
    assert first.payload != quantized.payload
    onnx.checker.check_model(first.payload)
    (checkpoints,) = (folder / "cache" / "training").iterdir()
    assert (checkpoints / "qat").is_dir()
    (folder / "held.npz").unlink()  # a second child would miss it
    assert made.tuned(quantized, Silent()) == first
    write(folder, channels=4)


@pytest.mark.long
def test_what_fails_in_the_child_fails_here(folder: Path, quantized: Model) -> None:
    made = tuner(folder, rate=9.0)
    assert made is not None
    made = replace(made, parameters={**made.parameters, "loss": "nothing:here"})
    with pytest.raises(PassError, match="loss nothing:here cannot be loaded"):
        made.tuned(quantized, Silent())


def test_the_chain_before_leaves_the_pass_out(folder: Path) -> None:
    tuner(folder)  # writes the recipe
    recipe = read_recipe(folder / "recipe.toml")
    found = graph_of(recipe, Cache(folder / "cache"), {}, "data", False)
    assert [step.verb for step in found.model.lineage] == ["load"]
    assert not is_quantized(found.model.payload)


def test_nothing_but_export_comes_after_it(folder: Path) -> None:
    tuner(folder)
    recipe = read_recipe(folder / "recipe.toml")
    twice = replace(recipe, passes=recipe.passes * 2)
    with pytest.raises(RecipeError, match="pass 'qat' comes after 'qat'"):
        graph_of(twice, Cache(folder / "cache"), {}, "data", False)
