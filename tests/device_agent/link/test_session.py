"""Sessions that end, or never begin: what is done, and what is said of it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from brokers import Broker
from fleets import Fleet
from linked import QUICK, Linked, identity, linked

from device_agent.identity import Identity
from device_agent.link.session import SessionSettings

from .conftest import Tell

SOON = replace(QUICK, session=SessionSettings(keep_alive_s=1, will_s=1, connect_s=1.0))


def alone(
    who: Identity, story: Callable[[Linked], Awaitable[None]], settings=QUICK
) -> None:
    async def main() -> None:
        async with linked(who, settings) as one:
            await story(one)

    asyncio.run(main())


def test_a_broker_that_comes_back_is_found_again(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: one.link.status.connected)
        own.kill()
        await one.until(lambda: not one.link.status.connected)
        await one.until(lambda: "cannot be reached" in one.link.status.error)
        own.start()
        await one.until(lambda: one.link.status.sessions == 2)
        assert one.link.status.error == ""

    tell(own, story)


def test_no_broker_costs_next_to_nothing(own: Broker, tmp_path: Path) -> None:
    """Days without one are many attempts without one: nothing of them remains."""
    who = identity(own, "cam-1", tmp_path / "identity")
    own.stop()

    async def story(one: Linked) -> None:
        await one.until(lambda: one.link.status.attempts >= 10)
        process = psutil.Process()
        files, threads = process.num_fds(), process.num_threads()
        rss = process.memory_info().rss
        await one.until(lambda: one.link.status.attempts >= 150)
        assert process.num_fds() <= files + 4
        assert process.num_threads() <= threads + 2
        assert process.memory_info().rss < rss + (8 << 20)

    alone(who, story, replace(QUICK, reconnect_s=0.01, reconnect_max_s=0.01))


def test_a_broker_that_says_nothing_is_given_up(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        await one.until(lambda: one.link.status.connected)
        with own.silent():
            await one.until(lambda: not one.link.status.connected)
            await one.until(lambda: one.link.status.attempts >= 2)
        await one.until(lambda: one.link.status.connected)

    tell(own, story, settings=SOON)


@pytest.mark.long
def test_somebody_who_accepts_and_says_nothing_is_given_up(
    own: Broker, tmp_path: Path
) -> None:
    for tls in (True, False):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            who = identity(
                own, "cam-1", tmp_path / f"{tls}" / "identity",
                port=listener.getsockname()[1],
            )  # fmt: skip
            address = who.document.broker.model_copy(update={"tls": tls})
            document = who.document.model_copy(update={"broker": address})

            async def story(one: Linked) -> None:
                await one.until(lambda: one.link.status.error)
                assert not one.link.status.connected

            alone(replace(who, document=document), story, SOON)


def test_a_broker_of_somebody_else_is_not_believed(
    own: Broker, shared: Broker, tmp_path: Path
) -> None:
    who = identity(own, "cam-1", tmp_path / "identity", port=shared.port)

    async def story(one: Linked) -> None:
        await one.until(lambda: one.link.status.error)
        assert one.link.status.error.startswith("the broker's certificate is refused")
        assert "enrolled with" in one.link.status.error

    alone(who, story)


def test_a_device_that_is_not_known_is_told(own: Broker, tmp_path: Path) -> None:
    who = identity(own, "cam-1", tmp_path / "identity")
    (who.folder / "password").write_text("not with a password here\n")

    async def story(one: Linked) -> None:
        await one.until(lambda: one.link.status.error)
        assert not one.link.status.sessions

    alone(who, story)


def test_keys_that_are_gone_end_nothing(own: Broker, tmp_path: Path) -> None:
    who = identity(own, "cam-1", tmp_path / "identity")
    certificate = (who.folder / "device.crt").read_bytes()
    (who.folder / "device.crt").unlink()

    async def story(one: Linked) -> None:
        await one.until(lambda: one.link.status.attempts >= 2)
        assert "enrol again" in one.link.status.error
        (who.folder / "device.crt").write_bytes(certificate)
        await one.until(lambda: one.link.status.connected)

    alone(who, story)


@pytest.mark.long
def test_two_agents_with_one_name_do_not_take_turns(
    own: Broker, tmp_path: Path
) -> None:
    async def main() -> None:
        first = identity(own, "cam-1", tmp_path / "1" / "identity")
        second = identity(own, "cam-1", tmp_path / "2" / "identity")
        quick = replace(QUICK, reconnect_max_s=1000.0)
        async with (
            linked(first, quick, seed=1) as one, linked(second, quick, seed=2) as two,
        ):  # fmt: skip
            both = one.link, two.link
            await one.until(lambda: max(each.status.attempts for each in both) > 3)
            await asyncio.sleep(2.0)
            # waits double while sessions are short, though each of them worked
            assert sum(each.status.sessions for each in both) < 20

    asyncio.run(main())


def test_a_session_that_is_taken_over_is_not_asked_for_again_soon(
    own: Broker, tmp_path: Path
) -> None:
    """As newer brokers say it: DISCONNECT with 142 after CONNACK."""
    accepted: list[int] = []

    async def taken_over(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        accepted.append(len(await reader.read(1000)))
        writer.write(bytes.fromhex("2003000000e0028e00"))
        await writer.drain()
        await reader.read()  # a reset would take away what was not read yet
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(taken_over, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        who = identity(own, "cam-1", tmp_path / "identity", port=port)
        address = who.document.broker.model_copy(update={"tls": False})
        document = who.document.model_copy(update={"broker": address})
        async with linked(replace(who, document=document)) as one:
            await one.until(lambda: one.link.status.error)
            assert "taken over" in one.link.status.error
            assert one.link.status.waits_s > QUICK.reconnect_s
        server.close()

    asyncio.run(main())


def test_it_ends_at_once_while_it_connects(own: Broker, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        who = identity(
            own, "cam-1", tmp_path / "identity", port=listener.getsockname()[1]
        )

        async def story(one: Linked) -> None:
            listener.settimeout(20)
            await asyncio.to_thread(listener.accept)

        alone(who, story)  # the test's own limit is that of the handshake, 20 s


def test_births_are_said_once_a_session(own: Broker, tell: Tell) -> None:
    async def story(one: Linked, heard: Fleet) -> None:
        for number in range(1, 4):
            await one.until(lambda: one.link.status.connected)
            await one.until(lambda n=number: len(heard.said("cam-1", "birth")) == n)
            own.restart()
            await asyncio.to_thread(heard.peer.connect)
            await asyncio.to_thread(
                heard.peer.subscribe, "$share/fleet/edgeml/1/+/d/+/up/#"
            )
            await one.until(lambda n=number: one.link.status.sessions > n)
        sessions = [birth.session for birth in heard.said("cam-1", "birth")]
        assert len(set(sessions)) == len(sessions)

    tell(own, story)
