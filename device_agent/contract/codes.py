"""What an update ended in, and why: the codes that device and fleet agree on.

The rules it keeps:

1. A code is a stable word; its text may change, its meaning may not. Codes are only
   ever added.
2. An :class:`Outcome` says how an attempt ended; a :class:`Reason` says why. The
   evidence (figures, last log lines) is beside them, never in them.
3. :data:`RETRYABLE` says which reasons may be answered with another attempt of the same
   digest. All others need another bundle, another device or a person.
"""

from enum import StrEnum


class Phase(StrEnum):
    """Where a device is on its way to what it should run."""

    IDLE = "idle"
    """Nothing to do: what should run runs, or nothing was asked for."""
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"
    INSTALLING = "installing"
    PROBING = "probing"
    TRIAL = "trial"


class Outcome(StrEnum):
    """How an attempt ended."""

    COMMITTED = "committed"
    """It runs, and its health gate passed: the only success."""
    ROLLED_BACK = "rolled_back"
    """It ran on trial, and the one before it runs again."""
    FAILED = "failed"
    """It never ran: the download, the installation or the probe failed."""
    REJECTED = "rejected"
    """It is not for this device, or not from whom it must be: never tried again."""
    SUPERSEDED = "superseded"
    """Something else was desired before it was committed."""


class Reason(StrEnum):
    """Why an attempt ended as it did."""

    NONE = "none"
    """It was committed."""
    # what was asked for, and by whom
    DESIRED_MALFORMED = "desired_malformed"
    DESIRED_SIGNATURE = "desired_signature"
    DESIRED_REPLAYED = "desired_replayed"
    """Its serial is below one that was accepted before."""
    DESIRED_EXPIRED = "desired_expired"
    DESIRED_DEVICE = "desired_device"
    """It is for another device."""
    # the registry's metadata
    METADATA_UNREACHABLE = "metadata_unreachable"
    METADATA_SIGNATURE = "metadata_signature"
    METADATA_EXPIRED = "metadata_expired"
    METADATA_ROLLBACK = "metadata_rollback"
    """Older than what this device has seen: a floor was undercut."""
    METADATA_MALFORMED = "metadata_malformed"
    METADATA_TOO_LARGE = "metadata_too_large"
    TARGET_UNKNOWN = "target_unknown"
    """No release of that name is signed by those who may."""
    TARGET_MISMATCH = "target_mismatch"
    """Director and registry do not agree on the digest or on the counter."""
    RELEASE_ROLLBACK = "release_rollback"
    """Its release counter is below one that was committed here."""
    TRUST_UNAVAILABLE = "trust_unavailable"
    """No keys, or damaged ones: nothing can be believed."""
    TRUST_FAILED = "trust_failed"
    """What verifies did not come to an end: out of memory, killed, or hung."""
    CLOCK_WRONG = "clock_wrong"
    """This device's clock cannot be right, so that nothing can be said of expiry."""
    # whether it is for this device
    INCOMPATIBLE = "incompatible"
    ISA_LACKING = "isa_lacking"
    RUNTIME_LACKING = "runtime_lacking"
    # getting it
    DOWNLOAD_REFUSED = "download_refused"
    """4xx: asking again does not help."""
    DOWNLOAD_UNREACHABLE = "download_unreachable"
    DOWNLOAD_SLOW = "download_slow"
    DOWNLOAD_TOO_LARGE = "download_too_large"
    DOWNLOAD_DIGEST = "download_digest"
    NO_SPACE = "no_space"
    STORAGE = "storage"
    """The disk returned an error."""
    # what is in it
    BUNDLE_INVALID = "bundle_invalid"
    QUARANTINED = "quarantined"
    """The same digest failed on this device before."""
    # trying it
    LOAD_FAILED = "load_failed"
    SIGNATURE_MISMATCH = "signature_mismatch"
    """Its inputs and outputs are not what its manifest says."""
    GOLDEN_MISMATCH = "golden_mismatch"
    LATENCY_LIMIT = "latency_limit"
    MEMORY_LIMIT = "memory_limit"
    CRASHED = "crashed"
    HUNG = "hung"
    ERROR_RATE = "error_rate"
    CRASH_LOOP = "crash_loop"
    DRIFT = "drift"
    # neither good nor bad
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    """A step took longer than it may."""


RETRYABLE = frozenset(
    {
        Reason.METADATA_UNREACHABLE,
        Reason.METADATA_EXPIRED,
        Reason.TRUST_FAILED,
        Reason.CLOCK_WRONG,
        Reason.DOWNLOAD_UNREACHABLE,
        Reason.DOWNLOAD_SLOW,
        Reason.NO_SPACE,
        Reason.STORAGE,
        Reason.CANCELLED,
        Reason.DEADLINE,
    }
)
"""Reasons that may be gone at the next attempt of the same digest."""

QUARANTINING = frozenset(
    {
        Reason.BUNDLE_INVALID,
        Reason.LOAD_FAILED,
        Reason.SIGNATURE_MISMATCH,
        Reason.GOLDEN_MISMATCH,
        Reason.LATENCY_LIMIT,
        Reason.MEMORY_LIMIT,
        Reason.CRASHED,
        Reason.HUNG,
        Reason.ERROR_RATE,
        Reason.CRASH_LOOP,
        Reason.DRIFT,
    }
)
"""Reasons that lie in the bundle: its digest is not tried here again."""
