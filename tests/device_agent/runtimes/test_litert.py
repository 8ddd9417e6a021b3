"""LiteRT: names, types, shapes, options; and files that are not what they say."""

import contextlib
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

litert = pytest.importorskip("device_agent.runtimes.litert")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")

import tflites  # noqa: E402

from device_agent.contract.errors import ArtifactError  # noqa: E402
from device_agent.contract.tensors import TensorSpec  # noqa: E402
from device_agent.runtimes import runtime  # noqa: E402
from device_agent.runtimes import tflite as files  # noqa: E402

ROOT = Path(__file__).resolve().parents[3]
DATA = ROOT.parent / "shared" / "data"


def opened(folder: Path, raw: bytes, **options):
    path = folder / "model.tflite"
    path.write_bytes(raw)
    return runtime("litert").load(path, options)


def real(path: str) -> Path:
    if not (DATA / path).exists():
        pytest.skip(f"../shared/data/{path} is absent")
    return DATA / path


def test_names_are_those_of_the_signature(tmp_path):
    session = opened(tmp_path, tflites.added(signature=("first", "second", "sum")))
    assert [spec.name for spec in session.inputs] == ["first", "second"]
    assert session.outputs == (TensorSpec(name="sum", datatype="FP32", shape=(1, 3)),)
    feeds = {
        "first": np.array([[1, 2, 3]], np.float32),
        "second": np.array([[10, 20, 30]], np.float32),
    }
    assert session.predict(feeds)["sum"].tolist() == [[11, 22, 33]]


def test_a_signature_sorts_its_names_and_the_graph_keeps_its_order(tmp_path):
    session = opened(tmp_path, tflites.added(signature=("z", "a", "sum")))
    assert [spec.name for spec in session.inputs] == ["z", "a"]


def test_without_a_signature_the_tensors_have_names(tmp_path):
    session = opened(tmp_path, tflites.added(signature=None))
    assert [spec.name for spec in session.inputs] == ["x0", "x1"]
    assert [spec.name for spec in session.outputs] == ["y"]


def test_what_is_given_back_is_the_callers_own(tmp_path):
    session = opened(tmp_path, tflites.added())
    feeds = {name: np.ones((1, 3), np.float32) for name in ("a", "b")}
    first = session.predict(feeds)["y"]
    session.predict({name: array * 5 for name, array in feeds.items()})
    assert first.tolist() == [[2, 2, 2]]


def test_a_variable_dimension_takes_any_size(tmp_path):
    session = opened(tmp_path, tflites.added(variable=True))
    assert session.inputs[0].shape == (-1, 3)
    for size in (1, 4, 2, 2):
        feeds = {name: np.full((size, 3), size, np.float32) for name in ("a", "b")}
        found = session.predict(feeds)["y"]
        assert found.shape == (size, 3)
        assert (found == 2 * size).all()


def test_quantized_ports_are_as_declared():
    path = real("mlperf_tiny_kws/kws_ref_model.tflite")
    session = runtime("litert").load(path, {"threads": 1})
    (port,) = session.inputs
    assert (port.datatype, port.shape) == ("INT8", (-1, 49, 10, 1))
    feeds = {port.name: np.zeros((1, 49, 10, 1), np.int8)}
    assert session.predict(feeds)["Identity"].dtype == np.int8
    with pytest.raises(ArtifactError, match="takes INT8 of shape"):
        session.predict({port.name: feeds[port.name].astype(np.float32)})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cache": "here"}, "no option cache; it has threads, delegate"),
        ({"threads": 0}, "a number from 1"),
        ({"threads": True}, "a number from 1"),
        ({"delegate": "gpu"}, "one of xnnpack, none"),
    ],
)
def test_unknown_options_are_errors(tmp_path, options, said):
    with pytest.raises(ArtifactError, match=said):
        opened(tmp_path, tflites.added(), **options)


def test_with_and_without_a_delegate_the_numbers_are_the_same(tmp_path):
    feeds = {name: np.ones((1, 3), np.float32) for name in ("a", "b")}
    one, other = (
        opened(tmp_path, tflites.added(), delegate=name).predict(feeds)["y"].tolist()
        for name in ("xnnpack", "none")
    )
    assert one == other


def test_coverage_tells_what_xnnpack_leaves(tmp_path):
    path = real("mlperf_tiny_kws/kws_ref_model.tflite")
    found = runtime("litert").coverage(path, {})
    assert found.nodes == 13
    assert "SOFTMAX Identity" in found.fallback
    assert found.fallback_share < 0.5
    assert runtime("litert").coverage(path, {"delegate": "none"}).fallback == ()


