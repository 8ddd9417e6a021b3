"""The attack table: rows that change files, keys and messages.

A row is a function of a :class:`thieves.World`; it does its worst and returns the
envelope that the device then hears. Its decorator says which reason must come back.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from thieves import World

from device_agent.contract.codes import Reason

Row = Callable[[World], bytes | None]


@dataclass(frozen=True)
class Attack:
    """One row."""

    kind: str
    name: str
    reason: Reason
    act: Row


TABLE: list[Attack] = []


def attack(kind: str, reason: Reason) -> Callable[[Row], Row]:
    """Add a row; its name is that of the function."""

    def take(act: Row) -> Row:
        TABLE.append(Attack(kind, act.__name__.strip("_"), reason, act))
        return act

    return take


def row(kind: str, name: str, reason: Reason, act: Row) -> None:
    """Add a row that needs no name of its own."""
    TABLE.append(Attack(kind, name, reason, act))


def edited(path_of: Callable[[World], str], edit: Callable[[Any], None]) -> Row:
    """A file of the registry, edited in place."""

    def act(world: World) -> None:
        path = path_of(world)
        value = json.loads(world.thief.storage.read(path) or b"")
        edit(value)
        world.thief.storage.write(
            path, json.dumps(value, separators=(",", ":"), sort_keys=True).encode()
        )

    return act
