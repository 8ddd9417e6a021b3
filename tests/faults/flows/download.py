"""A bundle that is fetched over HTTP, moved to where it belongs, and pointed at.

The connection is cut now and then, so the part is written in several goes.
"""

import hashlib
import random
import shutil
import tempfile
import threading
from collections.abc import Sequence
from functools import cache
from os import getpid
from pathlib import Path

from faultflows import Say
from webserver import Fault, WebServer

from device_agent import durable
from device_agent.download.downloader import Downloader, pool
from device_agent.download.rules import PART, DownloadLimits, Wanted
from device_agent.durable import Disk

LIMITS = DownloadLimits(
    pause_s=(0.0, 0.0), spare_bytes=0, sync_bytes=2048, chunk_bytes=1024
)
ROUNDS = 2
PREFIX = "edgeml-flow-"


@cache
def server() -> WebServer:
    """One per process; it ends with it. Its folder goes with the next one's making, for
    most of these processes are killed."""
    memory = _memory()
    for left in memory.glob(f"{PREFIX}*"):
        if not Path("/proc", left.name.split("-")[-2]).exists():
            shutil.rmtree(left, ignore_errors=True)
    return WebServer(Path(tempfile.mkdtemp(prefix=f"{PREFIX}{getpid()}-", dir=memory)))


class Download:
    """Each round fetches a bundle, moves it to the slot and replaces the pointer."""

    def __init__(self, seed: int) -> None:
        draw = random.Random(seed)
        self.bundles = [draw.randbytes(draw.randrange(1, 9000)) for _ in range(ROUNDS)]
        self.digests = [hashlib.sha256(one).hexdigest() for one in self.bundles]
        self.cuts = [draw.randrange(1, 9000) for _ in range(ROUNDS)]
        for one, digest in zip(self.bundles, self.digests, strict=True):
            (server().folder / digest).write_bytes(one)

    def prepare(self, state: Path) -> None:
        (state / "download").mkdir()
        (state / "slots").mkdir()

    def run(self, state: Path, disk: Disk, say: Say) -> None:
        downloader = Downloader(state / "download", disk, LIMITS, pool())
        pointer = state / "pointer"
        for bundle, digest, cut in zip(
            self.bundles, self.digests, self.cuts, strict=True
        ):
            slot = state / "slots" / digest
            if (
                pointer.exists()
                and pointer.read_text() in self.digests[self.digests.index(digest) :]
            ):
                continue
            if not slot.exists():
                server().faults.clear()
                server().faults.append(Fault(cut_after=cut))
                wanted = Wanted(digest, len(bundle), (f"{server().url}/{digest}",))
                part, _ = downloader.fetch(wanted, threading.Event())
                durable.move(disk, part, slot)
            durable.replace(disk, pointer, digest.encode())
            say(digest)
            for other in self.digests[: self.digests.index(digest)]:
                durable.remove(disk, state / "slots" / other)

    def recover(self, state: Path, disk: Disk) -> None:
        durable.sweep(disk, state)

    def violations(self, state: Path, said: Sequence[str], done: bool) -> list[str]:
        found = []
        for slot in (state / "slots").iterdir():
            if hashlib.sha256(slot.read_bytes()).hexdigest() != slot.name:
                found.append(f"slot {slot.name:.8} does not hash to its digest")
        least = max((self.digests.index(one) for one in said), default=-1)
        pointer = state / "pointer"
        at = pointer.read_text() if pointer.exists() else None
        if at is None or at not in self.digests:
            if said or at is not None:
                found.append(f"the pointer says {at!r:.20}")
        elif self.digests.index(at) < least:
            found.append("the pointer went back")
        elif not (state / "slots" / at).exists():
            found.append("the pointer points at nothing")
        if done and (at != self.digests[-1] or list(state.glob(f"download/*{PART}"))):
            found.append("it did not come to its end")
        return found


def _memory() -> Path:
    memory = Path("/dev/shm")
    return memory if memory.is_dir() else Path(tempfile.gettempdir())


def flow(seed: int) -> Download:
    return Download(seed)
