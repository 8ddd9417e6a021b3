"""Loads an artifact in a process of its own, runs it, says how it went.

The rules it keeps:

1. Whatever an artifact does to its parser - crash, hang, eat all memory - it does to
   the probe; :func:`probe` makes an :class:`ArtifactError` with the reason of it.
2. The limits are set before the runtime is imported; no new privileges, no core dump;
   who asked for it and ends takes it along.
3. Only tensors and one JSON object come back; what libraries print goes to stderr.
4. Memory is that of the whole process at its peak: interpreter, runtime, model.
   ``baseline_bytes`` (resident before the load) tells the model's part.

``python -m device_agent.runtimes.probe`` reads the request on stdin.
"""

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..contract.codes import Reason
from ..contract.errors import (
    DISK_FULL,
    ArtifactError,
    DeviceError,
    IsaError,
    MachineError,
)
from ..contract.machine import memory_bytes, peak_bytes
from ..contract.manifest import Option
from ..contract.npz import read_tensors, write_tensors
from ..contract.tensors import Array, Feeds
from . import runtime as runtime_named

PROTOCOL = 1
"""Raised whenever what is measured, or how, changes; old measurements then expire."""

_ROOT = Path(__file__).resolve().parents[2]
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_STDERR_CHARS_MAX = 400
_SHORT_OF_MEMORY = ("bad_alloc", "allocate memory")
"""How runtimes say that there is none left."""
_OF_DISK = {*DISK_FULL, errno.EIO, errno.EROFS}


@dataclass(frozen=True)
class ProbeLimits:
    """What a probe may use; the artifact pays for more with its process."""

    address_bytes: int = 16 << 30
    """Address space, not memory: runtimes reserve more than they ever use."""
    cpu_s: int = 120
    wall_s: float = 120.0
    open_files: int = 256


@dataclass(frozen=True)
class ProbeRequest:
    """What to load and how often to run it.

    ``warmup`` and ``runs`` count single runs over the feeds in turn; no run starts
    after ``seconds`` once ``runs_min`` are done. ``python`` runs it; None: the one that
    runs this.
    """

    artifact: Path
    runtime: str
    options: Mapping[str, Option] = field(default_factory=dict)
    feeds: Sequence[Feeds] = ()
    warmup: int = 3
    runs: int = 100
    runs_min: int = 10
    seconds: float = 2.0
    limits: ProbeLimits = field(default_factory=ProbeLimits)
    python: Path | None = None


@dataclass(frozen=True)
class ProbeResult:
    """What came of it; ``outputs`` has one entry per feed, in order."""

    version: str
    load_ms: float
    latencies_ms: tuple[float, ...]
    peak_memory_bytes: int
    baseline_bytes: int
    outputs: tuple[dict[str, Array], ...]


def probe(request: ProbeRequest) -> ProbeResult:
    """Load and run the artifact in a fresh, limited process.

    Raises:
        ArtifactError: the runtime refuses the artifact, or the probe was killed by a
            signal, a limit or the clock.
        IsaError: it used an instruction that this processor does not have.
        MachineError: the runtime, or a device it is to use, is not here.
        OSError: the disk with the temporary files is full or fails, or no process can
            be started; it says nothing of the artifact.
    """
    with tempfile.TemporaryDirectory(prefix="edgeml-probe-") as folder:
        feeds, outputs = Path(folder, "feeds.npz"), Path(folder, "outputs.npz")
        feeds.write_bytes(write_tensors({"runs": request.feeds}))
        answer = _ask(
            {
                "artifact": str(request.artifact.resolve()),
                "runtime": request.runtime,
                "options": dict(request.options),
                "warmup": request.warmup,
                "runs": request.runs,
                "runs_min": request.runs_min,
                "seconds": request.seconds,
                "limits": asdict(request.limits),
                "feeds": str(feeds),
                "outputs": str(outputs),
            },
            request,
        )
        groups, _ = read_tensors(outputs.read_bytes(), "the probe's outputs")
    return ProbeResult(
        version=answer["version"],
        load_ms=answer["load_ms"],
        latencies_ms=tuple(answer["latencies_ms"]),
        peak_memory_bytes=answer["peak_memory_bytes"],
        baseline_bytes=answer["baseline_bytes"],
        outputs=tuple(groups["runs"]),
    )


def command(python: Path | None, module: str) -> list[str]:
    """What runs a module beside this one in a process of its own.

    ``python``: another one than this; it finds ``device_agent`` and nothing else here.
    """
    start = (
        "import sys; sys.path.insert(0, sys.argv[1]); import device_agent; "
        "sys.path.pop(0); "
        f"from device_agent.runtimes.{module} import main; sys.exit(main())"
    )
    return [str(python or sys.executable), "-P", "-c", start, str(_ROOT)]


