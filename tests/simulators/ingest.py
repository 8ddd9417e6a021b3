"""The least fleet that keeps the ledger: MQTT in, SQLite, acknowledgement out.

The rules it keeps:

1. A batch is stored in one transaction, each record under its (device, epoch, number),
   once. What a tombstone stands for is kept beside the records and counts only where
   nothing is stored, for its own number may be stored already.
2. Only after the commit it is acknowledged: to the device (``dn/ack``, cumulative, with
   the gaps to be sent again), then to the broker (manual PUBACK).
3. It may be killed at any moment, and started again on the same file.
"""

import json
import queue
import signal
import sqlite3
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from device_agent.contract.errors import MessageError
from device_agent.contract.messages import Ack, Batch, Dropped, write
from device_agent.contract.packed import unpack
from device_agent.contract.topics import ingest, parse

SCHEMA = """
CREATE TABLE IF NOT EXISTS records (device TEXT, epoch TEXT, seq INTEGER, kind TEXT,
  at REAL, body TEXT, PRIMARY KEY (device, epoch, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dropped (device TEXT, epoch TEXT, first INTEGER,
  last INTEGER, count INTEGER, reason TEXT,
  PRIMARY KEY (device, epoch, first, last)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS progress (device TEXT, epoch TEXT, upto INTEGER,
  PRIMARY KEY (device, epoch)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS conflicts (device TEXT, epoch TEXT, seq INTEGER);
CREATE TABLE IF NOT EXISTS figures (name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
"""
RECEIVE_MAX = 200
TOGETHER_MAX = 100
"""Messages of one transaction."""
GAPS_MAX = 8
EARLY_S = 0.3
"""What the mutant takes to commit, as one does that writes in larger groups."""
Key = tuple[str, str]


@dataclass
class Progress:
    """Of one epoch: no gap up to a number, and what came beyond it."""

    upto: int = 0
    beyond: set[int] = field(default_factory=set)

    def add(self, numbers: Iterable[int]) -> None:
        self.beyond |= {one for one in numbers if one > self.upto}
        while self.upto + 1 in self.beyond:
            self.upto += 1
            self.beyond.discard(self.upto)

    def gaps(self) -> tuple[tuple[int, int], ...]:
        found, before = [], self.upto
        for seq in sorted(self.beyond):
            if seq > before + 1:
                found.append((before + 1, seq - 1))
            before = seq
        return tuple(found[:GAPS_MAX])


class Books:
    """The database."""

    def __init__(self, path: Path) -> None:
        self.connection = sqlite3.connect(path, isolation_level=None)
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("PRAGMA synchronous=FULL")
        self.connection.executescript(SCHEMA)
        self._progress: dict[Key, Progress] = {}

    def take(self, batches: list[tuple[str, Batch]]) -> dict[Key, Ack]:
        """Store them all, or nothing; what is to be acknowledged then."""
        touched: dict[Key, None] = {}
        self.connection.execute("BEGIN IMMEDIATE")
        for device, batch in batches:
            key = device, batch.epoch
            touched[key] = None
            progress = self._known(key)
            rows = [
                (*key, one.seq, one.kind, one.at, json.dumps(one.body, sort_keys=True))
                for one in batch.records
                if one.kind != "dropped"
            ]
            self._store(rows)
            progress.add(row[2] for row in rows)
            for one in batch.records:
                if one.kind == "dropped":
                    progress.add(self._bury(key, Dropped.model_validate(one.body)))
            self.connection.execute(
                "INSERT OR REPLACE INTO progress VALUES (?, ?, ?)",
                (*key, progress.upto),
            )
        self.connection.execute("COMMIT")
        return {
            key: Ack(epoch=key[1], seq=one.upto, missing=one.gaps())
            for key in touched
            for one in (self._progress[key],)
        }

    def _store(self, rows: list[tuple[Any, ...]]) -> None:
        before = self.connection.total_changes
        self.connection.executemany(
            "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?)", rows
        )
        again = len(rows) - (self.connection.total_changes - before)
        if not again:
            return
        self.connection.execute(
            "INSERT INTO figures VALUES ('again', ?) ON CONFLICT (name)"
            " DO UPDATE SET value = value + excluded.value",
            (again,),
        )
        self.connection.executemany(
            "INSERT INTO conflicts SELECT device, epoch, seq FROM records"
            " WHERE device = ? AND epoch = ? AND seq = ? AND body != ?",
            [(*row[:3], row[5]) for row in rows],
        )

    def _bury(self, key: Key, run: Dropped) -> range:
        self.connection.execute(
            "INSERT OR IGNORE INTO dropped VALUES (?, ?, ?, ?, ?, ?)",
            (*key, run.first, run.last, run.count, run.reason),
        )
        return range(run.first, run.last + 1)

    def _known(self, key: Key) -> Progress:
        if key not in self._progress:
            row = self.connection.execute(
                "SELECT upto FROM progress WHERE device = ? AND epoch = ?", key
            ).fetchone()
            made = self._progress[key] = Progress(row[0] if row else 0)
            where = "WHERE device = ? AND epoch = ? AND"
            made.add(
                seq
                for (seq,) in self.connection.execute(
                    f"SELECT seq FROM records {where} seq > ?", (*key, made.upto)
                )
            )
            for first, last in self.connection.execute(
                f"SELECT first, last FROM dropped {where} last > ?", (*key, made.upto)
            ):
                made.add(range(first, last + 1))
        return self._progress[key]


