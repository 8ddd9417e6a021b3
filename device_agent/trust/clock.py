"""What time it is at least, where nobody can be asked.

The rules it keeps:

1. It is never earlier than what is known to have been: when this agent was made, when
   the device was enrolled, and the newest time at which signed metadata was good.
2. A clock that is ahead by more than :data:`AHEAD_MAX_S` is wrong, and nothing can be
   said of expiry.
3. A clock moves the floor only when metadata is good by it: one that runs ahead finds
   everything expired, and leaves no trace.
"""

from typing import Final

from ..contract.codes import Reason
from ..errors import UpdateError

BUILT: Final = 1_793_491_200.0
"""2026-11-01: raised with every release of the agent (``tests/test_release.py``)."""
AHEAD_MAX_S: Final = 10 * 365.25 * 86_400


def at_least(now: float, floor: float) -> float:
    """The time to judge expiry by; all in seconds since 1970.

    Raises:
        UpdateError: the clock cannot be right.
    """
    if now > floor + AHEAD_MAX_S:
        raise UpdateError(
            Reason.CLOCK_WRONG,
            f"this device's clock is {(now - floor) / 86_400 / 365.25:.0f} years ahead "
            "of the newest time that is known; expected at most 10: set its clock. "
            "What runs goes on running",
            {"now": now, "floor": floor},
        )
    return max(now, floor)
