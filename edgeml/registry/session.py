"""What the verbs of keys and registry begin with: folders, passphrases, trust."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import typer

from ..errors import UsageError
from ..keys.ring import Ring, Secrets
from .ceremony import anchor_of
from .change import Change
from .memory import Memory
from .metadata import Expiry, load
from .storage import Storage, storage


@dataclass(frozen=True)
class Session:
    """One run of a verb: which registry, which keys, what time it is."""

    storage: Storage
    folders: tuple[Path, ...]
    ring: Ring
    now: datetime
    expiry: Expiry

    @property
    def anchor(self) -> bytes:
        """The root that is believed."""
        return anchor_of(self.folders)

    def change(self, rebuild: bool = False) -> Change:
        """A change of the registry as it is now."""
        state = load(self.storage, self.anchor, rebuild)
        if not rebuild:
            self._memory.check(state)
        return Change(state, self.ring, self.now, self.expiry)

    def commit(self, change: Change, take_over: bool = False) -> list[str]:
        """Publish a change, and remember it."""
        written = change.commit(self.storage, take_over)
        self._memory.keep(change.state)
        return written

    @property
    def _memory(self) -> Memory:
        return Memory(self.ring.home, self.storage.url)


def begin(
    registry: str,
    folders: Sequence[Path],
    passphrase: str | None,
    passphrase_file: Path | None,
    expiry: Expiry | None = None,
) -> Session:
    """Open a registry with the keys in some folders."""
    ring = Ring(folders, secrets(passphrase, passphrase_file, _asked))
    return Session(
        storage(registry), tuple(folders), ring, datetime.now(UTC), expiry or Expiry()
    )


def secrets(
    passphrase: str | None, file: Path | None, ask: Callable[[str], str]
) -> Secrets:
    """Where passphrases come from: one for all from the environment or a file, or a
    person is asked, once for each key.

    Raises:
        UsageError: the file cannot be read.
    """
    if file is not None:
        try:
            text = file.read_text().rstrip("\n")
        except OSError as cause:
            raise UsageError(f"passphrase file {file}: {cause.strerror}") from cause
        return lambda _: text
    if passphrase is not None:
        return lambda _: passphrase
    return ask


def _asked(what: str) -> str:
    said: str = typer.prompt(
        what, hide_input=True, err=True, confirmation_prompt=what.startswith("new")
    )
    return said
