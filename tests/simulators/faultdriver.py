"""Runs one flow on the real disk, as a process for strace to end or to disappoint.

Usage: python faultdriver.py FLOW SEED STATE HEARD MUTANT. What the flow says goes to
the file HEARD. Before it begins, it has run once elsewhere, so that everything is
imported, and has looked for a file that is not there, which the trace shows.
"""

import logging
import os
import sys
from contextlib import suppress
from pathlib import Path

from faultflows import MARK, load, scratch
from mutants import MUTANTS

from device_agent.durable import Disk
from device_agent.errors import StorageError, UpdateError

TOLD = 3
"""The disk failed, and the flow said so."""


def main() -> int:
    name, seed, state, heard, mutant = sys.argv[1:]
    logging.disable(logging.CRITICAL)
    with MUTANTS[mutant]():
        flow = load(name, int(seed))
        with scratch() as elsewhere:
            flow.prepare(elsewhere)
            flow.run(elsewhere, Disk(), lambda text: None)
        # not through a buffer: what was said was heard, whatever comes next
        out = os.open(heard, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        with suppress(FileNotFoundError):
            os.close(os.open(MARK, os.O_RDONLY))
        try:
            flow.run(Path(state), Disk(), lambda text: _said(out, text))
        except (StorageError, UpdateError, OSError):
            return TOLD
    return 0


def _said(out: int, text: str) -> None:
    os.write(out, f"{text}\n".encode())


if __name__ == "__main__":
    # at once: what an interpreter does at its end is not the flow's
    os._exit(main())
