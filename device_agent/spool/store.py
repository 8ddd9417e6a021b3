"""Records in their order on the disk; no thread, no clock.

The rules it keeps:

1. A record is (device, epoch, seq). An epoch is one run of the spool: another run takes
   another one, so a number is never given twice, even after the state was restored from
   a backup, for then the old run does not go on. An epoch begins with the number 1 and
   with its first record; before that nothing of it is on the disk.
2. A record leaves for two reasons: the fleet said that its database has it
   (:meth:`Store.acknowledge`), or room is needed or it is too old; then a tombstone
   (:mod:`.tombstones`) takes its place in the same transaction.
3. Bounds hold at every commit. Only tombstones may exceed them, one per run given up.
4. Age is counted in the spool's own time, which grows while the agent runs and goes on
   where the last run's records ended: no clock that jumps can make everything old.
5. A damaged file is put aside; what was in it is declared as dropped before it is
   removed, so that a cut in between declares it again and never not at all.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Final

from ..contract.messages import Batch, Record
from ..database import DAMAGED, open_database, put_aside
from ..durable import Disk, remove
from ..errors import DamagedError
from . import tombstones
from .rules import (
    DROPPED,
    PRIORITIES,
    RECORD_COST_BYTES,
    Answer,
    Entry,
    Mark,
    SpoolLimits,
    Standing,
)

SCHEMA: Final = (
    (
        "CREATE TABLE epochs (number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE)",
        "CREATE TABLE records (epoch INTEGER NOT NULL, seq INTEGER NOT NULL,"
        " at REAL NOT NULL, uptime REAL NOT NULL, kind TEXT NOT NULL,"
        " body TEXT NOT NULL, PRIMARY KEY (epoch, seq)) WITHOUT ROWID",
    ),
)
FULL_SHARE: Final = 0.9
"""What eviction leaves of the bound, so that it is not needed at every commit."""
_EVICTABLE: Final = sorted(
    (kind for kind in PRIORITIES if kind != DROPPED), key=PRIORITIES.__getitem__
)
_Row = tuple[int, int, float, str, str]
"""Number of the epoch, number, time, kind, body."""
_Numbered = tuple[int, Entry]


class Store:
    """The records of one device; to be used by one thread at a time."""

    def __init__(
        self, path: Path, disk: Disk, limits: SpoolLimits, ids: Callable[[], str]
    ) -> None:
        """Open it; put it aside if it is damaged.

        Args:
            path: its database.
            disk: the seam.
            limits: its bounds.
            ids: gives a random name for an epoch, ``[a-z0-9-]{1,64}``.

        Raises:
            StorageError: the disk failed.
        """
        self._disk, self._limits, self._ids = disk, limits, ids
        aside = path.with_name(path.name + DAMAGED)
        try:
            self._database = open_database(path, disk, SCHEMA)
        except DamagedError:
            put_aside(path, disk)
            self._database = open_database(path, disk, SCHEMA)
        self._epoch, self._number, self._next = ids(), 0, 1
        with self._database.reading() as connection:
            (uptime,) = connection.execute(
                "SELECT ifnull(max(uptime), 0.0) FROM records"
            ).fetchone()
            self._records, self._bytes = _counted(connection)
        self.uptime_base: float = uptime
        """Where the spool's own time goes on."""
        if aside.exists():
            self._declare(aside)

    @property
    def epoch(self) -> str:
        """Under which records are added now."""
        return self._epoch

    def append(self, entries: Sequence[Entry]) -> None:
        """Give the entries numbers and keep them, durable at return.

        Raises:
            StorageError: none of them is kept; see :class:`..database.Database`.
        """
        numbered, following = _numbered(entries, self._next)
        records = self._records + len(numbered)
        size = self._bytes + sum(entry.cost for _, entry in numbered)
        with self._database.transaction("append") as connection:
            number = self._number or self._enter(connection)
            connection.executemany(
                "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)",
                [
                    (number, seq, entry.at, entry.uptime, entry.kind, entry.body)
                    for seq, entry in numbered
                ],
            )
            # tombstones take room, too: more of it where few neighbours were given up
            while size > self._limits.bytes_max and self._make_room(connection, size):
                records, size = _counted(connection)
        self._number, self._next = number, following
        self._records, self._bytes = records, size

    def expire(self, uptime: float) -> None:
        """Give up what is too old.

        Raises:
            StorageError: nothing was given up.
        """
        query = "SELECT epoch, seq FROM records WHERE uptime < ? AND kind != ?"
        values = (uptime - self._limits.age_s, DROPPED)
        with self._database.reading() as connection:
            victims = connection.execute(query, values).fetchall()
        if not victims:
            return
        with self._database.transaction("expire") as connection:
            tombstones.bury(connection, victims, "age")
            records, size = _counted(connection)
        self._records, self._bytes = records, size

    def acknowledge(self, epoch: str, seq: int) -> Answer:
        """The fleet's database has every record of the epoch up to ``seq``.

        Raises:
            StorageError: nothing was removed.
        """
        with self._database.reading() as connection:
            number = _find(connection, epoch)
        if epoch == self._epoch and seq >= self._next:
            self._renew()
            return Answer.AHEAD
        if number is None:
            return Answer.UNKNOWN
        with self._database.reading() as connection:
            removed, freed = _counted(connection, (number, number), seq)
        if not removed:
            return Answer.TAKEN
        with self._database.transaction("acknowledge") as connection:
            connection.execute(
                "DELETE FROM records WHERE epoch = ? AND seq <= ?", (number, seq)
            )
            if number != self._number:
                connection.execute(
                    "DELETE FROM epochs WHERE number = ? AND NOT EXISTS"
                    " (SELECT 1 FROM records WHERE epoch = ?)",
                    (number, number),
                )
        self._records -= removed
        self._bytes -= freed
        return Answer.TAKEN

    def pending(self, after: Mark | None, bytes_max: int) -> Batch | None:
        """What comes next in the stream, of one epoch; None: nothing is left.

        Args:
            after: the last record that was sent; None, or one of an epoch that is gone:
                from the oldest on.
            bytes_max: of the bodies; one record is always given.

        Raises:
            StorageError: the disk failed.
        """
        with self._database.reading() as connection:
            number = None if after is None else _find(connection, after.epoch)
            seq = after.seq if after is not None and number is not None else 0
            rows = connection.execute(
                "SELECT epoch, seq, at, kind, body FROM records"
                " WHERE (epoch, seq) > (?, ?) ORDER BY epoch, seq",
                (number or 0, seq),
            )
            return _batch(connection, rows, bytes_max)

    def between(
        self, epoch: str, first: int, last: int, bytes_max: int
    ) -> Batch | None:
        """Records that the fleet misses, the beginning of them; None: not here.

        A tombstone that covers some of them is among them.

        Raises:
            StorageError: the disk failed.
        """
        with self._database.reading() as connection:
            rows = connection.execute(
                "SELECT epoch, seq, at, kind, body FROM records"
                " WHERE epoch = ? AND seq >= ? ORDER BY seq",
                (_find(connection, epoch) or 0, first),
            )
            wanted = takewhile(lambda row: _first(row[1], *row[3:]) <= last, rows)
            return _batch(connection, wanted, bytes_max)

    def standing(self) -> Standing:
        """How full it is.

        Raises:
            StorageError: the disk failed.
        """
        with self._database.reading() as connection:
            (epochs,) = connection.execute(
                "SELECT count(DISTINCT epoch) FROM records"
            ).fetchone()
            row = connection.execute(
                "SELECT seq, kind, body FROM records WHERE epoch = ?"
                " ORDER BY seq LIMIT 1",
                (self._number or 0,),
            ).fetchone()
        first = self._next if row is None else _first(*row)
        return Standing(
            self._epoch, first, self._next, self._records, self._bytes, epochs
        )

    def close(self) -> None:
        """Give it back; again is harmless."""
        self._database.close()

    def _enter(self, connection: sqlite3.Connection) -> int:
        """Write the current epoch down; its number, by which epochs are in order."""
        done = connection.execute(
            "INSERT INTO epochs (number, id) SELECT ifnull(max(number), 0) + 1, ?"
            " FROM (SELECT number FROM epochs UNION ALL SELECT epoch FROM records)",
            (self._epoch,),
        )
        assert done.lastrowid is not None, "a row was inserted"
        return done.lastrowid

    def _make_room(self, connection: sqlite3.Connection, size: int) -> bool:
        """Evict by priority, the oldest first; whether there was anything to evict."""
        excess = size - int(self._limits.bytes_max * FULL_SHARE)
        victims: list[tuple[int, int]] = []
        for kind in _EVICTABLE:
            rows = connection.execute(
                "SELECT epoch, seq, length(body) FROM records WHERE kind = ?"
                " ORDER BY epoch, seq",
                (kind,),
            )
            for epoch, seq, size_bytes in rows:  # as many characters: it is ASCII
                if excess <= 0:
                    break
                victims.append((epoch, seq))
                excess -= size_bytes + RECORD_COST_BYTES
        tombstones.bury(connection, victims, "bytes")
        return bool(victims)

    def _renew(self) -> None:
        """Give what is pending of the current epoch another one, from 1 on."""
        old, following = self._number, self._next
        self._epoch, self._number, self._next = self._ids(), 0, 1
        if not old:
            return
        with self._database.transaction("renew") as connection:
            rows = connection.execute(
                "SELECT seq, kind, body FROM records WHERE epoch = ? ORDER BY seq",
                (old,),
            ).fetchall()
            if not rows:
                return
            number, shift = self._enter(connection), _first(*rows[0]) - 1
            for seq, kind, body in rows:
                connection.execute(
                    "UPDATE records SET epoch = ?, seq = ?, body = ?"
                    " WHERE epoch = ? AND seq = ?",
                    (number, seq - shift, _shifted(kind, body, shift), old, seq),
                )
            connection.execute("DELETE FROM epochs WHERE number = ?", (old,))
        self._number, self._next = number, following - shift

    def _declare(self, aside: Path) -> None:
        """Say that an earlier file was lost; only then take it away."""
        body = tombstones.body(self._next, self._next, 0, tombstones.DAMAGED)
        self.append([Entry(DROPPED, body, 0.0, self.uptime_base)])
        remove(self._disk, aside)


