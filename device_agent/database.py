"""SQLite, opened the same way everywhere.

The rules it keeps:

1. WAL and ``synchronous=FULL``: a commit that returned is on the disk. (80 simulated
   power cuts on ext4: WAL with NORMAL lost acknowledged rows in 80, the default journal
   with FULL lost the last row in 80, WAL with FULL lost nothing.)
2. A database is checked when it is opened; a damaged one is refused by name. Whether it
   may be put aside (:func:`put_aside`) is for its owner to know.
3. After an error of the disk nothing more is done through the same connection: what is
   in its cache may never have reached the disk.
4. Its version grows by whole steps, each in one transaction; a newer one is refused.
"""

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from .contract.codes import Reason
from .durable import Disk, move, told
from .errors import DamagedError, StorageError

JOURNAL: Final = "WAL"
SYNCHRONOUS: Final = "FULL"
WAL_BYTES_MAX: Final = 4 << 20
"""What is left of the log's file after a checkpoint."""
DAMAGED: Final = ".damaged"
"""Ending of what was put aside."""

Schema = tuple[tuple[str, ...], ...]
"""Statements of each version, oldest first; only ever added to."""


class Database:
    """One open database; used from any thread, by one at a time."""

    def __init__(self, connection: sqlite3.Connection, path: Path, disk: Disk) -> None:
        self.path = path
        self._connection = connection
        self._disk = disk
        self._lock = threading.RLock()
        self._lost: StorageError | None = None

    @contextmanager
    def transaction(self, label: str) -> Iterator[sqlite3.Connection]:
        """All that is done inside, or nothing; durable when it ends.

        Args:
            label: what it is, for errors and for the seam.

        Raises:
            StorageError: nothing of it was done; at NO_SPACE it may be tried again,
                else this database is to be opened anew.
        """
        with self._lock:
            connection = self._usable()
            try:
                with told(f"{self.path}: {label}"):
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
                    self._disk.commit(connection, label)
            except BaseException as error:
                self._undo(error)
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Look, without changing anything.

        Raises:
            StorageError: it cannot be read.
        """
        with self._lock:
            connection = self._usable()
            try:
                with told(f"read {self.path}"):
                    yield connection
            except StorageError as error:
                self._lost = error
                raise

    def close(self) -> None:
        """Give it back; again is harmless. To who still uses it it has failed."""
        with self._lock:
            if self._lost is None:
                self._lost = StorageError(Reason.STORAGE, f"{self.path} is closed")
            self._connection.close()

    def _usable(self) -> sqlite3.Connection:
        if self._lost is not None:
            raise StorageError(
                Reason.STORAGE, f"{self.path} failed before and must be opened anew"
            ) from self._lost
        return self._connection

    def _undo(self, error: BaseException) -> None:
        if isinstance(error, StorageError) and error.reason is not Reason.NO_SPACE:
            self._lost = error
        if self._connection.in_transaction:
            try:
                with told(f"rollback of {self.path}"):
                    self._connection.execute("ROLLBACK")
            except StorageError as worse:
                self._lost = worse


def open_database(path: Path, disk: Disk, schema: Schema) -> Database:
    """Open it, make it if there is none, and bring it to the newest version.

    Raises:
        DamagedError: it is not a database, or a broken one.
        StorageError: the disk failed, or a newer agent wrote it.
    """
    # an empty file is an empty database; so it never has more rights than these
    disk.close(disk.resume(path, 0o600))
    disk.sync_folder(path.parent)
    with told(f"open {path}"):
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=5.0
        )
    try:
        with told(f"open {path}"):
            connection.execute(f"PRAGMA journal_mode={JOURNAL}")
            connection.execute(f"PRAGMA synchronous={SYNCHRONOUS}")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.execute(f"PRAGMA journal_size_limit={WAL_BYTES_MAX}")
            _check(connection, path)
        database = Database(connection, path, disk)
        _upgrade(database, schema)
    except BaseException:
        connection.close()
        raise
    return database


def open_reading(path: Path) -> sqlite3.Connection:
    """A database of another process, or of none: nothing of it can be changed.

    Raises:
        StorageError: there is none, or it cannot be read.
    """
    with told(f"read {path}"):
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        connection.execute("PRAGMA schema_version")
    return connection


def put_aside(path: Path, disk: Disk) -> Path:
    """Move a damaged database out of the way; the last one put aside is replaced.

    The file goes before its log: a log alone is ignored, but a database without its log
    would be an older state that looks whole.

    Returns:
        Where it is now.

    Raises:
        StorageError: it cannot be moved.
    """
    aside = path.with_name(path.name + DAMAGED)
    if path.exists():
        move(disk, path, aside)
    for ending in ("-wal", "-shm"):
        log = path.with_name(path.name + ending)
        if log.exists():
            disk.unlink(log)
    disk.sync_folder(path.parent)
    return aside


def _check(connection: sqlite3.Connection, path: Path) -> None:
    with closing(connection.execute("PRAGMA quick_check(1)")) as found:
        said = found.fetchone()[0]
    if said != "ok":
        raise DamagedError(f"{path}: expected a sound database, found: {said}")


def _upgrade(database: Database, schema: Schema) -> None:
    with database.reading() as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(schema):
        raise StorageError(
            Reason.STORAGE,
            f"{database.path} has version {version}; this agent knows up to "
            f"{len(schema)}: run the newer agent that wrote it",
        )
    for number, statements in enumerate(schema[version:], version + 1):
        with database.transaction(f"version {number}") as connection:
            for statement in statements:
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version={number}")
