"""Ways to get durability wrong, put in place of the right one.

A campaign that does not find them would find nothing at all.
"""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from unittest.mock import patch

from device_agent import database, durable
from device_agent.durable import REAL, Disk, opened
from device_agent.updating.facts import Slot, other
from device_agent.updating.slots import Slots


def written_in_place() -> AbstractContextManager[object]:
    """Replacing a file is writing over it."""

    def replace(disk: Disk, path: Path, data: bytes, mode: int = 0o600) -> None:
        with opened(disk, disk.create(path, mode)) as file:
            disk.write(file, data, 0)
            disk.sync(file)
        disk.sync_folder(path.parent)

    return patch.object(durable, "replace", replace)


def renamed_before_written() -> AbstractContextManager[object]:
    """The name is there before what it names is."""

    def replace(disk: Disk, path: Path, data: bytes, mode: int = 0o600) -> None:
        new = durable.unfinished(path)
        with opened(disk, disk.create(new, mode)) as file:
            disk.rename(new, path)
            disk.write(file, data, 0)
            disk.sync(file)
        disk.sync_folder(path.parent)

    return patch.object(durable, "replace", replace)


def normal() -> AbstractContextManager[object]:
    """WAL as it is often recommended."""
    return patch.object(database, "SYNCHRONOUS", "NORMAL")


def errors_ignored() -> AbstractContextManager[object]:
    """What the disk could not do is taken for done."""

    def write(self: Disk, file: durable.File, data: bytes, offset: int) -> None:
        try:
            unchanged(self, file, data, offset)
        except durable.StorageError:
            return

    unchanged = Disk.write
    return patch.object(Disk, "write", write)


def old_slot_deleted() -> AbstractContextManager[object]:
    """Room is made before the new release has proven itself."""

    def install(self: Slots, digest: str, slot: Slot) -> None:
        unchanged(self, digest, slot)
        durable.remove(REAL, self.bundle(other(slot)))

    unchanged = Slots.install
    return patch.object(Slots, "install", install)


MUTANTS = {
    "": nullcontext,
    "state written in place": written_in_place,
    "named before it is whole": renamed_before_written,
    "WAL and NORMAL": normal,
    "errors ignored": errors_ignored,
    "old slot deleted before commit": old_slot_deleted,
}
