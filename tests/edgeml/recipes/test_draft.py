"""What ``edgeml init`` writes is a recipe, whatever the model's inputs are."""

import os
import re
import tomllib
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper
from unlimited import HERE, read_here  # noqa: F401

from device_agent.contract.preprocess import parse_steps
from device_agent.contract.tensors import TensorSpec
from edgeml.errors import InputError, ModelError, RecipeError, UsageError
from edgeml.recipes.draft import (
    draft,
    layout,
    random_dataset,
    random_samples,
    suggestion,
    toml,
)
from edgeml.recipes.recipe import Recipe, read_recipe

pytestmark = HERE

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def save(path: Path, **shapes: list[int | str]) -> Path:
    """A model that gives each of its inputs back, doubled."""
    nodes, inputs, outputs = [], [], []
    for name, shape in shapes.items():
        nodes.append(helper.make_node("Add", [name, name], [f"{name}_out"]))
        inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        outputs.append(
            helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, shape)
        )
    graph = helper.make_graph(nodes, "twice", inputs, outputs)
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=8), path)
    return path


def drafted(model: Path) -> tuple[str, Recipe]:
    out = model.parent / "recipe.toml"
    out.write_text(draft(model, out))
    return out.read_text(), read_recipe(out)


def test_a_recipe_that_says_what_it_is(tmp_path: Path):
    text, recipe = drafted(save(tmp_path / "My Net.onnx", x=["n", 3, 32, 32]))
    assert (recipe.model.source, recipe.model.name) == ("My Net.onnx", "my-net")
    assert recipe.data.calibration.location == "random:100"
    assert recipe.metric.name == "agreement"
    assert "int8" not in recipe.quantize.precisions
    assert "NO REAL DATA YET" in text
    assert "# input x: FP32 [-1, 3, 32, 32]" in text
    assert max(map(len, re.findall(r"^# [^{}\n]*$", text, re.MULTILINE))) <= 88
    assert str(tmp_path) not in text


def test_the_recipe_may_lie_elsewhere(tmp_path: Path):
    (tmp_path / "models").mkdir()
    (tmp_path / "recipes").mkdir()
    out = tmp_path / "recipes" / "r.toml"
    out.write_text(draft(save(tmp_path / "models" / "m.onnx", x=[1, 4]), out))
    assert read_recipe(out).model.source == "../models/m.onnx"


@pytest.mark.parametrize(
    ("shapes", "pinned"),
    [
        ({"x": [1, 4]}, {}),
        ({"x": ["n", 4]}, {}),
        ({"x": ["n", 3, "h", "w"]}, {"x": [-1, 3, 224, 224]}),
        ({"x": ["n", "h", "w", 3]}, {"x": [-1, 224, 224, 3]}),
        ({"x": ["n", "time", 40]}, {"x": [-1, 128, 40]}),
        ({"x": [1, 4], "state": [2, "b", 64]}, {"state": [2, 1, 64]}),
        ({"a": ["n", "t"], "b": ["n", "t"]}, {"a": [-1, 128], "b": [-1, 128]}),
    ],
)
def test_variable_dimensions_are_pinned(
    tmp_path: Path, shapes: dict[str, list[int | str]], pinned: dict[str, list[int]]
):
    _, recipe = drafted(save(tmp_path / "m.onnx", **shapes))
    assert recipe.model.inputs == pinned


def test_everything_that_is_commented_out_may_be_used(tmp_path: Path):
    text, _ = drafted(save(tmp_path / "m.onnx", x=[1, 1, 28, 28]))
    used = re.sub(r"^# (\w+ = )", r"\1", text, flags=re.MULTILINE)
    assert len(tomllib.loads(used)["budget"]) == 7
    (tmp_path / "recipe.toml").write_text(used)
    with pytest.raises(RecipeError) as caught:
        read_recipe(tmp_path / "recipe.toml")
    (only,) = str(caught.value).splitlines()
    assert "preprocess.steps: random samples are made as the model's" in only


@pytest.mark.parametrize(
    ("shape", "steps"),
    [
        ((1, 3, 96, 64), ["decode_image", "resize", "scale", "layout"]),
        ((-1, 96, 64, 1), ["decode_image", "resize", "scale"]),
        ((1, 16000), ["decode_wav", "fit_length"]),
        ((1, 5), ["standardize"]),
        ((1, 50, 40), []),
        ((), []),
        ((7,), []),
    ],
)
def test_suggested_steps_can_be_read(shape: tuple[int, ...], steps: list[str]):
    lines = list(suggestion(TensorSpec(name="x", datatype="FP32", shape=shape)))
    assert all(line.startswith("# ") for line in lines)
    value = tomllib.loads(lines[-1].removeprefix("# ") if steps else "")
    parsed = parse_steps(value.get("steps", []), "preprocess")
    assert [step.word for step in parsed] == steps


