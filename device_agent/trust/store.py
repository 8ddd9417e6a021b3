"""Where verified metadata and floors are kept.

The rules it keeps:

1. Metadata and floors change in one transaction; the second place of the floors is
   written before it, so that a cut leaves floors that are higher than needed, never
   lower.
2. A device that is enrolled anew begins anew: what was seen under another root is not
   what the new one speaks of. Only the clock goes on. It is forgotten when something
   was verified under the new root, not before: a damaged root is no enrolment.
3. A damaged database is put aside: metadata can be fetched again, and the floors are in
   the other place. Either loss is told (``notes``).
"""

import dataclasses
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..database import Database, open_database, put_aside
from ..durable import Disk, replace, sweep, told
from ..errors import DamagedError
from . import floors as floors_of
from .floors import Floors, merged

DATABASE: Final = "trust.db"
FILE: Final = "floors.json"
_SCHEMA = (
    (
        "CREATE TABLE metadata (name TEXT PRIMARY KEY, bytes BLOB NOT NULL) STRICT",
        "CREATE TABLE floors (id INTEGER PRIMARY KEY CHECK (id = 1), "
        "bytes BLOB NOT NULL) STRICT",
    ),
)


class Store:
    """Metadata and floors of one device."""

    def __init__(
        self, state: Path, floor_dir: Path, disk: Disk, enrolled: str | None = None
    ) -> None:
        """Open both places.

        Args:
            state: The state directory.
            floor_dir: Another folder, for the second place of the floors.
            disk: The seam.
            enrolled: Digest of the root of the enrolment; None: it is not known.

        Raises:
            StorageError: the disk failed.
        """
        self.notes: list[str] = []
        self._disk = disk
        self._file = floor_dir / FILE
        sweep(disk, floor_dir)
        second = self._from_file()
        self._database = self._opened(state / DATABASE)
        self._enrolled = enrolled
        first = self._from_database()
        known = [one for one in (first, second) if one is not None]
        mine = [one for one in known if not self._is_strange(one)]
        self._strange = bool(known) and not mine
        if self._strange:
            self.notes.append("this device was enrolled anew, and begins anew")
        elif len(mine) < len(known):  # cut off while it was forgotten
            first = None if first not in mine else first
            second = None if second not in mine else second
        self._floors = merged(first or Floors(), second or Floors())
        if first is not None or second is not None:
            self._note_loss(first, second)

    @property
    def floors(self) -> Floors:
        """The higher of both places."""
        return self._floors

    @property
    def basis(self) -> Floors:
        """What of it counts under the enrolment that there is now."""
        return Floors(clock=self._floors.clock) if self._strange else self._floors

    def metadata(self) -> dict[str, bytes]:
        """Name of the file → metadata as it was verified."""
        if self._strange:
            return {}
        with self._database.reading() as connection:
            rows = connection.execute("SELECT name, bytes FROM metadata").fetchall()
        return {str(name): bytes(raw) for name, raw in rows}

    def save(self, floors: Floors, metadata: Mapping[str, bytes] | None = None) -> None:
        """Keep floors and, where given, all metadata in the place of what was.

        Raises:
            StorageError: the floors may be kept in one of the places only.
        """
        under = self._floors.enrolled if self._enrolled is None else self._enrolled
        if self._strange and metadata is None:
            floors, under = merged(self._floors, floors), self._floors.enrolled
        else:
            floors = merged(self.basis, floors)
        floors = dataclasses.replace(floors, enrolled=under)
        if floors == self._floors and metadata is None:
            return
        raw = floors_of.dump(floors)
        replace(self._disk, self._file, raw)
        with self._database.transaction("trust") as connection:
            _put(connection, raw, metadata)
        self._floors = floors
        self._strange = self._strange and metadata is None

    def close(self) -> None:
        """Give the database back."""
        self._database.close()

    def _opened(self, path: Path) -> Database:
        try:
            return open_database(path, self._disk, _SCHEMA)
        except DamagedError as error:
            aside = put_aside(path, self._disk)
            self.notes.append(f"{error}; it was put aside as {aside}")
            return open_database(path, self._disk, _SCHEMA)

    def _from_database(self) -> Floors | None:
        with self._database.reading() as connection:
            row = connection.execute("SELECT bytes FROM floors").fetchone()
        return None if row is None else self._parsed(bytes(row[0]), DATABASE)

    def _from_file(self) -> Floors | None:
        with told(f"read {self._file}"):
            try:
                raw = self._file.read_bytes()
            except FileNotFoundError:
                return None
        return self._parsed(raw, str(self._file))

    def _parsed(self, raw: bytes, where: str) -> Floors | None:
        try:
            return floors_of.parse(raw)
        except ValueError as error:
            self.notes.append(f"the floors in {where} are damaged: {error}")
            return None

    def _is_strange(self, floors: Floors) -> bool:
        if self._enrolled is None:
            return False
        return floors.enrolled not in ("", self._enrolled)

    def _note_loss(self, first: Floors | None, second: Floors | None) -> None:
        """Say it where one place lacks what the other has, and mend it."""
        if first == second:
            return
        for found, where in ((first, DATABASE), (second, str(self._file))):
            if found is None:
                self.notes.append(f"{where} holds no floors; those of the other count")
        raw = floors_of.dump(self._floors)
        replace(self._disk, self._file, raw)
        with self._database.transaction("trust") as connection:
            _put(connection, raw, {} if first is None else None)


def _put(
    connection: sqlite3.Connection, floors: bytes, metadata: Mapping[str, bytes] | None
) -> None:
    connection.execute("INSERT OR REPLACE INTO floors VALUES (1, ?)", (floors,))
    if metadata is not None:
        connection.execute("DELETE FROM metadata")
        connection.executemany(
            "INSERT INTO metadata VALUES (?, ?)", sorted(metadata.items())
        )
