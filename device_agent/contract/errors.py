"""The errors of the device and of its contract with the host.

::

    DeviceError
    ├── BundleError        a bundle is not what its manifest says
    │   └── ManifestError  the manifest cannot be read or contradicts itself
    ├── MessageError       a message of device or fleet is not what it must be
    ├── StepError          a pre/post-processing step is wrong, or the data is for it
    ├── ArtifactError      the runtime cannot load or run the artifact
    │   └── IsaError       … it uses an instruction that this processor does not have
    └── MachineError       this machine lacks something that the artifact needs
"""

import errno
from typing import Final

from .codes import Reason

DISK_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The system's errors that may be gone when room is made."""


class DeviceError(Exception):
    """Root of everything that ``device_agent`` raises on purpose."""


class BundleError(DeviceError):
    """A bundle is damaged, incomplete, hostile or of an unknown format."""


class ManifestError(BundleError):
    """A manifest cannot be parsed, or its fields contradict each other."""


class MessageError(DeviceError):
    """A message cannot be read, or is of an unknown version or kind."""


class StepError(DeviceError):
    """A step is declared wrongly, or cannot take the data it was given."""


class ArtifactError(DeviceError):
    """A runtime refuses to load or to run an artifact."""

    def __init__(self, text: str, code: Reason = Reason.LOAD_FAILED) -> None:
        self.code = code
        """What it did, in a word that a fleet understands."""
        super().__init__(text)


class IsaError(ArtifactError):
    """An artifact, or its runtime for it, uses an instruction that is not here."""


class MachineError(DeviceError):
    """The machine lacks a package, an instruction set or memory; the text names it."""


def of_disk(error: BaseException | None) -> Reason:
    """What an error of the system means for what was to be read or written."""
    full = getattr(error, "errno", None) in DISK_FULL
    return Reason.NO_SPACE if full else Reason.STORAGE
