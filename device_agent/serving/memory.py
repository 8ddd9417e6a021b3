"""What the allocator is told, where it is glibc's; elsewhere nothing is done.

A model is loaded in one thread, run in another and closed in a third; with an arena
for each, glibc keeps three times what is free, and every swap spreads it further. And
glibc raises the size from which a block is the system's own with every block it frees:
after one large body all others stay in the heap, between small things that live on.
"""

import ctypes

_ARENAS = 2
"""One for the main thread, one for all others."""
_M_ARENA_MAX = -8
_OWN_BYTES = 128 << 10
"""Larger blocks go back to the system when they are freed."""
_M_MMAP_THRESHOLD = -3


def keep_small() -> None:
    """Share heaps, give large blocks back; to be called before the first thread."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)
        mallopt(_M_MMAP_THRESHOLD, _OWN_BYTES)


def give_back() -> None:
    """Return what is free in the heaps to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
