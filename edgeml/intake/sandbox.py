"""A subprocess with limits, in which hostile files are opened first.

1. The child sets its own limits before it imports anything heavy: address space, CPU
   seconds, open files, size of written files, no core dump; the parent adds a wall
   clock. Its environment is fixed: nothing of the user's reaches it.
2. A child that crashes, hangs, runs out of memory or answers nonsense is a
   :class:`ModelError` that says so.
3. ``TASKS`` names what may run in it. A task takes its arguments and a scratch folder,
   gives facts (JSON), and raises :class:`ModelError` to refuse.

The limits bound what a file can cost; they are no jail against a program that has
taken over the child.
"""

import json
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from ..errors import EdgemlError, MachineLacks, ModelError, one_line

TASKS = {
    "onnx": "edgeml.intake.vetting:vet_onnx",
    "weights": "edgeml.intake.weights:read_pickle",
}

GIB = 2**30
MAX_ANSWER_BYTES = 16 * 2**20
_ROOT = str(Path(__file__).resolve().parents[1])
_START = (
    "import sys; sys.path.append(sys.argv.pop(1)); "
    "from edgeml.intake.sandbox import main; main()"
)
_ENVIRONMENT = {
    "LC_ALL": "C.UTF-8",
    "ORT_DISABLE_TELEMETRY": "1",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
}
_NO_MEMORY = ("bad_alloc", "failed to allocate", "cannot allocate", "out of memory")


@dataclass(frozen=True)
class Limits:
    """The most that looking at one file may take."""

    memory_bytes: int = 4 * GIB
    cpu_s: int = 60
    wall_s: int = 240
    files: int = 256
    written_bytes: int = 2 * GIB


def limited(
    task: str,
    arguments: Mapping[str, Any],
    scratch: Path,
    limits: Limits | None = None,
) -> dict[str, Any]:
    """Run ``task`` in a subprocess with limits; what it writes goes to ``scratch``.

    Raises:
        ModelError: the task refused the file, or it crashed, ran out of time or of
            memory; one line.
        MachineLacks: a package that the task needs is not installed.
    """
    limits = limits or Limits()
    order = {
        "task": task,
        "arguments": dict(arguments),
        "scratch": str(scratch),
        "limits": asdict(limits),
    }
    # -E -P: neither the user's PYTHON* variables nor the working folder choose code
    command = [sys.executable, "-E", "-P", "-c", _START, _ROOT]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(order).encode(),
            capture_output=True,
            timeout=limits.wall_s,
            env=_ENVIRONMENT,
            cwd=scratch,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ModelError(
            f"looking at it took more than {limits.wall_s} s, so it was stopped"
        ) from error
    answer = _answer(done, limits)
    if "lacks" in answer:
        raise MachineLacks(answer["lacks"])
    if "refused" in answer:
        raise ModelError(answer["refused"])
    facts: dict[str, Any] = answer["facts"]
    return facts


def _answer(
    done: "subprocess.CompletedProcess[bytes]", limits: Limits
) -> dict[str, Any]:
    if done.returncode:
        noise = done.stderr.decode(errors="replace")
        raise ModelError(_death(done.returncode, noise, limits))
    if len(done.stdout) > MAX_ANSWER_BYTES:
        raise ModelError(
            f"looking at it gave {len(done.stdout)} bytes of facts, "
            f"more than the {MAX_ANSWER_BYTES} allowed"
        )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError as error:
        raise ModelError("looking at it ended without an answer") from error
    return answer


def _death(code: int, noise: str, limits: Limits) -> str:
    if short_of_memory(noise):
        return too_much_memory(limits.memory_bytes)
    if code == -signal.SIGXCPU or code == -signal.SIGKILL:
        return f"it took more than the {limits.cpu_s} s of CPU that it may have"
    if code < 0:
        return f"the library that reads it crashed ({signal.Signals(-code).name})"
    return f"the library that reads it failed: {one_line(noise[-400:])}"


def short_of_memory(text: str) -> bool:
    """Whether an error text of a library says that memory ran out."""
    return any(word in text.lower() for word in (*_NO_MEMORY, "memoryerror"))


def too_much_memory(limit_bytes: int) -> str:
    """The reason that a model which asks for too much memory gets."""
    return f"it asks for more memory than the {limit_bytes / GIB:.1f} GiB it may have"


def main() -> None:
    """The child: limits first, then the task; facts as JSON on the real stdout."""
    order = json.load(sys.stdin)
    limits = Limits(**order["limits"])
    confine(limits)
    real, sys.stdout = sys.stdout, sys.stderr  # libraries print where they like
    json.dump(_run(order, limits), real)
    real.flush()


def confine(limits: Limits) -> None:
    """Put this process under ``limits``; there is no way back."""
    for what, most in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, limits.memory_bytes),
        (resource.RLIMIT_NOFILE, limits.files),
        (resource.RLIMIT_FSIZE, limits.written_bytes),
    ):
        resource.setrlimit(what, (most, most))
    # SIGXCPU at the soft limit names the reason, SIGKILL follows if it is ignored
    resource.setrlimit(resource.RLIMIT_CPU, (limits.cpu_s, limits.cpu_s + 2))


def _run(order: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    try:
        return {"facts": _facts(order, limits)}
    except MachineLacks as error:
        return {"lacks": str(error)}
    except EdgemlError as error:
        return {"refused": str(error)}


def _facts(order: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
    module, _, name = TASKS[order["task"]].partition(":")
    try:
        task: Callable[..., dict[str, Any]] = getattr(import_module(module), name)
        return task(scratch=Path(order["scratch"]), **order["arguments"])
    except EdgemlError:
        raise
    except Exception as error:  # the seam to parsers: whatever they raise is a refusal
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, MemoryError) or short_of_memory(text):
            raise ModelError(too_much_memory(limits.memory_bytes)) from error
        raise ModelError(one_line(text)) from error
