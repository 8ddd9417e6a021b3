"""What the allocator makes of it, asked of glibc itself."""

import ctypes
import subprocess
import sys

import pytest

HEAPS = """
import ctypes, sys, threading
from device_agent.serving.memory import give_back, keep_small
if sys.argv[1] == "limited":
    keep_small()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
together = threading.Barrier(6)
def take():
    libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(6)]
for thread in threads: thread.start()
for thread in threads: thread.join()
give_back()
libc.fdopen.restype = ctypes.c_void_p
libc.malloc_info(0, ctypes.c_void_p(libc.fdopen(1, b"w")))
libc.fflush(None)
"""


def heaps(word: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", HEAPS, word], capture_output=True, text=True, check=True
    )
    return done.stdout.count("<heap ")


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_info"), reason="another libc than glibc"
)
def test_threads_share_heaps() -> None:
    assert heaps("limited") <= 2 < heaps("free")
