"""What a build is made of, the files beside a model included."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgeml.recipes.recipe import read_recipe
from edgeml.recipes.sources import external_files, source_digests


def _saved(folder: Path, location: str) -> Path:
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])],
        [weights],
    )
    path = folder / "m.onnx"
    onnx.save(
        helper.make_model(graph), path, save_as_external_data=True, location=location
    )
    return path


@pytest.mark.parametrize("name", ["m.onnx.data", "w.bin", "weights", "w" * 200])
def test_external_weights_are_found_whatever_they_are_called(
    name: str, tmp_path: Path
) -> None:
    path = _saved(tmp_path, name)
    (tmp_path / "other.bin").write_bytes(b"not named in the model")
    assert external_files(path) == [name]


@pytest.mark.parametrize(
    "name", ["../out", "/etc/hostname", "absent", "a\0b", "x" * 300, ""]
)
def test_what_is_not_beside_the_model_is_left_to_the_reader(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "out").write_bytes(b"secret")
    tensor = TensorProto(name="w", data_type=1, dims=[1], data_location=1)
    tensor.external_data.add(key="location", value=name)
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "m.onnx").write_bytes(tensor.SerializeToString())
    assert external_files(folder / "m.onnx") == []


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").touch()
    assert external_files(tmp_path / "m.onnx") == []
    assert external_files(tmp_path / "net:make") == []


def test_code_and_weights_of_passes_count(tmp_path: Path) -> None:
    recipe = read_recipe(_recipe(tmp_path, ""))
    assert source_digests(recipe).keys() == {"m.onnx"}
    (tmp_path / "hooks.py").write_text("def shift(inputs, generator): return inputs")
    (tmp_path / "t.safetensors").write_bytes(b"weights")
    trained = '\n[[pass]]\nverb = "distill"\nteacher = "hooks:teacher"\n'
    trained += 'teacher_weights = "t.safetensors"\n'
    found = source_digests(read_recipe(_recipe(tmp_path, trained)))
    assert found.keys() == {"m.onnx", "t.safetensors", "hooks.py"}


def _recipe(folder: Path, more: str) -> Path:
    (folder / "m.onnx").write_bytes(b"a model")
    np.savez(folder / "x.npz", x=np.zeros((2, 4), np.float32))
    (folder / "r.toml").write_text(
        '[model]\nsource = "m.onnx"\nname = "m"\nversion = "1"\n'
        '[data]\ncalibration = "random:4"\nvalidation = "random:4"\ntrain = "x.npz"\n'
        f'[metric]\nname = "agreement"\n[build]\ntargets = ["cpu-x86_64"]\n{more}'
    )
    return folder / "r.toml"
