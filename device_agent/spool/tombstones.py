"""Tombstones: records of kind ``dropped`` in the place of what was given up.

A tombstone has the number of the last record that it stands for, so that the stream
keeps its order and a cumulative acknowledgement covers it like any other record.
Neighbours become one; its reason is then the newer one's. One that speaks of damage
stands for what was lost with an earlier file and is left alone.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Final, Literal

from ..contract.manifest import canonical_json
from ..contract.messages import Dropped
from .rules import DROPPED

Why = Literal["bytes", "age"]
DAMAGED: Final = "damaged"
Victim = tuple[int, int]
"""Number of the epoch, number in it."""


def bury(
    connection: sqlite3.Connection, victims: Iterable[Victim], reason: Why
) -> None:
    """Put tombstones in the place of records; inside a transaction."""
    for epoch, group in groupby(sorted(victims), key=lambda one: one[0]):
        numbers = [seq for _, seq in group]
        _bury(connection, epoch, numbers, reason)


def body(first: int, last: int, count: int, reason: str) -> str:
    """The body of a tombstone, as JSON."""
    dropped = Dropped.model_validate(
        {"first": first, "last": last, "count": count, "reason": reason}
    )
    return canonical_json(dropped.model_dump()).decode()


def read(text: str) -> Dropped:
    """The body of a tombstone that we wrote."""
    return Dropped.model_validate_json(text)


def merged(runs: Sequence[Dropped]) -> list[tuple[Dropped, list[Dropped]]]:
    """Neighbours as one, with what each was made of; ``runs`` sorted by number.

    >>> one = [Dropped(first=1, last=2, count=2, reason="bytes")]
    >>> two = [*one, Dropped(first=3, last=3, count=1, reason="age")]
    >>> [(run.first, run.last, run.count) for run, _ in merged(two)]
    [(1, 3, 3)]
    """
    found: list[tuple[Dropped, list[Dropped]]] = []
    for run in runs:
        if found and found[-1][0].last + 1 == run.first:
            before, parts = found.pop()
            whole = Dropped(
                first=before.first, last=run.last, count=before.count + run.count,
                reason=run.reason,
            )  # fmt: skip
            found.append((whole, [*parts, run]))
        else:
            found.append((run, [run]))
    return found


def _bury(
    connection: sqlite3.Connection, epoch: int, numbers: list[int], reason: Why
) -> None:
    fresh = {
        seq: Dropped(first=seq, last=seq, count=1, reason=reason) for seq in numbers
    }
    rows = connection.execute(
        "SELECT seq, body FROM records WHERE epoch = ? AND kind = ?", (epoch, DROPPED)
    )
    old = {seq: read(text) for seq, text in rows}
    runs = sorted(
        (*fresh.values(), *(one for one in old.values() if one.reason != DAMAGED)),
        key=lambda one: one.last,
    )
    for whole, parts in merged(runs):
        touched = [one for one in parts if one.last in fresh]
        if not touched:
            continue
        connection.executemany(
            "DELETE FROM records WHERE epoch = ? AND seq = ?",
            [(epoch, one.last) for one in parts if one.last != whole.last],
        )
        connection.execute(
            "UPDATE records SET kind = ?, body = ? WHERE epoch = ? AND seq = ?",
            (DROPPED, body(whole.first, whole.last, whole.count, reason), epoch,
             whole.last),
        )  # fmt: skip
