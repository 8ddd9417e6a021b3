"""An agent with a supervisor, as systemd is one: whenever it ends, it is started again.

::

    with supervised(["--state", "/tmp/state"], toml) as agent:
        agent.cut()              # SIGKILL: a power cut, as far as a process can tell
        assert agent.starts == 2

What a process leaves behind is ended with it. All of them have one port, so that
callers find it again.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAUSE_S = 0.1
"""Between an end and the next start; systemd's is RestartSec."""


@dataclass
class Supervised:
    """The agent, whichever process it is now."""

    command: list[str]
    env: Mapping[str, str]
    url: str
    log_file: Path
    starts: int = 0
    codes: list[int] = field(default_factory=list)
    """How its processes have ended."""
    process: subprocess.Popen[bytes] | None = None
    _ending: bool = False
    _thread: threading.Thread | None = None

    def start(self) -> None:
        self._ending = False
        self._thread = threading.Thread(target=self._supervise, daemon=True)
        self._thread.start()

    def cut(self) -> None:
        """End it without a word."""
        process = self.process
        assert process is not None
        process.kill()

    def stop(self) -> None:
        """SIGTERM, and no start after it."""
        self._ending = True
        with suppress(ProcessLookupError):
            if self.process is not None:
                self.process.send_signal(signal.SIGTERM)
        assert self._thread is not None
        self._thread.join(30)
        if self._thread.is_alive() and self.process is not None:
            self.process.kill()
            self._thread.join(10)

    def log(self) -> str:
        """All that it has written."""
        return self.log_file.read_text(errors="replace")

    def _supervise(self) -> None:
        while not self._ending:
            with self.log_file.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command, cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL,
                    stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
                self.starts += 1
                if self._ending:
                    self.process.terminate()
                self.codes.append(self.process.wait())
            with suppress(ProcessLookupError):  # as systemd does with a control group
                os.killpg(self.process.pid, signal.SIGKILL)
            time.sleep(PAUSE_S)


@contextmanager
def supervised(
    folder: Path, args: Sequence[str], toml: str, env: Mapping[str, str] | None = None
) -> Iterator[Supervised]:
    """Supervise an agent until the end of the block."""
    (folder / "agent.toml").write_text(toml)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "device_agent", "run", "--listen", f"127.0.0.1:{port}",
        "--socket", str(folder / "agent.sock"), "--config", str(folder / "agent.toml"),
        *args,
    ]  # fmt: skip
    one = Supervised(
        command, {**os.environ, **(env or {})}, f"http://127.0.0.1:{port}",
        folder / "agent.log",
    )  # fmt: skip
    one.start()
    try:
        yield one
    finally:
        one.stop()