def test_layouts():
    assert layout([1, 3, 224, 224]) == layout([-1, 1, -1, -1]) == "CHW"
    assert layout([1, 224, 224, 3]) == "HWC"
    assert layout([1, 64, 7, 7]) is layout([1, 49, 10, 1, 1]) is layout([1, 10]) is None


def test_what_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="factory"):
        draft(Path("my.code:factory"), tmp_path / "recipe.toml")
    (tmp_path / "bad.onnx").write_bytes(b"not a model")
    with pytest.raises(ModelError):
        draft(tmp_path / "bad.onnx", tmp_path / "recipe.toml")
    with pytest.raises(ModelError):
        draft(tmp_path / "absent.onnx", tmp_path / "recipe.toml")


DATATYPES = ["FP32", "FP16", "FP64", "BOOL", "UINT8", "INT8", "INT32", "INT64"]


@given(st.sampled_from(DATATYPES), st.lists(st.integers(1, 4), max_size=4))
def test_random_samples_fit(datatype: str, shape: list[int]):
    spec = TensorSpec.model_validate(
        {"name": "x", "datatype": datatype, "shape": [-1, *shape]}
    )
    once, again = random_samples([spec], 2, 5), random_samples([spec], 2, 5)
    for sample, same in zip(once, again, strict=True):
        assert sample["x"].dtype == spec.dtype
        assert sample["x"].shape == (1, *shape)
        assert sample["x"].tobytes() == same["x"].tobytes()
    if np.dtype(spec.dtype).kind == "i" and spec.dtype.itemsize > 1:
        assert {0, 1} >= set(once[0]["x"].ravel().tolist())


def test_random_splits_differ():
    spec = TensorSpec(name="x", datatype="FP32", shape=(1, 8))
    one, other = random_dataset([spec], 20, 0), random_dataset([spec], 20, 1)
    assert len(one) == 20
    assert not set(one.digests) & set(other.digests)
    assert one.digest == random_dataset([spec], 20, 0).digest


def test_random_samples_need_a_known_shape():
    with pytest.raises(InputError, match="pin it in the recipe"):
        random_samples([TensorSpec(name="x", datatype="FP32", shape=(1, -1))], 1, 0)


JSON = st.recursive(
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.text(st.characters(codec="utf-8")),
    lambda item: st.lists(item) | st.dictionaries(st.text("ab. \"'\\é"), item),
    max_leaves=8,
)


@given(JSON)
def test_values_are_written_as_toml(value: object):
    assert tomllib.loads(f"key = {toml(value)}") == {"key": value}


@pytest.mark.parametrize(
    "name",
    ["mnist/mnist-8", "mlperf_tiny_kws/kws_dscnn_float", "basic_pitch/nmp",
     "ultraface/version-RFB-320"],
)  # fmt: skip
def test_real_models(name: str, tmp_path: Path):
    path = DATA / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"../shared/data/{name}.onnx is absent")
    out = tmp_path / "recipe.toml"
    out.write_text(draft(path, out))
    assert read_recipe(out).model.inputs == {}


@pytest.mark.long
def test_a_drafted_recipe_builds_and_the_build_warns(tmp_path):
    """``edgeml init`` then ``edgeml build``, as a newcomer does it, without data."""
    import subprocess
    import sys

    import bundles

    (tmp_path / "m.onnx").write_bytes(bundles.linear(np.eye(3, dtype=np.float32)))

    def edgeml(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "edgeml", *arguments], cwd=tmp_path,
            capture_output=True, text=True, check=False,
            env={**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")},
        )  # fmt: skip

    assert edgeml("init", "m.onnx").returncode == 0
    done = edgeml("build", "recipe.toml")
    assert done.returncode == 0, done.stderr
    assert "validation samples are random numbers" in done.stdout
    (report,) = (tmp_path / "build").glob("*/report.html")
    assert "validation samples are random numbers" in report.read_text()
    assert edgeml("init", "m.onnx").returncode == 2, "it never overwrites a recipe"
