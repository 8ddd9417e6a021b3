"""A device of the ledger's campaign: real spool, real link, nothing else.

It makes records until it has made as many as it shall, over all of its lives: a
journal says what was durable (``epoch number`` after each flush), and the next life
goes on from there. It ends (0) when all is made and the fleet has acknowledged all.
"""

import asyncio
import os
import random
import secrets
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import linked
from paho.mqtt.client import Client, MQTTMessageInfo

from device_agent.contract.packed import unpack
from device_agent.durable import REAL
from device_agent.identity import Identity
from device_agent.link.link import Link, LinkSettings
from device_agent.link.pump import PumpSettings
from device_agent.link.session import SessionSettings
from device_agent.spool.rules import SpoolLimits
from device_agent.spool.spool import Spool

KINDS = ("sample", "window", "drift", "event", "step")
SETTINGS = LinkSettings(
    reconnect_s=0.2, reconnect_max_s=2.0, birth_spread_s=0.5,
    session=SessionSettings(keep_alive_s=15, will_s=1, connect_s=5.0),
    pump=PumpSettings(batch_bytes=16 << 10, ack_s=1.0, ack_max_s=4.0, linger_s=0.1),
)  # fmt: skip


@dataclass(frozen=True)
class Life:
    """What one device is to do."""

    identity: Identity
    records: int
    seconds: float
    """Over which they are made, unless it is interrupted."""
    spool_bytes: int
    clock: Path
    """Holds what is added to the clock of the wall."""
    seed: int
    mutant: str = ""

    @property
    def state(self) -> Path:
        return self.identity.folder.parent

    @property
    def journal(self) -> Path:
        return self.state / "journal"


def made(journal: Path) -> dict[str, int]:
    """What was durable: epoch → last number."""
    found: dict[str, int] = {}
    if journal.exists():
        for line in journal.read_text().splitlines():
            epoch, number = line.split()
            found[epoch] = max(int(number), found.get(epoch, 0))
    return found


def live(life: Life) -> None:
    """The process."""
    with MUTANTS[life.mutant](life):
        asyncio.run(_live(life))


async def _live(life: Life) -> None:
    loop, links = asyncio.get_running_loop(), list[Link]()

    def added() -> None:
        loop.call_soon_threadsafe(lambda: [one.added() for one in links])

    limits = SpoolLimits(bytes_max=life.spool_bytes, group_s=0.02)
    spool = Spool(life.state, REAL, limits, lambda: secrets.token_hex(6), added=added)
    link = Link(
        life.identity, linked.Told(), spool, SETTINGS, random=random.random,
        ids=lambda: secrets.token_hex(6), wall=lambda: _wall(life.clock),
    )  # fmt: skip
    links.append(link)
    SPOOLS[life.identity.document.device] = spool
    task = asyncio.create_task(link.run())
    await _make(life, spool)
    while (await asyncio.to_thread(spool.standing)).records:
        if task.done():
            task.result()
        await asyncio.sleep(0.2)
    os._exit(0)  # no goodbye: that would be another campaign


async def _make(life: Life, spool: Spool) -> None:
    """Records in groups, each said in the journal when it is durable."""
    draw = random.Random(f"{life.seed} {os.getpid()}")
    epoch = spool.standing().epoch
    done = sum(made(life.journal).values())
    pause_s = life.seconds / life.records
    number = 0
    out = os.open(life.journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    while done < life.records:
        size = min(draw.randrange(1, 60), life.records - done)
        for _ in range(size):
            number += 1
            body = {"n": number, "mean": draw.random(), "name": "latency_ms"}
            spool.add(draw.choice(KINDS), body, _wall(life.clock))
        await asyncio.to_thread(spool.flush)
        os.write(out, f"{epoch} {number}\n".encode())
        done += size
        await asyncio.sleep(pause_s * size)


def _wall(clock: Path) -> float:
    return max(0.0, time.time() + float(clock.read_text() or 0))


SPOOLS: dict[str, Spool] = {}
"""Of this process: for the mutant only."""


def _right(life: Life) -> AbstractContextManager[object]:
    return nullcontext()


def _delete_on_puback(life: Life) -> AbstractContextManager[object]:
    """What the broker took is taken for what the fleet's database has."""
    publish: Callable[..., MQTTMessageInfo] = Client.publish
    device = life.identity.document.device

    def published(
        self: Client, topic: str, payload: Any = None, qos: int = 0,
        retain: bool = False, properties: Any = None,
    ) -> MQTTMessageInfo:  # fmt: skip
        info = publish(self, topic, payload, qos, retain, properties)
        if topic.endswith("/up/rec"):
            batch = unpack(properties.ContentType, payload)
            marks[info.mid] = batch.epoch, batch.records[-1].seq

            def puback(_c: Any, _u: Any, mid: int, _r: Any, _p: Any) -> None:
                if mid in marks:
                    SPOOLS[device].acknowledge(*marks.pop(mid))

            self.on_publish = puback
        return info

    marks: dict[int, tuple[str, int]] = {}
    return patch.object(Client, "publish", published)


MUTANTS: dict[str, Callable[[Life], AbstractContextManager[object]]] = {
    "": _right,
    "ack before commit": _right,
    "delete on PUBACK": _delete_on_puback,
}
