"""ONNX graph → ``.tflite``: the same numbers, layer by layer, under the same names."""

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import networks_onnx
import numpy as np
import pytest

pytest.importorskip("litert_torch", reason="litert-torch converts")
import tflites

from edgeml.errors import BackendError
from edgeml.graphs import lowering
from edgeml.graphs.tflite import Inside
from edgeml.graphs.twins import compare, difference
from edgeml.model import Model

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def model() -> Model:
    return networks_onnx.convolutional()


@pytest.fixture(scope="module")
def lowered(model: Model) -> lowering.Lowered:
    return lowering.lower(model)


def operator(lowered: lowering.Lowered, tensor: str) -> int:
    """The place of the operator that makes a tensor."""
    inside = Inside(lowered.raw)
    found = [op for op in inside.ops if inside.tensors[op.outputs[0]].name == tensor]
    return found[0].place


def test_outputs_agree_and_ports_have_the_models_names(model, lowered):
    inside = Inside(lowered.raw)
    assert list(inside.inputs) == ["image"]
    assert list(inside.outputs) == ["scores"]
    assert lowered.error < 1e-5
    assert inside.tensors[inside.inputs["image"]].shape == (1, 3, 12, 12)


def test_layers_end_where_their_values_are(model, lowered):
    """A batch normalization and a Relu are in their convolution."""
    assert lowered.owners["first"] == "first"
    assert lowered.owners["norm"] == "first"
    assert lowered.owners["bend"] == "first"
    assert lowered.owners["second"] == "second"
    assert lowered.owners["dense"] == "scores"
    assert lowered.layers["scores"] == ("dense", "Gemm")
    assert lowered.layers["first"] == ("first", "Conv")


def test_constants_are_named_after_their_layer(lowered):
    names = {tensor.name for tensor in Inside(lowered.raw).tensors.values()}
    assert {"first/weight", "first/bias", "dense/weight", "dense/bias"} <= names


def test_nodes_to_keep_become_tensors(lowered):
    assert lowered.tensors_of(["bend", "first", "dense"]) == ("first", "scores")
    with pytest.raises(BackendError, match="'nowhere', which is no node"):
        lowered.tensors_of(["nowhere"])


@pytest.mark.parametrize("layer", ["first", "second", "dense"])
def test_a_lost_bias_is_caught_and_its_layer_named(model, lowered, layer):
    """What happened to an official MLPerf Tiny file."""
    place = operator(lowered, lowered.owners[layer])
    stripped = tflites.without_bias(lowered.raw, place)
    with pytest.raises(BackendError, match=f"nowhere in it is {layer}$"):
        lowering.checked(model, stripped, lowering.seeded(model))


def test_a_lost_weight_is_caught(model, lowered):
    inside = Inside(lowered.raw)
    op = inside.ops[operator(lowered, "second")]
    changed = tflites.read(lowered.raw)
    tensor = changed.subgraphs[0].tensors[op.inputs[1]]
    data = np.asarray(changed.buffers[tensor.buffer].data).view(np.float32).copy()
    data[0] *= 1.05
    changed.buffers[tensor.buffer].data = data.view(np.uint8)
    with pytest.raises(BackendError, match="nowhere in it is second"):
        lowering.checked(model, tflites.written(changed), lowering.seeded(model))


@pytest.mark.long
def test_the_module_of_a_graph_is_tried_first_and_must_agree(model, monkeypatch):
    """A module that says something else is passed over: the graph counts."""
    import torch

    other = networks_onnx.convolutional(seed=1)
    asked = []

    def origin() -> Model:
        from edgeml.graphs.torched import module_of

        asked.append(1)
        return module_of(other)

    torch.manual_seed(0)
    found = lowering.lower(replace(model, origin=origin))
    assert asked == [1]
    assert found.error < 1e-5


def test_every_way_that_failed_is_told(model):
    def origin() -> Model:
        raise BackendError("no module today")

    broken = networks_onnx.convolutional()
    broken.payload.graph.node[2].op_type = "Wobble"
    broken.payload.graph.node[2].domain = "com.acme"
    with pytest.raises(BackendError) as caught:
        lowering.lower(replace(broken, origin=origin))
    assert "from the torch module: no module today" in str(caught.value)
    assert "from the ONNX graph: " in str(caught.value)
    assert "Wobble" in str(caught.value)


@pytest.mark.long
def test_attention_keeps_its_layers():
    model = networks_onnx.attention()
    lowered = lowering.lower(model)
    twins = compare(model, Inside(lowered.raw), lowering.seeded(model))
    assert twins.lost == ()
    assert {"query", "key", "value"} <= set(lowered.owners)


def test_differences_are_in_parts_of_the_largest_value():
    wanted = np.array([10.0, -1.0])
    assert difference(wanted, wanted + np.array([0.1, 0])) == pytest.approx(0.01)
    assert difference(wanted, np.array([10.0])) == float("inf")
    assert difference(np.array([np.nan]), np.array([1.0])) == float("inf")
    assert difference(np.array([1.0]), np.array([np.nan])) == float("inf")
    assert difference(np.array([np.nan, 1]), np.array([np.nan, 1])) == 0


@pytest.mark.long
def test_the_same_bytes_in_every_process(lowered):
    """Whatever the order of Python's hashes."""
    code = (
        "import sys; sys.path.insert(0, 'tests/simulators')\n"
        "import hashlib, networks_onnx; from edgeml.graphs.lowering import lower\n"
        "raw = lower(networks_onnx.convolutional()).raw\n"
        "print(hashlib.sha256(raw).hexdigest())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.strip() == hashlib.sha256(lowered.raw).hexdigest()
