"""What a device says and hears, on a real broker."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from brokers import TENANT, Broker, broker
from fleets import Fleet, fleet
from linked import QUICK, Linked, identity

from device_agent.contract.codes import Outcome, Phase, Reason
from device_agent.contract.messages import Attempt, Release, Running
from device_agent.contract.topics import Topics
from device_agent.errors import IdentityError

from .conftest import Tell

DIGEST = "a" * 64
RUNNING = Running(
    release=Release(model="digits", version="1.0.0"), digest=DIGEST, counter=1,
    committed=True,
)  # fmt: skip
ATTEMPT = Attempt(
    rollout="r", attempt=1, serial=3, digest=DIGEST, phase=Phase.IDLE,
    outcome=Outcome.COMMITTED, reason=Reason.NONE,
)  # fmt: skip


def test_it_says_who_is_there_and_at_the_end_goodbye(
    shared: Broker, tell: Tell
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-1", "birth"))
        (birth,), (reported,) = (
            heard.said("cam-1", kind) for kind in ("birth", "reported")
        )
        (state,) = heard.said("cam-1", "state")
        assert state.online
        assert state.session == birth.session == reported.session
        assert (birth.epoch, birth.first, birth.next) == (
            one.spool.standing().epoch, 1, 1,
        )  # fmt: skip
        assert reported.running is None

    tell(shared, story)
    with shared.peer("fleet-2") as late:  # retained: whoever comes later hears it
        topics = Topics(TENANT, "cam-1")
        late.subscribe(f"{topics.root}/#")
        late.until(lambda: len(late.heard) == 2)
        (state,), (_,) = late.on(topics.state), late.on(topics.reported)
        assert b'"online":false' in state


def test_what_runs_is_reported_when_it_changes_and_only_then(
    shared: Broker, tell: Tell
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-2", "birth"))
        one.told.running = RUNNING
        for _ in range(3):
            one.link.report()
        one.told.attempt = ATTEMPT
        one.link.report()
        heard.command("cam-2", "birth")
        await one.until(lambda: len(heard.said("cam-2", "birth")) == 2)
        found = heard.said("cam-2", "reported")
        assert [(each.running, each.attempt) for each in found] == [
            (None, None), (RUNNING, None), (RUNNING, ATTEMPT),
        ]  # fmt: skip
        assert heard.said("cam-2", "birth")[-1].running == RUNNING

    tell(shared, story, "cam-2")


def test_evidence_that_is_too_much_is_left_out(shared: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        one.told.attempt = ATTEMPT.model_copy(update={"evidence": {"log": "x" * 10**6}})
        await one.until(lambda: heard.said("cam-3", "reported"))
        one.link.report()
        attempt = heard.said("cam-3", "reported")[-1].attempt
        assert attempt.evidence == {"left_out": "too large"}

    tell(shared, story, "cam-3")


@pytest.mark.parametrize("again_s", [0.0, 3600.0])
def test_desired_comes_at_every_connect_and_is_handed_on_now_and_then(
    own: Broker, tell: Tell, again_s: float
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        heard.desired("cam-1", b"an envelope")
        await one.until(lambda: b"an envelope" in one.told.heard)
        own.stop()
        own.start()
        await one.until(lambda: one.link.status.heard_bytes >= 2 * len(b"an envelope"))
        await asyncio.to_thread(heard.peer.connect)
        heard.desired("cam-1", b"another")
        await one.until(lambda: b"another" in one.told.heard)
        *before, last = one.told.heard
        assert (set(before), last) == ({b"an envelope"}, b"another")
        # a connection that breaks while the broker starts is one more
        assert len(before) == 1 if again_s else len(before) >= 2

    tell(own, story, settings=replace(QUICK, desired_again_s=again_s))


def test_nothing_desired_is_heard_too(shared: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        heard.desired("cam-4", b"an envelope")
        await one.until(lambda: one.told.heard)
        heard.desired("cam-4", b"")
        await one.until(lambda: one.told.heard == [b"an envelope", b""])

    tell(shared, story, "cam-4")


def test_commands_are_done_once_and_answered_each_time(
    shared: Broker, tell: Tell
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-5", "birth"))
        heard.command("cam-5", "log_level", command_id="x", level="debug")
        await one.until(lambda: heard.said("cam-5", "rsp"))
        one.told.log_level("info")
        heard.command("cam-5", "log_level", command_id="x", level="debug")
        await one.until(lambda: len(heard.said("cam-5", "rsp")) == 2)
        assert one.told.level == "info"
        assert [each.ok for each in heard.said("cam-5", "rsp")] == [True, True]
        message = [
            found for found in heard.peer.heard if found.topic.endswith("/up/rsp")
        ][-1]
        assert message.properties.CorrelationData == b"x"

    tell(shared, story, "cam-5")


@pytest.mark.parametrize(
    ("kind", "arguments", "why"),
    [
        ("reboot", {}, "'reboot' is unknown; this agent knows birth, diagnose"),
        ("samples", {}, "samples are not enabled on this device"),
        ("log_level", {}, "expected a level, found None"),
        ("log_level", {"level": "loud"}, "no level 'loud'"),
    ],
)
def test_commands_that_cannot_be_done_are_refused_with_a_reason(
    shared: Broker, tell: Tell, kind: str, arguments: dict[str, str], why: str
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-6", "birth"))
        before = len(heard.said("cam-6", "rsp"))
        heard.command("cam-6", kind, **arguments)
        await one.until(lambda: len(heard.said("cam-6", "rsp")) > before)
        answer = heard.said("cam-6", "rsp")[-1]
        assert not answer.ok
        assert answer.reason.startswith(why)

    tell(shared, story, "cam-6")


def test_an_answer_never_leaves_the_devices_own_topics(
    shared: Broker, tell: Tell
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        own = f"{Topics(TENANT, 'cam-7').root}/up/other"
        await one.until(lambda: heard.said("cam-7", "birth"))
        heard.command("cam-7", "diagnose", response=own)
        await one.until(lambda: heard.peer.on(own))
        heard.command("cam-7", "diagnose", response=Topics(TENANT, "cam-1").response)
        await one.until(lambda: heard.said("cam-7", "rsp"))
        assert one.link.status.connected, "the broker would have ended the session"

    tell(shared, story, "cam-7")


def test_an_expired_command_is_not_done(shared: Broker, tell: Tell) -> None:
    topics = Topics(TENANT, "cam-8")
    with shared.peer("cam-8", device="cam-8") as earlier:
        earlier.close()
        earlier.connect(clean=False, session_s=60)
        earlier.subscribe(topics.command)
    with fleet(shared) as heard:  # the session keeps both; one of them expires
        heard.command("cam-8", "log_level", expiry_s=1, level="debug")
        heard.command("cam-8", "diagnose", expiry_s=60)
        with shared.peer("clock") as clock, pytest.raises(TimeoutError):
            clock.until(lambda: False, 2.1)

    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-8", "rsp"))
        assert heard.said("cam-8", "rsp")[0].body == {"level": "info"}

    tell(shared, story, "cam-8")


def test_what_cannot_be_read_is_refused_and_the_next_message_heard(
    shared: Broker, tell: Tell
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        topics = Topics(TENANT, "cam-9")
        await one.until(lambda: heard.said("cam-9", "birth"))
        for raw in (b"", b"{", b'{"v":2}', b'{"v":1}', b"[]", b"\xff"):
            heard.peer.publish(topics.command, raw)
            heard.peer.publish(topics.ack, raw)
        heard.command("cam-9", "diagnose")
        await one.until(lambda: heard.said("cam-9", "rsp"))
        assert one.link.status.refused == 12

    tell(shared, story, "cam-9")


def test_a_flood_is_held_back_by_the_broker(shared: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-a", "birth"))
        topics = Topics(TENANT, "cam-a")
        for number in range(1000):
            heard.peer.client.publish(topics.desired, b"%d" % number, 1)
        await one.until(lambda: len(one.told.heard) == 1000)
        assert one.told.heard == [b"%d" % number for number in range(1000)]

    tell(shared, story, "cam-a")


def test_with_a_password(tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-1", "birth"))

    for tls in (True, False):
        with broker(passwords=True, tls=tls) as made:
            made.device("cam-1")  # before it starts: passwords are read then
            made.restart()
            tell(made, story)


def test_no_tls_is_for_this_machine_alone(shared: Broker, tmp_path: Path) -> None:
    who = identity(shared, "cam-1", tmp_path / "identity")
    document = who.document
    for host, fine in (("127.0.0.1", True), ("::1", True), ("10.0.0.1", False)):
        address = document.broker.model_copy(update={"host": host, "tls": False})
        changed = replace(who, document=document.model_copy(update={"broker": address}))
        if fine:
            assert changed.context() is None
        else:
            with pytest.raises(IdentityError, match="expected TLS"):
                changed.context()


async def cut(one: Linked) -> None:
    """As a cable that is cut: no DISCONNECT."""
    session = one.link._session
    assert session is not None
    socket = session._client.socket()
    assert socket is not None
    socket.shutdown(2)
    await one.until(lambda: not one.link.status.connected)


def test_a_device_that_died_is_said_to_be_offline(shared: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-b", "birth"))
        session = one.link.status.session
        await cut(one)
        await one.until(lambda: len(heard.said("cam-b", "state")) == 2)
        will = heard.said("cam-b", "state")[-1]
        assert (will.session, will.online) == (session, False)

    slow = replace(QUICK, reconnect_s=1e6, reconnect_max_s=1e6)
    tell(shared, story, "cam-b", slow)


def test_the_will_of_a_session_that_was_followed_is_not_heard(
    shared: Broker, tell: Tell
) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-c", "birth"))
        first = one.link.status.session
        await cut(one)
        await one.until(lambda: len(heard.said("cam-c", "birth")) == 2)
        again = one.link.status.session
        assert first != again
        await asyncio.sleep(3.5)  # the Will's delay is three
        states = heard.said("cam-c", "state")
        assert [(each.session, each.online) for each in states] == [
            (first, True), (again, True),
        ]  # fmt: skip

    patient = replace(QUICK, session=replace(QUICK.session, will_s=3))
    tell(shared, story, "cam-c", patient)


def test_times_are_the_devices_own(shared: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: heard.said("cam-d", "birth"))
        (birth,) = heard.said("cam-d", "birth")
        assert abs((datetime.now(UTC) - birth.at).total_seconds()) < 60

    tell(shared, story, "cam-d", QUICK)
