"""The process ends at every durable call of a flow: before it, or in the middle of it.

Each point is a fork that runs the flow on a disk which ends the process (``_exit``, so
that no ``finally`` tidies up) before its k-th effect, or half-way through it where
that is a write. What is left is recovered, looked at, and run to its end. With
``pairs``, the recovery is cut at each of its own effects, too.
"""

import os
import random
import sqlite3
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from faultflows import FAILURES, Campaign, Flow, copied, judged, load, scratch

from device_agent.durable import Disk, File

CUT, BROKEN = 77, 78


class Cutting(Disk):
    """Ends the process at an effect; 0: only counts them."""

    def __init__(self, at: int = 0, torn: bool = False, seed: int = 0) -> None:
        self.at, self.torn = at, torn
        self.effects: list[str] = []
        self._random = random.Random(seed)

    def _point(self, effect: str, half: Callable[[], None] | None = None) -> None:
        self.effects.append(effect)
        if len(self.effects) == self.at:
            if self.torn and half is not None:
                half()
            os._exit(CUT)

    def create(self, path: Path, mode: int = 0o600) -> File:
        self._point("create")
        return super().create(path, mode)

    def resume(self, path: Path, mode: int = 0o600) -> File:
        self._point("resume")
        return super().resume(path, mode)

    def write(self, file: File, data: bytes, offset: int) -> None:
        size = self._random.randrange(len(data)) if data else 0
        self._point("write", lambda: Disk.write(self, file, data[:size], offset))
        super().write(file, data, offset)

    def truncate(self, file: File, size: int) -> None:
        self._point("truncate")
        super().truncate(file, size)

    def sync(self, file: File) -> None:
        self._point("sync")
        super().sync(file)

    def rename(self, old: Path, new: Path) -> None:
        self._point("rename")
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._point("unlink")
        super().unlink(path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._point("mkdir")
        super().mkdir(path, mode)

    def rmdir(self, path: Path) -> None:
        self._point("rmdir")
        super().rmdir(path)

    def sync_folder(self, path: Path) -> None:
        self._point("sync_folder")
        super().sync_folder(path)

    def commit(self, connection: sqlite3.Connection, label: str) -> None:
        self._point("commit")
        super().commit(connection, label)


def cut_everywhere(
    name: str,
    seed: int,
    *,
    pairs: bool = False,
    mutant: Callable[[], AbstractContextManager[object]] = nullcontext,
    stop_at_first: bool = False,
) -> Campaign:
    """Every point of one flow."""
    campaign = Campaign(f"crash at every call, {name}", seed)
    with scratch() as folder, mutant():
        flow = load(name, seed)
        before = folder / "before"
        before.mkdir()
        flow.prepare(before)
        effects = _effects(lambda disk: flow.run(state, disk, lambda _: None),
                           state := copied(before, folder / "state"))  # fmt: skip
        campaign.points = len(effects)
        for at, effect in enumerate([*effects, "end"], 1):
            if stop_at_first and campaign.violations:
                break
            for torn in (False, True) if effect == "write" else (False,):
                state = copied(before, folder / "state")
                said = _cut(flow, state, Cutting(at, torn, seed), folder / "said")
                where = f"{effect} {at}{' torn' if torn else ''}"
                if pairs:
                    _cut_again(flow, state, said, where, campaign, folder)
                campaign.faults += 1
                campaign.found(where, judged(flow, state, said, twice=True))
    return campaign


def _cut_again(
    flow: Flow, state: Path, said: Sequence[str], where: str, campaign: Campaign,
    folder: Path,
) -> None:  # fmt: skip
    """Cut the recovery of what a cut left, at every point."""
    left = copied(state, folder / "left")
    second = copied(left, folder / "second")
    effects = _effects(lambda disk: flow.recover(second, disk), second)
    for at, effect in enumerate(effects, 1):
        second = copied(left, folder / "second")
        _forked(lambda: flow.recover(second, Cutting(at)))  # noqa: B023
        campaign.faults += 1
        campaign.found(
            f"{where}, then {effect} {at}", judged(flow, second, said, twice=False)
        )


def _effects(work: Callable[[Cutting], None], state: Path) -> list[str]:
    """What a run does, in order; the folder is used up."""
    disk = Cutting()
    work(disk)
    return disk.effects


def _cut(flow: Flow, state: Path, disk: Cutting, heard: Path) -> list[str]:
    """Run it until it is cut; what it said."""
    heard.write_bytes(b"")
    with heard.open("ab", buffering=0) as file:
        _forked(lambda: flow.run(state, disk, lambda text: _told(file.fileno(), text)))
    return heard.read_text().splitlines()


def _told(descriptor: int, text: str) -> None:
    os.write(descriptor, f"{text}\n".encode())


def _forked(work: Callable[[], None]) -> None:
    """Do it in a process of its own, which may end at any moment."""
    child = os.fork()
    if child == 0:
        code = BROKEN
        try:
            work()
            code = 0
        except FAILURES:
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, CUT), f"the flow itself failed ({code}); see above"
