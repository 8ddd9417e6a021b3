"""Records from the spool to the fleet, and the fleet's acknowledgements back.

The rules it keeps:

1. The spool waits for the disk, so it is asked in a thread; nothing else is done there.
2. A batch fits what the broker takes. A record that alone does not fit is given up by
   the spool's own rule (``record_bytes_max``), never here: it is said, and the stream
   stands still until a broker takes it.
3. What is published expires at the broker: it would be sent again anyway, and a fleet
   that is away for days does not find a day's copies of one batch.
"""

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass, replace

from ..contract.messages import Ack, Batch
from ..contract.packed import pack
from ..errors import StorageError
from ..log import event
from ..spool.rules import Answer, Mark
from ..spool.spool import Spool
from .backoff import Random
from .flow import Flow, Following, Missing
from .session import Session

EXPIRY_S = 3600
STORAGE_PAUSE_S = 30.0
TOO_LARGE_PAUSE_S = 600.0
_LOG = logging.getLogger("edgeml.link")


@dataclass(frozen=True)
class PumpSettings:
    """How records are sent."""

    batch_bytes: int = 64 << 10
    """Of the records of one batch, before they are compressed."""
    flights_max: int = 4
    """Batches that are sent and not acknowledged."""
    ack_s: float = 15.0
    """How long the fleet may take to acknowledge."""
    ack_max_s: float = 3600.0
    """The longest wait between attempts while it does not."""
    linger_s: float = 1.0
    """How long the first of new records waits for others."""


class Pump:
    """One per agent; used on the event loop."""

    def __init__(
        self, spool: Spool, topic: str, settings: PumpSettings, random: Random
    ) -> None:
        self.batches = 0
        self.records = 0
        """Sent, those sent again counted again."""
        self._spool = spool
        self._topic = topic
        self._settings = settings
        self._flow = Flow(
            settings.flights_max, settings.ack_s, settings.ack_max_s, random
        )
        self._changed = asyncio.Event()
        self._nothing: Following | None = None
        """What the spool was asked for last and had nothing of."""

    @property
    def flow(self) -> Flow:
        """How sending stands."""
        return self._flow

    def added(self) -> None:
        """There are new records."""
        self._nothing = None
        self._changed.set()

    async def acknowledge(self, ack: Ack) -> None:
        """The fleet has said what its database has."""
        mark = Mark(ack.epoch, ack.seq)
        try:
            answer = await asyncio.to_thread(self._spool.acknowledge, *mark)
        except StorageError:
            return  # the spool has said why; what is not removed is sent again
        if answer is Answer.AHEAD:
            self._flow.begin()
        elif answer is Answer.TAKEN:
            self._flow.acknowledged(mark)
            self._flow.missing(ack.epoch, ack.missing, time.monotonic())
        self._changed.set()

    async def run(self, session: Session) -> None:
        """Send what is due, until cancelled."""
        self._flow.begin()
        self._nothing = None
        while True:
            self._changed.clear()
            pause_s = await self._send(session)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause_s):
                    await self._changed.wait()
                    # Others may follow: one batch rather than many.
                    await asyncio.sleep(self._settings.linger_s)

    async def _send(self, session: Session) -> float | None:
        """Send all that is due; how long there is nothing to do, None: for ever."""
        while (due := self._flow.due(time.monotonic())) is not None:
            if due == self._nothing:
                break
            try:
                batch = await self._batch(due)
            except StorageError as error:
                event(_LOG, logging.ERROR, "spool cannot be read", error=str(error))
                return STORAGE_PAUSE_S
            if batch is None:
                if isinstance(due, Following):
                    self._nothing = due
                continue
            fitting = self._fitted(session, batch)
            if fitting is None:
                return TOO_LARGE_PAUSE_S
            last = fitting.records[-1].seq
            if isinstance(due, Following):
                self._flow.sent(Mark(fitting.epoch, last), time.monotonic())
            elif last < due.last:
                self._flow.again(replace(due, first=last + 1))
        return self._flow.wait_s(time.monotonic())

    async def _batch(self, due: Following | Missing) -> Batch | None:
        size = self._settings.batch_bytes
        if isinstance(due, Following):
            return await asyncio.to_thread(self._spool.pending, due.after, size)
        return await asyncio.to_thread(
            self._spool.between, due.epoch, due.first, due.last, size
        )

    def _fitted(self, session: Session, batch: Batch) -> Batch | None:
        """Publish the batch, or its beginning that the broker takes; what went out."""
        while True:
            content_type, raw = pack(batch)
            if len(raw) <= session.size_bytes_max:
                break
            if len(batch.records) == 1:
                event(
                    _LOG, logging.ERROR, "record is larger than the broker takes",
                    seq=batch.first, size_bytes=len(raw),
                    limit_bytes=session.size_bytes_max,
                )  # fmt: skip
                return None
            half = batch.records[: len(batch.records) // 2]
            batch = batch.model_copy(update={"records": half})
        session.publish(self._topic, raw, content_type=content_type, expiry_s=EXPIRY_S)
        self.batches += 1
        self.records += len(batch.records)
        return batch
