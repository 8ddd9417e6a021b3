"""What can happen to an update, and what is to be done about it: data, no behaviour.

``number`` tells whose result it is: that of a job, or of a word in the inbox. What has
another number comes too late and changes nothing.
"""

from dataclasses import dataclass, field
from typing import Any

from ..contract.codes import Reason
from ..contract.messages import Attempt, Desired
from .facts import Goal, Job, Slot

Evidence = dict[str, Any]

# What happened -----------------------------------------------------------------------


@dataclass(frozen=True)
class Started:
    """The agent has started; whatever was under way was interrupted."""


@dataclass(frozen=True)
class Stopped:
    """The agent stops in order."""


@dataclass(frozen=True)
class Tick:
    """Time has passed."""


@dataclass(frozen=True)
class Wanted:
    """A director has spoken; nobody has judged the envelope yet."""

    envelope: bytes


@dataclass(frozen=True)
class Withdrawn:
    """Nothing is desired any more; what is committed goes on."""


@dataclass(frozen=True)
class Authorized:
    """Director and registry agree on what the inbox says."""

    number: int
    goal: Goal
    quarantined: str = ""
    """Why its digest failed here before; empty: it did not."""


@dataclass(frozen=True)
class Refused:
    """What the inbox says is not to be followed, at least not now."""

    number: int
    reason: Reason
    text: str = ""
    evidence: Evidence = field(default_factory=dict)
    desired: Desired | None = None
    """What it says, where its signature is good."""
    jitter: float = 1.0
    """Random, 0 to 1: how much of the back-off to wait."""


@dataclass(frozen=True)
class Downloaded:
    """All bytes are there."""

    number: int


@dataclass(frozen=True)
class Verified:
    """They are the bundle that was meant."""

    number: int


@dataclass(frozen=True)
class Installed:
    """It lies in its slot."""

    number: int


@dataclass(frozen=True)
class Probed:
    """It has passed the sandbox on this device."""

    number: int
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class Confirmed:
    """Director and registry still agree."""

    number: int


@dataclass(frozen=True)
class Healthy:
    """The gate of the trial has passed."""

    number: int
    evidence: Evidence = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """A step went wrong, or the gate has said no."""

    number: int
    reason: Reason
    text: str = ""
    evidence: Evidence = field(default_factory=dict)
    jitter: float = 1.0


@dataclass(frozen=True)
class Lost:
    """The file in a slot is not any more what it was."""

    slot: Slot
    text: str = ""


Event = (
    Started | Stopped | Tick | Wanted | Withdrawn | Authorized | Refused | Downloaded
    | Verified | Installed | Probed | Confirmed | Healthy | Failed | Lost
)  # fmt: skip

# What is to be done ------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """Write with the state: a step for the fleet."""

    attempt: Attempt


@dataclass(frozen=True)
class Quarantine:
    """Write with the state: this digest is not tried here again."""

    digest: str
    reason: Reason
    text: str


@dataclass(frozen=True)
class Authorize:
    """Judge what the inbox says."""

    number: int
    envelope: bytes


@dataclass(frozen=True)
class Download:
    """Get the bundle, or the rest of it."""

    job: Job


@dataclass(frozen=True)
class Verify:
    """Read the bundle whole and compare it with what was promised."""

    job: Job


@dataclass(frozen=True)
class Install:
    """Put it into its slot."""

    job: Job


@dataclass(frozen=True)
class Probe:
    """Try it in the sandbox."""

    job: Job


@dataclass(frozen=True)
class Confirm:
    """Judge the director's word again: it may have expired meanwhile."""

    job: Job


@dataclass(frozen=True)
class Serve:
    """Serve what is committed."""

    slot: Slot


@dataclass(frozen=True)
class Activate:
    """Serve it on trial and watch it."""

    job: Job


@dataclass(frozen=True)
class Commit:
    """The one on trial stays; the other leaves memory."""

    slot: Slot


@dataclass(frozen=True)
class Rollback:
    """The one on trial leaves; serve that slot again (None: nothing)."""

    slot: Slot | None


@dataclass(frozen=True)
class Abort:
    """Stop what is being done for the job of that number."""

    number: int


@dataclass(frozen=True)
class Clean:
    """Remove every file that the state does not name, but the download of ``keep``."""

    keep: str | None = None


Effect = (
    Record | Quarantine | Authorize | Download | Verify | Install | Probe | Confirm
    | Serve | Activate | Commit | Rollback | Abort | Clean
)  # fmt: skip