def main() -> int:
    """The probe's own process: request on stdin, one JSON object on stdout."""
    answer_fd = os.dup(1)
    os.dup2(2, 1)
    request = json.load(sys.stdin)
    limits = ProbeLimits(**request["limits"])
    _confine(limits, _reserves(request["options"]))
    try:
        answer = _measure(request)
    except DeviceError as error:
        kind = "machine" if isinstance(error, MachineError) else "artifact"
        text = _too_much(limits) if "bad_alloc" in str(error) else str(error)
        short = any(word in str(error) for word in _SHORT_OF_MEMORY)
        code = Reason.MEMORY_LIMIT if short else Reason.LOAD_FAILED
        answer = {"error": kind, "text": text, "code": code.value}
    except MemoryError:
        code = Reason.MEMORY_LIMIT
        answer = {"error": "artifact", "text": _too_much(limits), "code": code.value}
    except OSError as error:
        if error.errno not in _OF_DISK:
            raise
        answer = {"error": "disk", "text": str(error.strerror), "errno": error.errno}
    with os.fdopen(answer_fd, "w") as stream:
        json.dump(answer, stream)
    # a runtime's threads may not end in order once their artifact misbehaved
    sys.stderr.flush()
    os._exit(0)


def _too_much(limits: ProbeLimits) -> str:
    return f"it needs more than {limits.address_bytes} bytes of address space"


def _measure(request: dict[str, Any]) -> dict[str, Any]:
    runtime = runtime_named(request["runtime"])
    groups, _ = read_tensors(Path(request["feeds"]).read_bytes(), "the probe's feeds")
    feeds = groups["runs"]
    baseline = memory_bytes("VmRSS")
    started = time.perf_counter_ns()
    session = runtime.load(Path(request["artifact"]), request["options"])
    load_ms = (time.perf_counter_ns() - started) / 1e6
    outputs = [session.predict(run) for run in feeds]
    latencies: list[float] = []
    if feeds:
        for number in range(request["warmup"]):
            session.predict(feeds[number % len(feeds)])
        latencies = _time(session.predict, feeds, request)
    Path(request["outputs"]).write_bytes(write_tensors({"runs": outputs}))
    peak = peak_bytes()
    return {
        "version": runtime.version(),
        "load_ms": load_ms,
        "latencies_ms": latencies,
        "peak_memory_bytes": peak
        or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "baseline_bytes": baseline,
    }


def _time(predict: Any, feeds: list[Any], request: dict[str, Any]) -> list[float]:
    latencies: list[float] = []
    deadline = time.perf_counter() + request["seconds"]
    while len(latencies) < request["runs"]:
        if len(latencies) >= request["runs_min"] and time.perf_counter() > deadline:
            break
        run = feeds[len(latencies) % len(feeds)]
        started = time.perf_counter_ns()
        predict(run)
        latencies.append((time.perf_counter_ns() - started) / 1e6)
    return latencies


def _reserves(options: Mapping[str, Option]) -> bool:
    """Whether a driver will reserve far more addresses than there is memory.

    CUDA maps the memory of host and GPUs into one space before anything is used.
    """
    return options.get("provider", "cpu") != "cpu"


def _confine(limits: ProbeLimits, reserves: bool) -> None:
    wanted = {
        resource.RLIMIT_CORE: 0,
        # What is reserved and not writable does not count as data.
        resource.RLIMIT_DATA if reserves else resource.RLIMIT_AS: limits.address_bytes,
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_NOFILE: limits.open_files,
    }
    for which, value in wanted.items():
        hard = resource.getrlimit(which)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (least, hard))
    with contextlib.suppress(OSError, AttributeError):  # not every libc has it
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def _ask(document: dict[str, Any], request: ProbeRequest) -> dict[str, Any]:
    name = request.artifact.name
    with subprocess.Popen(
        command(request.python, "probe"),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=True,
    ) as child:  # fmt: skip
        try:
            stdout, stderr = child.communicate(
                json.dumps(document).encode(), request.limits.wall_s
            )
        except subprocess.TimeoutExpired:
            raise ArtifactError(
                f"{name}: not done within {request.limits.wall_s:g} s; "
                "its process was ended",
                Reason.HUNG,
            ) from None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if child.returncode == -signal.SIGILL:
        raise IsaError(
            f"{name}: it uses an instruction that this processor does not have (SIGILL)"
        )
    if child.returncode or not stdout:
        text, code = _death(child.returncode, stderr, request)
        raise ArtifactError(f"{name}: {text}", code)
    answer: dict[str, Any] = json.loads(stdout)
    if answer.get("error") == "machine":
        raise MachineError(answer["text"])
    if answer.get("error") == "disk":
        raise OSError(answer["errno"], answer["text"])
    if "error" in answer:
        text, code = answer["text"], Reason(answer["code"])
        raise ArtifactError(text if text.startswith(name) else f"{name}: {text}", code)
    return answer


def _death(code: int, stderr: bytes, request: ProbeRequest) -> tuple[str, Reason]:
    lines = stderr.decode(errors="replace").strip().splitlines()
    last = lines[-1][:_STDERR_CHARS_MAX] if lines else "it said nothing"
    if code == -signal.SIGXCPU:
        text = f"used more than {request.limits.cpu_s} s of processor time"
        return text, Reason.HUNG
    if code == -signal.SIGKILL:
        text = "its process was killed (SIGKILL), most likely for want of memory"
        return text, Reason.MEMORY_LIMIT
    if code < 0:
        text = f"its process crashed ({signal.Signals(-code).name}): {last}"
        return text, Reason.CRASHED
    return f"its process ended with code {code}: {last}", Reason.CRASHED


if __name__ == "__main__":
    sys.exit(main())
