"""What device and fleet say to each other over MQTT, as JSON.

The rules it keeps:

1. Every message has ``v``; a receiver reads the versions it knows and refuses others by
   name. Unknown fields are ignored, unknown kinds are refused with a reason.
2. Times are UTC with a zone; they come from clocks that may be wrong, and nobody's
   correctness hangs on them.
3. What is desired is signed over its exact bytes (:mod:`.envelope`).
4. A golden file of each message lies in ``tests/golden/messages``; they are only added.
"""

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from .codes import Outcome, Phase, Reason
from .document import read_document
from .errors import MessageError
from .manifest import Digest, Name, Version, canonical_json

V: Final = 1
MESSAGE_BYTES_MAX = 256 << 10
DESIRED_BYTES_MAX = 2 << 10
"""Of the envelope of a :class:`Desired`."""

Id = Annotated[str, Field(pattern=r"^[a-z0-9-]{1,64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
M = TypeVar("M", bound="Message")


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Message(_Part):
    """A message on a topic; :func:`write` and :func:`read` are its bytes."""

    v: Literal[1] = V


class Release(_Part):
    """A model name and version."""

    model: Name
    version: Version


class Desired(Message):
    """Down: what a device should run. The payload of a signed envelope."""

    device: Id
    serial: Count
    """Grows with every message of the director to this device; lower ones are
    replays."""
    release: Release
    digest: Digest
    """SHA-256 of the bundle."""
    counter: Count
    """The release counter that the registry's metadata must say, too."""
    not_after: AwareDatetime
    """When it may no longer be activated; what runs goes on running."""
    rollout: Id
    attempt: Annotated[int, Field(ge=1)] = 1
    config: dict[str, bool | int | float | str] = {}
    """Settings of the trial (``trial_s`` …) that differ from the device's own."""


class Command(Message):
    """Down: something to do once. Idempotent by ``id``: it may arrive several times."""

    id: Id
    kind: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
    """``birth``, ``diagnose``, ``log_level``, ``samples``; others are refused."""
    arguments: dict[str, Any] = {}


class Response(Message):
    """Up: what became of a command."""

    id: Id
    ok: bool
    reason: str = ""
    """Why not, where it is not ok."""
    body: dict[str, Any] = {}


class Ack(Message):
    """Down: every record of the epoch up to ``seq`` is in the fleet's database."""

    epoch: Id
    seq: Count
    missing: tuple[tuple[Count, Count], ...] = ()
    """First and last of what is to be sent again, each with both ends."""


class State(Message):
    """Up, retained, and the Will: whether the session is there."""

    session: Id
    """A late Will of an earlier session is told apart by it."""
    online: bool


class Running(_Part):
    """What answers requests."""

    release: Release
    digest: Digest
    counter: Count
    committed: bool


class Attempt(_Part):
    """The last attempt at what was desired."""

    rollout: str
    attempt: int
    serial: Count
    digest: Digest
    phase: Phase
    outcome: Outcome | None = None
    """None: it is under way."""
    reason: Reason | None = None
    text: str = ""
    """The reason for people."""
    evidence: dict[str, Any] = {}
    """Figures of the gate, last log lines."""


class Reported(Message):
    """Up, retained: what runs, and how the last attempt stands."""

    session: Id
    running: Running | None
    attempt: Attempt | None
    at: AwareDatetime


class Birth(Message):
    """Up, at every connect: who is there."""

    session: Id
    speaks: tuple[int, ...] = (V,)
    oldest: int = V
    agent: str
    """Version of the agent."""
    compatible: tuple[str, ...]
    facts: dict[str, Any]
    """Hardware and system: architecture, processor, memory, free disk, runtimes."""
    slots: dict[str, Digest | None]
    running: Running | None
    epoch: Id
    """Of the spool."""
    first: Count
    """Sequence number of the oldest record that is pending; equals ``next`` if none."""
    next: Count
    at: AwareDatetime


class Record(_Part):
    """One entry of the spool: identified by (device, epoch, seq)."""

    seq: Count
    at: float
    """Seconds since 1970 on the device's clock."""
    kind: Annotated[str, Field(pattern=r"^[a-z_]{1,32}$")]
    """``window``, ``drift``, ``event``, ``step``, ``sample``, ``dropped``."""
    body: dict[str, Any]


class Batch(Message):
    """Up: records of one epoch, their numbers growing."""

    epoch: Id
    first: Count
    records: Annotated[tuple[Record, ...], Field(min_length=1)]


class Dropped(_Part):
    """Body of a ``dropped`` record: it has the number ``last`` and takes the place of
    all from ``first`` to ``last`` that the fleet has not stored.

    The fleet keeps it beside the records, not among them: number ``last`` may be stored
    already. Of reason ``damaged`` it stands for itself and, ``count`` being unknown and
    so 0, for whatever is not stored of this device's earlier epochs.
    """

    first: Count
    last: Count
    count: Count
    reason: Literal["bytes", "age", "damaged"]


def write(message: Message) -> bytes:
    """The message as canonical JSON."""
    return canonical_json(message.model_dump(mode="json"))


def read(raw: bytes, kind: type[M], bytes_max: int = MESSAGE_BYTES_MAX) -> M:
    """A message that nobody vouches for yet.

    Raises:
        MessageError: too large, not JSON, another version or wrong fields.
    """
    return read_document(
        raw, kind, what=kind.__name__.lower(), version=("v", V), bytes_max=bytes_max,
        error=MessageError,
    )  # fmt: skip
