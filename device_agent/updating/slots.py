"""Two slots and a place for downloads: what lies where on the disk.

::

    state/slots/a/bundle.edgeml      one of them committed, the other free or the one
    state/slots/b/bundle.edgeml      that was committed before
    state/slots/committed.json       a second record of which one is committed
    state/download/<digest>.part     what is being downloaded

The rules it keeps:

1. A bundle comes into a slot by one rename of a synced file.
2. Nothing here decides: which file may go is in the updater's state.
3. ``committed.json`` is read only where the state's own database is lost.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from ..contract.bundle import Bundle, read_bundle
from ..contract.codes import Reason
from ..contract.errors import BundleError
from ..durable import Disk, make_folder, move, remove, replace, sweep, told
from ..errors import UpdateError
from ..trust.agreement import check_bundle
from .facts import SLOTS, Goal, Held, Slot, State

BUNDLE: Final = "bundle.edgeml"
PART: Final = ".part"


@dataclass(frozen=True)
class Proven:
    """What ``committed.json`` says."""

    slot: Slot
    held: Held


_PROVEN = TypeAdapter(Proven)


class Slots:
    """The folders below one state directory."""

    def __init__(self, state: Path, disk: Disk) -> None:
        self._slots = state / "slots"
        self._downloads = state / "download"
        self._disk = disk

    def prepare(self) -> None:
        """Make the folders, sweep away what was never finished.

        Raises:
            StorageError: the disk.
        """
        folders = [self._slots, *(self._slots / name for name in SLOTS)]
        for folder in (*folders, self._downloads):
            make_folder(self._disk, folder)
            sweep(self._disk, folder)

    def bundle(self, slot: Slot) -> Path:
        """The file of a slot."""
        return self._slots / slot / BUNDLE

    def part(self, digest: str) -> Path:
        """Where a download grows."""
        return self._downloads / f"{digest}{PART}"

    def install(self, digest: str, slot: Slot) -> None:
        """The verified download becomes the slot's bundle; again is harmless.

        Raises:
            StorageError: the disk, or neither of the files is there.
        """
        move(self._disk, self.part(digest), self.bundle(slot))

    def clean(self, state: State, keep: str | None) -> None:
        """Remove every bundle and download that the state does not name.

        Args:
            state: what is held, and what is being worked for.
            keep: a digest whose download is kept beside.

        Raises:
            StorageError: the disk.
        """
        job = state.job
        wanted = {keep, job.goal.desired.digest if job is not None else None}
        free = [
            self.bundle(slot)
            for slot in SLOTS
            if state.slot(slot) is None and (job is None or job.slot != slot)
        ]
        with told(f"look into {self._slots} and {self._downloads}"):
            left = [path for path in free if path.exists()]
            left += [
                path
                for path in sorted(self._downloads.glob(f"*{PART}"))
                if path.name.removesuffix(PART) not in wanted
            ]
        for path in left:
            remove(self._disk, path)

    def prove(self, slot: Slot, held: Held) -> None:
        """Write down which slot is committed, beside the database.

        Raises:
            StorageError: the disk.
        """
        wanted = _PROVEN.dump_json(Proven(slot, held))
        path = self._slots / "committed.json"
        try:
            same = path.read_bytes() == wanted
        except OSError:  # there is none, or it cannot be read: it is written anew
            same = False
        if not same:
            replace(self._disk, path, wanted)

    def proven(self) -> Proven | None:
        """Which slot was committed last, and holds that very bundle still."""
        try:
            found = _PROVEN.validate_json((self._slots / "committed.json").read_bytes())
            bundle = read_bundle(self.bundle(found.slot), scan=False)
        except (OSError, ValueError, BundleError):
            return None
        return found if bundle.sha256 == found.held.digest else None


def verified(goal: Goal, path: Path) -> Bundle:
    """The download, if it is the bundle that director and registry mean.

    Raises:
        UpdateError: it is another, or none.
    """
    try:
        bundle = read_bundle(path)
    except BundleError as error:
        # what the disk cannot read says nothing of the bundle: no quarantine for that
        unread = isinstance(error.__cause__, OSError)
        reason = Reason.STORAGE if unread else Reason.BUNDLE_INVALID
        raise UpdateError(reason, str(error)) from error
    check_bundle(bundle, goal)
    return bundle
