"""Reading TensorFlow Lite files without a runtime, sound ones and hostile ones."""

import struct
from pathlib import Path

import flatbuffers
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml.errors import ModelError
from edgeml.intake.tflite import read_tflite

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def _real(folder: str, file: str) -> bytes:
    path = DATA / folder / file
    if not path.exists():
        pytest.skip(f"../shared/data/{folder} is absent")
    return path.read_bytes()


def _offsets(builder, items):
    builder.StartVector(4, len(items), 4)
    for item in reversed(items):
        builder.PrependUOffsetTRelative(item)
    return builder.EndVector()


def _ints(builder, values):
    builder.StartVector(4, len(values), 4)
    for value in reversed(values):
        builder.PrependInt32(value)
    return builder.EndVector()


def _tensor(builder, name, shape, scales=(), axis=0):
    text, dims = builder.CreateString(name), _ints(builder, shape)
    quantization = None
    if scales:
        builder.StartVector(4, len(scales), 4)
        for scale in reversed(scales):
            builder.PrependFloat32(scale)
        vector = builder.EndVector()
        builder.StartObject(7)
        builder.PrependUOffsetTRelativeSlot(2, vector, 0)
        builder.PrependInt32Slot(6, axis, 0)
        quantization = builder.EndObject()
    builder.StartObject(8)
    builder.PrependUOffsetTRelativeSlot(0, dims, 0)
    builder.PrependInt8Slot(1, 9 if scales else 0, 0)
    builder.PrependUOffsetTRelativeSlot(3, text, 0)
    if quantization:
        builder.PrependUOffsetTRelativeSlot(4, quantization, 0)
    return builder.EndObject()


def _file(tensors=(("x", [1, 4]), ("y", [1, 4])), code=19, custom="", used=(0, 1)):
    """A model of one operator; ``tensors`` are (name, shape[, scales, axis])."""
    builder = flatbuffers.Builder(256)
    made = [_tensor(builder, *parts) for parts in tensors]
    inputs, outputs = _ints(builder, [used[0]]), _ints(builder, [used[1]])
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(1, inputs, 0)
    builder.PrependUOffsetTRelativeSlot(2, outputs, 0)
    operator = builder.EndObject()
    vectors = [_offsets(builder, made), inputs, outputs, _offsets(builder, [operator])]
    builder.StartObject(5)
    for slot, vector in enumerate(vectors):
        builder.PrependUOffsetTRelativeSlot(slot, vector, 0)
    graph = builder.EndObject()
    name = builder.CreateString(custom) if custom else 0
    builder.StartObject(4)
    builder.PrependInt8Slot(0, code, 0)
    builder.PrependUOffsetTRelativeSlot(1, name, 0)
    codes = _offsets(builder, [builder.EndObject()])
    graphs = _offsets(builder, [graph])
    builder.StartObject(5)
    builder.PrependUint32Slot(0, 3, 0)
    builder.PrependUOffsetTRelativeSlot(1, codes, 0)
    builder.PrependUOffsetTRelativeSlot(2, graphs, 0)
    builder.Finish(builder.EndObject(), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _read(data: bytes):
    return read_tflite(data, "m.tflite")


def test_a_small_file_is_told():
    facts = _read(_file())
    assert (facts.version, facts.subgraphs, facts.tensors) == (3, 1, 2)
    assert facts.operators == {"RELU": 1} and not facts.problems
    assert [(t.name, t.datatype, t.shape) for t in facts.inputs + facts.outputs] == [
        ("x", "FP32", (1, 4)), ("y", "FP32", (1, 4))
    ]  # fmt: skip


def test_a_custom_operator_is_a_problem():
    facts = _read(_file(code=32, custom="Wobble"))
    assert facts.custom_operators == ("Wobble",)
    assert "operator Wobble (node 0, output 'y')" in facts.problems[0]


@pytest.mark.parametrize(
    ("scales", "axis", "reason"),
    [
        ((0.5,), 3, "quantized_dimension must be in range [0, 2), is 3"),
        ((0.5,), -1, "quantized_dimension must be in range [0, 2), is -1"),
        ((0.5, 0.5, 0.5), 1, "3 scales for 4 channels"),
    ],
)
def test_quantization_that_contradicts(scales, axis, reason):
    facts = _read(_file([("x", [1, 4], scales, axis), ("y", [1, 4])]))
    (problem,) = facts.problems
    assert reason in problem and "operator RELU (node 0), tensor 'x'" in problem


def test_an_index_beyond_the_tensors():
    with pytest.raises(ModelError, match="damaged: tensor 7 of 2"):
        _read(_file(used=(0, 7)))


def test_a_small_file_cannot_make_much_work():
    data = _file()
    for place in range(8, len(data) - 4, 4):
        worse = bytearray(data)
        worse[place : place + 4] = struct.pack("<I", 99_999)
        _told_or_refused(bytes(worse))


def _told_or_refused(data: bytes) -> None:
    try:
        _read(data)
    except ModelError as error:
        assert "\n" not in str(error)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_is_told_or_refused(data):
    whole = bytearray(_file([("x", [1, 4], (0.5,), 0), ("y", [1, 4])]))
    for _ in range(data.draw(st.integers(1, 6))):
        whole[data.draw(st.integers(8, len(whole) - 1))] = data.draw(
            st.integers(0, 255)
        )
    cut = data.draw(st.integers(0, len(whole)))
    _told_or_refused(bytes(whole if cut % 3 else whole[:cut]))


def test_what_is_no_tflite():
    with pytest.raises(ModelError, match="no TensorFlow Lite"):
        _read(b"hello world")


def test_person_detect_names_the_bad_tensor():
    facts = read_tflite(_real("tflm", "person_detect.tflite"), "m")
    assert "DEPTHWISE_CONV_2D (node 0), tensor" in facts.problems[0]
    assert "must be in range [0, 1), is 3" in facts.problems[0]


def test_audio_preprocessor_names_the_custom_operators():
    facts = read_tflite(_real("tflm", "audio_preprocessor_int8.tflite"), "m")
    assert "SignalWindow" in facts.custom_operators
    assert facts.problems[0].startswith("operator SignalWindow (node 0")


@pytest.mark.parametrize(
    ("folder", "file", "operator"),
    [
        ("mnist", "mnist_lstm_int8.tflite", "UNIDIRECTIONAL_SEQUENCE_LSTM"),
        ("mlperf_tiny_kws", "kws_ref_model.tflite", "DEPTHWISE_CONV_2D"),
        ("basic_pitch", "nmp.tflite", "SELECT_V2"),
    ],
)
def test_real_files_are_sound(folder, file, operator):
    facts = read_tflite(_real(folder, file), file)
    assert not facts.problems and facts.operators[operator] > 0
    assert facts.inputs and facts.outputs
