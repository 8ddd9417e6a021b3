"""Two places for the floors: each alone holds; nothing of two enrolments is mixed."""

from pathlib import Path

import pytest

from device_agent.durable import Disk
from device_agent.errors import StorageError
from device_agent.trust.floors import Floors, dump, merged, parse
from device_agent.trust.store import DATABASE, FILE, Store

OURS = Floors(
    root=2, online="keys", versions={"timestamp": 7}, director="d", serial=5, clock=9.0
).committed("linear/cpu", 3, "digest")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "floors").mkdir()
    return tmp_path


def opened(place: Path, disk: Disk | None = None, enrolled: str | None = "a") -> Store:
    return Store(place, place / "floors", disk or Disk(), enrolled)


def test_floors_are_written_and_read(place: Path) -> None:
    assert parse(dump(OURS)) == OURS
    with pytest.raises(ValueError, match="digest"):
        parse(dump(OURS).replace(b'"serial":5', b'"serial":4'))


def test_the_higher_of_both_counts_field_by_field() -> None:
    lower = Floors(root=2, online="keys", versions={"timestamp": 3, "snapshot": 4})
    both = merged(OURS, lower)
    assert both == merged(lower, OURS)
    assert both.versions == {"timestamp": 7, "snapshot": 4}
    assert (both.serial, both.root) == (5, 2)


def test_versions_begin_anew_under_the_keys_of_a_newer_root() -> None:
    newer = Floors(root=3, online="others", versions={"timestamp": 1})
    for both in (merged(OURS, newer), merged(newer, OURS)):
        assert both.versions == {"timestamp": 1}
        assert both.version("timestamp", "keys") == 0
        assert both.counters == OURS.counters
        assert both.serial_of("d") == 5


def test_a_serial_begins_anew_with_another_director() -> None:
    heard = OURS.heard("other", 1)
    assert (heard.serial_of("other"), heard.serial_of("d")) == (1, 0)


@pytest.mark.parametrize("lost", [DATABASE, FILE])
def test_each_place_alone_holds(place: Path, lost: str) -> None:
    store = opened(place)
    store.save(OURS, {"root.json": b"root"})
    kept = store.floors
    store.close()
    for path in place.rglob(f"{lost}*"):
        path.unlink()
    store = opened(place)
    assert store.floors == kept
    assert store.notes
    store.close()
    store = opened(place)
    assert (store.floors, store.notes) == (kept, [])


class Stops(Disk):
    """The power is cut at the commit."""

    def commit(self, connection: object, label: str) -> None:
        if label.endswith("trust"):
            raise StorageError("storage", "cut")  # type: ignore[arg-type]
        super().commit(connection, label)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [False, True])
def test_nothing_of_the_former_enrolment_is_left(place: Path, cut: bool) -> None:
    store = opened(place)
    store.save(OURS, {"root.json": b"the other fleet's"})
    store.close()
    store = opened(place, Stops() if cut else None, enrolled="b")
    assert store.basis == Floors(clock=9.0)
    assert store.metadata() == {}
    if cut:
        with pytest.raises(StorageError):
            store.save(Floors(root=1), {"root.json": b"new"})
    else:
        store.save(Floors(root=1), {"root.json": b"new"})
    store.close()
    for _ in range(2):
        store = opened(place, enrolled="b")
        assert store.metadata() == ({} if cut else {"root.json": b"new"})
        assert store.floors == store.basis
        assert (store.floors.root, store.floors.serial) == (1, 0)
        store.close()


def test_a_damaged_root_forgets_nothing(place: Path) -> None:
    """Until something was verified under it, it is not known to be an enrolment."""
    store = opened(place)
    store.save(OURS, {"root.json": b"ours"})
    store.close()
    store = opened(place, enrolled="damaged")
    store.save(store.floors.committed("linear/cpu", 4, "other"))
    store.close()
    store = opened(place)
    assert store.metadata() == {"root.json": b"ours"}
    assert store.floors.serial == OURS.serial
    assert store.floors.counters["linear/cpu"].counter == 4
    store.close()


def test_floors_that_the_disk_does_not_read_are_not_taken_for_none(place: Path) -> None:
    opened(place).close()
    (place / "floors" / FILE).mkdir()
    with pytest.raises(StorageError, match="floors"):
        opened(place)
