"""A check that is taken out of the agent is missed by a row of the attack table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trusting
from thieves import Ground

from device_agent.errors import UpdateError
from device_agent.trust import clock, desired, floors, judge, registry, store

from . import test_attacks
from .attacks import TABLE, Attack


def _none(*_: Any, **__: Any) -> None:
    return None


def _of_the_first(one: floors.Floors, _: floors.Floors) -> floors.Floors:
    return one


MUTANTS: dict[str, tuple[Any, str, Callable[..., Any], str]] = {
    "versions are compared with no floor": (
        floors.Floors, "version", lambda *_: 0, "replay",
    ),
    "floors are read from one place only": (
        store, "merged", _of_the_first, "replay",
    ),
    "release counters are not compared": (judge, "check_floor", _none, "rollback"),
    "serials are not compared": (
        floors.Floors, "serial_of", lambda *_: 0, "director",
    ),
    "any signature of a director will do": (
        desired, "is_signed", lambda *_: True, "director",
    ),
    "director and registry need not agree": (
        judge, "agreed", lambda _, found: found.unrecognized_fields["custom"],
        "stolen director",
    ),
    "a key counts as often as it is listed": (registry, "_check_keys", _none, "keys"),
    "any device will do": (judge, "check_fit", _none, "wrong target"),
    "a clock is right however far ahead": (clock, "at_least", max, "clock"),
    "a clock has no floor": (clock, "at_least", lambda now, _: now, "clock"),
    "a bundle may be another than was signed for": (
        trusting, "check_bundle", _none, "archive",
    ),
}  # fmt: skip
"""What is taken out, and the kind of rows that must notice."""


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


def _notices(one: Attack, ground: Ground, folder: Path) -> bool:
    """Whether the row fails: an activation, another reason, or no way back."""
    try:
        test_attacks.struck(one, ground, folder, [])
    except (AssertionError, UpdateError, pytest.fail.Exception):
        return True
    return False


@pytest.mark.faults
@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_killed(
    name: str, ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where, what, instead, kind = MUTANTS[name]
    monkeypatch.setattr(where, what, instead)
    rows = [one for one in TABLE if one.kind == kind]
    killers = [
        one.name
        for number, one in enumerate(rows)
        if _notices(one, ground, tmp_path / str(number))
    ]
    print(f"{name}: killed by {len(killers)} of {len(rows)} rows of {kind!r}")
    assert killers
