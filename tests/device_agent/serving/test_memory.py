"""What the allocator makes of it, asked of glibc itself."""

import ctypes
import subprocess
import sys

import pytest

from device_agent.serving.memory import apart

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


HELD = """
import threading
from device_agent.contract.machine import memory_bytes
from device_agent.serving.memory import apart, give_back, keep_small
keep_small()
kept = []
def work():
    blocks = []
    for _ in range(300):
        blocks.append(bytearray(b"x") * 100_000)
    kept.append(blocks.pop(0))
    blocks.clear()
    body = bytearray()
    apart(body)
    for _ in range(200):
        body += b"x" * 100_000
    kept.append(bytes(900))
before = memory_bytes("VmRSS")
thread = threading.Thread(target=work)
thread.start()
thread.join()
give_back()
print(memory_bytes("VmRSS") - before)
"""

pytestmark = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_info"), reason="another libc than glibc"
)


def test_threads_share_one_heap() -> None:
    assert heaps("limited") == 1 < heaps("free")


def test_what_a_thread_has_freed_is_given_back() -> None:
    done = subprocess.run(
        [sys.executable, "-c", HELD], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 2 << 20  # of 50 MB


@pytest.mark.parametrize("size", [0, 1, 200_000, 3 << 20])
def test_a_block_apart_is_the_same_block(size: int) -> None:
    block = bytearray(range(256)) * (size // 256 + 1)
    del block[size:]
    same = bytes(block)
    apart(block)
    assert block == same
    block += b"more"
    assert block == same + b"more"
