"""Who this device is: what enrolment left in ``identity/`` of the state directory.

::

    identity/
    ├── identity.json   tenant, device, broker, registry
    ├── device.key      its private key, made here, never sent
    ├── device.crt      its certificate
    ├── password        in place of key and certificate, where the fleet uses passwords
    ├── ca.crt          whom it believes to be the broker
    ├── registry-ca.crt whom it believes to be the registry's server, if not as usual
    ├── root.json       whom it believes about releases (TUF root)
    └── director.json   whose word on what it should run it takes

The rules it keeps:

1. Nothing that updates a model writes here; only enrolment does.
2. Every file is readable by its owner alone.
3. ``identity.json`` is written last: with it the device is enrolled, without it not.
"""

import ssl
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final

from pydantic import AwareDatetime, Field

from .contract.document import read_document
from .contract.enrolment import BrokerAddress, Url
from .contract.messages import Id, Message, write
from .contract.topics import Topics
from .durable import told
from .errors import IdentityError

FOLDER: Final = "identity"
IDENTITY: Final = "identity.json"
FILE_BYTES_MAX: Final = 1 << 20


class IdentityDocument(Message):
    """``identity.json``."""

    tenant: Id
    device: Id
    server: Url
    """Who enrolled it."""
    broker: BrokerAddress
    registry: Annotated[tuple[Url, ...], Field(min_length=1, max_length=16)]
    """Where releases are, the first one first."""
    enrolled_at: AwareDatetime
    """By the server's clock: this device's cannot have been earlier since."""


@dataclass(frozen=True)
class Identity:
    """An enrolled device."""

    folder: Path
    document: IdentityDocument

    @property
    def topics(self) -> Topics:
        """Its topics."""
        return Topics(self.document.tenant, self.document.device)

    @property
    def root(self) -> Path:
        """The TUF root that it was enrolled with."""
        return self.folder / "root.json"

    @property
    def director(self) -> Path:
        """The keys of its director."""
        return self.folder / "director.json"

    @property
    def password(self) -> str | None:
        """What it shows in place of a certificate; None: it has a certificate.

        Raises:
            IdentityError: it cannot be read.
        """
        path = self.folder / "password"
        if not path.exists():
            return None
        try:
            return _read(path).decode("ascii").strip()
        except OSError as error:
            raise IdentityError(f"{path}: cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise IdentityError(f"{path}: expected a password in ASCII") from error

    def context(self) -> ssl.SSLContext | None:
        """What TLS with the broker needs; None: there is none, on this machine.

        Raises:
            IdentityError: key, certificate or CA cannot be read.
        """
        broker = self.document.broker
        if not broker.tls:
            if not is_loopback(broker.host):
                raise IdentityError(
                    f"broker {broker.host}: expected TLS, or an address of this "
                    "machine; enrol again"
                )
            return None
        try:
            context = ssl.create_default_context(cafile=self.folder / "ca.crt")
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.password is None:
                context.load_cert_chain(
                    self.folder / "device.crt", self.folder / "device.key"
                )
        except (OSError, ssl.SSLError) as error:
            raise IdentityError(
                f"{self.folder}: key, certificate or CA cannot be used: {error}; "
                "enrol again: edgeml-agent enroll"
            ) from error
        return context


def is_enrolled(state: Path) -> bool:
    """Whether enrolment has left anything, and be it nothing that can be read."""
    try:
        return (state / FOLDER / IDENTITY).exists()
    except OSError:
        return True


def load_identity(state: Path) -> Identity | None:
    """What enrolment left; None: this device is not enrolled.

    Raises:
        IdentityError: it is there and cannot be used.
        StorageError: the disk does not let it be read.
    """
    path = state / FOLDER / IDENTITY
    with told(f"read {path}"):
        try:
            raw = _read(path)
        except FileNotFoundError:
            return None
    document = read_document(
        raw, IdentityDocument, what=str(path), version=("v", 1),
        bytes_max=FILE_BYTES_MAX, error=IdentityError,
    )  # fmt: skip
    return Identity(path.parent, document)


def write_identity(document: IdentityDocument) -> bytes:
    """The bytes of ``identity.json``."""
    return write(document)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(FILE_BYTES_MAX + 1)


def is_loopback(host: str) -> bool:
    """Whether it is this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
