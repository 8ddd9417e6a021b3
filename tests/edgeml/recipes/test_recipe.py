"""Recipes: what they become, and every mistake with its line."""

import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from calibration.dataset import DataSource
from device_agent.contract import manifest
from edgeml.candidate import QuantizeOptions
from edgeml.errors import RecipeError
from edgeml.passes import PASSES
from edgeml.recipes import schema
from edgeml.recipes.recipe import (
    Budget,
    MetricOptions,
    PassOptions,
    SearchOptions,
    read_recipe,
)
from edgeml.recipes.verbs import VERBS

SMALL = """\
[model]
source = "model.onnx"
name = "digits"
version = "1.0.0"
[data]
calibration = "train.npz"
validation = "test.npz"
[metric]
name = "top1"
[build]
targets = ["cpu-x86_64"]
"""

FULL = """\
[model]
source = "my.code:factory"
weights = "w.safetensors"
name = "digits"
version = "1.0.0+a"
release_counter = 7
inputs = {"a.b" = [-1, 3]}

[data]
calibration = {path = "train.npz", limit = 9, inputs = ["x", "y"], label = "z"}
validation = "my.code:samples"
train = {function = "my.code:more", slices = ["room"]}
inputs = {a = "col", b = ["c", "d"]}
label = "y"
sampler = "k_center"
samples = 64

[preprocess]
steps = [
  {scale = 0.5},
  {layout = "HWC->CHW"},
]
input = "a"

[postprocess]
steps = [{softmax = true}]
labels = "labels.txt"

[metric]
name = "mae"
output = "out"
slices = ["site"]

[budget]
max_accuracy_drop = 0
max_slice_drop = 0.5
max_flip_rate = 1
max_latency_ms = 1.5
max_size_bytes = 1000
max_memory_bytes = 2000
max_fallback_share = 0.25

[quantize]
precisions = ["int8"]
methods = ["minmax"]
quantizers = ["nncf"]
keep = ["/head"]
mixed = false
percentile = 99
per_channel = false

[[pass]]
verb = "export"
opset = 18

[search]
trials = 9
minutes = 2.5
prune = [0, 0.5]
distill = [true]
precisions = ["int8"]
methods = ["entropy"]
samples = [10, 20]
keep = [1]

[build]
targets = ["cpu-x86_64", "mine.toml"]
seed = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("model.onnx", "w.safetensors", "train.npz", "test.npz"):
        (tmp_path / name).touch()
    (tmp_path / "labels.txt").write_text("zero\none\n\n")
    ours = Path(__file__).resolve().parents[3] / "targets" / "rpi4.toml"
    (tmp_path / "mine.toml").write_text(ours.read_text())
    return tmp_path


def read(folder: Path, text: str):
    path = folder / "recipe.toml"
    path.write_text(text)
    return read_recipe(path)


def mistakes(folder: Path, text: str) -> list[str]:
    """Every mistake as ``LINE: key: text``."""
    with pytest.raises(RecipeError) as caught:
        read(folder, text)
    prefix = f"{folder / 'recipe.toml'}:"
    lines = str(caught.value).splitlines()
    assert all(line.startswith(prefix) for line in lines)
    return [line.removeprefix(prefix) for line in lines]


def test_the_smallest_recipe_and_its_defaults(folder: Path):
    recipe = read(folder, SMALL)
    assert (recipe.folder, recipe.seed) == (folder, 0)
    assert recipe.data.calibration == DataSource("train.npz")
    assert (recipe.data.sampler, recipe.data.samples) == ("stratified", 200)
    assert recipe.metric == MetricOptions("top1")
    assert (recipe.budget, recipe.quantize) == (Budget(), QuantizeOptions())
    assert (recipe.preprocess, recipe.passes, recipe.labels) == ((), (), ())
    assert recipe.search is None
    assert read(folder, f"{SMALL}[search]").search == SearchOptions()


def test_every_key_arrives(folder: Path):
    recipe = read(folder, FULL)
    assert recipe.model.inputs == {"a.b": [-1, 3]}
    assert recipe.model.release_counter == 7
    assert recipe.data.calibration == DataSource(
        "train.npz", inputs=["x", "y"], label="z", slices=("site",), limit=9
    )
    shared = {"a": "col", "b": ["c", "d"]}
    assert recipe.data.validation == DataSource(
        "my.code:samples", inputs=shared, label="y", slices=("site",)
    )
    assert recipe.data.train == DataSource(
        "my.code:more", inputs=shared, label="y", slices=("room",)
    )
    assert [next(iter(step)) for step in recipe.preprocess] == ["scale", "layout"]
    assert recipe.preprocess_input == "a"
    assert recipe.labels == ("zero", "one")
    assert recipe.metric == MetricOptions("mae", "out", "lower", ("site",))
    assert recipe.budget == Budget(0, 0.5, 1, 1.5, 1000, 2000, 0.25)
    assert recipe.quantize == QuantizeOptions(
        ("int8",), ("minmax",), ("nncf",), ("/head",), False, 99, False
    )
    assert recipe.passes == (PassOptions("export", {"opset": 18}),)
    assert recipe.search == SearchOptions(
        9, 2.5, (0, 0.5), (True,), ("int8",), ("entropy",), (10, 20), (1,)
    )
    assert (recipe.targets, recipe.seed) == (("cpu-x86_64", "mine.toml"), 3)


BUILD = "\n[build]"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ('"model.onnx"', '"absent.onnx"', "2: model.source: 'absent.onnx' does not"),
        ('source = "model.onnx"', "", "1: model: 'source' is missing"),
        ('name = "digits"', 'nam = "digits"', "3: model.nam: unknown key; did you m"),
        ('"digits"', '"Digits"', "3: model.name: expected lower-case name"),
        ('"1.0.0"', '"-1"', "4: model.version: expected version"),
        ('"1.0.0"', "1.0", "4: model.version: expected version, got 1.0"),
        ("[build]", "[bild]", "10: bild: unknown key; did you mean 'build'?"),
        ('"train.npz"', '"nowhere"', "6: data.calibration: 'nowhere' does not exist"),
        ('"train.npz"', '"test.npz"', "7: data.validation: the same samples as data"),
        ('"train.npz"', '"set:nothing"', "6: data.calibration: expected NAME/SPLIT"),
        ('"train.npz"', '"set:nothing/x"', "no data set 'nothing'"),
        ('"train.npz"', '"random:0"', "6: data.calibration: expected random:COUNT"),
        ('"train.npz"', '"random:9"', "9: metric.name: top1 needs labels"),
        ('"train.npz"', "{}", "6: data.calibration: expected exactly one of path"),
        ('"train.npz"', '{path = "test.npz", function = "a:b"}', "got path, fun"),
        ('"train.npz"', '{path = "train.npz", limit = 0}', "6: data.calibration.limit"),
        ('"top1"', '"top2"', "9: metric.name: expected one of top1, top5"),
        ('"top1"', '"my code:f"', "9: metric.name: expected `module:function`"),
        ('"top1"', '"top1"\nbetter = "lower"', "10: metric.better: top1 is not better"),
        ('["cpu-x86_64"]', '["cpu-x86"]', "11: build.targets[0]: no target 'cpu-x86'"),
        ('["cpu-x86_64"]', '["a.toml"]', "11: build.targets[0]:"),
        ('["cpu-x86_64"]', "[]", "11: build.targets: expected a list of target with 1"),
        ('["cpu-x86_64"]', '[\n"rpi4",\n"rpi4"]', "13: build.targets[1]: 'rpi4' is th"),
        ("[build]", "[build]\nseed = -1", "11: build.seed: expected a whole number"),
        ("[build]", "[build]\nseed = true", "11: build.seed: expected a whole number"),
        (BUILD, "[budget]\nmax_latency_ms = nan", "11: budget.max_latenc"),
        (BUILD, "[budget]\nmax_latency_ms = inf", "11: budget.max_latenc"),
        (BUILD, "[budget]\nmax_flip_rate = 1.1", "11: budget.max_flip_r"),
        (BUILD, "[budget]\nmax_size_bytes = 1.5", "11: budget.max_size"),
        (BUILD, "[budget]\nmax_slice_drop = 0", "11: budget.max_slice_dr"),
        (BUILD, "[search]\ntrials = 0", "11: search.trials: expected a whole num"),
        (BUILD, "[search]\nprune = [0.5, 1]", "11: search.prune[1]: expected a num"),
        (BUILD, "[search]\nprune = [0, 0.5]", "11: search.prune: to prune is to train"),
        (BUILD, "[search]\ndistill = [true]", "11: search.distill: to distill is to"),
        (BUILD, '[search]\nprecisions = ["mixed"]', "11: search.precisions[0]: expec"),
        (BUILD, '[[pass]]\nverb = "qat"', "11: pass[0].verb: qat trains, and there is"),
        (BUILD, "[[pass]]", "10: pass[0]: 'verb' is missing"),
        (BUILD, '[quantize]\nmethods = ["mean"]', "11: quantize.methods[0]"),
        (BUILD, "[quantize]\nmixed = 1", "11: quantize.mixed: expected tr"),
        (BUILD, "[preprocess]\nsteps=[\n{scal=1}]", "12: preprocess.steps"),
        (BUILD, "[postprocess]\nlabels='model.onnx'", "postprocess.labels"),
        ('name = "digits"', "weights='test.npz'\nname='d'", "3: model.weights: go w"),
        ("[data]", "[data", "5: not TOML"),
        ("[data]", "[model]", "5: not TOML: Cannot declare"),
        ("1.0.0\"", "1.0.0", "4: not TOML"),
    ],
)  # fmt: skip
def test_one_mistake(folder: Path, before: str, after: str, expected: str):
    assert before in SMALL
    if before == BUILD:  # a table more, before that one
        after = f"\n{after}{BUILD}"
    found = mistakes(folder, SMALL.replace(before, after, 1))
    assert len(found) == 1
    assert expected in found[0]


def test_all_mistakes_at_once_in_the_order_of_lines(folder: Path):
    text = FULL.replace("export", "shrink").replace("k_center", "kmeans")
    text = text.replace("max_flip_rate = 1", "max_flip_rate = -1")
    text = text.replace("w.safetensors", "gone").replace(
        "{scale = 0.5}", "{scale = []}"
    )
    found = mistakes(folder, text)
    assert [re.sub(r"^(\d+: [^:]+).*", r"\1", line) for line in found] == [
        "3: model.weights",
        "15: data.sampler",
        "20: preprocess.steps[0]",
        "37: budget.max_flip_rate",
        "53: pass[0].verb",
    ]


def test_an_empty_recipe_names_all_that_is_needed(folder: Path):
    found = mistakes(folder, "")
    assert {re.search(r"'(\w+)'", line)[1] for line in found} == {
        "model", "data", "metric", "build",
    }  # fmt: skip


def test_files_that_are_no_recipes(tmp_path: Path):
    path = tmp_path / "recipe.toml"
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(path)
    for raw, expected in [
        (b"[model]\n\xff", r"recipe\.toml:2: not UTF-8"),
        (b"a = " + b"[" * 9000, "nested too deeply"),
        (b"#" * (300 << 10), "a recipe has at most"),
        (b"a = [\n1,\n", r"recipe\.toml:2: not TOML"),
    ]:
        path.write_bytes(raw)
        with pytest.raises(RecipeError, match=expected):
            read_recipe(path)


VALUE = st.recursive(
    st.sampled_from(["true", "-1", "0", "nan", '""', '"x"', '"a:b"', "1979-05-27"]),
    lambda item: (
        st.lists(item, max_size=3).map(lambda all: f"[{', '.join(all)}]")
        | item.map("{{path = {}}}".format)
    ),
    max_leaves=4,
)


@given(st.data())
def test_any_value_anywhere_ends_in_mistakes_or_a_recipe(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    folder = tmp_path_factory.getbasetemp()
    lines = FULL.splitlines()
    places = [
        index for index, line in enumerate(lines) if re.match(r"\w+ = .*[^\[]$", line)
    ]
    place = data.draw(st.sampled_from(places))
    lines[place] = lines[place].split("=")[0] + "= " + data.draw(VALUE)
    text = "\n".join(lines)
    tomllib.loads(text)
    found = mistakes(folder, text)  # files are absent here, so there always are some
    numbers = [int(line.split(":")[0]) for line in found]
    assert numbers == sorted(numbers)


def test_the_words_are_those_of_the_parts_that_take_them():
    name = TypeAdapter(manifest.Name).core_schema
    version = TypeAdapter(manifest.Version).core_schema
    assert f"^{schema.NAME}$" == name["pattern"]
    assert f"^{schema.VERSION}$" == version["pattern"]
    assert tuple(PASSES) == tuple(VERBS)


def test_the_page_on_recipes_is_true():
    page = Path(__file__).resolve().parents[3] / "docs" / "recipe.md"
    assert "\n".join(schema.documented()).strip() in page.read_text(), (
        "docs/recipe.md differs from edgeml/recipes/schema.py; paste the output of: "
        "python -c 'from edgeml.recipes import schema as s; "
        "print(*s.documented(), sep=chr(10))'"
    )


def test_the_example_on_the_page_is_a_recipe(folder: Path):
    page = Path(__file__).resolve().parents[3] / "docs" / "recipe.md"
    example = page.read_text().split("```toml\n")[1].split("```")[0]
    assert read(folder, example).metric.name == "top1"
