"""Records on their way, over a real broker with all its failings."""

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from brokers import Broker, broker
from fleets import Fleet, fleet
from linked import QUICK, Linked, identity, linked

from device_agent.contract.messages import Ack

from .conftest import Tell

COUNT = 300
NUMBERS = [{"n": number} for number in range(COUNT)]


async def arrived(one: Linked, heard: Fleet, count: int = COUNT) -> None:
    """Stored in order, each once, and gone from the spool."""
    await one.until(lambda: len(heard.stored("cam-1")) == count)
    await one.until(lambda: one.spool.standing().records == 0)
    assert heard.stored("cam-1") == NUMBERS[:count]
    assert heard.ledgers["cam-1"].conflicts == []


def test_records_arrive_and_leave_the_spool(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        one.add(*range(COUNT))
        await arrived(one, heard)
        assert len(heard.batches) < COUNT / 10, "they travel together"

    tell(own, story)


def test_small_batches_travel_in_a_small_window(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        heard.acknowledging = False
        one.add(*range(COUNT))
        await one.until(lambda: heard.batches)
        await one.until(lambda: one.link.pump.flow.timeouts == 2)
        assert len(heard.batches) <= 3, "one batch now and then to a silent fleet"
        assert one.spool.standing().records == COUNT, "PUBACK is nothing"
        heard.acknowledging = True
        await arrived(one, heard)

    settings = replace(QUICK, pump=replace(QUICK.pump, batch_bytes=1000))
    tell(own, story, settings=settings)


def test_what_was_lost_behind_the_puback_is_sent_again(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        heard.deaf = True
        one.add(*range(COUNT))
        await one.until(lambda: one.link.pump.batches)
        heard.deaf = False
        await arrived(one, heard)

    tell(own, story)


def test_gaps_are_filled_when_the_fleet_names_them(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        heard.acknowledging = False
        one.add(*range(COUNT))
        await one.until(lambda: one.spool.standing().records == COUNT)
        await one.until(lambda: len(heard.stored("cam-1")) == COUNT)
        epoch, before = one.spool.standing().epoch, len(heard.batches)
        gaps = ((3, 4), (7, 250))
        heard.acknowledge("cam-1", Ack(epoch=epoch, seq=2, missing=gaps))
        await one.until(lambda: (epoch, 3, 4) in heard.batches[before:])
        await one.until(lambda: (epoch, 7, 250) in heard.batches[before:])
        heard.acknowledging = True
        await arrived(one, heard)

    calm = replace(QUICK, pump=replace(QUICK.pump, ack_s=1.5))
    tell(own, story, settings=calm)


def test_what_a_broker_forgot_is_sent_again(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        for start in range(0, COUNT, 50):
            one.add(*range(start, start + 50))
            own.restart(wipe=True)
            await asyncio.to_thread(heard.peer.connect)
            await asyncio.to_thread(
                heard.peer.subscribe, "$share/fleet/edgeml/1/+/d/+/up/#"
            )
        await arrived(one, heard)
        assert one.link.status.sessions > 1

    tell(own, story)


def test_an_ack_that_is_not_of_this_device_changes_nothing(
    own: Broker, tell: Tell
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        heard.acknowledging = False
        one.add(*range(COUNT))
        await one.until(lambda: heard.stored("cam-1"))
        heard.acknowledge("cam-1", Ack(epoch="another", seq=10**9))
        heard.command("cam-1", "diagnose")
        await one.until(lambda: heard.said("cam-1", "rsp"))
        assert one.spool.standing().records == COUNT

    tell(own, story)


def test_an_ack_beyond_what_was_produced_gives_pending_records_a_new_epoch(
    own: Broker, tell: Tell
) -> None:
    """A copy of this device wrote under its epoch."""

    async def story(one: Linked, heard: Fleet) -> None:
        heard.acknowledging = False
        one.add(*range(COUNT))
        await one.until(lambda: heard.stored("cam-1"))
        epoch = one.spool.standing().epoch
        heard.acknowledge("cam-1", Ack(epoch=epoch, seq=10**9))
        await one.until(lambda: one.spool.standing().epoch != epoch)
        del heard.ledgers["cam-1"]
        heard.acknowledging = True
        await arrived(one, heard)

    tell(own, story)


def test_records_of_an_earlier_run_arrive_under_their_own_epoch(
    own: Broker, tmp_path: Path
) -> None:
    who = identity(own, "cam-1", tmp_path / "identity")

    async def alone() -> None:
        async with linked(who, seed=1) as one:
            one.add(*range(100))

    async def together(heard: Fleet) -> None:
        async with linked(who, seed=2) as one:
            one.add(*range(100, COUNT))
            await arrived(one, heard)
            assert len({epoch for epoch, _, _ in heard.batches}) == 2

    own.stop()
    asyncio.run(alone())
    own.start()
    with fleet(own) as heard:
        asyncio.run(together(heard))


@pytest.mark.parametrize("limit", [1500, 4000])
def test_batches_fit_what_the_broker_takes(tell: Tell, limit: int) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        one.add(*range(COUNT))
        await arrived(one, heard)
        assert one.link.status.sessions == 1, "nothing was ever too large"

    with broker(extra=f"max_packet_size {limit}") as made:
        tell(made, story)


def test_a_record_that_no_batch_can_hold_ends_nothing(
    tell: Tell, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        one.add(0)
        await one.until(lambda: one.spool.standing().records == 0)
        text = random.Random(7).randbytes(20_000).hex()
        one.spool.add("event", {"text": text}, 0.0)
        one.spool.flush()
        await one.until(lambda: "record is larger" in caplog.text)
        heard.command("cam-1", "diagnose")
        await one.until(lambda: heard.said("cam-1", "rsp"))
        assert one.link.status.sessions == 1

    with broker(extra="max_packet_size 4000") as made:
        tell(made, story)
