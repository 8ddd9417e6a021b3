"""What 32-bit ARM has of LiteRT: the table, and the release itself where it is."""

import numpy as np
import pytest

tflites = pytest.importorskip("tflites", reason="ai-edge-litert has the schema")

from edgeml import armv7  # noqa: E402
from edgeml.errors import BackendError  # noqa: E402
from edgeml.intake.tflite import BUILTINS, operator_versions  # noqa: E402

HERE = pytest.mark.skipif(
    armv7.python() is None, reason=f"{armv7.SETUP} makes the environment"
)


def test_what_the_release_lacks_is_told_with_what_it_has():
    assert armv7.missing({"CONV_2D": 7, "SOFTMAX": 1}) == []
    found = armv7.missing({"CONV_2D": 8, "STABLEHLO_COMPOSITE": 1})
    assert found == [
        "CONV_2D version 8 (it has 7)", "STABLEHLO_COMPOSITE version 1 (it has none)",
    ]  # fmt: skip


def test_the_table_has_names_of_the_schema():
    assert set(armv7.OPERATORS) <= set(BUILTINS)
    assert len(armv7.OPERATORS) > 150


def test_versions_are_read_from_a_file():
    raw = tflites.added()
    assert operator_versions(raw) == {"ADD": 1}
    model = tflites.read(raw)
    model.operatorCodes[0].version = 6
    newer = operator_versions(tflites.written(model))
    assert armv7.missing(newer) == ["ADD version 6 (it has 5)"]


@HERE
def test_the_table_is_the_releases_own(tmp_path):
    """One version more than in the table does not load."""
    path = tmp_path / "model.tflite"
    feed = {name: np.ones((1, 3), np.float32) for name in ("a", "b")}
    model = tflites.read(tflites.added())
    model.operatorCodes[0].version = 5
    path.write_bytes(tflites.written(model))
    session = armv7.opened(path, {})
    assert session.predict(feed)["y"].tolist() == [[2, 2, 2]]
    session.close()
    model.operatorCodes[0].version = 6
    path.write_bytes(tflites.written(model))
    with pytest.raises(BackendError, match="'ADD' version '6'"):
        armv7.opened(path, {})


@HERE
def test_a_file_that_kills_it_is_an_error(tmp_path):
    """Its process dies, ours says so. (Verification is what it would pass.)"""
    path = tmp_path / "model.tflite"
    path.write_bytes(tflites.convolution()[:-40])
    with pytest.raises(BackendError, match=r"tflite-runtime 2.14.0 cannot run it"):
        armv7.opened(path, {})


def test_without_the_environment_the_table_alone_decides(monkeypatch, tmp_path):
    monkeypatch.setattr(armv7, "ENVIRONMENT", tmp_path)
    assert armv7.python() is None
    assert "did not run here" in armv7.how()
    with pytest.raises(RuntimeError, match="scripts/setup armv7"):
        armv7.opened(tmp_path, {})
