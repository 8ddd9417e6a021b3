"""What an agent that belongs to a fleet does beside serving: it listens and reports.

The rules it keeps:

1. Nothing here is on the way of a request. What blocks has threads of its own.
2. What was committed is served also where the identity is lost, the broker or the
   registry is gone for good, or the disk is full.
3. Clocks, chance and ids are taken from the system here and in :mod:`.member`.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from types import MappingProxyType
from typing import Any, Final

from . import __version__
from .candidates import Candidates
from .config import AgentConfig, LinkConfig, UpdateConfig
from .contract import machine
from .contract.codes import Phase, Reason
from .contract.messages import Attempt, Running
from .durable import REAL
from .errors import IdentityError, StorageError
from .identity import is_enrolled, load_identity
from .link.link import Link, LinkSettings
from .link.ports import Description
from .link.pump import PumpSettings
from .link.session import SessionSettings
from .log import configure_level, event
from .member import Means, Member, compatible, facts, new_id
from .serving.lane import Lane
from .serving.repository import Repository
from .updating.facts import SLOTS, Held
from .updating.health import Trial
from .updating.policy import Limits
from .updating.updater import Parts, Settings, Updater
from .windows import Windows

AGAIN_S: Final = 30.0
"""Until what the disk did not let us open is tried again."""
_LOG = logging.getLogger("edgeml.fleet")


class Enrolled:
    """Spool, trust, updater and link of one agent."""

    def __init__(
        self, config: AgentConfig, repository: Repository,
        give_up: Callable[[str], None], recent: Callable[[], list[str]],
    ) -> None:  # fmt: skip
        """Nothing is opened yet.

        Args:
            config: how this agent is set.
            repository: what is served.
            give_up: ends this process, where only a fresh one can go on.
            recent: the last lines of the log.
        """
        self._config = config
        self._repository = repository
        self._means = Means(is_enrolled(config.state))
        self._recent = recent
        self._started = time.monotonic()
        updates = config.update
        parts = Parts(
            trust=self._means,
            fetch=self._means,
            models=Candidates(repository, config),
            outlet=self,
            disk=REAL,
            thread=Lane,
            clock=time.monotonic,
            wall=time.time,
            chance=random.random,
            give_up=give_up,
            recent=recent,
        )
        self.updater = Updater(config.state, parts, settings_of(updates))
        self._link: Link | None = None

    async def boot(self) -> None:
        """Serve what is committed."""
        await self.updater.boot()

    def covers(self, name: str) -> bool:
        """Whether the fleet has given a model of that name to serve."""
        running = self.updater.running
        return running is not None and running.release.model == name

    async def run(self) -> None:
        """Go on until cancelled."""
        await self._open()  # first: the updater may have been told what to run already
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.updater.run())
            tasks.create_task(self._take_part())

    async def stop(self, orderly: bool) -> None:
        """After :meth:`run` has ended: the agent ends, as it was asked to or not."""
        await self.updater.stop(orderly)
        if self._means.member is not None:
            await asyncio.to_thread(self._means.member.close)

    async def _open(self) -> None:
        """Open what the fleet needs, if the disk lets us."""
        if not self._means.enrolled:
            return
        try:
            self._means.member = await asyncio.to_thread(self._opened)
        except IdentityError as error:
            event(_LOG, logging.ERROR, "identity cannot be used", reason=str(error))
            self._means.enrolled = False
        except StorageError as error:
            event(_LOG, logging.ERROR, "no part in the fleet", reason=str(error))

    async def _take_part(self) -> None:
        """Be linked, as soon as there is what that needs."""
        while self._means.enrolled and self._means.member is None:
            await asyncio.sleep(AGAIN_S)
            await self._open()
        if self._means.member is None:
            return
        member, settings = self._means.member, self._config.link
        self._link = Link(
            member.identity, self, member.spool, link_settings(settings),
            random=random.random, ids=new_id,
        )  # fmt: skip
        windows = Windows(self._repository.served, member.spool.add)
        member.listen(asyncio.get_running_loop(), self._link.added)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._link.run())
            tasks.create_task(windows.run(settings.window_s))

    def _opened(self) -> Member:
        identity = load_identity(self._config.state)
        if identity is None:
            raise IdentityError("it is gone; enrol again: edgeml-agent enroll")
        return Member(self._config, identity)

    # As the updater's outlet ---------------------------------------------------------

    def step(self, number: int, body: dict[str, Any], at: float) -> None:
        """Keep a step until the fleet has it; blocks until it is durable.

        Raises:
            StorageError: it is not kept.
        """
        if not self._means.enrolled:
            return
        if self._means.member is None:
            raise StorageError(Reason.STORAGE, "the spool is not open yet")
        spool = self._means.member.spool
        spool.add("step", body, at)
        spool.flush()

    def report(self, running: Running | None, attempt: Attempt | None) -> None:
        """What runs, or how the attempt stands, has changed."""
        if self._link is not None:
            self._link.report()

    # As the link's device ------------------------------------------------------------

    def describe(self) -> Description:
        """Who this device is."""
        state = self.updater.state
        held = {name: state.slot(name) for name in SLOTS}
        return Description(
            agent=__version__, compatible=compatible(), facts=facts(),
            slots={name: one.digest if one else None for name, one in held.items()},
        )  # fmt: skip

    def standing(self) -> tuple[Running | None, Attempt | None]:
        """What runs, and how the last attempt stands."""
        return self.updater.running, self.updater.state.attempt

    def desired(self, envelope: bytes) -> None:
        """The fleet's word, unverified."""
        self.updater.heard(envelope)

    def diagnose(self) -> dict[str, Any]:
        """What a person far away would look at first."""
        state = self.updater.state
        return {
            "agent": __version__,
            "up_s": round(time.monotonic() - self._started, 1),
            "rss_bytes": machine.memory_bytes("VmRSS"),
            "phase": state.phase.value,
            "note": state.note and asdict(state.note),
            "starts": state.job.starts if state.job else 0,
            "log": self._recent(),
        }

    def log_level(self, level: str) -> None:
        """Log from that level on.

        Raises:
            ValueError: there is no such level.
        """
        configure_level(level)

    # For people ----------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """All of it, as the local API shows it; may wait for the disk."""
        state, running = self.updater.state, self.updater.running
        member = self._means.member
        found: dict[str, Any] = {
            "enrolled": self._means.enrolled,
            "slots": {name: _plain(state.slot(name)) for name in SLOTS},
            "committed": state.committed,
            "active": state.active,
            "phase": state.phase.value,
            "running": running and running.model_dump(mode="json"),
            "attempt": state.attempt and state.attempt.model_dump(mode="json"),
            "note": state.note and asdict(state.note),
        }
        if member is not None:
            document = member.identity.document
            found["device"] = document.device
            found["tenant"] = document.tenant
            found["floors"] = asdict(member.trust.floors)
            found["spool"] = asdict(member.spool.standing())
        if self._link is not None:
            found["link"] = asdict(self._link.status)
        return found


