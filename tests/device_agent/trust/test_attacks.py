"""The attack table: nothing is activated, the named reason, the old model still there,
and a later honest update succeeds."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from registries import release
from thieves import NEXT, OLD, Ground

from device_agent.errors import UpdateError

from . import attack_messages, attack_metadata, attack_network
from .attacks import TABLE, Attack

ROWS_MIN = 80
FILLED = (attack_messages, attack_metadata, attack_network)
"""Importing them has filled the table."""
FEW = [one for number, one in enumerate(TABLE) if number % 6 == 0]
"""In the default run; all of them in the long one."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture(scope="module")
def report() -> Iterator[list[tuple[Attack, str]]]:
    rows: list[tuple[Attack, str]] = []
    yield rows
    for one, said in sorted(rows, key=lambda row: (row[0].kind, row[0].name)):
        print(f"{one.kind:<16} {one.name:<62} {one.reason.value:<22} {said:.90}")
    kinds = Counter(one.kind for one, _ in rows)
    print(f"rows {len(rows)}, kinds {len(kinds)}, activations 0")


def struck(
    one: Attack, ground: Ground, tmp_path: Path, report: list[tuple[Attack, str]]
) -> None:
    with ground.world(tmp_path) as world:
        device = world.device
        old = world.honest.desired(release(*OLD)).digest
        assert device.running == old
        floors = device.client.floors
        envelope = one.act(world)
        with pytest.raises(UpdateError) as caught:
            device.update(world.wanted() if envelope is None else envelope)
        assert caught.value.reason is one.reason, caught.value
        assert device.running == old
        after = device.client.floors
        assert after.root >= floors.root
        assert after.counters == floors.counters
        world.heal()
        device.reopen()
        device.update(world.wanted(NEXT, serial=world.serial + 1))
        assert device.running == world.honest.desired(release(*NEXT)).digest
        report.append((one, caught.value.text))


@pytest.mark.parametrize("one", FEW, ids=lambda one: f"{one.kind}: {one.name}")
def test_some_rows(
    one: Attack, ground: Ground, tmp_path: Path, report: list[tuple[Attack, str]]
) -> None:
    struck(one, ground, tmp_path, report)


@pytest.mark.long
@pytest.mark.parametrize(
    "one", [one for one in TABLE if one not in FEW],
    ids=lambda one: f"{one.kind}: {one.name}",
)  # fmt: skip
def test_all_other_rows(
    one: Attack, ground: Ground, tmp_path: Path, report: list[tuple[Attack, str]]
) -> None:
    struck(one, ground, tmp_path, report)


def test_the_table_is_as_long_as_promised() -> None:
    assert len({(one.kind, one.name) for one in TABLE}) == len(TABLE) >= ROWS_MIN