def test_an_operator_that_nobody_has_is_named():
    path = real("tflm/audio_preprocessor_int8.tflite")
    with pytest.raises(ArtifactError, match="SignalWindow") as caught:
        runtime("litert").load(path, {})
    assert "\n" not in str(caught.value)


def test_another_suffix_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(tflites.added())
    with pytest.raises(ArtifactError, match=r"opens \.tflite"):
        runtime("litert").load(tmp_path / "model.onnx", {})


def test_an_older_package_counts_as_older_than_all():
    from device_agent.contract.versions import version_key

    assert version_key("0.2.14.0") < version_key("1.0.1") < version_key("2.3.0")


def test_nothing_is_printed(tmp_path):
    (tmp_path / "model.tflite").write_bytes(tflites.added())
    code = (
        "from pathlib import Path; from device_agent.runtimes import runtime; "
        f"runtime('litert').load(Path({str(tmp_path / 'model.tflite')!r}), {{}})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "")


class TestDamage:
    """Every one of these killed the process of tflite-runtime 2.14.0, or could."""

    @pytest.fixture(scope="class")
    def good(self) -> bytes:
        raw = tflites.convolution()
        files.verify(raw, "good")
        return raw

    def refused(self, raw: bytes, said: str) -> None:
        with pytest.raises(ArtifactError, match=said) as caught:
            files.verify(raw, "m.tflite")
        assert str(caught.value).startswith("m.tflite is not a sound .tflite file: ")
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_the_end_is_missing(self, good, share):
        self.refused(good[: int(len(good) * share)], "m.tflite")

    @pytest.mark.parametrize("raw", [b"", b"TFL3", b"\0" * 64, b"\xff" * 64])
    def test_no_model_at_all(self, raw):
        self.refused(raw, "no TFL3 at byte 4|points to byte")

    @pytest.mark.parametrize(
        ("change", "said"),
        [
            ({"stride": 0}, "a stride or window of 0"),
            ({"padding": 65}, "padding 65"),
            ({"options": False}, "without its options"),
            ({"inputs": [9, 1, 2]}, "tensor 9 of 4"),
            ({"inputs": [-1, 1, 2]}, "tensor -1 of 4"),
            ({"inputs": [0, -1, 2]}, "tensor -1 of 4"),
            ({"inputs": [0, 1, 3]}, "read before anything computes it"),
            ({"shape": [0, 4, 4, 1]}, "an input of no size"),
            ({"shape": [1, 4, 4, -7]}, "has shape"),
            ({"kernel": 2}, "2 bytes of data"),
            ({"buffer": 77}, "buffer 77 of"),
            ({"opcode": 5}, "operator code 5 of 1"),
            ({"scales": 3, "zeros": 2}, "3 scales, 2 zero points"),
        ],
        ids=lambda one: "-".join(one) if isinstance(one, dict) else "",
    )
    def test_what_contradicts_itself(self, change, said):
        self.refused(tflites.convolution(**change), said)

    def test_what_is_rare_and_sound(self):
        files.verify(tflites.convolution(outputs=[2]), "a constant as output")
        files.verify(tflites.convolution(inputs=[0, 1, -1]), "no bias")

    def test_a_vector_that_points_to_itself_ends(self, good):
        """Offsets are unsigned: nothing can point backwards, and work is bounded."""
        raw = bytearray(good)
        for place in range(8, len(raw) - 4, 4):
            struct.pack_into("<I", raw, place, 4)
            with contextlib.suppress(ArtifactError):
                files.verify(bytes(raw), "m.tflite")
            raw[place : place + 4] = good[place : place + 4]

    def test_the_runtime_survives_what_verification_lets_pass(self, good, tmp_path):
        """Bits flipped at random, in one process: it is still there afterwards."""
        code = (
            "import random, sys; from pathlib import Path\n"
            "from device_agent.contract.errors import ArtifactError\n"
            "from device_agent.runtimes import runtime\n"
            "good, draw, engine = Path(sys.argv[1]), random.Random(0), "
            "runtime('litert')\n"
            "raw, bad = good.read_bytes(), good.with_name('bad.tflite')\n"
            "for _ in range(100):\n"
            "    changed = bytearray(raw)\n"
            "    changed[draw.randrange(len(raw))] ^= 1 << draw.randrange(8)\n"
            "    bad.write_bytes(changed)\n"
            "    try: engine.load(bad, {})\n"
            "    except ArtifactError: pass\n"
            "print('alive')"
        )
        (tmp_path / "good.tflite").write_bytes(good)
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "good.tflite")],
            cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert done.stdout == "alive\n"
