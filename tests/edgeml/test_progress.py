"""Progress: nothing, plain lines, or a live line on a terminal only."""

import os
import pty
import subprocess
import sys

import pytest

from edgeml.progress import shown

CODE = """
from edgeml.progress import shown
with shown(quiet={quiet}) as progress:
    progress.stage("judging [bold]one[/bold]")
    progress.step(1, 2)
    progress.result("found [1.0 ms]")
"""


def on_terminal(quiet: bool) -> tuple[bytes, bytes]:
    """What the terminal shows, and what standard output holds."""
    ours, theirs = pty.openpty()
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(quiet=quiet)],
        stdout=subprocess.PIPE, stderr=theirs, check=True,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    shown_there = b""
    try:
        while part := os.read(ours, 4096):
            shown_there += part
    except OSError:  # Linux says so when nobody holds the other end
        pass
    os.close(ours)
    return shown_there, done.stdout


def test_quiet_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    with shown(quiet=True) as progress:
        progress.stage("judging")
        progress.step(1, 2)
        progress.result("found")
    assert capfd.readouterr() == ("", "")


def test_a_log_has_plain_lines_on_standard_error(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with shown(quiet=False) as progress:
        progress.stage("judging")
        progress.step(1, 2)
        progress.result("found")
    assert capfd.readouterr() == ("", "… judging\n  found\n")


def test_a_terminal_has_a_live_line_and_results_as_they_are() -> None:
    screen, out = on_terminal(quiet=False)
    assert b"\x1b[" in screen
    assert b"found [1.0 ms]" in screen
    assert out == b""


def test_quiet_says_nothing_on_a_terminal_either() -> None:
    assert on_terminal(quiet=True) == (b"", b"")
