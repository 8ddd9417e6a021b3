"""produced = stored ∪ pending ∪ declared dropped, disjoint, whatever happens.

The machine below is a device's spool and the least fleet that keeps the contract: it
stores by (epoch, seq), keeps tombstones beside the records, and acknowledges what has
no gap. The network between them delays, repeats and loses.
"""

import itertools
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
)
from ledgers import Key, Ledger

from device_agent.contract.messages import Batch, Dropped
from device_agent.database import DAMAGED
from device_agent.durable import REAL
from device_agent.errors import DamagedError
from device_agent.spool.rules import Answer, Entry, Mark, SpoolLimits, Standing
from device_agent.spool.store import Store

SMALL = SpoolLimits(bytes_max=2_000, age_s=100.0)
MEMORY = next((one for one in ("/dev/shm",) if Path(one).is_dir()), None)
KINDS = ("sample", "window", "drift", "event", "step")


class Numbers:
    """Names of epochs, in order."""

    def __init__(self) -> None:
        self._count = itertools.count(1)

    def __call__(self) -> str:
        return f"epoch-{next(self._count)}"


def entry(name: str, kind: str = "event", uptime: float = 0.0, size: int = 0) -> Entry:
    pad = "x" * size
    return Entry(kind, f'{{"n":"{name}","p":"{pad}"}}', 1e9, uptime)


def drain(store: Store) -> list[Batch]:
    found, after = [], None
    while (batch := store.pending(after, 500)) is not None:
        found.append(batch)
        after = Mark(batch.epoch, batch.records[-1].seq)
    return found


class Device(RuleBasedStateMachine):
    """A spool, its fleet, and a model of both."""

    sent = Bundle("sent")
    acks = Bundle("acks")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY))
        self.ids = Numbers()
        self.ledger = Ledger()
        self.produced: set[Key] = set()
        self.ever: set[Key] = set()
        self.next: dict[str, int] = {}
        self.uptime = 0.0
        self.backup: tuple[bytes, set[Key]] | None = None
        self.open()

    @property
    def path(self) -> Path:
        return self.folder / "spool.db"

    def open(self) -> None:
        self.store = Store(self.path, REAL, SMALL, self.ids)
        self.uptime = self.store.uptime_base

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def number(self, count: int) -> list[Key]:
        epoch = self.store.epoch
        self.ledger.knows(epoch)  # by the birth
        first = self.next.get(epoch, 1)
        self.next[epoch] = first + count
        return [(epoch, first + index) for index in range(count)]

    @rule(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=8),
          size=st.integers(0, 150))  # fmt: skip
    def append(self, kinds: list[str], size: int) -> None:
        keys = self.number(len(kinds))
        self.store.append(
            [
                entry(f"{key}", kind, self.uptime, size)
                for key, kind in zip(keys, kinds, strict=True)
            ]
        )
        self.produced |= set(keys)
        self.ever |= set(keys)

    @rule(count=st.integers(1, 5))
    def drop_in_memory(self, count: int) -> None:
        self.produced |= set(self.number(count))
        self.store.append([Entry("dropped", "", 1e9, self.uptime, count)])

    @rule(seconds=st.floats(0, 80))
    def grow_old(self, seconds: float) -> None:
        self.uptime += seconds
        self.store.expire(self.uptime)

    @rule(target=sent, size=st.integers(1, 1500), skip=st.integers(0, 3))
    def send(self, size: int, skip: int) -> Batch | None:
        after, batch = None, None
        for _ in range(skip + 1):
            batch = self.store.pending(after, size)
            if batch is None:
                break
            after = Mark(batch.epoch, batch.records[-1].seq)
        return batch

    @rule(batch=sent, target=acks)
    def arrive(self, batch: Batch | None) -> Key | None:
        """At once, late, or again; out of order."""
        return None if batch is None else (batch.epoch, self.ledger.take(batch))

    @rule(ack=acks)
    def acknowledge(self, ack: Key | None) -> None:
        """Also twice, late, or of an epoch that is gone."""
        if ack is not None:
            assert self.store.acknowledge(*ack) in (Answer.TAKEN, Answer.UNKNOWN)

    @rule()
    def ask_for_what_is_missing(self) -> None:
        for epoch, first, last in self.ledger.missing():
            batch = self.store.between(epoch, first, last, 10_000)
            if batch is not None:
                assert batch.epoch == epoch
                assert batch.records[0].seq >= first
                self.ledger.take(batch)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.open()

    @rule()
    def cut(self) -> None:
        """The power goes: what lies there is all there is."""
        left = Path(tempfile.mkdtemp(dir=MEMORY))
        for one in self.folder.glob("spool.db*"):
            shutil.copy(one, left)
        self.store.close()
        shutil.rmtree(self.folder)
        self.folder = left
        self.open()

    @rule()
    def back_up(self) -> None:
        self.store.close()
        self.backup = self.path.read_bytes(), set(self.produced)
        self.open()

    @precondition(lambda self: self.backup is not None)
    @rule()
    def restore(self) -> None:
        """What was produced since and not stored is gone with the disk it was on."""
        assert self.backup is not None
        held, known = self.backup
        self.store.close()
        self.path.write_bytes(held)
        self.open()
        self.produced = known | (self.produced & self.ledger.stored.keys())

    @rule(size=st.integers(1, 1 << 14))
    def damage(self, size: int) -> None:
        """The beginning of the file is gone, so that it is noticed in any case."""
        self.store.close()
        held = bytearray(self.path.read_bytes())
        held[:size] = b"?" * len(held[:size])
        self.path.write_bytes(held)
        self.open()
        assert not self.path.with_name(f"spool.db{DAMAGED}").exists()

    @invariant()
    def nothing_is_unaccounted_for(self) -> None:
        fleet = Ledger.of(self.ledger)
        pending: set[Key] = set()
        for batch in drain(self.store):
            fleet.take(batch)
            pending |= {
                (batch.epoch, one.seq) for one in batch.records if one.kind != "dropped"
            }
        for key in self.produced - self.ledger.stored.keys() - pending:
            assert fleet.is_dropped(key), f"{key} is nowhere"
        assert self.ledger.stored.keys() <= self.ever
        assert not fleet.conflicts, "a number was given twice"

    @invariant()
    def the_stream_has_no_gap_and_no_overlap(self) -> None:
        """So a cumulative acknowledgement gets to its end."""
        last = Mark("", 0)
        for batch in drain(self.store):
            before = last.seq if last.epoch == batch.epoch else None
            for record in batch.records:
                first = record.seq
                if record.kind == "dropped":
                    first = Dropped.model_validate(record.body).first
                assert first <= record.seq
                assert before in (None, first - 1)
                before = record.seq
            last = Mark(batch.epoch, batch.records[-1].seq)

    @invariant()
    def bounds_hold(self) -> None:
        standing = self.store.standing()
        connection = sqlite3.connect(self.path)
        rows = connection.execute("SELECT kind, body FROM records").fetchall()
        connection.close()
        assert standing.records == len(rows)
        assert standing.bytes == sum(len(body) + 48 for _, body in rows)
        if any(kind != "dropped" for kind, _ in rows):
            assert standing.bytes <= SMALL.bytes_max


