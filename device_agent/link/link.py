"""The link: session after session with the broker, and what is said in each.

The rules it keeps:

1. No broker, for however long, is normal: one attempt at a time, with full jitter, and
   nothing of it is kept in memory. A session that did not last counts as an attempt, so
   that two agents with one name do not take turns every second.
2. Every session has an id; its Will carries it, so that a Will which comes late is told
   apart from the session that followed.
3. At every connect the device says all of it anew: online, birth, what runs. After a
   session that was lost (a broker restarted, perhaps, and lost all of its devices) the
   birth waits for a moment that is the device's own.
4. What is desired comes again at every connect; the same word is handed on only now
   and then, for judging it asks the registry.
5. What comes from the fleet is checked for its form alone; whether it is to be believed
   is for others.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

from ..contract.errors import MessageError
from ..contract.messages import (
    Ack,
    Attempt,
    Birth,
    Command,
    Reported,
    State,
    read,
    write,
)
from ..errors import IdentityError, LinkError
from ..identity import Identity
from ..log import event
from ..spool.spool import Spool
from .backoff import Random, full_jitter
from .commands import Commands
from .ports import Device
from .pump import Pump, PumpSettings
from .session import Incoming, Session, SessionSettings

TAKEN_OVER_S: Final = 600.0
"""The most to wait where somebody else has this name, at the first time, too."""
EVIDENCE_BYTES_MAX: Final = 16 << 10
_LOG = logging.getLogger("edgeml.link")


@dataclass(frozen=True)
class LinkSettings:
    """How the link behaves."""

    reconnect_s: float = 2.0
    """The most to wait before the first attempt after a session."""
    reconnect_max_s: float = 600.0
    """The most to wait before any attempt; a session that lasted so long has worked."""
    birth_spread_s: float = 10.0
    """Over how long births are spread after a session was lost."""
    desired_again_s: float = 3600.0
    """How long the same word of the director is not handed on again."""
    session: SessionSettings = field(default_factory=SessionSettings)
    pump: PumpSettings = field(default_factory=PumpSettings)


@dataclass
class LinkStatus:
    """How the link is, for people."""

    connected: bool = False
    since: float = 0.0
    """When it became so; seconds since 1970."""
    session: str = ""
    sessions: int = 0
    """Begun since the agent started."""
    attempts: int = 0
    """In vain since the last session that lasted."""
    error: str = ""
    """Why the last session ended, or did not begin."""
    waits_s: float = 0.0
    """How long it waits, or waited last, before an attempt."""
    sent_bytes: int = 0
    """Payloads, without what protocols add."""
    heard_bytes: int = 0
    records: int = 0
    """Sent, those sent again counted again."""
    in_flight: int = 0
    """Batches that were sent and that the fleet has not acknowledged."""
    refused: int = 0
    """Messages that could not be read."""


@dataclass
class _Outside:
    """Where time and chance come from."""

    random: Random
    ids: Callable[[], str]
    wall: Callable[[], float] = field(default=time.time)


class Link:
    """One device's side of MQTT; made and used on the event loop."""

    def __init__(
        self, identity: Identity, device: Device, spool: Spool, settings: LinkSettings,
        *, random: Random, ids: Callable[[], str],
        wall: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        """Nothing happens before :meth:`run`.

        Args:
            identity: who this device is.
            device: the rest of the agent.
            spool: where records wait.
            settings: how it behaves.
            random: chance, in [0, 1).
            ids: gives a new id for each session.
            wall: the clock that messages are dated by.
        """
        self._status = LinkStatus(since=wall())
        self.identity = identity
        self._topics = identity.topics
        self._device = device
        self._spool = spool
        self._settings = settings
        self._outside = _Outside(random, ids, wall)
        self._pump = Pump(spool, self._topics.records, settings.pump, random)
        self._session: Session | None = None
        self._reported: bytes | None = None
        self._word: tuple[bytes | None, float] = (None, 0.0)
        """What was desired last, and when it was handed on."""
        self._commands = Commands(
            {
                "birth": self._do_birth,
                "diagnose": lambda _: device.diagnose(),
                "log_level": self._do_log_level,
                "samples": _do_samples,
            }
        )
        self._births = asyncio.Event()

    @property
    def status(self) -> LinkStatus:
        """How it is now."""
        session, found = self._session, self._status
        return replace(
            found,
            sent_bytes=found.sent_bytes + (session.sent_bytes if session else 0),
            heard_bytes=found.heard_bytes + (session.heard_bytes if session else 0),
            records=self._pump.records, in_flight=self._pump.flow.in_flight,
        )  # fmt: skip

    @property
    def pump(self) -> Pump:
        """What sends the records."""
        return self._pump

    def added(self) -> None:
        """There are new records in the spool."""
        self._pump.added()

    def report(self) -> None:
        """What runs, or how the attempt stands, has changed."""
        if self._session is None:
            return  # said at the next connect
        message = self._standing(self._session)
        raw = write(message)
        same = write(
            message.model_copy(update={"at": datetime.min.replace(tzinfo=UTC)})
        )
        if same != self._reported:
            self._reported = same
            self._say(self._session, self._topics.reported, raw, retain=True)

    async def run(self) -> None:
        """Be connected, as far as that is possible, until cancelled."""
        failed, again = 0, False
        while True:
            began_s, sessions = time.monotonic(), self._status.sessions
            first_s, most_s = self._settings.reconnect_s, self._settings.reconnect_max_s
            try:
                await self._one(again)
            except (LinkError, IdentityError) as error:
                if isinstance(error, LinkError) and error.taken_over:
                    first_s = most_s = max(TAKEN_OVER_S, most_s)
                self._ended(error)
            if self._status.sessions > sessions:
                again = True
                lasted_s = time.monotonic() - began_s
                failed = 0 if lasted_s > self._settings.reconnect_max_s else failed
            self._status.waits_s = full_jitter(
                failed, first_s, most_s, self._outside.random
            )
            failed += 1
            self._status.attempts = failed
            await asyncio.sleep(self._status.waits_s)

    async def _one(self, again: bool) -> None:
        """One session, from connect to its end.

        Raises:
            LinkError: it ended.
            IdentityError: this device has nothing to show.
        """
        settings = self._settings
        async with Session(
            self.identity, settings.session, self._outside.ids()
        ) as session:
            self._begun(session)
            try:
                async with asyncio.TaskGroup() as tasks:
                    owned = (
                        tasks.create_task(self._pump.run(session)),
                        tasks.create_task(self._give_birth(session, again)),
                    )
                    error = await self._hear(session)
                    for task in owned:
                        task.cancel()
            finally:
                self._session = None
                self._status.sent_bytes += session.sent_bytes
                self._status.heard_bytes += session.heard_bytes
                self._say(
                    session, self._topics.state,
                    write(State(session=session.id, online=False)), retain=True,
                )  # fmt: skip
        raise error

    def _begun(self, session: Session) -> None:
        self._session, self._reported = session, None
        status = self._status
        status.connected, status.since = True, self._outside.wall()
        status.session, status.error = session.id, ""
        status.sessions += 1
        event(
            _LOG, logging.INFO, "link up", broker=self.identity.document.broker.host,
            session=session.id, resumed=session.present,
        )  # fmt: skip
        self._say(
            session, self._topics.state, write(State(session=session.id, online=True)),
            retain=True,
        )  # fmt: skip
        self.report()

    def _ended(self, error: LinkError | IdentityError) -> None:
        status = self._status
        level = logging.WARNING if status.connected else logging.INFO
        if status.connected or str(error) != status.error:
            event(_LOG, level, "link down", error=str(error))
        if status.connected:
            status.since = self._outside.wall()
        status.connected, status.session, status.error = False, "", str(error)

    async def _hear(self, session: Session) -> LinkError:
        """Deal with what is heard; how the session ended."""
        try:
            async for message in session.messages():
                await self._heard(session, message)
                session.done(message)
        except LinkError as error:
            return error
        raise AssertionError("a session ends with an error")

    async def _heard(self, session: Session, message: Incoming) -> None:
        topics = self._topics
        try:
            if message.topic == topics.desired:
                self._desired(message.payload)
            elif message.topic == topics.ack:
                await self._pump.acknowledge(read(message.payload, Ack))
            elif message.topic == topics.command:
                self._command(session, message)
        except MessageError as error:
            self._status.refused += 1
            event(
                _LOG, logging.WARNING, "message refused", topic=message.topic,
                error=str(error),
            )  # fmt: skip

    def _desired(self, envelope: bytes) -> None:
        now_s = time.monotonic()
        known, since_s = self._word
        if envelope != known or now_s - since_s >= self._settings.desired_again_s:
            self._word = envelope, now_s
            self._device.desired(envelope)

    def _command(self, session: Session, message: Incoming) -> None:
        command = read(message.payload, Command)
        event(_LOG, logging.INFO, "command", kind=command.kind, id=command.id)
        asked = message.response_topic
        own = asked is not None and asked.startswith(f"{self._topics.root}/up/")
        self._say(
            session, asked if own and asked is not None else self._topics.response,
            write(self._commands.answer(command)), correlation=message.correlation,
        )  # fmt: skip

    async def _give_birth(self, session: Session, again: bool) -> None:
        """Say who is there: once, and whenever the fleet asks for it."""
        if again:
            share = sha256(self._topics.device.encode()).digest()[0] / 256
            await asyncio.sleep(self._settings.birth_spread_s * share)
        while True:
            self._births.clear()
            await self._birth(session)
            await self._births.wait()

    async def _birth(self, session: Session) -> None:
        standing = await asyncio.to_thread(self._spool.standing)
        told, (running, _) = self._device.describe(), self._device.standing()
        birth = Birth(
            session=session.id, agent=told.agent, compatible=told.compatible,
            facts=told.facts, slots=told.slots, running=running,
            epoch=standing.epoch, first=standing.first, next=standing.next,
            at=self._now(),
        )  # fmt: skip
        self._say(session, self._topics.birth, write(birth))

    def _standing(self, session: Session) -> Reported:
        running, attempt = self._device.standing()
        return Reported(
            session=session.id, running=running, attempt=_bounded(attempt),
            at=self._now(),
        )  # fmt: skip

    def _do_birth(self, _: dict[str, Any]) -> dict[str, Any]:
        self._births.set()
        return {}

    def _do_log_level(self, arguments: dict[str, Any]) -> dict[str, Any]:
        level = arguments.get("level")
        if not isinstance(level, str):
            raise ValueError(f"expected a level, found {level!r:.100}")
        self._device.log_level(level)
        return {"level": level}

    def _say(
        self, session: Session, topic: str, raw: bytes, *, retain: bool = False,
        correlation: bytes | None = None,
    ) -> None:  # fmt: skip
        try:
            session.publish(topic, raw, retain=retain, correlation=correlation)
        except ValueError as error:
            event(_LOG, logging.ERROR, "message not sent", error=str(error))

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._outside.wall(), UTC)


def _do_samples(_: dict[str, Any]) -> dict[str, Any]:
    raise ValueError("samples are not enabled on this device")


def _bounded(attempt: Attempt | None) -> Attempt | None:
    """The attempt, its evidence left out where it is too much for a message."""
    if attempt is None or len(str(attempt.evidence)) <= EVIDENCE_BYTES_MAX:
        return attempt
    return attempt.model_copy(update={"evidence": {"left_out": "too large"}})