def settings_of(config: UpdateConfig) -> Settings:
    """The updater's settings, as ``[update]`` has them."""
    limits = Limits()
    phase_s = {
        **limits.phase_s,
        Phase.DOWNLOADING: config.download_s,
        Phase.PROBING: config.probe_s,
        Phase.TRIAL: config.trial_s * 2 + 600.0,
    }
    return Settings(
        limits=Limits(
            phase_s=MappingProxyType(phase_s), max_starts=config.max_starts
        ),
        trial=Trial(
            inferences=config.trial_inferences, least_s=config.trial_least_s,
            most_s=config.trial_s, recheck_s=config.recheck_s,
            recheck_late_s=config.hang_s, failure_share=config.failure_share,
            growth_bytes=config.growth_bytes,
        ),
    )  # fmt: skip


def link_settings(config: LinkConfig) -> LinkSettings:
    """The link's settings, as ``[link]`` has them."""
    return LinkSettings(
        reconnect_max_s=config.reconnect_max_s,
        birth_spread_s=config.birth_spread_s,
        session=SessionSettings(
            keep_alive_s=config.keep_alive_s, session_s=config.session_s,
            will_s=config.will_s,
        ),
        pump=PumpSettings(
            batch_bytes=config.batch_bytes, flights_max=config.batches,
            ack_s=config.ack_s, ack_max_s=config.ack_max_s, linger_s=config.linger_s,
        ),
    )  # fmt: skip


def _plain(held: Held | None) -> dict[str, Any] | None:
    if held is None:
        return None
    return {
        "model": held.release.model, "version": held.release.version,
        "digest": held.digest, "counter": held.counter,
    }  # fmt: skip