def _numbered(entries: Sequence[Entry], following: int) -> tuple[list[_Numbered], int]:
    """The entries with their numbers, and the number that follows them."""
    found = []
    for entry in entries:
        last = following + entry.count - 1
        if entry.kind == DROPPED and not entry.body:
            body = tombstones.body(following, last, entry.count, "bytes")
            found.append((last, replace(entry, body=body)))
        else:
            found.append((last, entry))
        following = last + 1
    return found, following


def _find(connection: sqlite3.Connection, epoch: str) -> int | None:
    row = connection.execute(
        "SELECT number FROM epochs WHERE id = ?", (epoch,)
    ).fetchone()
    return None if row is None else int(row[0])


def _counted(
    connection: sqlite3.Connection,
    epochs: tuple[int, int] = (0, 1 << 62),
    upto: int = 1 << 62,
) -> tuple[int, int]:
    """Records and bytes, of a range of epochs, both ends included."""
    records, size = connection.execute(
        "SELECT count(*), ifnull(sum(length(body)), 0) FROM records"
        " WHERE epoch BETWEEN ? AND ? AND seq <= ?",
        (*epochs, upto),
    ).fetchone()
    return int(records), int(size) + int(records) * RECORD_COST_BYTES


def _batch(
    connection: sqlite3.Connection, rows: Iterable[_Row], bytes_max: int
) -> Batch | None:
    """Rows of the first row's epoch, as many as there is room for."""
    records: list[Record] = []
    size = first = number = 0
    for epoch, seq, at, kind, body in rows:
        size += len(body) + RECORD_COST_BYTES
        if records and (epoch != number or size > bytes_max):
            break
        if not records:
            number, first = epoch, _first(seq, kind, body)
        records.append(_record(seq, at, kind, body))
    if not records:
        return None
    (name,) = connection.execute(
        "SELECT id FROM epochs WHERE number = ?", (number,)
    ).fetchone()
    return Batch(epoch=name, first=first, records=tuple(records))


def _record(seq: int, at: float, kind: str, body: str) -> Record:
    try:
        return Record(seq=seq, at=at, kind=kind, body=json.loads(body))
    except ValueError as cause:
        raise DamagedError(
            f"the spool: record {seq} is not what was written: {cause}"
        ) from cause


def _first(seq: int, kind: str, body: str) -> int:
    """The first number that a row stands for."""
    return tombstones.read(body).first if kind == DROPPED else seq


def _shifted(kind: str, body: str, by: int) -> str:
    if kind != DROPPED:
        return body
    run = tombstones.read(body)
    return tombstones.body(run.first - by, run.last - by, run.count, run.reason)
