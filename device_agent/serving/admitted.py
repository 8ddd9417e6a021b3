"""Bundles that passed the sandbox on this machine, so that they are not tried again.

The rules it keeps:

1. A record counts only here and now: same digest, machine, runtime version, way of
   probing and sandbox limits. Anything else, or a damaged record, means: probe again.
2. A record is there whole or not at all: written aside, synced, renamed.
3. The newest :data:`RECORDS_MAX` are kept.
"""

import json
import os
import tempfile
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

RECORDS_MAX = 64
_RECORD_BYTES_MAX = 4096


@dataclass(frozen=True)
class Ground:
    """Where and how a bundle was tried."""

    machine: str
    runtime: str
    runtime_version: str
    protocol: int
    """Of the probe."""
    memory_bytes: int
    cpu_s: int
    wall_s: float


def is_admitted(state: Path, sha256: str, ground: Ground) -> bool:
    """Whether the bundle of that digest passed on this very ground."""
    try:
        with _path(state, sha256).open("rb") as file:
            found = json.loads(file.read(_RECORD_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return False
    return bool(found == {"sha256": sha256, **asdict(ground)})


def admit(state: Path, sha256: str, ground: Ground) -> None:
    """Keep on record that the bundle passed.

    Raises:
        OSError: the state directory cannot be written.
    """
    path = _path(state, sha256)
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    document = json.dumps({"sha256": sha256, **asdict(ground)}, indent=1)
    descriptor, part = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(document.encode())
            file.flush()
            os.fsync(file.fileno())
        Path(part).rename(path)
    finally:
        Path(part).unlink(missing_ok=True)
    _prune(path.parent)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _path(state: Path, sha256: str) -> Path:
    return state / "admitted" / f"{sha256}.json"


def _prune(folder: Path) -> None:
    """Remove the oldest records, and what writers that died left behind."""
    aged = sorted((one.stat().st_mtime_ns, one) for one in folder.glob("*.json"))
    stale = [one for _, one in aged[:-RECORDS_MAX]]
    for path in (*stale, *folder.glob(".*")):
        with suppress(OSError):
            path.unlink()
