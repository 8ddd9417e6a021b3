"""Writes versions of a file as updaters do: the safe way, or one that loses at a cut.

Runs in a whole machine (``tests/qemu``): ``toy_writer.py HOW COUNT``. Each version is
promised by ``/run/mark`` when its writer believes it is on the disk.
"""

import os
import subprocess
import sys
from pathlib import Path

DISK = Path("/mnt")
PLACE, NEXT = DISK / "current", DISK / "next"
LINES = 3000


def content(version: int) -> bytes:
    return b"".join(b"version %06d\n" % version for _ in range(LINES))


def safe(version: int) -> None:
    _write(NEXT, "wb", version)
    NEXT.rename(PLACE)
    _sync(DISK)


def no_sync_of_file(version: int) -> None:
    _write(NEXT, "wb", version, sync=False)
    NEXT.rename(PLACE)


def no_sync_of_folder(version: int) -> None:
    _write(NEXT, "wb", version)
    NEXT.rename(PLACE)


def in_place(version: int) -> None:
    """With fsync, and yet: the old is overwritten before the new one is whole."""
    if version == 1:
        safe(version)
    else:
        _write(PLACE, "r+b", version)


def _write(path: Path, mode: str, version: int, sync: bool = True) -> None:
    with path.open(mode) as file:
        file.write(content(version))
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


if __name__ == "__main__":
    how, count = globals()[sys.argv[1]], int(sys.argv[2])
    for version in range(1, count + 1):
        how(version)
        subprocess.run(["/run/mark", str(version)], check=True)
