"""The fleet's side of MQTT on a real broker, as small as the contract lets it be.

It hears every device through the shared subscription, keeps what it heard, stores
records in a :class:`ledgers.Ledger` and acknowledges what has no gap.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from brokers import TENANT, Broker, Peer
from ledgers import Ledger
from paho.mqtt.client import MQTTMessage

from device_agent.contract.messages import (
    Ack,
    Birth,
    Command,
    Message,
    Reported,
    Response,
    State,
    read,
    write,
)
from device_agent.contract.packed import unpack
from device_agent.contract.topics import Topics, ingest

KINDS: dict[str, type[Message]] = {
    "state": State, "birth": Birth, "reported": Reported, "rsp": Response,
}  # fmt: skip


class Fleet:
    """One consumer of everything that devices say."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.acknowledging = True
        """Whether it acknowledges records that it stored."""
        self.deaf = False
        """Whether what comes is lost before it is stored."""
        self.ledgers: dict[str, Ledger] = {}
        self.batches: list[tuple[str, int, int]] = []
        """Epoch, first and last number of every batch that came."""
        self._numbers = count(1)
        peer.client.on_message = self._heard
        peer.subscribe(ingest(), retain_handling=2)

    def said(self, device: str, kind: str) -> list[Any]:
        """What a device said on ``up/{kind}``, read, in order."""
        topic = f"{Topics(TENANT, device).root}/up/{kind}"
        return [read(raw, KINDS[kind]) for raw in self.peer.on(topic)]

    def stored(self, device: str) -> list[Any]:
        """Bodies of a device's records, in order of their numbers."""
        ledger = self.ledgers.get(device, Ledger())
        return [ledger.stored[key] for key in sorted(ledger.stored)]

    def desired(self, device: str, envelope: bytes) -> None:
        """Say, retained, what a device should run."""
        topic = Topics(TENANT, device).desired
        assert self.peer.publish(topic, envelope, retain=True) == ""

    def command(
        self, device: str, kind: str, *, expiry_s: int = 60, command_id: str = "",
        response: str | None = None, **arguments: Any,
    ) -> Command:  # fmt: skip
        """Ask a device for something."""
        topics = Topics(TENANT, device)
        made = Command(
            id=command_id or f"c-{next(self._numbers)}", kind=kind, arguments=arguments
        )
        self.peer.publish(
            topics.command, write(made), MessageExpiryInterval=expiry_s,
            ResponseTopic=response or topics.response,
            CorrelationData=made.id.encode(),
        )  # fmt: skip
        return made

    def acknowledge(self, device: str, ack: Ack) -> None:
        """Say what its database has."""
        self.peer.client.publish(Topics(TENANT, device).ack, write(ack), 1)

    def _heard(self, _client: Any, _user: Any, message: MQTTMessage) -> None:
        with self.peer._change:
            self.peer.heard.append(message)
            if message.topic.endswith("/up/rec") and not self.deaf:
                self._store(message)
            self.peer._change.notify_all()

    def _store(self, message: MQTTMessage) -> None:
        device = message.topic.split("/")[4]
        content_type = getattr(message.properties, "ContentType", "")
        batch = unpack(content_type, message.payload)
        ledger = self.ledgers.setdefault(device, Ledger())
        upto = ledger.take(batch)
        self.batches.append((batch.epoch, batch.first, batch.records[-1].seq))
        if not self.acknowledging:
            return
        gaps = tuple(
            (first, last) for epoch, first, last in ledger.missing()
            if epoch == batch.epoch
        )  # fmt: skip
        self.acknowledge(device, Ack(epoch=batch.epoch, seq=upto, missing=gaps))


@contextmanager
def fleet(broker: Broker, name: str = "fleet-1") -> Iterator[Fleet]:
    """Listen until the test ends."""
    with broker.peer(name) as peer:
        yield Fleet(peer)