class Ingest:
    """The consumer; ``early``: the mutant that acknowledges before it commits."""

    def __init__(
        self, host: str, port: int, user: str, password: str, books: Books,
        early: bool = False,
    ) -> None:  # fmt: skip
        self._books, self._early = books, early
        self._came: queue.Queue[tuple[int, MQTTMessage]] = queue.Queue()
        self._connection = 0
        """How often it connected: a message is acknowledged where it came."""
        self.client = Client(
            CallbackAPIVersion.VERSION2, "ingest", manual_ack=True,
            protocol=MQTTProtocolVersion.MQTTv5,
        )  # fmt: skip
        self.client.username_pw_set(user, password)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_connect = self._connected
        self.client.on_message = self._message
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        properties.ReceiveMaximum = RECEIVE_MAX
        self.client.connect_async(
            host, port, 30, clean_start=False, properties=properties
        )
        self.client.loop_start()

    def run(self) -> None:
        """Until the process ends."""
        while True:
            group = [self._came.get()]
            while len(group) < TOGETHER_MAX and not self._came.empty():
                group.append(self._came.get())
            batches = []
            for _, message in group:
                found = _read(message)
                if found is not None:
                    batches.append(found)
            if self._early:
                for device, batch in batches:
                    ack = Ack(epoch=batch.epoch, seq=batch.records[-1].seq)
                    self._say(device, message.topic, ack)
                self._free(group)
                time.sleep(EARLY_S)
            acks = self._books.take(batches)
            for (device, _), ack in acks.items():
                self._say(device, message.topic, ack)
            if not self._early:
                self._free(group)

    def _free(self, group: list[tuple[int, MQTTMessage]]) -> None:
        for connection, one in group:
            if connection == self._connection:
                self.client.ack(one.mid, one.qos)

    def _say(self, device: str, like: str, ack: Ack) -> None:
        topics, _ = parse(like)
        topics = type(topics)(topics.tenant, device)
        self.client.publish(topics.ack, write(ack), 1)

    def _connected(self, client: Client, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        if not code.is_failure:
            self._connection += 1
            client.subscribe(
                ingest(), options=SubscribeOptions(qos=1, retainHandling=2)
            )

    def _message(self, _c: Client, _u: Any, message: MQTTMessage) -> None:
        self._came.put((self._connection, message))


def _read(message: MQTTMessage) -> tuple[str, Batch] | None:
    """Whose batch it is; None: it is something else."""
    topics, kind = parse(message.topic)
    if kind != "up/rec":
        return None
    content_type = getattr(message.properties, "ContentType", "")
    try:
        return topics.device, unpack(content_type, message.payload)
    except MessageError as error:
        sys.stderr.write(f"{message.topic}: {error}\n")
        return None


def serve(
    host: str, port: int, user: str, password: str, path: Path, early: bool = False
) -> None:
    """The process."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGTERM, end)
    Ingest(host, port, user, password, Books(path), early).run()
