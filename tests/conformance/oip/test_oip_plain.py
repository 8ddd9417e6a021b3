"""The agent without its compiled parts passes every case, too: armv7 has no wheels."""

import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
ABSENT = ("uvloop", "httptools", "orjson", "msgspec")


def test_without_compiled_parts(tmp_path):
    """The suite against a URL, as anybody runs it."""
    import zoo
    from agents import agent

    folder = tmp_path / "site"
    folder.mkdir()
    code = f"import sys\nfor name in {ABSENT!r}:\n    sys.modules[name] = None\n"
    (folder / "sitecustomize.py").write_text(code)
    with agent(zoo.write(tmp_path), env={"PYTHONPATH": str(folder)}) as device:
        done = subprocess.run(
            [ROOT / "scripts" / "oip-conformance", device.url, "--model", "linear",
             "--unloadable", "fixed", "--strict"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
