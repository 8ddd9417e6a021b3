"""What an agent that belongs to a fleet does beside serving: it listens and reports.

The rules it keeps:

1. Nothing here is on the way of a request. What blocks has threads of its own.
2. What was committed is served also where the identity is lost, the broker or the
   registry is gone for good, or the disk is full.
3. Clocks, chance and ids are taken from the system here and nowhere below.
"""

import asyncio
import logging
import random
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from . import __version__
from .candidates import Candidates
from .config import AgentConfig, LinkConfig, UpdateConfig
from .contract import machine
from .contract.codes import Phase, Reason
from .contract.messages import Attempt, Running
from .download.downloader import Downloader, pool
from .download.rules import DownloadLimits, Wanted
from .durable import REAL, make_folder
from .errors import UpdateError
from .identity import Identity, load_identity
from .link.link import Link, LinkSettings
from .link.ports import Description
from .link.pump import PumpSettings
from .link.session import SessionSettings
from .log import configure_level
from .serving.lane import Lane
from .serving.repository import Repository
from .spool.rules import SpoolLimits
from .spool.spool import Spool
from .trust.client import Authorized, TrustClient, TrustConfig
from .trust.wire import Facts
from .updating.facts import SLOTS, Goal, Held
from .updating.health import Trial
from .updating.policy import Limits
from .updating.state import NAME
from .updating.updater import Parts, Settings, Updater
from .windows import Windows

FLOORS: Final = "floors"
"""Folder beside the state's own files: the second place of the floors."""
_LOG = logging.getLogger("edgeml.fleet")


