"""Module → graph: the same numbers, the same bytes, and the reasons when not."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeml.errors import PassError, RecipeError
from edgeml.intake.importer import load_model
from edgeml.passes import load_pass
from edgeml.passes.base import Context, digest

torch = pytest.importorskip("torch")

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.norm = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(144, 3)
    def forward(self, x):
        x = torch.relu(self.norm(self.conv(x)))
        return self.fc(x.flatten(1))

class Fixed(Net):
    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).reshape(1, 144))

class Branch(torch.nn.Module):
    def forward(self, x):
        return x * 2 if x.sum() > 0 else x

class Noisy(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand(())

class Recurrent(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.cell = torch.nn.GRU(4, 3)
    def forward(self, x, state):
        y, after = self.cell(x, state)
        return {"y": y, "after": after}
"""

BYTES = """
import sys
from pathlib import Path
from edgeml.intake.importer import load_model
from edgeml.passes import load_pass
from edgeml.passes.base import digest
model = load_model("exportednet:Net", None, Path(sys.argv[1]), {"x": [1, 1, 8, 8]})
print(digest(load_pass("export")(model)))
"""


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    folder = tmp_path_factory.mktemp("net")
    (folder / "exportednet.py").write_text(NET)

    def load(name, **shapes):
        shapes = shapes or {"x": [1, 1, 8, 8]}
        return load_model(f"exportednet:{name}", None, folder, shapes)

    load.folder = folder
    return load


def test_the_batch_is_variable_where_it_can_be(load):
    before = load("Net")
    after = load_pass("export")(before)
    assert after.level == "graph"
    assert after.inputs[0].name == "x" and after.inputs[0].shape == (-1, 1, 8, 8)
    assert after.outputs[0].shape == (-1, 3)
    step = after.lineage[-1].parameters
    assert step["batch"] == "variable" and step["export_error"] <= 1e-5
    assert [s.verb for s in after.lineage] == ["load", "export"]


@pytest.mark.long
def test_another_process_gives_the_same_bytes_without_paths(load):
    graph = load_pass("export")(load("Net"))
    done = subprocess.run(
        [sys.executable, "-c", BYTES, str(load.folder)],
        capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.strip() == digest(graph)
    raw = graph.payload.SerializeToString()
    assert b"exportednet" not in raw and b"stack_trace" not in raw
    assert str(Path.cwd()).encode() not in raw


def test_a_fixed_batch_says_why(load):
    after = load_pass("export")(load("Fixed"))
    assert after.inputs[0].shape == (1, 1, 8, 8)
    assert after.lineage[-1].parameters["batch"].startswith("1: torch.onnx cannot")


def test_a_state_is_no_batch(load):
    after = load_pass("export")(load("Recurrent", x=[2, 1, 4], state=[1, 1, 3]))
    assert [spec.name for spec in after.inputs] == ["x", "state"]
    assert [spec.name for spec in after.outputs] == ["y", "after"]
    assert after.lineage[-1].parameters["batch"].endswith("of x is no batch")


def test_real_samples_are_compared_too(load):
    feeds = ({"x": np.full((1, 1, 8, 8), 9, np.float32)},) * 2
    after = load_pass("export", {"dynamic_batch": False})(load("Net"), Context(feeds))
    assert after.lineage[-1].parameters["compared"] == 3
    assert after.lineage[-1].parameters["batch"] == "1: asked for"


def test_a_branch_on_data_is_told(load, capfd):
    with pytest.raises(
        PassError, match=r"branches on values.*ran before: load"
    ) as told:
        load_pass("export")(load("Branch"))
    assert "\n" not in str(told.value)
    assert capfd.readouterr() == ("", "")


def test_other_numbers_are_refused(load):
    with pytest.raises(PassError, match="differs from the module by"):
        load_pass("export")(load("Noisy"))


def test_parameters_are_checked(load):
    with pytest.raises(RecipeError, match="opsett: unknown key; did you mean 'opset'"):
        load_pass("export", {"opsett": 20})
    with pytest.raises(
        RecipeError, match="opset: expected a whole number from 18 to 23"
    ):
        load_pass("export", {"opset": "20"})
    with pytest.raises(RecipeError, match="a whole number from 18 to 23, got 13"):
        load_pass("export", {"opset": 13})(load("Net"))
    graph = load_pass("export", {"opset": 21})(load("Net"))
    assert graph.payload.opset_import[0].version == 21
