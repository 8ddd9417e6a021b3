"""A commit that returned is there; a damaged or newer database is refused by name."""

import shutil
import sqlite3
from pathlib import Path

import pytest

from device_agent.contract.codes import Reason
from device_agent.database import (
    DAMAGED,
    Database,
    open_database,
    open_reading,
    put_aside,
)  # fmt: skip
from device_agent.durable import REAL, Disk
from device_agent.errors import DamagedError, StorageError

SCHEMA = (("CREATE TABLE notes (number INTEGER PRIMARY KEY, text TEXT) STRICT",),)
NEWER = (*SCHEMA, ("ALTER TABLE notes ADD COLUMN at REAL",))


class Unwilling(Disk):
    """A disk whose commits fail in a given way."""

    reason: Reason | None = None

    def commit(self, connection: sqlite3.Connection, label: str) -> None:
        if self.reason is not None:
            raise StorageError(self.reason, f"commit of {label}: as asked")
        super().commit(connection, label)


def write(database: Database, *texts: str) -> None:
    with database.transaction("notes") as connection:
        for text in texts:
            connection.execute("INSERT INTO notes (text) VALUES (?)", (text,))


def texts(database: Database) -> list[str]:
    with database.reading() as connection:
        return [text for (text,) in connection.execute("SELECT text FROM notes")]


def test_it_is_opened_as_the_rules_say(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = open_database(path, REAL, SCHEMA)
    with database.reading() as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert connection.execute("PRAGMA foreign_keys").fetchone() == (1,)
    write(database, "a")
    modes = {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
    assert modes == {0o600}, "the log and its index, too"


def test_a_commit_survives_the_process(tmp_path: Path) -> None:
    database = open_database(tmp_path / "state.db", REAL, SCHEMA)
    write(database, "a", "b")
    copy = tmp_path / "after"
    copy.mkdir()
    for one in tmp_path.glob("state.db*"):  # as it lies there, nothing was closed
        shutil.copy(one, copy)
    assert texts(open_database(copy / "state.db", REAL, SCHEMA)) == ["a", "b"]


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    database = open_database(tmp_path / "state.db", REAL, SCHEMA)
    write(database, "a")
    with pytest.raises(ZeroDivisionError), database.transaction("half") as connection:
        connection.execute("INSERT INTO notes (text) VALUES ('b')")
        raise ZeroDivisionError
    assert texts(database) == ["a"]
    write(database, "c")
    assert texts(database) == ["a", "c"]


def test_a_full_disk_may_be_tried_again_a_failed_one_may_not(tmp_path: Path) -> None:
    disk = Unwilling()
    path = tmp_path / "state.db"
    database = open_database(path, disk, SCHEMA)
    disk.reason = Reason.NO_SPACE
    with pytest.raises(StorageError, match="notes"):
        write(database, "a")
    disk.reason = None
    write(database, "b")
    assert texts(database) == ["b"]
    disk.reason = Reason.STORAGE
    with pytest.raises(StorageError):
        write(database, "c")
    disk.reason = None
    with pytest.raises(StorageError, match="opened anew"):
        write(database, "d")
    with pytest.raises(StorageError, match="opened anew"):
        texts(database)
    assert texts(open_database(path, disk, SCHEMA)) == ["b"]


def test_what_is_closed_is_an_error_of_the_disk_to_who_still_uses_it(
    tmp_path: Path,
) -> None:
    database = open_database(tmp_path / "x.db", REAL, SCHEMA)
    database.close()
    database.close()
    for use in (texts, write):  # another thread's, when it is opened anew
        with pytest.raises(StorageError, match="opened anew"):
            use(database)


def test_mistakes_are_not_called_errors_of_the_disk(tmp_path: Path) -> None:
    database = open_database(tmp_path / "state.db", REAL, SCHEMA)
    with (
        pytest.raises(sqlite3.IntegrityError),
        database.transaction("twice") as connection,
    ):
        connection.execute("INSERT INTO notes (number) VALUES (1), (1)")
    write(database, "a")
    assert texts(database) == ["a"]


@pytest.mark.parametrize("size", [10, 5000, 1 << 16])
def test_a_damaged_one_is_refused_and_can_be_put_aside(
    tmp_path: Path, size: int
) -> None:
    path = tmp_path / "spool.db"
    database = open_database(path, REAL, SCHEMA)
    write(database, *("x" * 3000 for _ in range(40)))
    database.close()
    held = bytearray(path.read_bytes())
    held[:size] = b"?" * size if size < 5000 else held[:size]
    path.write_bytes(held[: len(held) // 2] if size >= 5000 else held)
    with pytest.raises(DamagedError, match=r"spool\.db"):
        open_database(path, REAL, SCHEMA)
    path.with_name("spool.db-wal").write_bytes(b"a log of what is gone")
    aside = put_aside(path, REAL)
    assert aside.name == f"spool.db{DAMAGED}"
    assert aside.exists()
    assert texts(open_database(path, REAL, SCHEMA)) == []


def test_it_grows_by_versions_and_a_newer_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = open_database(path, REAL, SCHEMA)
    write(database, "a")
    database.close()
    newer = open_database(path, REAL, NEWER)
    with newer.reading() as connection:
        assert connection.execute("SELECT text, at FROM notes").fetchall() == [
            ("a", None)
        ]
    newer.close()
    with pytest.raises(StorageError, match="version 2; this agent knows up to 1"):
        open_database(path, REAL, SCHEMA)


def test_another_process_may_look(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    database = open_database(path, REAL, SCHEMA)
    write(database, "a")
    connection = open_reading(path)
    assert connection.execute("SELECT text FROM notes").fetchall() == [("a",)]
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        connection.execute("DELETE FROM notes")
    connection.close()
    with pytest.raises(StorageError, match=r"none\.db"):
        open_reading(tmp_path / "none.db")
