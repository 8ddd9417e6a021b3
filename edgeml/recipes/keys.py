"""Keys of a TOML file: what each may be, said once and used three times.

One table of :class:`Key` reads a file, documents it (``docs/recipe.md``) and comments
the recipe that ``edgeml init`` writes. The rules it keeps:

1. A check never raises for what a person wrote: it notes the mistake at its place and
   goes on, so that all mistakes are found in one go.
2. An unknown key is a mistake, with the nearest known one.
3. What is read is a plain value; nothing is coerced (``true`` is not 1).
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from .lines import KeyPath

REQUIRED: Any = object()
"""The default of a key that must be there."""


@dataclass(frozen=True)
class Mistake:
    """What is wrong, and at which key."""

    path: KeyPath
    text: str

    @property
    def key(self) -> str:
        """The key as people write it: ``pass[0].verb``."""
        return dotted(self.path)


@dataclass(frozen=True)
class Place:
    """One value in the file: its path, and where its mistakes are collected.

    ``folder`` is what paths in the file are relative to.
    """

    folder: Path
    mistakes: list[Mistake]
    path: KeyPath = ()

    def at(self, *more: str | int) -> "Place":
        """The place of a value inside this one."""
        return replace(self, path=(*self.path, *more))

    def wrong(self, text: str) -> None:
        """Note a mistake here."""
        self.mistakes.append(Mistake(self.path, text))


@dataclass(frozen=True)
class Check:
    """Reads one value; ``kind`` is what people are told to write."""

    kind: str
    read: Callable[[Any, Place], Any]
    """(value, place) → the value as the program wants it, mistakes noted."""


@dataclass(frozen=True)
class Key:
    """One key: how it is read, its default and what it means."""

    name: str
    check: "Check | Table"
    meaning: str
    default: Any = None


@dataclass(frozen=True)
class Table:
    """A table of known keys; ``spare`` reads the others, if any may be there."""

    keys: tuple[Key, ...]
    spare: Check | None = None
    kind: str = "table"

    def read(self, value: Any, place: Place) -> dict[str, Any]:
        """Every key's value or default; unknown and missing keys are mistakes."""
        if not isinstance(value, dict):
            place.wrong(f"expected a table, got {show(value)}")
            return {}
        names = [key.name for key in self.keys]
        found: dict[str, Any] = {}
        meant: set[str] = set()
        for name in value.keys() - set(names):
            if self.spare is not None:
                found[name] = self.spare.read(value[name], place.at(name))
                continue
            near = get_close_matches(name, names, 1)
            meant.update(near)
            place.at(name).wrong(
                "unknown key; "
                + (f"did you mean {near[0]!r}?" if near else f"known: {_list(names)}")
            )
        for key in self.keys:
            if key.name in value:
                found[key.name] = key.check.read(value[key.name], place.at(key.name))
            elif key.default is not REQUIRED:
                found[key.name] = key.default
            elif key.name not in meant:
                place.wrong(
                    f"{key.name!r} is missing; expected {key.check.kind}: {key.meaning}"
                )
        return found


def dotted(path: KeyPath) -> str:
    """A path as people write it: ``pass[0].verb``."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in path]
    return "".join(parts).removeprefix(".") or "recipe"


def show(value: object) -> str:
    """A value in a message: short, and as TOML has it where that differs."""
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def text(kind: str = "text", pattern: str | None = None) -> Check:
    """A text that is not empty; ``pattern`` must match all of it."""

    def read(value: Any, place: Place) -> Any:
        if not isinstance(value, str) or not value.strip():
            place.wrong(f"expected {kind}, got {show(value)}")
        elif pattern is not None and not re.fullmatch(pattern, value):
            place.wrong(f"expected {kind} ({pattern}), got {show(value)}")
        return value

    return Check(kind, read)


def number(low: float, high: float = math.inf, *, whole: bool = False) -> Check:
    """A finite number from ``low`` to ``high``, both allowed."""
    end = "" if high == math.inf else f" to {high}"
    kind = f"{'whole number' if whole else 'number'} from {low}{end}"
    types = (int,) if whole else (int, float)

    def read(value: Any, place: Place) -> Any:
        good = type(value) in types and math.isfinite(value) and low <= value <= high
        if not good:
            place.wrong(f"expected a {kind}, got {show(value)}")
        return value

    return Check(kind, read)


def flag() -> Check:
    """``true`` or ``false``."""

    def read(value: Any, place: Place) -> Any:
        if not isinstance(value, bool):
            place.wrong(f"expected true or false, got {show(value)}")
        return value

    return Check("true or false", read)


def word(words: Sequence[str], *, otherwise: Check | None = None) -> Check:
    """One of ``words``, or what ``otherwise`` reads when it has a colon."""
    kind = " · ".join(f"`{item}`" for item in words)
    kind = kind if otherwise is None else f"{kind} · {otherwise.kind}"

    def read(value: Any, place: Place) -> Any:
        if otherwise is not None and isinstance(value, str) and ":" in value:
            return otherwise.read(value, place)
        if value not in words:
            near = get_close_matches(str(value), words, 1)
            guess = f"; did you mean {near[0]!r}?" if near else ""
            also = f", or {otherwise.kind}" if otherwise else ""
            place.wrong(
                f"expected one of {_list(words)}{also}; got {show(value)}{guess}"
            )
        return value

    return Check(kind, read)


def many(
    check: Check | Table,
    *,
    least: int = 0,
    kind: str | None = None,
    distinct: bool = True,
) -> Check:
    """A list of items, of different ones if not tables; read as a tuple."""
    kind = kind or f"list of {check.kind}"

    def read(value: Any, place: Place) -> Any:
        if not isinstance(value, list) or len(value) < least:
            size = f" with {least} or more items" if least else ""
            place.wrong(f"expected a {kind}{size}, got {show(value)}")
            return ()
        for index, item in enumerate(value):
            if distinct and not isinstance(check, Table) and item in value[:index]:
                place.at(index).wrong(f"{show(item)} is there twice")
        return tuple(
            check.read(item, place.at(index)) for index, item in enumerate(value)
        )

    return Check(kind, read)


def mapping(check: Check, kind: str) -> Check:
    """A table with keys of the user's choice."""

    def read(value: Any, place: Place) -> Any:
        if not isinstance(value, dict):
            place.wrong(f"expected a {kind}, got {show(value)}")
            return {}
        return {key: check.read(item, place.at(key)) for key, item in value.items()}

    return Check(kind, read)


def _list(words: Sequence[str]) -> str:
    return ", ".join(words)
