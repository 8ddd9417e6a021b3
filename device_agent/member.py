"""How a device that is enrolled believes, keeps and fetches: the means of its fleet.

The rules it keeps:

1. They are opened beside serving, and again and again where the disk does not let them:
   until then nobody is believed, and what is committed is served.
2. Clocks, chance and ids are taken from the system here.
"""

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

from . import __version__
from .config import AgentConfig
from .contract import machine
from .contract.codes import Reason
from .download.downloader import Downloader, pool
from .download.rules import DownloadLimits, Wanted
from .durable import REAL, make_folder, told
from .errors import UpdateError
from .identity import Identity
from .runtimes.installed import installed
from .spool.rules import SpoolLimits
from .spool.spool import Spool
from .trust.client import Authorized, TrustClient, TrustConfig
from .trust.wire import Facts
from .updating.facts import Goal, Held

FLOORS: Final = "floors"
"""Folder beside the state's own files: the second place of the floors."""
_LOG = logging.getLogger("edgeml.fleet")


class Member:
    """An enrolled device's means: whom it believes, where records wait, how it gets
    bundles."""

    def __init__(self, config: AgentConfig, identity: Identity) -> None:
        """Open them; blocks.

        Raises:
            StorageError: the disk.
        """
        self.identity = identity
        self._added: Callable[[], None] = lambda: None
        with ExitStack() as opened:  # closed again where the rest cannot be opened
            self.spool = Spool(
                config.state,
                REAL,
                SpoolLimits(bytes_max=config.spool.bytes_max, age_s=config.spool.age_s),
                new_id,
                added=lambda: self._added(),
            )
            opened.callback(self.spool.close)
            self.trust = _trust(config, identity)
            opened.callback(self.trust.close)
            self._downloader = _downloader(config, identity)
            opened.pop_all()
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


def _trust(config: AgentConfig, identity: Identity) -> TrustClient:
    floors = config.state / FLOORS
    make_folder(REAL, floors)
    document = identity.document
    with told("look which runtimes there are"):
        runtimes = installed()
    return TrustClient(
        TrustConfig(
            identity.root, identity.director, document.registry,
            Facts(document.device, compatible(), __version__, runtimes),
            ca=_existing(identity.folder / "registry-ca.crt"),
            enrolled=document.enrolled_at.timestamp(),
        ),
        config.state, floors,
    )  # fmt: skip


def _downloader(config: AgentConfig, identity: Identity) -> Downloader:
    downloads = config.state / "download"
    make_folder(REAL, downloads)
    rate = config.update.rate_bytes_s
    return Downloader(
        downloads, REAL, DownloadLimits(rate_bytes_s=rate or None),
        pool(_existing(identity.folder / "registry-ca.crt")),
    )  # fmt: skip


class Means:
    """Trust and Fetch of the updater: the member's, once there is one."""

    def __init__(self, enrolled: bool) -> None:
        self.member: Member | None = None
        self.enrolled = enrolled
        """Where it is not, there will be no member."""

    def authorize(self, envelope: bytes) -> Goal:
        """What the envelope asks for, if director and registry vouch for it now."""
        return self._get().authorize(envelope)

    def confirm(self, goal: Goal) -> None:
        """Whether they still do."""
        self._get().confirm(goal)

    def committed(self, held: Held) -> None:
        """Older releases of that model are refused from now on."""
        if self.enrolled:
            self._get().committed(held)

    def fetch(self, goal: Goal, path: Path, stop: threading.Event) -> None:
        """The whole file at ``path``."""
        self._get().fetch(goal, path, stop)

    def _get(self) -> Member:
        if self.member is not None:
            return self.member
        if self.enrolled:
            text = "the disk does not let this device look into its state"
            raise UpdateError(Reason.TRUST_FAILED, text)
        text = "this device is not enrolled; edgeml-agent enroll does that"
        raise UpdateError(Reason.TRUST_UNAVAILABLE, text)


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


def new_id() -> str:
    """A new name, of a session or an epoch."""
    return secrets.token_hex(8)


def _existing(path: Path) -> Path | None:
    with told(f"look for {path}"):
        return path if path.exists() else None
