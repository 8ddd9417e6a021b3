"""What the allocator is told, where it is glibc's; elsewhere nothing is done.

A model is loaded in one thread, run in another and closed in a third; with an arena
for each, glibc keeps three times what is free, and every swap spreads it further. With
one for all, what is free at its end can be given back; of any other arena glibc does
that only when something at the end is freed. Left alone it also keeps ever larger
blocks in its heaps, between small things that live on. What is left free after large
requests is given back when they are over.
"""

import asyncio
import ctypes

_ARENAS = 1
_OWN_BYTES = 1 << 20
"""Larger blocks go back to the system when they are freed; smaller ones, a runtime's
buffers between its layers above all, are asked for again at once."""
_FREE_BYTES = 32 << 20
"""So much may stay free at the end of the heap, until it is given back."""
_M_ARENA_MAX = -8
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
LARGE_BYTES = 1 << 20
"""Bodies and answers held at once after which memory is given back."""
_PAUSE_S = 0.05


def keep_small() -> None:
    """Share one heap, give large blocks back; to be called before the first thread."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _OWN_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _FREE_BYTES)


def apart(block: bytearray) -> None:
    """Move it out of the heaps; there it stays, however it grows or shrinks."""
    size = len(block)
    block += bytes(max(_OWN_BYTES - size, 1))
    del block[size:]


class Settling:
    """Gives memory back soon after large requests, not after each of a crowd."""

    def __init__(self) -> None:
        self._due = False

    def soon(self) -> None:
        """A large request is over; for the event loop."""
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_later(_PAUSE_S, self._now)

    def _now(self) -> None:
        self._due = False
        give_back()


def give_back() -> None:
    """Return what is free in the heaps to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
