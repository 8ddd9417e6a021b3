"""What an int8 file rounds is rounded in the graph, and comes back as trained."""

from dataclasses import replace

import networks_onnx
import numpy as np
import pytest
from onnx import checker, numpy_helper

pytest.importorskip("litert_torch", reason="litert-torch converts")
pytest.importorskip("ai_edge_quantizer")

from edgeml.errors import BackendError
from edgeml.graphs.lowering import Lowered, lower
from edgeml.graphs.mirror import Mirror
from edgeml.graphs.preparation import prepare
from edgeml.model import Model
from edgeml.quantizers import aeq


@pytest.fixture(scope="module")
def model() -> Model:
    made = networks_onnx.branches()
    return replace(made, payload=prepare(made.payload))


@pytest.fixture(scope="module")
def lowered(model: Model) -> Lowered:
    return lower(model, networks_onnx.feeds(model, 4))


@pytest.fixture(scope="module")
def ranges(model: Model, lowered: Lowered) -> aeq.Ranges:
    return aeq.calibrate(lowered.raw, networks_onnx.feeds(model, 8), "minmax")


@pytest.fixture(scope="module")
def made(lowered: Lowered, ranges: aeq.Ranges) -> bytes:
    return aeq.quantize_static(lowered.raw, ranges)


@pytest.fixture(scope="module")
def mirror(model: Model, lowered: Lowered, made: bytes) -> Mirror:
    return Mirror(model.payload, lowered, made)


def changed(proto, name, change):
    """The graph with another value of an initializer."""
    made = type(proto)()
    made.CopyFrom(proto)
    for one in made.graph.initializer:
        if one.name == name:
            value = change(numpy_helper.to_array(one))
            one.CopyFrom(numpy_helper.from_array(value, name))
    return made


def rounded(proto) -> dict[str, list[str]]:
    """Tensor that is quantized → scale and zero point."""
    return {
        node.input[0]: list(node.input[1:])
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear"
    }


def test_the_graph_is_sound_and_has_the_ports_of_the_model(
    model: Model, mirror: Mirror
) -> None:
    checker.check_model(mirror.proto, full_check=True)
    for port in ("input", "output"):
        names = [one.name for one in getattr(mirror.proto.graph, port)]
        assert names == [one.name for one in getattr(model.payload.graph, port)]


def test_what_litert_fuses_is_rounded_once(mirror: Mirror) -> None:
    found = rounded(mirror.proto)
    assert "image" in found
    assert "b/exact" in found, "after the clip"
    assert "a/exact" not in found, "not before it"
    assert "c/exact" in found, "a leaky relu is an operator of its own"
    assert "l/exact" not in found, "the bias of a matrix product comes first"


def test_what_is_moved_or_joined_shares_its_scale(mirror: Mirror) -> None:
    found = rounded(mirror.proto)
    assert found["j/exact"] == found["k/exact"], "flattened"
    assert found["b/exact"] == found["e/exact"], "concatenated"
    assert found["j/exact"] != found["e/exact"]


def test_weights_are_per_channel_and_other_constants_not(mirror: Mirror) -> None:
    values = {
        one.name: numpy_helper.to_array(one) for one in mirror.proto.graph.initializer
    }
    shapes = {name: values[f"{name}/scale"].shape for name in ("w1", "w3", "w4")}
    assert shapes == {"w1": (8,), "w3": (4,), "w4": (5,)}
    assert values["gains/scale"].shape == values["offsets/scale"].shape == ()
    assert np.abs(values["w1/int8"]).max((1, 2, 3)).tolist() == [127] * 8
    assert values["gains/zero"] == -128


def test_untrained_it_is_the_graph_but_for_the_rounding(
    model: Model, mirror: Mirror
) -> None:
    before = {one.name: one for one in model.payload.graph.initializer}
    after = {one.name: one for one in mirror.floats(mirror.proto).graph.initializer}
    assert list(before) == list(after)
    for name in ("w1", "gains"):
        exact, found = (numpy_helper.to_array(one[name]) for one in (before, after))
        assert 0 < np.abs(exact - found).max() < 0.01
    assert before["b1"].raw_data == after["b1"].raw_data


def test_the_quantizer_comes_to_the_same_file_by_the_spans(
    lowered: Lowered, ranges: aeq.Ranges, made: bytes, mirror: Mirror
) -> None:
    spans = mirror.spans(mirror.proto)
    again = aeq.replaced(ranges, spans, mirror.limits(mirror.proto, lowered))
    mirror.check(mirror.proto, lowered, aeq.quantize_static(lowered.raw, again))
    mirror.check(mirror.proto, lowered, made)


def test_another_scale_or_other_integers_are_not_what_was_trained(
    lowered: Lowered, made: bytes, mirror: Mirror
) -> None:
    wider = changed(mirror.proto, "image/scale", lambda one: one * np.float32(1.01))
    with pytest.raises(BackendError, match="image: trained as"):
        mirror.check(wider, lowered, made)
    other = changed(mirror.proto, "w3/int8", lambda one: one // np.int8(2))
    with pytest.raises(BackendError, match="w3: its integers are not those trained"):
        mirror.check(other, lowered, made)


def test_weights_that_the_file_has_otherwise_are_an_error(
    model: Model, lowered: Lowered, made: bytes
) -> None:
    other = changed(model.payload, "w3", lambda one: one * np.float32(2))
    with pytest.raises(BackendError, match=r"third.*its weights are not found"):
        Mirror(other, lowered, made)


def test_the_file_of_other_weights_has_the_same_names(
    model: Model, lowered: Lowered
) -> None:
    feeds = networks_onnx.feeds(model, 4)
    # so that the clip cuts nothing on these samples, and looks like its convolution
    other = changed(model.payload, "b1", lambda one: one * 0 + np.float32(3))
    again = lower(replace(model, payload=other), feeds, lowered)
    assert again.owners == lowered.owners
    assert again.tensors == lowered.tensors
    stranger = networks_onnx.convolutional()
    with pytest.raises(BackendError, match="makes other operators"):
        lower(stranger, networks_onnx.feeds(stranger, 2), lowered)
