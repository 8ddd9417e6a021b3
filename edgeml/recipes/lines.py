"""Where each key of a TOML text stands, so that a mistake can be given its line.

The rules it keeps:

1. It is asked only about texts that ``tomllib`` has read, so it does not judge: it
   follows the grammar and trusts it.
2. Every table, key and array item that ``tomllib`` gives has a line, and nothing
   else has one. A table has the line of its header; one that has no header of its
   own (``a`` in ``a.b = 1``) has the line where it is first named.
"""

import re
import tomllib

KeyPath = tuple[str | int, ...]
"""Table names, keys and array indices from the root down."""

_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:[^"\\\n]|\\.)*"'
    r"|'[^'\n]*'",
    re.DOTALL,
)
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_SCALAR = re.compile(r"[^,\]}#\n]+")


def key_lines(text: str) -> dict[KeyPath, int]:
    """The line (from 1) of every table, key and array item of a valid TOML text."""
    return _Scanner(text).scan()


class _Scanner:
    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0
        self.lines: dict[KeyPath, int] = {}
        self.items: dict[KeyPath, int] = {}  # arrays of tables → how many so far

    def scan(self) -> dict[KeyPath, int]:
        table: KeyPath = ()
        self._skip(_BLANK)
        while self.position < len(self.text):
            table = self._header() if self._peek() == "[" else self._pair(table)
            self._skip(_BLANK)
        return self.lines

    def _header(self) -> KeyPath:
        line = self._line()
        array = self.text.startswith("[[", self.position)
        self.position += 2 if array else 1
        *parents, last = self._key()
        self.position += 2 if array else 1
        path: KeyPath = ()
        for part in parents:
            path = self._newest((*path, part))
            self.lines.setdefault(path, line)
        path = (*path, last)
        if not array:
            self.lines[path] = line  # the header wins over an earlier [a.b]
            return path
        self.lines.setdefault(path, line)
        self.items[path] = self.items.get(path, 0) + 1
        self.lines[self._newest(path)] = line
        return self._newest(path)

    def _newest(self, path: KeyPath) -> KeyPath:
        """``path``, or its last item when it is an array of tables."""
        self.lines.setdefault(path, self._line())
        return (*path, self.items[path] - 1) if path in self.items else path

    def _pair(self, table: KeyPath) -> KeyPath:
        line = self._line()
        path = table
        for part in self._key():
            path = (*path, part)
            self.lines.setdefault(path, line)
        self.position += 1  # the equals sign
        self._skip(_SPACE)
        self._value(path)
        return table

    def _key(self) -> list[str]:
        """A key with its dots; stops before what follows it."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            if self._peek() in "\"'":
                raw = self._take(_STRING)
                parts.append(tomllib.loads(f"key = {raw}")["key"])
            else:
                parts.append(self._take(_BARE_KEY))
            self._skip(_SPACE)
            if self._peek() != ".":
                return parts
            self.position += 1

    def _value(self, path: KeyPath) -> None:
        first = self._peek()
        if first == "[":
            self._array(path)
        elif first == "{":
            self._inline_table(path)
        else:
            self._take(_STRING if first in "\"'" else _SCALAR)

    def _array(self, path: KeyPath) -> None:
        index = 0
        self._open()
        while self._peek() != "]":
            item = (*path, index)
            self.lines[item] = self._line()
            self._value(item)
            self._next()
            index += 1
        self.position += 1

    def _inline_table(self, path: KeyPath) -> None:
        self._open()
        while self._peek() != "}":
            self._pair(path)
            self._next()
        self.position += 1

    def _open(self) -> None:
        self.position += 1
        self._skip(_BLANK)

    def _next(self) -> None:
        """Past the comma, if one is there."""
        self._skip(_BLANK)
        if self._peek() == ",":
            self.position += 1
            self._skip(_BLANK)

    def _peek(self) -> str:
        return self.text[self.position]

    def _line(self) -> int:
        return self.text.count("\n", 0, self.position) + 1

    def _skip(self, pattern: re.Pattern[str]) -> None:
        self._take(pattern)

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self.text, self.position)
        if found is None:
            raise AssertionError(f"not TOML at line {self._line()}")
        self.position = found.end()
        return found.group()
