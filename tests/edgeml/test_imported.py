"""A torch model on its way to a graph, and the module made again for tools."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeml.cache import Cache  # noqa: E402
from edgeml.imported import Imported, graph_of  # noqa: E402
from edgeml.recipes.recipe import read_recipe  # noqa: E402

CODE = """
import torch
from torch import nn


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
"""
RECIPE = """
[model]
source = "{source}"
name = "small"
version = "1.0.0"
{inputs}

[data]
calibration = "random:4"
validation = "random:4"

[metric]
name = "agreement"

[build]
targets = ["cpu-x86_64"]
"""


def imported(folder: Path, source: str, inputs: str = "") -> Imported:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(source=source, inputs=inputs))
    return graph_of(read_recipe(path), Cache(folder / "cache"), {}, "", False)


def test_a_factorys_graph_knows_the_module_that_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "small_model.py").write_text(CODE)
    given = "small_model:small", "inputs = { x = [1, 1, 8, 8] }"
    fresh, cached = (imported(tmp_path, *given) for _ in range(2))
    x = np.random.default_rng(0).normal(size=(1, 1, 8, 8)).astype(np.float32)
    for one in (fresh, cached):
        assert one.model.origin is not None
        origin = one.model.origin()
        assert origin.level == "module"
        assert not origin.payload.training
        assert one.model.origin() is origin
        exact = origin.payload(torch.from_numpy(x)).detach().numpy()
        assert np.isfinite(exact).all()
    assert fresh.model == cached.model


def test_a_graph_that_came_as_onnx_has_no_origin(tmp_path: Path) -> None:
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [value("x", TensorProto.FLOAT, [1, 4])],
        [value("y", TensorProto.FLOAT, [1, 4])],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    )
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert imported(tmp_path, "model.onnx").model.origin is None
