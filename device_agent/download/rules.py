"""What a download may take, what it wants, and the two ways an answer fails."""

from dataclasses import dataclass
from typing import Final

from ..contract.codes import Reason

PART: Final = ".part"
MISMATCHES_MAX: Final = 2
"""Digests of parts from several answers that may be wrong before a mirror is left."""


@dataclass(frozen=True)
class DownloadLimits:
    """What a download may take and how patient it is."""

    rate_bytes_s: float | None = None
    """Bandwidth that it keeps to; None: what there is."""
    slow_bytes_s: float = 512.0
    """Less than this, for ``slow_s``, is too slow."""
    slow_s: float = 30.0
    connect_s: float = 15.0
    read_s: float = 15.0
    """Silence after which a connection is given up."""
    failures_max: int = 10
    """In a row, without progress."""
    progress_bytes: int = 1024
    """What an answer must bring to be progress (or the rest, if that is less)."""
    pause_s: tuple[float, float] = (1.0, 120.0)
    """Longest first pause, longest pause ever."""
    retry_after_s: float = 900.0
    """The longest that a server is obeyed."""
    redirects_max: int = 3
    spare_bytes: int = 16 << 20
    """What stays free on the disk."""
    sync_bytes: int = 1 << 20
    """How much a power cut may cost."""
    chunk_bytes: int = 64 << 10


@dataclass(frozen=True)
class Wanted:
    """What to get."""

    digest: str
    """SHA-256, in hexadecimal."""
    length: int
    """Bytes, as the registry's metadata says."""
    urls: tuple[str, ...]
    """Mirrors, best first."""


@dataclass
class Evidence:
    """How it went."""

    answers: int = 0
    """That brought bytes."""
    failures: int = 0
    received_bytes: int = 0
    """Over the network, bodies only."""
    found_bytes: int = 0
    """Already on the disk at the start."""
    skipped_bytes: int = 0
    """Received again, for a server had no ranges."""
    discarded_bytes: int = 0
    """Of parts whose digest was wrong."""


class InterruptionError(Exception):
    """It may go on, here or at another mirror."""

    def __init__(
        self, reason: Reason, text: str, after_s: float = 0.0, no_ranges: bool = False
    ) -> None:
        self.reason, self.after_s, self.no_ranges = reason, after_s, no_ranges
        super().__init__(text)


class MirrorError(Exception):
    """Not from this mirror."""

    def __init__(self, reason: Reason, text: str) -> None:
        self.reason = reason
        super().__init__(text)
