"""Where each key of a TOML text stands, so that a mistake can be given its line.

TOML's statements (a header, or a key and its value) can be read alone, and no part of
one can. So a statement is the fewest lines that ``tomllib`` reads.
"""

import re
import tomllib
from collections.abc import Iterator
from typing import Any

KeyPath = tuple[str, ...]
"""Table names and a key, from the root down."""


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every table and key of a valid TOML text.

    What is inside arrays has no line of its own; an array of tables is seen as one.
    """
    found: dict[KeyPath, int] = {(): 1}
    table: KeyPath = ()
    for line, statement, parsed in _statements(text):
        paths = list(_paths(parsed or {}))
        if statement.lstrip().startswith("["):
            table = paths[-1]
            found.update({path: line for path in paths if path not in found})
            found[table] = line  # the header wins over an earlier [a.b]
        else:
            for path in paths:
                found.setdefault((*table, *path), line)
    return found


def syntax(error: str, text: str) -> tuple[int, str]:
    """The line and the text of a mistake that ``tomllib`` found."""
    place = re.fullmatch(r"(.*) \(at line (\d+), column (\d+)\)", error, re.DOTALL)
    if place:
        return int(place[2]), f"{place[1]} (column {place[3]})"
    # Found at the end of the text: what is meant is the statement that never ends.
    *_, (line, _, _) = _statements(text.rstrip())
    return line, error.removesuffix(" (at end of document)")


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any] | None]]:
    """First line, text, and what ``tomllib`` reads in it (None: nothing) of each."""
    statement, first = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        first = first if statement else number
        statement += line + "\n"
        try:
            parsed = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            continue
        yield first, statement, parsed
        statement = ""
    if statement:
        yield first, statement, None


def _paths(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    for name, item in value.items() if isinstance(value, dict) else ():
        yield (*path, name)
        yield from _paths(item, (*path, name))
