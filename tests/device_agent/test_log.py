"""One event is one line, whatever stands in it, and uvicorn's go the same way."""

import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.config import LogConfig
from device_agent.log import VALUE_CHARS_MAX, Recent, configure, event, printable

LOGGER = logging.getLogger("edgeml.test")
UVICORN = ("uvicorn", "uvicorn.error", "uvicorn.asgi", "uvicorn.access")
Capture = pytest.CaptureFixture[str]
TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """What ``configure`` changes belongs to the process, so it is put back."""
    loggers = [logging.getLogger(name) for name in (None, *UVICORN, "py.warnings")]
    before = [(one.level, one.handlers[:], one.propagate) for one in loggers]
    yield
    logging.captureWarnings(False)
    for one, (level, handlers, propagate) in zip(loggers, before, strict=True):
        one.setLevel(level)
        one.handlers, one.propagate = handlers, propagate


def text(capsys: Capture) -> str:
    """What was logged."""
    return capsys.readouterr().err


def parsed(capsys: Capture) -> list[Any]:
    """What was logged, line by line."""
    return [json.loads(line) for line in text(capsys).splitlines()]


def test_text_is_for_people(capsys: Capture):
    configure(LogConfig())
    event(LOGGER, logging.INFO, "model loaded", model="digits", load_ms=12.34567891,
          path=Path("/a b"), batch=None, versions=["1", "2"], ok=True)  # fmt: skip
    assert re.fullmatch(
        TIME + r" info    model loaded model=digits load_ms=12\.3457 "
        r'path="/a b" batch=null versions=\["1", "2"\] ok=true\n',
        text(capsys),
    )


def test_json_is_for_programs(capsys: Capture):
    configure(LogConfig(format="json"))
    event(LOGGER, logging.WARNING, "model loaded", model="dígits", load_ms=12.34567891,
          path=Path("/a"), batch=None, versions=("1",), nan=float("nan"))  # fmt: skip
    (line,) = parsed(capsys)
    assert re.fullmatch(TIME, line.pop("ts"))
    assert line == {
        "level": "warning", "event": "model loaded", "logger": "edgeml.test",
        "model": "dígits", "load_ms": 12.34567891, "path": "/a", "batch": None,
        "versions": ["1"], "nan": "nan",
    }  # fmt: skip


def test_a_field_cannot_pass_for_a_fixed_key(capsys: Capture):
    configure(LogConfig(format="json"))
    event(LOGGER, logging.INFO, "x", ts="1970", level="debug", event="y", logger="z")
    (line,) = parsed(capsys)
    assert (line["level"], line["event"], line["logger"]) == ("info", "x", LOGGER.name)
    assert (line["ts_"], line["level_"], line["event_"]) == ("1970", "debug", "y")


def test_a_name_is_not_a_format(capsys: Capture):
    configure(LogConfig())
    event(LOGGER, logging.INFO, "100 %s", model="a%d")
    assert "100 %s model=a%d" in text(capsys)


def test_the_level_is_kept(capsys: Capture):
    configure(LogConfig(level="warning"))
    event(LOGGER, logging.INFO, "quiet")
    event(LOGGER, logging.WARNING, "loud")
    assert "quiet" not in (err := text(capsys))
    assert "loud" in err


def test_configured_twice_it_is_written_once(capsys: Capture):
    configure(LogConfig())
    configure(LogConfig())
    event(LOGGER, logging.INFO, "once")
    assert text(capsys).count("once") == 1


def test_nothing_goes_to_stdout(capsys: Capture):
    configure(LogConfig())
    event(LOGGER, logging.ERROR, "failed")
    assert capsys.readouterr().out == ""


# Whatever a caller sends, it cannot forge a line


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("a\nb", r'"a\nb"'),
        ("\x1b[31mred", r'"\x1b[31mred"'),
        ("a b", '"a b"'),
        ('" level=error', r'"\" level=error"'),
        (r"\" level=error", r'"\\\" level=error"'),
        ("", '""'),
        ("a=b", '"a=b"'),
        ("\u2028", r'"\u2028"'),
        ("\udc80", r'"\udc80"'),
        ("naïve", "naïve"),
        ({"a\n": ["b\r"]}, r'{"a\n": ["b\r"]}'),
    ],
)
def test_text_escapes_values(capsys: Capture, value: object, shown: str):
    configure(LogConfig())
    event(LOGGER, logging.INFO, "x", value=value)
    assert text(capsys).endswith(f" info    x value={shown}\n")


