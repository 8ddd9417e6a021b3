"""A part of a build in a process of its own: its crash is an error, not the end.

The parent sends what to do (pickled: both ends are this program) and reads lines of
JSON: what is being done, and at last the error, if there was one. The child ends when
the parent does: it watches its standard input.
"""

import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from contextlib import suppress
from importlib import import_module
from typing import IO, Any

from calibration.dataset import DataError
from device_agent.contract.errors import DeviceError
from targets.profile import ProfileError

from .errors import EdgemlError, MachineLacks, PassError, one_line
from .progress import Progress

KNOWN = (EdgemlError, DataError, DeviceError, ProfileError)
"""What is raised on purpose: it arrives as what it was."""
_LOG_BYTES = 4000
_FROM_OUTSIDE = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What no process sends itself: it was somebody, or the kernel for want of memory."""


def run_apart(function: str, argument: object, progress: Progress) -> None:
    """Call ``function`` (``module:name``) with ``argument`` and a progress in a child.

    What it finds out it must leave somewhere: nothing comes back.

    Raises:
        EdgemlError, DataError, ProfileError, DeviceError: what the child raised.
        PassError: the child died, or had a bug; names what it was doing.
        MachineLacks: it was killed from outside: nothing is wrong with what it did.
    """
    stage = "starting"
    child = subprocess.Popen(
        [sys.executable, "-m", "edgeml.apart"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin and child.stdout and child.stderr, "pipes were asked for"
    log = _Tail(child.stderr)
    failure: list[str] | None = None
    bug = ""
    try:
        with suppress(BrokenPipeError):  # it died: that is told below
            pickle.dump((function, argument), child.stdin)
            child.stdin.flush()  # and stays open: its end tells the child to end
        for line in child.stdout:
            told = json.loads(line)
            if "stage" in told:
                stage = told["stage"]
                progress.stage(stage)
            elif "step" in told:
                progress.step(*told["step"])
            elif "result" in told:
                progress.result(told["result"])
            elif "bug" in told:
                bug = told["bug"]
            else:
                failure = told["error"]
        code = child.wait()
    finally:
        child.kill()
        child.wait()
    if failure is not None:
        module, name, text = failure
        kind: type[Exception] = getattr(import_module(module), name)
        raise kind(text)
    if bug:
        raise PassError(f"the process that trains failed at: {stage}: {bug}")
    if code:
        raise _death(code, stage, log.text())


def _death(code: int, stage: str, log: str) -> EdgemlError:
    """Why a child ended without a word."""
    if -code in _FROM_OUTSIDE:
        return MachineLacks(
            f"the process that trains was ended by {signal.Signals(-code).name} while "
            f"it was at: {stage}; by somebody, or by the kernel for want of memory. "
            "Run the same again: it goes on from its last checkpoint"
        )
    what = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    said = f" ({one_line(log.splitlines()[-1], 200)})" if log else ""
    return PassError(
        f"the process that trains died of {what} while it was at: {stage}{said}"
    )


class _Tail:
    """The last bytes of a stream, read so that the writer never waits."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._bytes = b""
        self._stream = stream
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def text(self) -> str:
        """What was said last."""
        self._thread.join(1)
        return self._bytes.decode(errors="replace").strip()

    def _read(self) -> None:
        while chunk := self._stream.read1(65536):  # type: ignore[attr-defined]
            self._bytes = (self._bytes + chunk)[-_LOG_BYTES:]


class Told:
    """Progress as lines of JSON."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def stage(self, text: str) -> None:
        """Something has begun."""
        self.say(stage=text)

    def step(self, done: int, total: int) -> None:
        """So much of what has begun is done."""
        self.say(step=[done, total])

    def result(self, text: str) -> None:
        """Something was found out."""
        self.say(result=text)

    def say(self, **what: object) -> None:
        """One line."""
        self._stream.write(json.dumps(what) + "\n")
        self._stream.flush()


def _end_with_parent() -> None:
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> int:
    """The child: what to do on standard input, lines on standard output."""
    told = Told(os.fdopen(os.dup(1), "w"))
    os.dup2(2, 1)  # what libraries print goes to standard error
    function, argument = pickle.load(sys.stdin.buffer)  # noqa: S301 - run_apart wrote it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    module, _, name = function.partition(":")
    try:
        getattr(import_module(module), name)(argument, told)
    except KNOWN as error:
        kind = type(error)
        told.say(error=[kind.__module__, kind.__name__, str(error)])
        return 1
    except Exception as error:  # the seam: a bug is told with its place
        *_, place = traceback.extract_tb(error.__traceback__)
        told.say(
            bug=f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        )
        raise
    return 0


if __name__ == "__main__":
    code = 1
    try:
        code = main()
    finally:
        sys.stdout.flush()
        os._exit(code)  # an orderly end would wait for the thread that reads
