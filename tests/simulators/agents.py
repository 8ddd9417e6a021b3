"""A real agent in its own process, for a test's time.

::

    with agent([path], toml="[limits]\\nbody_bytes = 1000\\n") as device:
        urllib.request.urlopen(f"{device.url}/v2/health/ready")
        assert device.rss_bytes() < 110e6

1. It is ready when it says so: one line on stdout with its URL.
2. It ends with SIGTERM; what has not ended by the deadline is killed.
3. Its files are in a folder of its own, which goes with it.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
READY_S = 60.0
"""Loading is done in a sandbox first, and these machines are busy."""
END_S = 20.0


@dataclass
class Agent:
    """The process, where it listens, and what it has said."""

    process: subprocess.Popen[bytes]
    socket: Path
    state: Path
    url: str = ""
    """``http://127.0.0.1:PORT``; empty without TCP."""
    _said: list[str] = field(default_factory=list)
    _readers: list[threading.Thread] = field(default_factory=list)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://").rpartition(":")[0]

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def address(self) -> str:
        """``127.0.0.1:PORT``, as tritonclient takes it."""
        return f"{self.host}:{self.port}"

    def log(self) -> str:
        """All that it has written so far, stdout and stderr."""
        return "".join(self._said)

    def rss_bytes(self, *, tree: bool = False) -> int:
        """Memory in RAM; ``tree``: together with the processes that it has started."""
        process = psutil.Process(self.process.pid)
        found = [process, *(process.children(recursive=True) if tree else [])]
        total = 0
        for one in found:
            try:
                total += one.memory_info().rss
            except psutil.NoSuchProcess:  # a probe that has ended meanwhile
                continue
        return total

    def peak_rss_bytes(self) -> int:
        """The most memory that it ever had in RAM."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found, status
        return int(found[1]) * 1024

    def stop(self, deadline_s: float = END_S) -> int:
        """SIGTERM, and SIGKILL after the deadline; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(deadline_s)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        for reader in self._readers:
            reader.join(5)
        return self.process.returncode

    def _listen(self, stream_name: str, ready: threading.Event) -> None:
        stream = getattr(self.process, stream_name)
        with stream:
            for line in iter(stream.readline, b""):
                text = line.decode(errors="replace")
                self._said.append(text)
                if stream_name == "stdout" and not ready.is_set():
                    found = re.search(r"https?://[^\s,·/]+", text)
                    self.url = found[0] if found else ""
                    if found or "unix:" in text:
                        ready.set()
        ready.set()

    def _start_reading(self) -> threading.Event:
        ready, ended = threading.Event(), threading.Event()
        for name, event in (("stdout", ready), ("stderr", ended)):
            reader = threading.Thread(
                target=self._listen, args=(name, event), daemon=True
            )
            reader.start()
            self._readers.append(reader)
        return ready


@contextmanager
def agent(
    bundles: Sequence[Path] = (),
    toml: str = "",
    args: Sequence[str] = (),
    *,
    python: str = sys.executable,
    env: Mapping[str, str] | None = None,
    ready_s: float = READY_S,
    end_s: float = END_S,
) -> Iterator[Agent]:
    """Start ``python -m device_agent run`` and wait until it is ready.

    Args:
        bundles: the files to serve.
        toml: text of its ``agent.toml``; empty: it has none.
        args: further arguments; ``--listen``, ``--socket`` and ``--state`` in them take
            the place of the ones chosen here (a free port, a folder of its own).
        python: the interpreter that runs it.
        env: variables beside those of this process.
        ready_s: how long it may take to say that it is ready.
        end_s: how long it may take to end after SIGTERM.

    Raises:
        RuntimeError: it ended or said nothing in time; the text holds its log.
    """
    with tempfile.TemporaryDirectory(prefix="agent-") as name:
        folder = Path(name)
        chosen = _chosen(folder, toml, args)
        command = [python, "-m", "device_agent", "run"]
        for path in bundles:
            command += ["--bundle", str(path)]
        for option, value in chosen.items():
            command += [option, value] if option not in args else []
        with watched(
            [*command, *args],
            socket=Path(_value("--socket", args) or chosen["--socket"]),
            state=Path(_value("--state", args) or chosen["--state"]),
            env={**os.environ, **(env or {})},
            ready_s=ready_s,
            end_s=end_s,
        ) as device:
            yield device


@contextmanager
def watched(
    command: Sequence[str],
    *,
    socket: Path,
    state: Path,
    env: Mapping[str, str] | None = None,
    ready_s: float = READY_S,
    end_s: float = END_S,
) -> Iterator[Agent]:
    """Run a command that becomes the agent and wait until it is ready.

    Raises:
        RuntimeError: it ended or said nothing in time; the text holds its log.
    """
    process = subprocess.Popen(
        command, cwd=ROOT, env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    device = Agent(process, socket=socket, state=state)
    try:
        _await(device, device._start_reading(), ready_s)
        yield device
    finally:
        device.stop(end_s)


def _chosen(folder: Path, toml: str, args: Sequence[str]) -> dict[str, str]:
    options = {
        "--listen": "127.0.0.1:0",
        "--socket": str(folder / "agent.sock"),
        "--state": str(folder / "state"),
    }
    if toml:
        (folder / "agent.toml").write_text(toml)
        options["--config"] = str(folder / "agent.toml")
    return options


def _value(option: str, args: Sequence[str]) -> str | None:
    return args[args.index(option) + 1] if option in args else None


def _await(device: Agent, ready: threading.Event, ready_s: float) -> None:
    said = ready.wait(ready_s)
    if device.url or (said and "unix:" in device.log()):
        return
    if said:  # nothing, that is: it has closed its stdout and is ending
        device.stop(1.0)
        how = f"ended with {device.process.returncode}"
    else:
        how = f"was not ready within {ready_s:g} s"
    raise RuntimeError(f"the agent {how}:\n{device.log()}")
