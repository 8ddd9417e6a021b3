"""A virtual environment for each peer, made once and kept below ``build/bench/venvs``.

Nothing is installed while the requirements and the Python are those of last time.
"""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

INSTALL_S = 900


class InstallError(Exception):
    """pip did not get there; the text is its last line."""


def runtime() -> str:
    """The requirement for ONNX Runtime of the version that our agent runs."""
    return f"onnxruntime=={metadata.version('onnxruntime')}"


def environment(name: str, requirements: Sequence[str], folder: Path) -> Path:
    """The Python of the peer's environment, after making it where that is due.

    Raises:
        InstallError: the requirements do not install here.
    """
    place = folder / name
    python, stamp = place / "bin" / "python", place / "installed"
    wanted = "\n".join([sys.version, runtime(), *requirements])
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"{name}: installing {', '.join(requirements)}", file=sys.stderr)
    shutil.rmtree(place, ignore_errors=True)
    _run([sys.executable, "-m", "venv", place])
    pip: list[str | Path] = [
        python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
    ]  # fmt: skip
    try:
        _run([*pip, *requirements, runtime()])
    except InstallError:
        # With the version of ONNX Runtime that this peer's other requirements allow.
        _run([*pip, *requirements, "onnxruntime"])
    stamp.write_text(wanted)
    return python


def versions(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Package → version in that environment; those that are absent are left out."""
    code = (
        "import sys\nfrom importlib import metadata\n"
        "have = {d.name.lower(): d.version for d in metadata.distributions()}\n"
        "print(*(f'{p} {have[p]}' for p in sys.argv[1:] if p in have), sep='\\n')"
    )
    done = subprocess.run(
        [python, "-c", code, *packages], capture_output=True, text=True, check=True
    )
    return dict(line.split() for line in done.stdout.splitlines())


def _run(command: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=INSTALL_S
        )
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"not installed within {INSTALL_S} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
        raise InstallError((lines or done.stderr.splitlines() or ["pip failed"])[-1])
