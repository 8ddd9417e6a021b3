"""Adding never waits for the disk; what could not be kept is said."""

import itertools
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from device_agent.contract.codes import Reason
from device_agent.contract.messages import Record
from device_agent.durable import REAL, Disk
from device_agent.errors import StorageError
from device_agent.spool.rules import Mark, SpoolLimits
from device_agent.spool.spool import FILE, Spool


class Moody(Disk):
    """A disk whose commits fail or wait as it is told to."""

    def __init__(self) -> None:
        self.reason: Reason | None = None
        self.commits: list[str] = []
        self.free = threading.Event()
        self.free.set()

    def commit(self, connection: sqlite3.Connection, label: str) -> None:
        self.free.wait(30)
        if self.reason is not None:
            raise StorageError(self.reason, f"commit of {label}: as asked")
        self.commits.append(label)
        super().commit(connection, label)


@contextmanager
def spool(state: Path, disk: Disk = REAL, **limits: float) -> Iterator[Spool]:
    numbers = itertools.count(1)
    given = SpoolLimits(**limits)  # type: ignore[arg-type]
    opened = Spool(state, disk, given, lambda: f"epoch-{next(numbers)}")
    yield opened
    opened.close()


def records(of: Spool) -> list[Record]:
    found: list[Record] = []
    after = None
    while (batch := of.pending(after)) is not None:
        found += batch.records
        after = Mark(batch.epoch, batch.records[-1].seq)
    return found


def test_records_come_back_in_order_and_leave_when_acknowledged(tmp_path: Path) -> None:
    told = threading.Event()
    with spool(tmp_path) as one:
        one._added = told.set
        for number in range(5):
            one.add("event", {"n": number, "text": "ü"}, 1e9 + number)
        one.flush()
        assert told.wait(10)
        assert [(r.seq, r.at, r.body["n"]) for r in records(one)] == [
            (number + 1, 1e9 + number, number) for number in range(5)
        ]
        one.acknowledge("epoch-1", 3)
        assert [r.seq for r in records(one)] == [4, 5]
    with spool(tmp_path) as again:
        assert [r.body["text"] for r in records(again)] == ["ü", "ü"]


def test_records_of_a_moment_are_one_commit(tmp_path: Path) -> None:
    disk = Moody()
    with spool(tmp_path, disk, group_s=5.0) as one:
        before = len(disk.commits)
        threads = [
            threading.Thread(
                target=lambda: [one.add("window", {}, 0.0) for _ in range(50)]
            )
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        one.flush()
        assert disk.commits[before:] == ["append"]
        assert [r.seq for r in records(one)] == list(range(1, 201))


def test_a_full_disk_is_tried_again_in_order(tmp_path: Path) -> None:
    disk = Moody()
    with spool(tmp_path, disk) as one:
        disk.reason = Reason.NO_SPACE
        one.add("event", {"n": 1}, 0.0)
        with pytest.raises(StorageError, match="as asked"):
            one.flush()
        one.add("event", {"n": 2}, 0.0)
        disk.reason = None
        one.flush()
        assert [r.body["n"] for r in records(one)] == [1, 2]
        assert one.standing().epoch == "epoch-1"


def test_a_failed_disk_costs_what_was_on_it_and_says_so(tmp_path: Path) -> None:
    disk = Moody()
    with spool(tmp_path, disk) as one:
        one.add("event", {"n": 1}, 0.0)
        one.flush()
        disk.reason = Reason.STORAGE
        one.add("event", {"n": 2}, 0.0)
        with pytest.raises(StorageError):
            one.flush()
        with pytest.raises(StorageError):
            one.pending()
        disk.reason = None
        one.flush()
        [declared, kept] = records(one)
        assert declared.kind == "dropped"
        assert declared.body["reason"] == "damaged"
        assert kept.body == {"n": 2}
        assert one.standing().epoch != "epoch-1"


def test_memory_is_bounded_while_the_disk_hangs(tmp_path: Path) -> None:
    disk = Moody()
    with spool(tmp_path, disk, waiting_bytes_max=1_000) as one:
        disk.free.clear()
        for number in range(1_000):
            one.add("event", {"n": number}, 0.0)
        assert len(one._waiting) < 30
        disk.free.set()
        one.flush()
        *kept, dropped = records(one)
        assert [r.body["n"] for r in kept] == list(range(len(kept)))
        assert dropped.kind == "dropped"
        assert dropped.body == {
            "first": len(kept) + 1, "last": 1_000, "reason": "bytes",
            "count": 1_000 - len(kept),
        }  # fmt: skip
        one.add("event", {"n": 1_000}, 0.0)
        one.flush()
        assert one.standing().next == 1_002


def test_what_is_no_record_is_refused_at_once(tmp_path: Path) -> None:
    with spool(tmp_path, record_bytes_max=100) as one:
        for kind in ("dropped", "gossip"):
            with pytest.raises(ValueError, match="not a kind"):
                one.add(kind, {}, 0.0)
        with pytest.raises(ValueError, match="109 bytes; at most 100"):
            one.add("event", {"x": "y" * 101}, 0.0)
        with pytest.raises(ValueError, match="not JSON compliant"):
            one.add("event", {"x": float("nan")}, 0.0)
        with pytest.raises(ValueError, match="time"):
            one.add("event", {}, float("inf"))


def test_old_records_are_given_up_while_it_runs(tmp_path: Path) -> None:
    now = [0.0]
    one = Spool(tmp_path, REAL, SpoolLimits(age_s=60.0), lambda: "e", lambda: now[0])
    one.add("event", {"n": 1}, 0.0)
    one.flush()
    now[0] = 61.0
    one.add("event", {"n": 2}, 0.0)
    one.flush()
    one.flush()  # the looking came after the commit that the first one waited for
    assert [r.kind for r in records(one)] == ["dropped", "event"]
    one.close()
    assert (tmp_path / FILE).exists()
