import subprocess
import sys
from importlib.util import find_spec as real_find_spec
from typing import Any

import pytest

from device_agent.contract.errors import MachineError
from device_agent.runtimes import RUNTIMES, installed, runtime


def test_every_runtime_is_told_of() -> None:
    for name in RUNTIMES:
        try:
            version = runtime(name).version()
        except MachineError:
            version = ""
        assert installed.installed()[name] == version


def test_no_runtime_is_loaded_for_it() -> None:
    code = (
        "import sys; from device_agent.runtimes.installed import installed; "
        "assert installed(); print({'onnxruntime', 'openvino', 'ai_edge_litert'} "
        "& set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == b"set()\n"


def test_what_is_not_here_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "openvino", "ai_edge_litert")
    found = installed.installed()
    assert (found["openvino"], found["litert"]) == ("", "")


def test_the_older_litert_counts_as_older(monkeypatch: pytest.MonkeyPatch) -> None:
    _hide(monkeypatch, "ai_edge_litert", shown=("tflite_runtime",))
    monkeypatch.setattr(installed, "version_of", lambda _: "2.14.0")
    assert installed.installed()["litert"] == "0.2.14.0"


def test_a_build_without_metadata_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise installed.PackageNotFoundError(name)

    monkeypatch.setattr(installed, "version_of", unknown)
    _hide(monkeypatch, "ai_edge_litert", shown=("onnxruntime",))
    assert "onnxruntime" not in installed.installed()


def _hide(
    monkeypatch: pytest.MonkeyPatch, *hidden: str, shown: tuple[str, ...] = ()
) -> None:
    def find_spec(name: str) -> Any:
        if name in shown:
            return object()
        return None if name in hidden else real_find_spec(name)

    monkeypatch.setattr(installed, "find_spec", find_spec)
