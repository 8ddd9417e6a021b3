"""A ``.tflite`` from inside, and under other names."""

import logging

import numpy as np
import pytest

tflites = pytest.importorskip("tflites", reason="ai-edge-litert has the schema")

from device_agent.runtimes.tflite import root, verify  # noqa: E402
from edgeml.errors import BackendError  # noqa: E402
from edgeml.graphs.tflite import (  # noqa: E402
    Inside,
    Tensor,
    aligned,
    main_ports,
    renamed,
    silence,
)

DRAW = np.random.default_rng(0)
WEIGHT = DRAW.standard_normal((3, 2, 3, 3)).astype(np.float32)
BIAS = DRAW.standard_normal(3).astype(np.float32)
FEED = {"x": DRAW.standard_normal((1, 2, 5, 6)).astype(np.float32)}


@pytest.fixture(scope="module")
def raw() -> bytes:
    return tflites.network(WEIGHT, BIAS, 5, 6)


def test_every_tensor_can_be_read(raw):
    inside = Inside(raw)
    assert [op.name for op in inside.ops] == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]
    assert (inside.inputs, inside.outputs) == ({"x": 0}, {"y": 7})
    read = inside.run(FEED)
    moved, inner = read(2), read(5)
    np.testing.assert_array_equal(moved, FEED["x"].transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(read(7), inner.transpose(0, 3, 1, 2))
    assert inside.is_constant(3) and not inside.is_constant(2)
    assert not inside.is_constant(0) and not inside.is_constant(-1)
    np.testing.assert_array_equal(inside.constant(4), BIAS.astype(np.float64))


def test_stored_numbers_stand_for_values():
    scales, zeros = np.array([0.5, 2.0]), np.array([1.0, 0.0])
    tensor = Tensor(0, "w", np.int8, (2, 2), scales, zeros, axis=1)
    stored = np.array([[3, 4], [1, -1]], np.int8)
    assert tensor.values(stored).tolist() == [[1, 8], [0, -2]]
    plain = Tensor(0, "w", np.int8, (2, 2), np.array([]), np.array([]), 0)
    assert plain.values(stored).tolist() == stored.tolist()


def test_other_names_change_no_number(raw):
    names = {index: f"t{index}" for index in range(8)}
    made = renamed(raw, names, ["image"], ["scores"])
    verify(made, "made")
    inside = Inside(made)
    assert (inside.inputs, inside.outputs) == ({"image": 0}, {"scores": 7})
    assert inside.tensors[5].name == "t5"
    np.testing.assert_array_equal(
        inside.run({"image": FEED["x"]})(7), Inside(raw).run(FEED)(7)
    )
    assert made == renamed(raw, names, ["image"], ["scores"])


def test_constants_lie_where_the_schema_wants_them(raw):
    made = aligned(raw)
    buffers = root(made).tables(4)
    content = [WEIGHT.transpose(0, 2, 3, 1).tobytes(), BIAS.tobytes()]
    assert all(made.index(one) % 16 == 0 for one in content)
    assert [one.extent(0) for one in buffers] == [0, 16, WEIGHT.nbytes, 12, 16]


def test_ports_are_in_the_graphs_order(raw):
    assert main_ports(raw) == ([0], [7])


def test_what_litert_does_not_open_is_an_error():
    with pytest.raises(BackendError, match="LiteRT does not open it"):
        Inside(b"nothing")


def test_silence_is_of_everything_and_ends(capfd):
    with silence():
        print("one")
        logging.getLogger("x").error("two")
    print("three")
    logging.getLogger("x").error("four")
    out, err = capfd.readouterr()
    assert out == "three\n"
    assert "two" not in err


def test_an_error_without_words_takes_what_was_said(capfd):
    with pytest.raises(BackendError, match="the reason"), silence():
        print("the reason")
        raise ValueError
    with pytest.raises(ValueError, match="words"), silence():
        raise ValueError("words")
    assert capfd.readouterr() == ("", "")
