"""AI Edge Quantizer on a small network made field by field."""

import re

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer")
import tflites

from edgeml.errors import BackendError
from edgeml.graphs.tflite import Inside
from edgeml.quantizers import aeq

DRAW = np.random.default_rng(0)
LOUD = np.logspace(-2, 0, 6)[:, None, None, None]
"""Channels of very different size: one scale for all of them is not enough."""
WEIGHT = (DRAW.standard_normal((6, 4, 3, 3)) * LOUD).astype(np.float32)
BIAS = DRAW.standard_normal(6).astype(np.float32)
LAYER = "y nhwc"
"""The tensor that the convolution makes."""


def samples(count: int) -> list[dict[str, np.ndarray]]:
    draw = np.random.default_rng(1)
    return [
        {"x": draw.standard_normal((1, 4, 9, 8)).astype(np.float32)}
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def raw() -> bytes:
    return tflites.network(WEIGHT, BIAS, 9, 8)


@pytest.fixture(scope="module")
def ranges(raw) -> aeq.Ranges:
    return aeq.calibrate(raw, samples(20), "minmax")


def sqnr_db(raw: bytes, made: bytes) -> float:
    """Of the output, on samples that calibration did not see."""
    exact, rounded = Inside(raw), Inside(made)
    signal = noise = 0.0
    for feed in samples(30)[20:]:
        wanted = exact.run(feed)(exact.outputs["y"]).astype(np.float64)
        found = rounded.run(feed)(rounded.outputs["y"])
        signal += float(np.square(wanted).sum())
        noise += float(np.square(wanted - found).sum())
    return 10 * np.log10(signal / noise)


def of(made: bytes, name: str):
    """The tensors of the convolution: input, weight, bias, output."""
    inside = Inside(made)
    (op,) = [one for one in inside.ops if one.name == name]
    return [inside.tensors[index] for index in (*op.inputs, *op.outputs)]


def test_static_int8_is_close_and_keeps_float_ports(raw, ranges):
    made = aeq.quantize_static(raw, ranges)
    given, weight, bias, output = of(made, "CONV_2D")
    kinds = [one.dtype for one in (given, weight, bias, output)]
    assert kinds == [np.int8, np.int8, np.int32, np.int8]
    assert weight.scales.size == 6
    assert not weight.zero_points.any()
    inside = Inside(made)
    ports = [*inside.inputs.values(), *inside.outputs.values()]
    assert {inside.tensors[index].dtype for index in ports} == {np.float32}
    assert sqnr_db(raw, made) > 30


def test_int16_activations_are_closer(raw, ranges):
    made = aeq.quantize_static(raw, ranges, activation="int16")
    given, weight, bias, output = of(made, "CONV_2D")
    kinds = [one.dtype for one in (given, weight, bias, output)]
    assert kinds == [np.int16, np.int8, np.int64, np.int16]
    assert sqnr_db(raw, made) > sqnr_db(raw, aeq.quantize_static(raw, ranges)) + 3


def test_dynamic_int8_needs_no_samples(raw):
    made = aeq.quantize_dynamic(raw)
    given, weight, bias, output = of(made, "CONV_2D")
    kinds = [one.dtype for one in (given, weight, bias, output)]
    assert kinds == [np.float32, np.int8, np.float32, np.float32]
    assert sqnr_db(raw, made) > 30


def test_half_keeps_the_numbers(raw):
    made = aeq.half(raw)
    assert sqnr_db(raw, made) > 60
    assert np.float16 in {one.dtype for one in Inside(made).tensors.values()}


def test_percentiles_are_inside_the_whole_range(raw, ranges):
    narrow = aeq.calibrate(raw, samples(20), "percentile", 99.0)
    assert narrow.keys() == ranges.keys()
    for name in ("x", LAYER, "y"):
        low, high = (float(ranges[name][key].min()) for key in ("min", "max"))
        least, most = (float(narrow[name][key].min()) for key in ("min", "max"))
        assert low <= least < most < high, name
    values = np.concatenate([one["x"].ravel() for one in samples(20)])
    low, high = (float(narrow["x"][key].min()) for key in ("min", "max"))
    assert np.mean((values >= low) & (values <= high)) == pytest.approx(0.99, abs=2e-3)


def test_minmax_sees_every_sample_and_the_tools_own_way_forgets(raw):
    loud = [{"x": samples(1)[0]["x"] * 10}, *samples(60)]
    seen = aeq.calibrate(raw, loud, "minmax")["x"]["max"].max()
    own = aeq.calibrate(raw, loud)["x"]["max"].max()
    assert seen == loud[0]["x"].max()
    assert own < seen / 2


def test_kept_layers_stay_in_float(raw, ranges):
    with pytest.raises(BackendError, match="nothing was quantized"):
        aeq.quantize_static(raw, ranges, operators=aeq.CORE, keep=[LAYER])
    made = aeq.quantize_static(raw, ranges, keep=[LAYER])
    assert {one.dtype for one in of(made, "CONV_2D")} == {np.float32}
    with pytest.raises(BackendError, match="nothing was quantized"):
        aeq.quantize_dynamic(raw, keep=[LAYER])


def test_a_kept_layer_is_not_a_pattern(raw, ranges):
    """Names are names, whatever they hold, and one is not the start of another."""
    for keep in (["y"], [re.escape(LAYER)], ["y n"], [".*"]):
        made = aeq.quantize_static(raw, ranges, keep=keep)
        assert of(made, "CONV_2D")[1].dtype == np.int8, keep


def test_core_leaves_the_rest_in_float(raw, ranges):
    made = Inside(aeq.quantize_static(raw, ranges, operators=aeq.CORE))
    moved = [op for op in made.ops if op.name == "TRANSPOSE"]
    assert {made.tensors[op.outputs[0]].dtype for op in moved} == {np.float32}


def test_the_same_inputs_give_the_same_bytes(raw, ranges):
    before = bytes(raw)
    again = aeq.calibrate(raw, samples(20), "minmax")
    one = aeq.quantize_static(raw, ranges)
    assert one == aeq.quantize_static(raw, again)
    assert aeq.half(raw) == aeq.half(raw)
    assert aeq.quantize_dynamic(raw) == aeq.quantize_dynamic(raw)
    assert raw == before


def test_nothing_is_printed(raw, capfd):
    aeq.quantize_static(raw, aeq.calibrate(raw, samples(2)))
    assert capfd.readouterr() == ("", "")


def test_static_needs_samples(raw):
    with pytest.raises(BackendError, match="there are none"):
        aeq.calibrate(raw, [])


def test_a_file_that_is_none_is_an_error():
    with pytest.raises(BackendError):
        aeq.quantize_dynamic(b"nothing" * 20)


class TestBiases:
    """An official MLPerf Tiny file lost every one, and nobody noticed."""

    @pytest.mark.parametrize("make", ["static", "int16", "dynamic", "half"])
    def test_a_bias_set_to_zero_is_caught(self, raw, ranges, make):
        made = {
            "static": lambda: aeq.quantize_static(raw, ranges),
            "int16": lambda: aeq.quantize_static(raw, ranges, activation="int16"),
            "dynamic": lambda: aeq.quantize_dynamic(raw),
            "half": lambda: aeq.half(raw),
        }[make]()
        aeq.check_biases(raw, made)
        names = [op.name for op in Inside(made).ops]
        bad = tflites.without_bias(made, names.index("CONV_2D"))
        with pytest.raises(BackendError, match=f"the bias of {LAYER} is off by"):
            aeq.check_biases(raw, bad)

    def test_a_bias_left_out_is_caught(self):
        with_it, without = tflites.dense(True), tflites.dense(False)
        aeq.check_biases(with_it, with_it)
        aeq.check_biases(without, without)
        with pytest.raises(BackendError, match="the bias of y is lost"):
            aeq.check_biases(with_it, without)
