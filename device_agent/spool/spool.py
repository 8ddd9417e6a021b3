"""The spool as the rest of the agent sees it: add from anywhere, durable soon.

The rules it keeps:

1. :meth:`Spool.add` never waits for the disk. One thread commits what came in groups;
   a commit begins at most ``group_s`` after the first record of its group came.
2. What is in memory is bounded: beyond that it is counted, and a tombstone says so.
3. A full disk is tried again, with pauses that grow. A failed one takes the database
   with it: it is put aside and declared as dropped, and a new one is begun; while that
   fails too, it is tried again in the same way.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any, Final

from ..contract.codes import Reason
from ..contract.messages import Batch
from ..database import put_aside
from ..durable import Disk
from ..errors import StorageError
from ..log import event
from .rules import DROPPED, PRIORITIES, Answer, Entry, Mark, SpoolLimits, Standing
from .store import Store

FILE: Final = "spool.db"
PAUSE_S: Final = (0.25, 60.0)
"""Before a failed commit is tried again: at first, and at most."""
EXPIRE_SHARE: Final = 200
"""How often in its life a record's age is looked at."""

_LOG = logging.getLogger("edgeml.spool")


class Spool:
    """Records of this device until the fleet has them; usable from every thread.

    All but :meth:`add` may wait for a commit: not to be called on the event loop.
    """

    def __init__(
        self,
        state: Path,
        disk: Disk,
        limits: SpoolLimits,
        ids: Callable[[], str],
        clock: Callable[[], float] = time.monotonic,
        added: Callable[[], None] | None = None,
    ) -> None:
        """Open the spool of a state directory.

        Args:
            state: the directory; it exists.
            disk: the seam.
            limits: its bounds.
            ids: gives a random name for an epoch, ``[a-z0-9-]{1,64}``.
            clock: seconds that never go back.
            added: called in the spool's thread whenever there is more to send.

        Raises:
            StorageError: the disk failed.
        """
        self._path, self._disk, self._limits, self._ids = (
            state / FILE, disk, limits, ids,
        )  # fmt: skip
        self._clock, self._added = clock, added
        self._store = Store(self._path, disk, limits, ids)
        self._began = clock() - self._store.uptime_base
        self._expired = self._uptime()
        self._lost: StorageError | None = None
        self._using = threading.Lock()
        """Held by who uses the store."""
        self._changed = threading.Condition()
        """Guards all that follows."""
        self._waiting: list[Entry] = []
        self._waiting_bytes = 0
        self._asked = self._done = self._tried = 0
        self._error: StorageError | None = None
        self._closing = False
        self._writer = threading.Thread(target=self._write, name="spool", daemon=True)
        self._writer.start()

    def add(self, kind: str, body: dict[str, Any], at: float) -> None:
        """Keep a record until the fleet has it, or declare that it was dropped.

        Args:
            kind: one of ``PRIORITIES`` but ``dropped``.
            body: what it says; JSON.
            at: seconds since 1970, by a clock that may be wrong.

        Raises:
            ValueError: not such a kind, not JSON, too large, or no time.
        """
        if kind not in PRIORITIES or kind == DROPPED:
            raise ValueError(f"{kind!r} is not a kind of record")
        text = json.dumps(body, separators=(",", ":"), allow_nan=False)
        if len(text) > self._limits.record_bytes_max:
            raise ValueError(
                f"a record of {len(text)} bytes; at most "
                f"{self._limits.record_bytes_max}"
            )
        if not isfinite(at):
            raise ValueError(f"a record's time is {at}")
        entry = Entry(kind, text, at, self._uptime())
        with self._changed:
            if self._waiting_bytes + entry.cost <= self._limits.waiting_bytes_max:
                self._waiting.append(entry)
                self._waiting_bytes += entry.cost
            else:
                self._drop(entry)
            self._changed.notify_all()

    def flush(self, timeout_s: float = 10.0) -> None:
        """Wait until all that was added before is durable.

        Raises:
            StorageError: it is not; it stays in memory and is tried again.
        """
        with self._changed:
            self._asked += 1
            asked = self._asked
            self._changed.notify_all()
            if not self._changed.wait_for(
                lambda: self._tried >= asked or self._closing, timeout_s
            ):
                raise StorageError(
                    Reason.STORAGE, f"{self._path}: no commit within {timeout_s:g} s"
                )
            if self._done < asked and self._error is not None:
                raise self._error

    def pending(self, after: Mark | None = None, bytes_max: int = 128 << 10) -> (
        Batch | None
    ):  # fmt: skip
        """What comes next in the stream, see :meth:`.store.Store.pending`.

        Raises:
            StorageError: the disk failed.
        """
        with self._using:
            return self._open().pending(after, bytes_max)

    def between(
        self, epoch: str, first: int, last: int, bytes_max: int = 128 << 10
    ) -> Batch | None:
        """What the fleet misses, see :meth:`.store.Store.between`.

        Raises:
            StorageError: the disk failed.
        """
        with self._using:
            return self._open().between(epoch, first, last, bytes_max)

    def acknowledge(self, epoch: str, seq: int) -> Answer:
        """The fleet's database has every record of the epoch up to ``seq``.

        Raises:
            StorageError: nothing was removed; the fleet will say it again.
        """
        with self._using:
            answer = self._open().acknowledge(epoch, seq)
        if answer is Answer.AHEAD:
            event(
                _LOG, logging.ERROR, "acknowledged beyond what was produced",
                epoch=epoch, seq=seq,
            )  # fmt: skip
        return answer

    def standing(self) -> Standing:
        """How full it is, and where its epoch stands.

        Raises:
            StorageError: the disk failed.
        """
        with self._using:
            return self._open().standing()

    def close(self, timeout_s: float = 10.0) -> None:
        """Commit what waits, if the disk lets us, and end."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._writer.join(timeout_s)
        if not self._writer.is_alive():  # else the disk has it, and may never return
            self._store.close()

    def _uptime(self) -> float:
        return self._clock() - self._began

    def _drop(self, entry: Entry) -> None:
        """Count what there is no room for in memory; the lock is held."""
        last = self._waiting[-1] if self._waiting else None
        if last is not None and last.kind == DROPPED:
            self._waiting[-1] = replace(last, count=last.count + 1)
        else:
            self._waiting.append(Entry(DROPPED, "", entry.at, entry.uptime))

    def _write(self) -> None:
        """The thread: take a group, commit it, say so; until closed."""
        pause_s = PAUSE_S[0]
        while True:
            with self._changed:
                self._gather()
                group, asked = self._waiting, self._asked
                self._waiting, self._waiting_bytes = [], 0
            error = self._commit(group)
            self._expire()
            with self._changed:
                self._tried, self._error = asked, error
                if error is None:
                    self._done, pause_s = asked, PAUSE_S[0]
                else:
                    self._waiting = group + self._waiting
                    self._waiting_bytes = sum(one.cost for one in self._waiting)
                self._changed.notify_all()
                if self._closing and (error is not None or not self._waiting):
                    return
                if error is not None:
                    self._changed.wait_for(lambda: self._closing, pause_s)
                    pause_s = min(2 * pause_s, PAUSE_S[1])
            if error is None and group and self._added is not None:
                self._added()

    def _gather(self) -> None:
        """Wait for a record, or for someone who asks; then for others to join it."""
        look_s = max(self._limits.age_s / EXPIRE_SHARE, 1.0)
        self._changed.wait_for(
            lambda: self._waiting or self._asked > self._tried or self._closing, look_s
        )
        if self._waiting:
            self._changed.wait_for(
                lambda: self._asked > self._tried or self._closing, self._limits.group_s
            )

    def _commit(self, group: list[Entry]) -> StorageError | None:
        """Make a group durable; the error that it was not."""
        if not group:
            return None
        try:
            with self._using:
                self._open().append(group)
        except StorageError as error:
            self._tell(error, records=len(group))
            return error
        return None

    def _expire(self) -> None:
        """Give up what is too old, now and then."""
        uptime = self._uptime()
        if uptime - self._expired < self._limits.age_s / EXPIRE_SHARE:
            return
        self._expired = uptime
        try:
            with self._using:
                self._open().expire(uptime)
        except StorageError as error:  # the bound by bytes holds nevertheless
            self._tell(error, records=0)

    def _tell(self, error: StorageError, records: int) -> None:
        event(
            _LOG, logging.ERROR, "spool cannot write", reason=error.reason.value,
            error=str(error), records=records,
        )  # fmt: skip
        if error.reason is not Reason.NO_SPACE:
            self._lost = error

    def _open(self) -> Store:
        """The store; a new one where the last one was lost."""
        if self._lost is not None:
            self._store.close()
            put_aside(self._path, self._disk)
            self._store = Store(self._path, self._disk, self._limits, self._ids)
            self._began = self._clock() - self._store.uptime_base
            self._lost = None
        return self._store
