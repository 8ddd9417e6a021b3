"""Getting a new model, safely: what should run, and how far this device is with it."""

from typing import Final

STATE_DB: Final = "state.db"
"""Its file in the state directory; where it is, a fleet has given something once."""
