"""Memory of a tree of processes, as the host sees it."""

import os
import subprocess
import sys
import time

from edgeml.emulator.memory import Usage, end, guest_bytes, tree

CHILD = "import time; data = bytearray(64 << 20); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"


def test_a_process_that_ended_takes_nothing():
    assert guest_bytes(999_999_999, ranged=False) == (0, 0)


def test_no_host_process_lies_in_the_guests_range():
    assert guest_bytes(os.getpid(), ranged=True) == (0, 0)


def test_the_peak_is_that_of_the_child_and_all_of_it_ends():
    parent = subprocess.Popen([sys.executable, "-c", PARENT])
    try:
        usage = Usage(parent.pid, ranged=False)
        deadline = time.monotonic() + 30
        while usage.peak() < 64 << 20 and time.monotonic() < deadline:
            usage.look()
        assert 64 << 20 <= usage.peak() < 128 << 20
        assert usage.total >= usage.peak() / 2
        children = tree(parent.pid)
        assert len(children) == 2
    finally:
        end(parent.pid)
        assert parent.wait(10) == -9
    assert tree(parent.pid) == [parent.pid]
    while guest_bytes(children[1], ranged=False) != (0, 0):  # it is still ending
        assert time.monotonic() < deadline + 10
