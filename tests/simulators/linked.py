"""A device that is nothing but its link: real session, real spool, real identity."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

from brokers import ANSWER_S, TENANT, Broker

from device_agent.contract.enrolment import BrokerAddress
from device_agent.contract.messages import Attempt, Running
from device_agent.durable import REAL
from device_agent.identity import Identity, IdentityDocument
from device_agent.link.link import Link, LinkSettings
from device_agent.link.ports import Description
from device_agent.link.pump import PumpSettings
from device_agent.link.session import SessionSettings
from device_agent.spool.rules import SpoolLimits
from device_agent.spool.spool import Spool

QUICK = LinkSettings(
    reconnect_s=0.1, reconnect_max_s=0.5, birth_spread_s=0.1,
    session=SessionSettings(keep_alive_s=60, will_s=1),
    pump=PumpSettings(ack_s=0.5, ack_max_s=2.0, linger_s=0.01),
)  # fmt: skip
"""A device for which a test need not wait."""


class Told:
    """What the rest of an agent would be: it keeps what the link hands on."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self.level = "info"
        self.running: Running | None = None
        self.attempt: Attempt | None = None

    def describe(self) -> Description:
        return Description("0.1.0", ("cpu-x86_64",), {"cores": 2}, {"a": None})

    def standing(self) -> tuple[Running | None, Attempt | None]:
        return self.running, self.attempt

    def desired(self, envelope: bytes) -> None:
        self.heard.append(envelope)

    def diagnose(self) -> dict[str, Any]:
        return {"level": self.level}

    def log_level(self, level: str) -> None:
        if level not in ("debug", "info"):
            raise ValueError(f"no level {level!r}")
        self.level = level


def identity(
    broker: Broker, device: str, folder: Path, *, port: int | None = None
) -> Identity:
    """What enrolment with that broker would have left."""
    shown = broker.device(device)
    folder.mkdir(parents=True, exist_ok=True)
    for name, path in (
        ("ca.crt", shown.ca), ("device.crt", shown.certificate),
        ("device.key", shown.key),
    ):  # fmt: skip
        if path is not None:
            (folder / name).write_bytes(path.read_bytes())
    if shown.password is not None:
        (folder / "password").write_text(shown.password)
    document = IdentityDocument(
        tenant=TENANT, device=device, server="https://127.0.0.1",
        broker=BrokerAddress(
            host=broker.host, port=port or broker.port, tls=shown.ca is not None
        ),
        registry=("http://127.0.0.1/",), enrolled_at=datetime.now(UTC),
    )  # fmt: skip
    return Identity(folder, document)


class Linked:
    """A link at work."""

    def __init__(
        self, link: Link, told: Told, spool: Spool, task: "asyncio.Task[None]"
    ) -> None:
        self.link, self.told, self.spool = link, told, spool
        self._task = task

    def add(self, *numbers: int, kind: str = "event") -> None:
        """Keep records, durable at return."""
        for number in numbers:
            self.spool.add(kind, {"n": number}, 0.0)
        self.spool.flush()

    async def until(self, true: Callable[[], object], wait_s: float = ANSWER_S) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(wait_s):
            while not true():  # what changes it is another process
                assert not self._task.done(), "the link has died"
                await asyncio.sleep(0.005)


@asynccontextmanager
async def linked(
    who: Identity, settings: LinkSettings = QUICK, limits: SpoolLimits | None = None,
    seed: int = 7,
) -> AsyncIterator[Linked]:  # fmt: skip
    """Start a link; at the end it says goodbye."""
    ids, loop = count(1), asyncio.get_running_loop()
    state = who.folder.parent
    name = f"{who.document.device}-{seed}"
    made: list[Link] = []

    def added() -> None:
        loop.call_soon_threadsafe(lambda: [one.added() for one in made])

    spool = Spool(
        state, REAL, limits or SpoolLimits(group_s=0.0),
        lambda: f"e-{name}-{next(ids)}", added=added,
    )  # fmt: skip
    told = Told()
    link = Link(
        who, told, spool, settings, random=random.Random(seed).random,
        ids=lambda: f"s-{name}-{next(ids)}",
    )  # fmt: skip
    made.append(link)
    task = asyncio.create_task(link.run())
    try:
        yield Linked(link, told, spool, task)
    finally:
        failed = task.done()
        task.cancel()
        await asyncio.gather(task, return_exceptions=not failed)
        await asyncio.to_thread(spool.close)
