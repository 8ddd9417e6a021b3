"""Records that are added, given up, acknowledged: none is lost without a word."""

import random
import secrets
from collections.abc import Sequence
from pathlib import Path

from faultflows import Say

from device_agent.contract.messages import Batch, Dropped
from device_agent.durable import Disk
from device_agent.spool.rules import Answer, Entry, Mark, SpoolLimits
from device_agent.spool.store import Store

LIMITS = SpoolLimits(bytes_max=1500, age_s=60.0)
KINDS = ("sample", "window", "event", "step")
STEPS = 8


class SpoolFlow:
    """A random program; what was durable is said, by epoch and number."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def prepare(self, state: Path) -> None:
        store = _open(state, Disk())
        store.append([_entry("before", "event", 0)])
        store.close()

    def run(self, state: Path, disk: Disk, say: Say) -> None:
        draw = random.Random(self.seed)
        store = _open(state, disk)
        uptime = 0.0
        for step in range(STEPS):
            verb = draw.choice(("append", "append", "append", "ack", "expire", "ahead"))
            if verb == "append":
                size = draw.randrange(1, 5)
                entries = [
                    _entry(f"{step}", draw.choice(KINDS), draw.randrange(150), uptime)
                    for _ in range(size)
                ]
                first = store.standing().next
                store.append(entries)
                for seq in range(first, first + size):
                    say(f"added {store.epoch} {seq}")
            elif verb == "expire":
                uptime += 50.0
                store.expire(uptime)
            elif (batch := store.pending(None, draw.randrange(1, 900))) is not None:
                last = batch.records[-1].seq
                say(f"storing {batch.epoch} {last}")
                if verb == "ahead" and batch.epoch == store.epoch:
                    last = store.standing().next
                    say(f"renewing {batch.epoch} 0")
                    assert store.acknowledge(batch.epoch, last) is Answer.AHEAD
                else:
                    store.acknowledge(batch.epoch, last)
                    say(f"acknowledged {batch.epoch} {last}")
        store.close()

    def recover(self, state: Path, disk: Disk) -> None:
        _open(state, disk).close()

    def violations(self, state: Path, said: Sequence[str], done: bool) -> list[str]:
        added: set[Mark] = set()
        storing: dict[str, int] = {}
        acknowledged: dict[str, int] = {}
        renewed: set[str] = set()
        for text in said:
            verb, epoch, number = text.split()
            seq = int(number)
            if verb == "added":
                added.add(Mark(epoch, seq))
            elif verb == "storing":
                storing[epoch] = max(seq, storing.get(epoch, 0))
            elif verb == "acknowledged":
                acknowledged[epoch] = max(seq, acknowledged.get(epoch, 0))
            else:
                renewed.add(epoch)
        held, found = _held(state)
        for mark in added - held:
            stored = mark.seq <= storing.get(mark.epoch, 0)
            if not stored and mark.epoch not in renewed:
                found.append(f"{mark} was added and is nowhere")
        for mark in held:
            if mark.seq <= acknowledged.get(mark.epoch, 0):
                found.append(f"{mark} was acknowledged and is here")
        return found


def _held(state: Path) -> tuple[set[Mark], list[str]]:
    """Every number that is pending or declared, and what is wrong with the stream."""
    store = _open(state, Disk())
    found: list[str] = []
    held: set[Mark] = set()
    after: Mark | None = None
    while (batch := store.pending(after, 10_000)) is not None:
        last = after.seq if after is not None and after.epoch == batch.epoch else None
        for first, seq in _runs(batch):
            if last is not None and first != last + 1:
                found.append(f"{batch.epoch}: {first} follows {last}")
            held |= {Mark(batch.epoch, one) for one in range(first, seq + 1)}
            last = seq
        after = Mark(batch.epoch, batch.records[-1].seq)
    if any(mark.epoch == store.epoch for mark in held):
        found.append("a new run goes on under an old epoch")
    store.close()
    return held, found


def _runs(batch: Batch) -> list[tuple[int, int]]:
    return [
        (Dropped.model_validate(one.body).first, one.seq)
        if one.kind == "dropped"
        else (one.seq, one.seq)
        for one in batch.records
    ]


def _open(state: Path, disk: Disk) -> Store:
    return Store(state / "spool.db", disk, LIMITS, lambda: secrets.token_hex(4))


def _entry(name: str, kind: str, size: int, uptime: float = 0.0) -> Entry:
    pad = "x" * size
    return Entry(kind, f'{{"n":"{name}","p":"{pad}"}}', 0.0, uptime)


def flow(seed: int) -> SpoolFlow:
    return SpoolFlow(seed)
