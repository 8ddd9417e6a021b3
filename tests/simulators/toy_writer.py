"""Writes versions of a file as updaters do: the safe way, or one that loses at a cut.

Runs in a whole machine (``tests/qemu``): ``toy_writer.py HOW COUNT``. Each version is
promised by ``/run/mark`` when its writer believes it is on the disk.
"""

import os
import subprocess
import sys

PLACE = "/mnt/current"
LINES = 3000


def content(version: int) -> bytes:
    return b"".join(b"version %06d\n" % version for _ in range(LINES))


def safe(version: int) -> None:
    _write("/mnt/next", version, sync=True)
    os.rename("/mnt/next", PLACE)
    _sync("/mnt")


def no_sync_of_file(version: int) -> None:
    _write("/mnt/next", version, sync=False)
    os.rename("/mnt/next", PLACE)


def no_sync_of_folder(version: int) -> None:
    _write("/mnt/next", version, sync=True)
    os.rename("/mnt/next", PLACE)


def in_place(version: int) -> None:
    """With fsync, and yet: the old version is overwritten before the new one is whole."""
    if version == 1:
        return safe(version)
    with open(PLACE, "r+b") as file:
        file.write(content(version))
        file.flush()
        os.fsync(file.fileno())


def _write(path: str, version: int, sync: bool) -> None:
    with open(path, "wb") as file:
        file.write(content(version))
        file.flush()
        if sync:
            os.fsync(file.fileno())


def _sync(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


if __name__ == "__main__":
    how, count = globals()[sys.argv[1]], int(sys.argv[2])
    for version in range(1, count + 1):
        how(version)
        subprocess.run(["/run/mark", str(version)], check=True)
