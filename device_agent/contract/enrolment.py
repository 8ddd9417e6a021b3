"""How a device becomes one of a fleet: one request and its answer, over HTTPS.

``POST {server}/api/v1/enroll`` takes an :class:`Enrolment` and answers 200 with a
:class:`Membership`, or 4xx with a :class:`Refusal`.

The rules it keeps:

1. A token is good once: for the first key that it comes with. The same request again,
   for an answer that was lost, gets the same answer for as long as the token lives.
2. A private key never travels; who holds a password instead gets it here, once.
3. Whom a device believes ever after comes with this one answer, so it comes over TLS.
"""

from typing import Annotated, Any, Final

from pydantic import AwareDatetime, Field

from .messages import Id, Message

PATH: Final = "/api/v1/enroll"
ENROLMENT_BYTES_MAX: Final = 64 << 10
MEMBERSHIP_BYTES_MAX: Final = 1 << 20

Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9.:_-]{1,253}$")]
Url = Annotated[str, Field(pattern=r"^https?://[!-~]{1,2000}$")]
Text = Annotated[str, Field(max_length=256 << 10)]


class Enrolment(Message):
    """Up: who wants to be enrolled."""

    token: Annotated[str, Field(min_length=1, max_length=1024)]
    csr: Annotated[str, Field(max_length=16 << 10)]
    """A request for the certificate of the device's key, PEM; its subject is of no
    meaning."""
    facts: dict[str, Any] = Field(default_factory=dict)
    """Hardware and system, as in a birth."""


class BrokerAddress(Message):
    """Where the broker is."""

    host: Host
    port: Annotated[int, Field(ge=1, le=65535)] = 8883
    tls: bool = True
    """False: only for a broker on the device's own machine."""


class Membership(Message):
    """Down: who the device is from now on, and whom it believes."""

    tenant: Id
    device: Id
    """Its id: common name of the certificate, MQTT client id, part of its topics."""
    certificate: Text | None = None
    """PEM; None: the fleet uses passwords."""
    password: Annotated[str, Field(pattern=r"^[!-~]{8,256}$")] | None = None
    ca: Text
    """PEM, whom to believe to be the broker."""
    broker: BrokerAddress
    registry: Annotated[tuple[Url, ...], Field(min_length=1, max_length=16)]
    """Where releases are, the first one first."""
    registry_ca: Text | None = None
    """PEM, whom to believe to be the registry's server; None: whom the system does."""
    root: Text
    """The registry's TUF root, the text of ``root.json``."""
    director: dict[str, Any]
    """``{"keys": {id: key}}``: whose word on what it should run the device takes; a key
    is as in TUF metadata, ed25519."""
    time: AwareDatetime
    """The server's clock."""


class Refusal(Message):
    """Why not."""

    reason: Annotated[str, Field(pattern=r"^[a-z_]{1,64}$")]
    """``token_unknown``, ``token_used``, ``token_expired``, ``csr_invalid``,
    ``device_refused``, ``too_many``."""
    text: Annotated[str, Field(max_length=2000)] = ""
    """The reason for people."""
