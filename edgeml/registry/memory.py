"""What a publisher has seen of a registry, beside its keys.

Who signs an older state of the registry anew makes it look fresh. So a publisher, too,
goes below nothing that it has seen: the registry's files may be in the wrong hands.
"""

import json
from pathlib import Path

from ..errors import InputError
from .metadata import State

FILE = "seen.json"


class Memory:
    """Versions of the registries that were published to with this key folder."""

    def __init__(self, folder: Path, url: str) -> None:
        self._path = folder / FILE
        self._url = url

    def check(self, state: State) -> None:
        """Refuse what is older than what was seen.

        Raises:
            InputError: it is.
        """
        seen = self._read().get(self._url, {})
        for role, version in _versions(state).items():
            if version < seen.get(role, 0):
                raise InputError(
                    f"{self._url} shows {role} version {version}, and {seen[role]} was "
                    "published from here: somebody has put an older state there. "
                    "Upload the newer one again, or give --rebuild where its keys were "
                    f"replaced (what was seen is in {self._path})"
                )

    def keep(self, state: State) -> None:
        """Remember what is published now."""
        known = {**self._read(), self._url: _versions(state)}
        self._path.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n")

    def _read(self) -> dict[str, dict[str, int]]:
        if not self._path.exists():
            return {}
        try:
            return dict(json.loads(self._path.read_bytes()))
        except ValueError as cause:
            raise InputError(f"{self._path} cannot be read: {cause}") from cause


def _versions(state: State) -> dict[str, int]:
    return {
        "root": state.root.signed.version,
        "snapshot": state.snapshot.signed.version,
        "timestamp": state.timestamp.signed.version,
    }
