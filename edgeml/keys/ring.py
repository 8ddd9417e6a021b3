"""Key rings: folders of keys, and signers made of them.

The rules it keeps:

1. A key is two files: ``NAME.json`` says what everybody may know (key id, public half,
   where the private half is), ``NAME.pem`` is the private half, PKCS #8, encrypted. A
   person can carry the two away and bring them back.
2. The private half may be elsewhere: a URI of securesystemslib (``hsm:``, ``awskms:``,
   ``gcpkms:``, ``azurekms:``, ``file2:`` …) names it, and it never comes here.
3. A file is never replaced: a name that is taken is refused.
4. A passphrase is asked for when a key is used, not before.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.exceptions import Error as SigningError
from securesystemslib.signer import CryptoSigner, Key, Signer, SSlibKey

from ..errors import InputError, UsageError

FORMAT = 1
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_OTHERS = ("root", "seen")
"""What else lies in a key folder: the trusted root, what was published."""
Secrets = Callable[[str], str]
"""Given what to ask for, the passphrase or PIN."""


@dataclass(frozen=True)
class Entry:
    """A key of a ring: the public half, and where the private half is."""

    name: str
    key: Key
    uri: str
    folder: Path


class Ring:
    """The keys in some folders; new ones go into the first.

    Raises:
        UsageError: a folder is not there.
        InputError: a ``NAME.json`` is not one of ours, or two keys have one name.
    """

    def __init__(self, folders: Sequence[Path], secrets: Secrets) -> None:
        if not folders:
            raise UsageError("no key folder; give --keys DIR")
        self._folders = tuple(folders)
        self._secrets = secrets
        self._entries: dict[str, Entry] = {}
        self._signers: dict[str, Signer] = {}
        for folder in folders:
            if not folder.is_dir():
                raise UsageError(f"no key folder {folder}; edgeml keys init makes one")
            for path in sorted(folder.glob("*.json")):
                if path.stem not in _OTHERS:
                    self._take(_read(path))

    @property
    def home(self) -> Path:
        """Where new keys go."""
        return self._folders[0]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All keys, by name."""
        return tuple(self._entries[name] for name in sorted(self._entries))

    def entry(self, name: str) -> Entry:
        """The key of that name.

        Raises:
            UsageError: there is none.
        """
        if name not in self._entries:
            names = ", ".join(self._entries) or "none"
            raise UsageError(f"no key {name!r} in {self._where()}; there are: {names}")
        return self._entries[name]

    def of(self, keyid: str) -> Entry | None:
        """The key with that id, if it is here."""
        found = (one for one in self._entries.values() if one.key.keyid == keyid)
        return next(found, None)

    def make(self, name: str) -> Entry:
        """A new ed25519 key, its private half encrypted.

        Raises:
            UsageError: the name is taken or not allowed, or the passphrase is empty.
        """
        self._check_free(name)
        secret = self._secrets(f"new passphrase for {name}")
        if not secret:
            raise UsageError(f"key {name} needs a passphrase; an empty one was given")
        private = Ed25519PrivateKey.generate()
        pem = private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(secret.encode()),
        )
        signer = CryptoSigner(private)
        _create(self.home / f"{name}.pem", pem)
        entry = self._add(name, signer.public_key, f"file:{name}.pem")
        self._signers[signer.public_key.keyid] = signer
        return entry

    def bring(self, name: str, uri: str, public: bytes) -> Entry:
        """A key whose private half is elsewhere.

        Args:
            name: What to call it.
            uri: Of its private half, as securesystemslib names it.
            public: The public half, PEM.

        Raises:
            UsageError: the name is taken or not allowed.
            InputError: the public half is not a key.
        """
        self._check_free(name)
        try:
            key = SSlibKey.from_crypto(serialization.load_pem_public_key(public))
        except ValueError as cause:
            raise InputError(f"the public half of {name}: {cause}") from cause
        return self._add(name, key, uri)

    def signer(self, entry: Entry) -> Signer:
        """What signs with that key.

        Raises:
            InputError: wrong passphrase, or the private half is not there.
        """
        keyid = entry.key.keyid
        if keyid not in self._signers:
            self._signers[keyid] = self._open(entry)
        return self._signers[keyid]

    def signers(self, keyids: Sequence[str]) -> list[Signer]:
        """Signers of those keys that are here, in that order."""
        found = [self.of(keyid) for keyid in keyids]
        return [self.signer(one) for one in found if one is not None]

    def _open(self, entry: Entry) -> Signer:
        scheme, _, rest = entry.uri.partition(":")
        try:
            if scheme != "file":
                return Signer.from_priv_key_uri(entry.uri, entry.key, self._secrets)
            pem = (entry.folder / rest).read_bytes()
            secret = self._secrets(f"passphrase of {entry.name}").encode()
            private = serialization.load_pem_private_key(pem, secret or None)
        except (ValueError, TypeError, OSError, SigningError) as cause:
            raise InputError(f"key {entry.name} cannot be used: {cause}") from cause
        if not isinstance(private, Ed25519PrivateKey):
            raise InputError(f"key {entry.name}: {rest} is not an ed25519 key")
        signer = CryptoSigner(private)
        if signer.public_key.keyid != entry.key.keyid:
            raise InputError(f"key {entry.name}: {rest} is not the half of its .json")
        return signer

    def _check_free(self, name: str) -> None:
        if not NAME.fullmatch(name) or name in _OTHERS:
            raise UsageError(
                f"{name!r} is no name for a key; like: root-1, team.vision"
            )
        if name in self._entries:
            raise UsageError(f"there is a key {name!r} already; choose another name")

    def _add(self, name: str, key: Key, uri: str) -> Entry:
        entry = Entry(name, key, uri, self.home)
        value = {
            "format": FORMAT, "keyid": key.keyid, "key": key.to_dict(), "uri": uri,
        }  # fmt: skip
        text = json.dumps(value, indent=2, sort_keys=True) + "\n"
        _create(self.home / f"{name}.json", text.encode(), mode=0o644)
        self._take(entry)
        return entry

    def _take(self, entry: Entry) -> None:
        other = self._entries.setdefault(entry.name, entry)
        if other.key.keyid != entry.key.keyid:
            raise InputError(
                f"two keys are called {entry.name}: in {other.folder} and in "
                f"{entry.folder}"
            )

    def _where(self) -> str:
        return ", ".join(map(str, self._folders))


def public_keys(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    """Key id → public half, as TUF metadata and ``director.json`` write it."""
    return {one.key.keyid: one.key.to_dict() for one in entries}


def _read(path: Path) -> Entry:
    try:
        value = json.loads(path.read_bytes())
        if value["format"] != FORMAT:
            raise InputError(f"{path}: format {value['format']}; expected {FORMAT}")
        key = Key.from_dict(value["keyid"], value["key"])
        return Entry(path.stem, key, str(value["uri"]), path.parent)
    except (ValueError, KeyError, TypeError, OSError) as cause:
        raise InputError(f"{path} is not a key of a ring: {cause!r}") from cause


def _create(path: Path, data: bytes, mode: int = 0o600) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as cause:
        raise UsageError(f"{path} exists; a key is never replaced") from cause
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