TestDevice = Device.TestCase
TestDevice.settings = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "spool.db", REAL, SMALL, Numbers())
    yield opened
    opened.close()


def shape(store: Store) -> list[tuple[str, int, str]]:
    return [
        (batch.epoch, one.seq, one.kind)
        for batch in drain(store)
        for one in batch.records
    ]


def test_numbers_begin_at_one_and_batches_hold_one_epoch(tmp_path: Path) -> None:
    ids = Numbers()
    for size in (2, 1):
        store = Store(tmp_path / "spool.db", REAL, SMALL, ids)
        store.append([entry("x")] * size)
        store.close()
    store = Store(tmp_path / "spool.db", REAL, SMALL, ids)
    assert store.epoch == "epoch-3"
    batches = drain(store)
    assert [(one.epoch, one.first, len(one.records)) for one in batches] == [
        ("epoch-1", 1, 2), ("epoch-2", 1, 1),
    ]  # fmt: skip
    assert store.standing() == Standing("epoch-3", 1, 1, 3, 3 * 64, 2)
    store.close()


def test_the_least_important_and_oldest_go_first_and_neighbours_are_one(
    store: Store,
) -> None:
    for kind in ("sample", "window", "sample", "sample", "step"):
        store.append([entry("x", kind, size=335)])
    assert [kind for *_, kind in shape(store)] == [
        "sample", "window", "sample", "sample", "step",
    ]  # fmt: skip
    store.append([entry("x", "event", size=135)])
    assert shape(store) == [
        ("epoch-1", 1, "dropped"), ("epoch-1", 2, "window"), ("epoch-1", 3, "sample"),
        ("epoch-1", 4, "sample"), ("epoch-1", 5, "step"), ("epoch-1", 6, "event"),
    ]  # fmt: skip
    store.append([entry("x", "step", size=435)])
    assert shape(store) == [
        ("epoch-1", 1, "dropped"), ("epoch-1", 2, "window"), ("epoch-1", 4, "dropped"),
        ("epoch-1", 5, "step"), ("epoch-1", 6, "event"), ("epoch-1", 7, "step"),
    ]  # fmt: skip
    store.append([entry("x", "step", size=500)])
    assert Dropped.model_validate(drain(store)[0].records[0].body) == Dropped(
        first=1, last=4, count=4, reason="bytes"
    )