class Enrolled:
    """Spool, trust, updater and link of one agent; made by :func:`join`."""

    def __init__(
        self, config: AgentConfig, repository: Repository, member: "Member | None",
        give_up: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._config = config
        self._member = member
        self._started = time.monotonic()
        updates = config.update
        parts = Parts(
            trust=member or _Nobody(),
            fetch=member or _Nobody(),
            models=Candidates(repository, config),
            outlet=self,
            disk=REAL,
            thread=Lane,
            clock=time.monotonic,
            wall=time.time,
            chance=random.random,
            give_up=give_up,
        )
        self.updater = Updater(config.state, parts, settings_of(updates))
        self._link: Link | None = None
        self._windows: Windows | None = None
        if member is not None:
            self._link = Link(
                member.identity, self, member.spool, link_settings(config.link),
                random=random.random, ids=_id,
            )  # fmt: skip
            self._windows = Windows(repository.served, member.spool.add)
            member.listen(asyncio.get_running_loop(), self._link.added)

    async def boot(self) -> None:
        """Serve what is committed."""
        await self.updater.boot()

    def covers(self, name: str) -> bool:
        """Whether the fleet has given a model of that name to serve."""
        running = self.updater.running
        return running is not None and running.release.model == name

    async def run(self) -> None:
        """Go on until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.updater.run())
            if self._link is not None:
                tasks.create_task(self._link.run())
            if self._windows is not None:
                window_s = self._config.link.window_s
                tasks.create_task(self._windows.run(window_s))

    async def stop(self) -> None:
        """After :meth:`run` has ended: the agent ends in order."""
        await self.updater.stop()
        if self._member is not None:
            await asyncio.to_thread(self._member.close)

    # As the updater's outlet ---------------------------------------------------------

    def step(self, number: int, body: dict[str, Any], at: float) -> None:
        """Keep a step until the fleet has it; blocks until it is durable."""
        if self._member is not None:
            self._member.spool.add("step", body, at)
            self._member.spool.flush()

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
        state, running, member = self.updater.state, self.updater.running, self._member
        found: dict[str, Any] = {
            "enrolled": member is not None,
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


class Member:
    """An enrolled device's means: whom it believes, where records wait, how it gets
    bundles. Implements the updater's ``Trust`` and ``Fetch``."""

    def __init__(self, config: AgentConfig, identity: Identity) -> None:
        """Open them; blocks.

        Raises:
            StorageError: the disk.
        """
        document = identity.document
        self.identity = identity
        self._added: Callable[[], None] = lambda: None
        self.spool = Spool(
            config.state,
            REAL,
            SpoolLimits(bytes_max=config.spool.bytes_max, age_s=config.spool.age_s),
            _id,
            added=lambda: self._added(),
        )
        floors = config.state / FLOORS
        make_folder(REAL, floors)
        self.trust = TrustClient(
            TrustConfig(
                identity.root, identity.director, document.registry,
                Facts(document.device, compatible(), __version__),
                ca=_existing(identity.folder / "registry-ca.crt"),
                enrolled=document.enrolled_at.timestamp(),
            ),
            config.state, floors,
        )  # fmt: skip
        downloads = config.state / "download"
        make_folder(REAL, downloads)
        rate = config.update.rate_bytes_s
        self._downloader = Downloader(
            downloads, REAL, DownloadLimits(rate_bytes_s=rate or None),
            pool(_existing(identity.folder / "registry-ca.crt")),
        )  # fmt: skip
        for note in self.trust.notes:
            _LOG.warning("trust: %s", note)

    def listen(
        self, loop: asyncio.AbstractEventLoop, added: Callable[[], None]
    ) -> None:
        """Say on the loop when there are new records."""

        def tell() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(added)

        self._added = tell

    def close(self) -> None:
        """Give everything back; blocks."""
        self._added = lambda: None
        self.spool.close()
        self.trust.close()

    def authorize(self, envelope: bytes) -> Goal:
        """What the envelope asks for, if director and registry vouch for it now."""
        found = self.trust.authorize(envelope, time.time())
        return Goal(
            envelope, found.desired, found.path, found.length, found.urls,
            found.custom, found.valid_until,
        )  # fmt: skip

    def confirm(self, goal: Goal) -> None:
        """Whether they still do; the registry is asked only where its word is old."""
        known = Authorized(
            goal.desired, goal.path, goal.length, goal.urls, goal.custom, {},
            goal.valid_until,
        )  # fmt: skip
        try:
            self.trust.still(known, time.time())
        except UpdateError as error:
            if error.reason is not Reason.METADATA_EXPIRED:
                raise
            found = self.authorize(goal.envelope)
            if found.desired.digest != goal.desired.digest:
                raise UpdateError(
                    Reason.TARGET_MISMATCH, f"{goal.path} is another bundle by now"
                ) from error

    def committed(self, held: Held) -> None:
        """Older releases of that model are refused from now on."""
        self.trust.raised(held.release.model, held.target, held.counter, held.digest)

    def fetch(self, goal: Goal, path: Path, stop: threading.Event) -> None:
        """The whole file at ``path``."""
        wanted = Wanted(goal.desired.digest, goal.length, goal.urls)
        found, _ = self._downloader.fetch(wanted, stop)
        assert found == path, "both name it by its digest"


class _Nobody:
    """Trust and Fetch of a device without identity: it believes nobody."""

    def authorize(self, envelope: bytes) -> Goal:
        raise UpdateError(
            Reason.TRUST_UNAVAILABLE,
            "this device is not enrolled; edgeml-agent enroll does that",
        )

    def confirm(self, goal: Goal) -> None:
        self.authorize(goal.envelope)

    def committed(self, held: Held) -> None:
        """There is no floor to raise."""

    def fetch(self, goal: Goal, path: Path, stop: threading.Event) -> None:
        self.authorize(goal.envelope)


async def join(
    config: AgentConfig, repository: Repository, give_up: Callable[[str], None]
) -> Enrolled | None:
    """Take part in the fleet that this device is enrolled with.

    Returns:
        None: it is not enrolled, and no fleet has ever given it anything.

    Raises:
        StorageError: the disk.
        IdentityError: it is enrolled, and its identity cannot be used.
    """
    identity = await asyncio.to_thread(load_identity, config.state)
    if identity is None and not (config.state / NAME).exists():
        return None
    member = None
    if identity is not None:
        member = await asyncio.to_thread(Member, config, identity)
    return Enrolled(config, repository, member, give_up)


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


def compatible() -> tuple[str, ...]:
    """What bundles may be made for to run here: this board by its device tree, and
    what every machine of its architecture is."""
    arch = machine.arch()
    try:
        raw = Path("/proc/device-tree/compatible").read_bytes()
    except OSError:
        raw = b""
    tree = [one for one in raw.decode("ascii", "replace").split("\0") if one]
    return (*tree, f"cpu-{arch}", f"{arch}-linux")


def facts() -> dict[str, Any]:
    """Hardware and system, for the inventory."""
    return {
        "arch": machine.arch(),
        "processor": machine.name(),
        "cores": machine.cores(),
        "features": sorted(machine.features()),
    }


def _id() -> str:
    return secrets.token_hex(8)


def _existing(path: Path) -> Path | None:
    return path if path.exists() else None


def _plain(held: Held | None) -> dict[str, Any] | None:
    if held is None:
        return None
    return {
        "model": held.release.model, "version": held.release.version,
        "digest": held.digest, "counter": held.counter,
    }  # fmt: skip
