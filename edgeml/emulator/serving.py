"""The real agent in a guest: an application talks to an ARM build on this machine.

QEMU's user mode hands sockets to the host, so the agent listens on the host's own
address and nothing has to be proxied.
"""

import signal
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen, TimeoutExpired
from types import FrameType
from typing import Any

from ..bundling.bundle import opened
from ..errors import GATE, LACKS
from .check import Emulation
from .guest import guest
from .memory import Usage
from .store import Said, Store

READY_S = 600.0
"""How long an emulated agent may take until its models are loaded."""
DRAIN_S = 30.0
_LOOK_S = 0.5


def serve(
    bundle: Path,
    emulation: Emulation,
    listen: str,
    store: Store,
    said: Said,
    told: Said,
) -> int:
    """Serve a bundle until a signal comes or the agent ends; the exit code.

    ``told`` gets the URL once the agent is ready. More memory than the target has ends
    it, with exit code 3.

    Raises:
        InputError: the bundle is refused by the reader.
        MachineLacks: the emulator cannot be had.
    """
    opened(bundle)
    url = f"http://{listen}"
    with guest(store, emulation.target.arch, emulation.cpu, said) as host:
        words = ["-m", "device_agent", "run", "--bundle", str(bundle.resolve())]
        words += ["--listen", listen, "--state", str(host.folder / "state")]
        said(f"emulator: the agent on {emulation.cpu}, QEMU {host.qemu_version}")
        with _signals(), host.started(words) as process:
            usage = Usage(process.pid)
            try:
                return _watched(process, url, usage, emulation, said, told)
            except KeyboardInterrupt:
                return _drained(process)


def _watched(
    process: "Popen[bytes]", url: str, usage: Usage, emulation: Emulation,
    said: Said, told: Said,
) -> int:  # fmt: skip
    ready, started = False, time.monotonic()
    limit = emulation.target.memory_bytes
    while process.poll() is None:
        if usage.look() > limit:
            said(f"emulator: the agent takes more than the {limit} bytes of memory "
                 f"that {emulation.target.name} has; ended")  # fmt: skip
            return GATE
        if not ready and _is_ready(url):
            ready = True
            told(url)
        elif not ready and time.monotonic() - started > READY_S:
            said(f"emulator: the agent is not ready after {READY_S:.0f} s; ended")
            return LACKS
        time.sleep(_LOOK_S)
    return process.returncode


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/v2/health/ready", timeout=5) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _drained(process: "Popen[bytes]") -> int:
    """The agent finishes what is under way; a terminal's Ctrl-C reached it, too."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(DRAIN_S)
    except TimeoutExpired:
        return LACKS
    return 0


@contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM ends the guest as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> Any:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
