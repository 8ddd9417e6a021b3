"""The keys of each table, read off the fields of its dataclass.

One :class:`Key` reads a value, documents it and comments the example file. Nothing is
coerced: ``true`` is not 1, and ``"8000"`` is not a port.
"""

from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from .schema import AgentConfig, Form, Range


@dataclass(frozen=True)
class Key:
    """One key of a table: what may stand there."""

    name: str
    type: type
    """``bool``, ``int``, ``float``, ``str``, ``Path``, or ``tuple`` (of paths)."""
    default: Any
    """None: nothing, unless it is set."""
    limit: Range | Form | None = None
    words: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """What people are told to write."""
        if self.words:
            return " or ".join(f'"{word}"' for word in self.words)
        if isinstance(self.limit, Range):
            number = "whole number" if self.type is int else "number"
            return f"{number} from {self.limit.low} to {self.limit.high}"
        if isinstance(self.limit, Form):
            return self.limit.kind
        return {bool: "true or false", Path: "path"}.get(self.type, "list of paths")

    def read(self, value: Any, folder: Path) -> Any:
        """The value as the program wants it; paths are relative to ``folder``.

        Raises:
            ValueError: what was expected and what was found.
        """
        if self.type is Path:
            return _path(value, folder)
        if self.type is tuple and isinstance(value, list):
            paths = tuple(_path(item, folder) for item in value)
            if len(set(paths)) < len(paths):
                raise ValueError(f"expected different paths, found {show(value)}")
            return paths
        if self._allows(value):
            return float(value) if self.type is float else value
        near = get_close_matches(str(value), self.words, 1)
        guess = f'; did you mean "{near[0]}"?' if near else ""
        raise ValueError(f"expected {self.kind}, found {show(value)}{guess}")

    def _allows(self, value: Any) -> bool:
        if self.words:
            return value in self.words
        if isinstance(self.limit, Range):
            numbers = (int, float) if self.type is float else (int,)
            return type(value) in numbers and self.limit.low <= value <= self.limit.high
        if isinstance(self.limit, Form):
            return isinstance(value, str) and bool(self.limit.matches(value))
        return type(value) is self.type


def keys(table: type) -> dict[str, Key]:
    """The keys of a table by name; of ``AgentConfig`` those above the tables."""
    hints = get_type_hints(table, include_extras=True)
    defaults = {item.name: item.default for item in fields(table)}
    if table is AgentConfig:
        defaults["state"] = None  # the environment knows it
    return {
        name: _key(name, hint, defaults[name])
        for name, hint in hints.items()
        if not is_dataclass(hint) and get_origin(hint) is not dict
    }


def tables() -> dict[str, type]:
    """The tables of the file by name, but for ``[models.NAME]``."""
    hints = get_type_hints(AgentConfig)
    return {
        name: hint
        for name, hint in hints.items()
        if isinstance(hint, type) and is_dataclass(hint)
    }


def show(value: object) -> str:
    """A value in a message: short, and as TOML has it where that differs."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _key(name: str, hint: Any, default: Any) -> Key:
    limit: Range | Form | None = None
    if get_origin(hint) is Annotated:
        hint, limit = get_args(hint)
    if isinstance(hint, UnionType):  # with None, which TOML cannot say
        hint = get_args(hint)[0]
    if get_origin(hint) is Literal:
        return Key(name, str, default, words=get_args(hint))
    return Key(name, get_origin(hint) or hint, default, limit)


def _path(value: Any, folder: Path) -> Path:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise ValueError(f"expected path, found {show(value)}")
    return folder / value
