"""``state.db``: the updater's state, its quarantine, and the steps not yet handed on.

The rules it keeps:

1. A state, the steps that it means and the digests that it quarantines are written in
   one transaction.
2. A step has a number that is never given twice, so that one that is handed on again
   after a power cut can be told.
3. A damaged database is put aside, never half believed.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ..contract.codes import Reason
from ..contract.messages import Attempt
from ..database import Database, Schema, open_database, put_aside
from ..durable import Disk
from ..errors import DamagedError
from . import STATE_DB
from .events import Effect, Quarantine, Record
from .facts import State, dump, parse

SCHEMA: Final[Schema] = (
    (
        "CREATE TABLE state "
        "(id INTEGER PRIMARY KEY CHECK (id = 0), body BLOB NOT NULL)",
        "CREATE TABLE quarantine (digest TEXT PRIMARY KEY, reason TEXT NOT NULL, "
        "text TEXT NOT NULL, at REAL NOT NULL)",
        "CREATE TABLE steps (number INTEGER PRIMARY KEY AUTOINCREMENT, "
        "body TEXT NOT NULL, at REAL NOT NULL)",
    ),
)
QUARANTINE_MAX: Final = 1_000
"""Digests that are remembered; the oldest go."""
STEPS_MAX: Final = 10_000
"""Steps that wait to be handed on; the oldest go."""


@dataclass(frozen=True)
class Step:
    """A step that the fleet has to hear of."""

    number: int
    body: dict[str, Any]
    at: float
    """Seconds since 1970 on this device's clock."""


class StateStore:
    """The open database."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        """Open it, make it where there is none.

        Raises:
            StorageError: the disk.
        """
        path = folder / STATE_DB
        self.lost: Path | None = None
        """Where a damaged database was put; None: it was sound."""
        try:
            self._database: Database = open_database(path, disk, SCHEMA)
            self._first = self._load()
        except (DamagedError, ValueError):
            if hasattr(self, "_database"):
                self._database.close()
            self.lost = put_aside(path, disk)
            self._database = open_database(path, disk, SCHEMA)
            self._first = None

    def load(self) -> State | None:
        """What was written when it was opened; None: nothing yet."""
        return self._first

    def save(self, state: State, effects: tuple[Effect, ...], at: float) -> None:
        """Write the state and, of the effects, what is written with it.

        Args:
            state: the new state.
            effects: all that follow of it.
            at: seconds since 1970.

        Raises:
            StorageError: nothing of it is written.
        """
        with self._database.transaction("state") as connection:
            connection.execute(
                "INSERT OR REPLACE INTO state (id, body) VALUES (0, ?)", (dump(state),)
            )
            for effect in effects:
                if isinstance(effect, Quarantine):
                    connection.execute(
                        "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)",
                        (effect.digest, effect.reason.value, effect.text, at),
                    )
                    connection.execute(
                        "DELETE FROM quarantine WHERE digest NOT IN (SELECT digest "
                        "FROM quarantine ORDER BY at DESC LIMIT ?)",
                        (QUARANTINE_MAX,),
                    )
                elif isinstance(effect, Record):
                    connection.execute(
                        "INSERT INTO steps (body, at) VALUES (?, ?)",
                        (effect.attempt.model_dump_json(), at),
                    )
            connection.execute(
                "DELETE FROM steps WHERE number <= (SELECT max(number) FROM steps) - ?",
                (STEPS_MAX,),
            )

    def quarantined(self, digest: str) -> str:
        """Why the digest failed here before; empty: it did not."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT reason, text FROM quarantine WHERE digest = ?", (digest,)
            ).fetchone()
        return "" if found is None else f"{Reason(found[0])}: {found[1]}"

    def steps(self, count: int = 100) -> list[Step]:
        """The oldest steps that were not handed on."""
        with self._database.reading() as connection:
            found = connection.execute(
                "SELECT number, body, at FROM steps ORDER BY number LIMIT ?", (count,)
            ).fetchall()
        return [Step(number, json.loads(body), at) for number, body, at in found]

    def handed_on(self, number: int) -> None:
        """The steps up to that one are kept elsewhere.

        Raises:
            StorageError: they will be handed on again.
        """
        with self._database.transaction("steps") as connection:
            connection.execute("DELETE FROM steps WHERE number <= ?", (number,))

    def close(self) -> None:
        """Give it back."""
        self._database.close()

    def _load(self) -> State | None:
        with self._database.reading() as connection:
            found = connection.execute("SELECT body FROM state").fetchone()
        return None if found is None else parse(found[0])


def body_of(step: Step) -> dict[str, Any]:
    """What a record of the step holds: the attempt, and the step's own number."""
    attempt = Attempt.model_validate(step.body)
    return {"step": step.number, **attempt.model_dump(mode="json")}
