"""How long to wait before the next attempt: full jitter, capped.

With full jitter, what a thousand devices lost at one moment they ask for again evenly
spread, from the first attempt on.
"""

from collections.abc import Callable

Random = Callable[[], float]
"""A number in [0, 1)."""

DOUBLINGS_MAX = 32


def full_jitter(attempt: int, first_s: float, most_s: float, random: Random) -> float:
    """Seconds to wait, from 0 to ``first_s`` doubled ``attempt`` times, or ``most_s``.

    Args:
        attempt: how many failed before, from 0.
        first_s: the most at the first attempt.
        most_s: the most ever.
        random: where chance comes from.

    >>> full_jitter(3, 2.0, 600.0, lambda: 0.5)
    8.0
    """
    ceiling = min(most_s, first_s * 2.0 ** min(attempt, DOUBLINGS_MAX))
    return ceiling * random()
