"""A guest: another architecture's Python that runs this checkout's device program.

The rules it keeps:

1. The processor is always named: QEMU's default has features that no board has.
2. ``sys.executable`` is a script that starts QEMU, so that what the guest starts is
   emulated, too: QEMU's user mode hands ``execve`` to the host.
3. The guest gets an environment of its own. It is no sandbox: it sees the host's files.
"""

import fcntl
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..errors import MachineLacks, one_line
from .memory import HIGH, LOW, Usage, end
from .store import Said, Store

POLL_S = 0.05
_ROOT = Path(__file__).resolve().parents[2]
_QEMU = {"aarch64": "qemu-aarch64", "armv7l": "qemu-arm", "x86_64": "qemu-x86_64"}
# Without what QEMU's software emulation has not and would warn of at every start.
_CPUS = {"Haswell": "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"}
_RANGES = {
    "aarch64": ["-B", hex(LOW), "-R", hex(HIGH - LOW)],
    "armv7l": ["-B", hex(LOW)],  # 4 GiB are always reserved
    "x86_64": [],  # QEMU has a page for system calls beyond any range
}
_FEATURES = (
    "import json; from device_agent.contract import machine; "
    "print(json.dumps(sorted(machine.features())))"
)


@dataclass(frozen=True)
class Ran:
    """How a guest's program ended.

    ``exact``: no byte of QEMU's own counts as memory; ``ended`` says why it was killed.
    """

    code: int
    stdout: str
    stderr: str
    wall_s: float
    peak_bytes: int
    total_bytes: int
    exact: bool
    ended: str = ""

    def said(self) -> str:
        """The last line on standard error, QEMU's warnings aside."""
        lines = [
            line for line in self.stderr.splitlines()
            if line.strip() and "warning: TCG doesn't support" not in line
        ]  # fmt: skip
        return one_line(lines[-1]) if lines else f"exit code {self.code}"


@dataclass(frozen=True)
class Guest:
    """A Python of another architecture or processor."""

    arch: str
    cpu: str
    qemu_version: str
    python: Path
    """The script that starts it."""
    environment: dict[str, str]
    folder: Path
    """For its temporary files; gone when it is."""

    def run(
        self, words: Sequence[str], *, memory_bytes: int | None, timeout_s: float
    ) -> Ran:
        """Run Python with these words to its end, or to the end of its limits."""
        started = time.monotonic()
        ended = ""
        out, err = self.folder / "stdout", self.folder / "stderr"
        with (
            out.open("wb") as stdout,
            err.open("wb") as stderr,
            self.started(words, stdout=stdout, stderr=stderr) as process,
        ):
            usage = Usage(process.pid, ranged=self.arch != "x86_64")
            while process.poll() is None and not ended:
                taken = usage.look()
                if memory_bytes is not None and taken > memory_bytes:
                    ended = "memory"
                elif time.monotonic() - started > timeout_s:
                    ended = "time"
                else:
                    time.sleep(POLL_S)
        return Ran(
            process.returncode, out.read_text(errors="replace"),
            err.read_text(errors="replace"), time.monotonic() - started,
            usage.peak(), usage.total, usage.ranged, ended,
        )  # fmt: skip

    @contextmanager
    def started(
        self, words: Sequence[str], **streams: Any
    ) -> Iterator["subprocess.Popen[bytes]"]:
        """A running Python; it and what it started are killed on the way out.

        Raises:
            MachineLacks: it does not start.
        """
        try:
            process = subprocess.Popen(
                [str(self.python), *words],
                env=self.environment, cwd=self.folder, stdin=subprocess.DEVNULL,
                **streams,
            )  # fmt: skip
        except OSError as error:
            raise MachineLacks(
                f"{self.python} does not start: {error.strerror}; TMPDIR must name a "
                "folder whose programs may run"
            ) from error
        try:
            yield process
        finally:
            if process.poll() is None:
                end(process.pid)
            process.wait()

    def features(self) -> frozenset[str]:
        """The processor's features, as the device's program sees them there."""
        ran = self.run(["-c", _FEATURES], memory_bytes=None, timeout_s=120)
        if ran.code:
            raise MachineLacks(f"the guest {self.cpu} does not run: {ran.said()}")
        return frozenset(json.loads(ran.stdout))


@dataclass(frozen=True)
class Plugin:
    """What QEMU runs beside a guest; ``cpuinfo`` is what the guest reads as its own."""

    path: Path
    cpuinfo: str