def test_age_is_the_time_that_the_spool_ran(tmp_path: Path) -> None:
    ids = Numbers()
    store = Store(tmp_path / "spool.db", REAL, SMALL, ids)
    store.append([entry("old", uptime=10.0), entry("new", uptime=60.0)])
    store.close()
    store = Store(tmp_path / "spool.db", REAL, SMALL, ids)
    assert store.uptime_base == 60.0, "it goes on where the last run ended"
    store.expire(110.0)
    assert [kind for *_, kind in shape(store)] == ["event", "event"]
    store.expire(110.5)
    assert [kind for *_, kind in shape(store)] == ["dropped", "event"]
    assert store.standing().first == 1
    store.close()


def test_an_ack_of_more_than_was_produced_changes_the_epoch(store: Store) -> None:
    store.append([entry(str(number)) for number in range(4)])
    assert store.acknowledge("epoch-1", 2) is Answer.TAKEN
    assert store.acknowledge("epoch-1", 5) is Answer.AHEAD
    assert shape(store) == [("epoch-2", 1, "event"), ("epoch-2", 2, "event")]
    assert store.acknowledge("epoch-1", 5) is Answer.UNKNOWN
    store.append([entry("4")])
    assert [one.body["n"] for one in drain(store)[0].records] == ["2", "3", "4"]
    assert store.standing().next == 4


def test_an_ack_that_is_ahead_of_nothing_changes_the_epoch_too(store: Store) -> None:
    assert store.acknowledge("epoch-1", 7) is Answer.AHEAD
    store.append([entry("0")])
    assert shape(store) == [("epoch-2", 1, "event")]


def test_an_old_run_restored_from_a_backup_never_gives_a_number_again(
    tmp_path: Path,
) -> None:
    ids, path = Numbers(), tmp_path / "spool.db"
    store = Store(path, REAL, SMALL, ids)
    store.append([entry("1"), entry("2")])
    backup = tmp_path / "backup"
    backup.mkdir()
    for one in tmp_path.glob("spool.db*"):
        shutil.copy(one, backup)
    store.append([entry("3"), entry("4")])
    store.close()
    store = Store(backup / "spool.db", REAL, SMALL, ids)
    store.append([entry("5")])
    assert shape(store) == [
        ("epoch-1", 1, "event"), ("epoch-1", 2, "event"), ("epoch-2", 1, "event"),
    ]  # fmt: skip
    assert store.acknowledge("epoch-1", 4) is Answer.TAKEN, "the fleet stored all four"
    assert shape(store) == [("epoch-2", 1, "event")]
    store.close()


def test_a_damaged_file_is_declared_even_after_a_cut_in_between(
    tmp_path: Path,
) -> None:
    path = tmp_path / "spool.db"
    path.with_name(f"spool.db{DAMAGED}").write_bytes(b"put aside, then the power went")
    store = Store(path, REAL, SMALL, Numbers())
    [batch] = drain(store)
    assert batch.records[0].body == {
        "first": 1, "last": 1, "count": 0, "reason": "damaged",
    }  # fmt: skip
    assert not path.with_name(f"spool.db{DAMAGED}").exists()
    store.append([entry("x", "sample", size=700)] * 4)
    kinds = [kind for *_, kind in shape(store)]
    assert kinds == ["dropped", "dropped", "sample", "sample"], "it stands for itself"
    store.close()


def test_a_record_that_rotted_damages_the_whole(store: Store, tmp_path: Path) -> None:
    store.append([entry("x")])
    connection = sqlite3.connect(tmp_path / "spool.db")
    connection.execute("UPDATE records SET body = '{\"n'")
    connection.commit()
    connection.close()
    with pytest.raises(DamagedError, match="record 1"):
        store.pending(None, 1000)
