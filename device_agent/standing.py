"""How a device stands with its fleet, as lines for people; also where no agent runs.

What is shown may come from anybody who answers at an address: every value is looked at
before it is used, and nothing of it is trusted.
"""

import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from .errors import DamagedError

STATE: Final = "state.db"
FLOORS: Final = ("floors", "floors.json")
DIGEST_CHARS: Final = 12


def lines(found: Any) -> Iterator[str]:
    """What ``GET /v1/device`` says, or :func:`offline`; empty of a device alone."""
    told = _dict(found)
    if not told.get("slots") and not told.get("enrolled"):
        return
    if told.get("device"):
        yield f"device {_word(told, 'device')} of {_word(told, 'tenant')}"
    for name, slot in sorted(_dict(told.get("slots")).items()):
        yield _slot(name, slot, told)
    if told.get("attempt"):
        yield _attempt(_dict(told["attempt"]))
    note = _dict(told.get("note"))
    if note:
        yield f"not followed: {_word(note, 'reason')}: {_word(note, 'text')}"
    floors = _dict(told.get("floors"))
    counters = {
        key: _dict(one).get("counter", one)
        for key, one in _dict(floors.get("counters")).items()
    }
    if counters:
        known = ", ".join(f"{key} {value}" for key, value in sorted(counters.items()))
        yield f"floors: {known}"
    spool = _dict(told.get("spool"))
    if spool:
        yield f"spool: {_word(spool, 'records')} records, {_word(spool, 'bytes')} bytes"
    link = _dict(told.get("link"))
    if link:
        if link.get("connected") is True:
            yield (
                f"link: connected, {_word(link, 'records')} records sent, "
                f"{_word(link, 'in_flight')} batches not acknowledged yet"
            )
        else:
            yield f"link: not connected: {_word(link, 'error')}"


def offline(state: Path) -> dict[str, Any] | None:
    """The same from a state directory, as far as its files tell; they are only read.

    Returns:
        None: no fleet has ever given this device anything.

    Raises:
        StorageError: they cannot be read.
    """
    path = state / STATE
    if not path.exists():
        return None
    from .database import open_reading
    from .durable import told

    with told(f"read {path}"), closing(open_reading(path)) as connection:
        row = connection.execute("SELECT body FROM state").fetchone()
    try:
        known = json.loads(row[0]) if row else {}
    except ValueError as error:
        raise DamagedError(f"{path}: what it holds is no state: {error}") from error
    found = {
        "slots": {name: _held(known.get(name)) for name in ("a", "b")},
        **{
            name: known.get(name) for name in ("committed", "active", "attempt", "note")
        },
    }
    floors = state.joinpath(*FLOORS)
    if floors.exists():
        try:
            found["floors"] = json.loads(floors.read_bytes())
        except (OSError, ValueError) as error:
            found["floors"] = {"unreadable": str(error)}
    return found


def _held(value: Any) -> dict[str, Any] | None:
    held = _dict(value)
    release = _dict(held.get("release"))
    return {**release, **held} if held else None


def _slot(name: str, slot: Any, told: dict[str, Any]) -> str:
    held = _dict(slot)
    if not held:
        return f"slot {name}: empty"
    notes = [
        note
        for note, key in (("committed", "committed"), ("active", "active"))
        if told.get(key) == name
    ]
    what = f"{_word(held, 'model')} {_word(held, 'version')}"
    digest = _word(held, "digest")[:DIGEST_CHARS]
    return " ".join([f"slot {name}: {what} ({digest})", *notes])


def _attempt(attempt: dict[str, Any]) -> str:
    rollout, number = _word(attempt, "rollout"), _word(attempt, "attempt")
    outcome = _word(attempt, "outcome") or _word(attempt, "phase")
    reason, text = _word(attempt, "reason"), _word(attempt, "text")
    why = ": ".join(one for one in (reason, text) if one and one != "none")
    line = f"update: {rollout} attempt {number}: {outcome}"
    return f"{line} ({why})" if why else line


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _word(value: dict[str, Any], key: str) -> str:
    found = value.get(key)
    return "" if found is None else str(found)
