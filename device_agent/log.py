"""Logs: one line per event on stderr, for people (text) or for programs (JSON).

The rules it keeps:

1. An event has a fixed name; what varies is in its fields (:func:`event`).
2. One event is one line, whatever stands in its fields: control characters are
   escaped, long values are cut. Only in the text format a traceback follows, every
   line of it indented.
3. Everything that logs, uvicorn too, goes the same way.
"""

import json
import logging
import sys
from collections import deque
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Protocol

VALUE_CHARS_MAX = 2_000
TRACEBACK_CHARS_MAX = 20_000
RECENT_MAX = 10
RECENT_CHARS_MAX = 300

_FIELDS = "edgeml_fields"
_FIXED = ("ts", "level", "event", "logger", "exception")


class Wanted(Protocol):
    """What is logged and how, as ``config.LogConfig`` says it."""

    @property
    def format(self) -> str:
        """``text`` or ``json``."""

    @property
    def level(self) -> str:
        """``debug``, ``info``, ``warning`` or ``error``."""


def configure(config: Wanted) -> None:
    """Send every log record of this process to stderr, as configured.

    May be called again. uvicorn must be told to leave logging alone
    (``log_config=None, log_level=None``).
    """
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Json() if config.format == "json" else _Text())
    level = logging.getLevelNamesMapping()[config.level.upper()]
    root = logging.getLogger()
    root.handlers = [stream]
    root.setLevel(level)
    logging.captureWarnings(True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        # Its infos repeat what the agent says itself when it is ready.
        logger.setLevel(logging.WARNING if level == logging.INFO else logging.NOTSET)
    access = logging.getLogger("uvicorn.access")
    access.handlers, access.propagate = [], False  # so uvicorn does not even format


def configure_level(name: str) -> None:
    """Log from that level on, until the process ends.

    Raises:
        ValueError: there is no such level.
    """
    levels = ("debug", "info", "warning", "error")
    if name not in levels:
        raise ValueError(f"expected one of {', '.join(levels)}, found {name!r:.40}")
    logging.getLogger().setLevel(logging.getLevelNamesMapping()[name.upper()])


def event(
    logger: logging.Logger,
    level: int,
    name: str,
    /,
    *,
    exc_info: BaseException | None = None,
    **fields: object,
) -> None:
    """Log that something happened.

    Args:
        logger: whose event it is.
        level: of :mod:`logging`.
        name: what happened, always in the same words: ``"model loaded"``.
        exc_info: an error, logged with its traceback.
        fields: what it happened to, units in their names: ``load_ms=12.5``.
    """
    if logger.isEnabledFor(level):
        # Not as the format: a name may hold a percent sign.
        logger.log(level, "%s", name, exc_info=exc_info, extra={_FIELDS: fields})


def printable(text: str) -> str:
    """``text`` with everything escaped that is not a plain visible character.

    >>> printable("a\\nb\\x1b[31m")
    'a\\\\nb\\\\x1b[31m'
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode()
        for char in text
    )


class Recent(logging.Handler):
    """The last warnings and errors, a line each: what a person asks for first."""

    def __init__(self, count: int = RECENT_MAX) -> None:
        super().__init__(logging.WARNING)
        self.setFormatter(_Text())
        self._lines: deque[str] = deque(maxlen=count)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep its first line."""
        line = self.format(record).partition("\n")[0]
        self._lines.append(line[:RECENT_CHARS_MAX])

    def lines(self) -> list[str]:
        """Oldest first."""
        return list(self._lines)


class _Text(logging.Formatter):
    """``time level event key=value …``."""

    def format(self, record: logging.LogRecord) -> str:
        parts = [
            _timestamp(record),
            f"{record.levelname.lower():<7}",
            _cut(printable(record.getMessage())),
            *(f"{key}={_word(value)}" for key, value in _fields(record).items()),
        ]
        trace = _traceback(self, record)
        lines = "".join(f"\n    | {printable(line)}" for line in trace.splitlines())
        return " ".join(parts) + lines


class _Json(logging.Formatter):
    """One JSON object a line; fields stand beside the fixed keys."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "ts": _timestamp(record),
            "level": record.levelname.lower(),
            "event": _cut(record.getMessage()),
            "logger": record.name,
        }
        for key, value in _fields(record).items():
            line[f"{key}_" if key in _FIXED else key] = _plain(value)
        trace = _traceback(self, record)
        if trace:
            line["exception"] = trace
        # ASCII only: stderr may be set to any encoding.
        return json.dumps(line, ensure_ascii=True, allow_nan=False)


def _timestamp(record: logging.LogRecord) -> str:
    when = datetime.fromtimestamp(record.created, UTC)
    return when.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    found: dict[str, object] = getattr(record, _FIELDS, {})
    return found


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = []
    if record.exc_info and record.exc_info[0] is not None:
        parts.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        parts.append(record.stack_info)
    return "\n".join(parts)[-TRACEBACK_CHARS_MAX:]


def _word(value: object) -> str:
    """A value in the text format: quoted where it would not be one word."""
    plain = _plain(value)
    if isinstance(plain, float):
        return f"{plain:.6g}"
    if not isinstance(plain, str):
        return _cut(printable(json.dumps(plain, ensure_ascii=False)))
    if plain and plain.isprintable() and not set(plain) & set(' "=\\'):
        return plain
    escaped = plain.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _plain(value: object) -> Any:
    """The value as JSON can hold it."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if isfinite(value) else str(value)
    if isinstance(value, dict):
        return {_cut(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return _cut(str(value))


def _cut(text: str) -> str:
    if len(text) <= VALUE_CHARS_MAX:
        return text
    return f"{text[:VALUE_CHARS_MAX]}… ({len(text)} characters)"
