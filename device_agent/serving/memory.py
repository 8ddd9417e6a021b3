"""What the allocator is told, where it is glibc's; elsewhere nothing is done.

A model is loaded in one thread, run in another and closed in a third; with an arena
for each, glibc keeps three times what is free, and every swap spreads it further.
"""

import ctypes

_ARENAS = 2
"""One for the main thread, one for all others."""
_M_ARENA_MAX = -8


def limit_arenas() -> None:
    """Let threads share their heaps; to be called before the first thread starts."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Return what is free in the heaps to the system."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