@given(value=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_value_is_one_line_and_comes_back(value: str):
    configure(LogConfig(format="json"))
    record = logging.makeLogRecord(
        {"msg": value, "levelname": "INFO", "edgeml_fields": {"value": value}}
    )
    (root,) = logging.getLogger().handlers
    line = root.format(record)
    assert line.isprintable()
    assert json.loads(line)["value"] == value == json.loads(line)["event"]
    configure(LogConfig(format="text"))
    (root,) = logging.getLogger().handlers
    assert root.format(record).isprintable()
    assert printable(value).isprintable()


def test_long_values_are_cut(capsys: Capture):
    configure(LogConfig())
    event(LOGGER, logging.INFO, "x", value="a" * 10**6)
    assert VALUE_CHARS_MAX < len(line := text(capsys)) < VALUE_CHARS_MAX + 200
    assert "a… (1000000 characters)" in line


# Errors


def failed() -> ValueError:
    try:
        raise ValueError("bad\n2026-01-01T00:00:00.000Z error forged")
    except ValueError as error:
        return error


def test_a_traceback_follows_its_line_indented(capsys: Capture):
    configure(LogConfig())
    event(LOGGER, logging.ERROR, "infer failed", exc_info=failed(), model="digits")
    first, *rest = text(capsys).splitlines()
    assert first.endswith("error   infer failed model=digits")
    assert rest[0] == "    | Traceback (most recent call last):"
    assert rest[-1] == "    | 2026-01-01T00:00:00.000Z error forged"
    assert all(line.startswith("    | ") for line in rest)


def test_a_traceback_is_one_field_of_json(capsys: Capture):
    configure(LogConfig(format="json"))
    event(LOGGER, logging.ERROR, "infer failed", exc_info=failed(), exception="mine")
    LOGGER.error("plain", exc_info=failed())
    mine, plain = parsed(capsys)
    assert mine["exception"].startswith("Traceback (most recent call last):\n")
    assert mine["exception_"] == "mine"
    assert plain["event"] == "plain"
    assert "ValueError: bad" in plain["exception"]


# Others who log


@pytest.mark.parametrize("format_", ["text", "json"])
def test_uvicorn_goes_the_same_way(capsys: Capture, format_: Literal["text", "json"]):
    from uvicorn.config import Config

    configure(LogConfig(format=format_))
    Config("app:app", log_config=None)
    logging.getLogger("uvicorn.error").warning("Invalid %s", "request")
    logging.getLogger("uvicorn.error").info("Application startup complete.")
    (line,) = text(capsys).splitlines()
    assert "Invalid request" in line
    assert line.startswith("{") == (format_ == "json")


def test_uvicorn_has_no_access_log(capsys: Capture):
    configure(LogConfig())
    from uvicorn.config import Config

    Config("app:app", log_config=None)
    access = logging.getLogger("uvicorn.access")
    assert not access.hasHandlers()  # what uvicorn asks before it formats a line
    access.info("GET /")
    assert text(capsys) == ""


def test_uvicorn_speaks_up_when_asked_to_debug(capsys: Capture):
    configure(LogConfig(level="debug"))
    logging.getLogger("uvicorn.error").debug("detail")
    assert "detail" in text(capsys)


def test_warnings_of_python_are_events_too(capsys: Capture):
    configure(LogConfig(format="json"))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("careful", UserWarning, stacklevel=1)
    (line,) = parsed(capsys)
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "UserWarning: careful" in line["event"]


def test_the_last_warnings_are_kept() -> None:
    logger = logging.getLogger("edgeml.test.recent")
    kept = Recent(2)
    logger.addHandler(kept)
    try:
        event(logger, logging.INFO, "of no interest")
        for number in range(3):
            event(logger, logging.WARNING, "odd\nthing", number=number)
    finally:
        logger.removeHandler(kept)
    first, second = kept.lines()
    assert first.endswith("odd\\nthing number=1")
    assert second.endswith("odd\\nthing number=2")
