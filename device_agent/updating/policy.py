"""How long, how often, and which reasons mean what: the numbers of an update."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from ..contract.codes import RETRYABLE, Phase, Reason

REJECTING: Final = frozenset(
    {
        Reason.DESIRED_MALFORMED, Reason.DESIRED_SIGNATURE, Reason.DESIRED_REPLAYED,
        Reason.DESIRED_DEVICE, Reason.DESIRED_EXPIRED, Reason.METADATA_SIGNATURE,
        Reason.METADATA_ROLLBACK, Reason.METADATA_MALFORMED, Reason.METADATA_TOO_LARGE,
        Reason.TARGET_UNKNOWN, Reason.TARGET_MISMATCH, Reason.RELEASE_ROLLBACK,
        Reason.INCOMPATIBLE, Reason.ISA_LACKING, Reason.RUNTIME_LACKING,
        Reason.QUARANTINED,
    }
)  # fmt: skip
"""It is not for this device, or not from whom it must be."""

REMOTE: Final = RETRYABLE - {
    Reason.NO_SPACE, Reason.STORAGE, Reason.CANCELLED, Reason.DEADLINE,
}  # fmt: skip
LOCAL: Final = frozenset({Reason.NO_SPACE, Reason.STORAGE})
PATIENT: Final = frozenset({Reason.CANCELLED, Reason.DEADLINE}) | REMOTE | LOCAL
"""After these the same digest may be asked for again: its download is kept."""


@dataclass(frozen=True)
class Limits:
    """How long and how often."""

    phase_s: Mapping[Phase, float] = field(
        default_factory=lambda: MappingProxyType(
            {
                Phase.DOWNLOADING: 86_400.0,
                Phase.VERIFYING: 600.0,
                Phase.INSTALLING: 300.0,
                Phase.PROBING: 3_600.0,
                Phase.TRIAL: 1_800.0,
            }
        )
    )
    max_starts: int = 3
    """Of the candidate on trial."""
    max_resumes: int = 50
    """Interrupted starts in any other phase."""
    remote_tries: int = 500
    """Retries while registry or network is not there."""
    local_tries: int = 5
    """Retries after errors of this device's disk."""
    backoff_s: float = 2.0
    backoff_max_s: float = 300.0

    def wait_s(self, tries: int, jitter: float) -> float:
        """Capped exponential back-off with full jitter."""
        return jitter * min(self.backoff_max_s, self.backoff_s * 2.0 ** min(tries, 30))

    def tries(self, reason: Reason) -> int:
        """How often may be tried again after that reason."""
        if reason in REMOTE:
            return self.remote_tries
        return self.local_tries if reason in LOCAL else 0