@contextmanager
def guest(
    store: Store, arch: str, cpu: str, said: Said, plugin: Plugin | None = None
) -> Iterator[Guest]:
    """A guest of ``arch`` with the processor ``cpu``, as QEMU calls it.

    On the host's own architecture it is the host's Python, else one of the store's.

    Raises:
        MachineLacks: there is none for this host, or it cannot be had.
    """
    programs = store.qemu(said)
    pinned = store.lock.qemu[platform.machine()].version("qemu-user")
    version = pinned.rpartition(":")[2].partition("+")[0]
    alone = _temporary() if plugin is None else _counting(store.counter(said))
    with alone as folder:
        python = folder / "bin" / "python"
        python.parent.mkdir()
        environment = _environment(folder)
        command = [str(programs / _QEMU[arch])]
        if plugin is not None:
            command = _plugged(store.counter(said), arch, plugin)
        command += ["-cpu", _CPUS.get(cpu, cpu), *_RANGES[arch]]
        if arch == platform.machine():
            real = _own(folder)
            environment["PYTHONPATH"] = str(_device(folder))
        else:
            part, root = store.guest(arch, said)
            real = root / "usr" / "bin" / f"python{part.python}"
            seen = root if plugin is None else _overlaid(root, plugin, folder / "root")
            command += ["-L", str(seen)]
            environment |= {
                "PYTHONHOME": str(root / "usr"),
                "PYTHONPATH": f"{_device(root)}:{root / 'site'}",
                "PYTHONPYCACHEPREFIX": str(root / "bytecode"),
            }
        line = shlex.join(command) + ' -0 "$0" ' + shlex.quote(str(real)) + ' "$@"'
        python.write_text(f"#!/bin/sh\nexec {line}\n")
        python.chmod(0o755)
        yield Guest(arch, cpu, version, python, environment, folder)


@contextmanager
def _temporary() -> Iterator[Path]:
    with TemporaryDirectory(prefix="edgeml-guest-") as folder:
        yield Path(folder)


@contextmanager
def _counting(root: Path) -> Iterator[Path]:
    """The same folder every time: its name is hashed in the guest, which counts.

    Who comes second waits until the first has counted.
    """
    folder = root / "counting"
    with (root / "counting.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():  # of one that was killed
            shutil.rmtree(folder)
        folder.mkdir()
        try:
            yield folder
        finally:
            shutil.rmtree(folder)


def _device(place: Path) -> Path:
    """A folder with this checkout's ``device_agent`` alone, to import it from.

    In a guest's root it stays: bytecode is kept by path, and is found again.
    """
    digest = hashlib.sha256(str(_ROOT).encode()).hexdigest()
    folder = place / "device" / digest[:16]
    folder.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        (folder / "device_agent").symlink_to(_ROOT / "device_agent")
    return folder


def _plugged(root: Path, arch: str, plugin: Plugin) -> list[str]:
    """The QEMU that takes plugins, by its own loader and libraries; fixed addresses.

    The plugin is preloaded: it is the clock.
    """
    libraries = [*root.glob("lib/*-linux-gnu"), *root.glob("usr/lib/*-linux-gnu")]
    loaders = [found for one in libraries for found in one.glob("ld-linux-*.so.*")]
    return [
        "setarch", "-R", str(loaders[0]),
        "--preload", str(plugin.path), "--library-path", ":".join(map(str, libraries)),
        str(root / "usr" / "bin" / _QEMU[arch]), "-seed", "0", "-plugin",
        str(plugin.path),
    ]  # fmt: skip


def _overlaid(root: Path, plugin: Plugin, place: Path) -> Path:
    """The guest's root with a /proc/cpuinfo, which this QEMU would take of the host."""
    (place / "proc").mkdir(parents=True)
    (place / "proc" / "cpuinfo").write_text(plugin.cpuinfo)
    for path in root.iterdir():
        (place / path.name).symlink_to(path)
    return place


def _own(folder: Path) -> Path:
    """The host's Python, its environment's packages at hand beside the script."""
    home = Path(sys.prefix)
    if (home / "pyvenv.cfg").exists():
        shutil.copy(home / "pyvenv.cfg", folder)
        (folder / "lib").symlink_to(home / "lib")
    return Path(sys.executable).resolve()


def _environment(folder: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "TZ") if key in os.environ}
    return {
        **kept,
        "HOME": str(folder), "TMPDIR": str(folder), "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0", "PYTHONNOUSERSITE": "1", "OMP_NUM_THREADS": "1",
        "ORT_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
