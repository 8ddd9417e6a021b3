"""The broker as we ship it: who gets in, who hears and says what, what it keeps."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from brokers import FLEET, Broker, Credentials, Peer, broker, free_ports

from device_agent.contract.topics import Topics, ingest
from edgeml.authority import Authority, request

ROOT = Path(__file__).resolve().parents[2]
A, B = Topics("acme", "cam-a"), Topics("acme", "cam-b")
END = "edgeml/1/acme/end"


@pytest.fixture(scope="module")
def one() -> Iterator[Broker]:
    with broker() as made:
        yield made


@pytest.fixture(scope="module")
def by_password() -> Iterator[Broker]:
    with broker(passwords=True) as made:
        yield made


@pytest.fixture(params=["one", "by_password"])
def either(request: pytest.FixtureRequest) -> Broker:
    found: Broker = request.getfixturevalue(request.param)
    return found


def test_a_device_says_on_its_own_up_topics_alone(either: Broker) -> None:
    own = {A.state, A.birth, A.reported, A.records, A.response}
    with either.peer("fleet-1") as fleet:
        fleet.subscribe("edgeml/1/#")
        with either.peer("x", device="cam-a") as device:
            for topic in own:
                assert device.publish(topic, b"mine") == ""
        for topic in (
            A.desired, A.command, A.ack, B.state, B.desired, f"{A.root}/up/a/b",
            f"{A.root}/other/x", "edgeml/1/acme/d/up/state", "other",
        ):  # fmt: skip
            # 2.0.11 ends the session of whoever was denied something.
            with either.peer("x", device="cam-a") as device:
                assert device.publish(topic, b"not mine") == "Not authorized", topic
        fleet.publish(END, b"")
        fleet.until(lambda: bool(fleet.on(END)))
        assert {found.topic for found in fleet.heard} == {*own, END}


def test_a_device_hears_its_own_down_topics_alone(either: Broker) -> None:
    with either.peer("fleet-1") as fleet, either.peer("x", device="cam-a") as device:
        for pattern in ("#", B.desired, "$SYS/#", ingest("g"), A.desired, A.ack):
            device.subscribe(pattern)
        for topics in (B, A):
            for topic in (topics.desired, topics.command, topics.state):
                assert fleet.publish(topic, b"x") == ""
        assert fleet.publish(A.ack, b"end") == ""
        device.until(lambda: b"end" in device.on(A.ack))
        assert {found.topic for found in device.heard} == {
            A.desired, A.command, A.ack,
        }  # fmt: skip


def test_several_of_the_fleet_share_what_devices_say(one: Broker) -> None:
    with (
        one.peer("fleet-1") as first, one.peer("fleet-2") as second,
        one.peer("x", device="cam-a") as device,
    ):  # fmt: skip
        for each in (first, second):
            each.subscribe(ingest(), retain_handling=2)
        for number in range(10):
            device.publish(A.records, b"%d" % number)
        for each in (first, second):
            each.until(lambda each=each: len(each.heard) == 5)
        assert sorted(first.on(A.records) + second.on(A.records)) == [
            b"%d" % number for number in range(10)
        ]


def test_a_device_cannot_take_anothers_session(either: Broker) -> None:
    with (
        either.peer("cam-b", device="cam-b") as victim,
        either.peer("cam-b", device="cam-a") as thief,
    ):
        assert victim.publish(B.state, b"still here") == ""
        assert thief.publish(A.state, b"under its own id") == ""
        assert not victim.refused


@pytest.mark.parametrize("name", ["#", "+", "cam-a/up", "a/+"])
def test_a_name_that_is_a_pattern_opens_nothing(one: Broker, name: str) -> None:
    odd = Peer("odd", one.device(name), one.host, one.port)
    try:
        odd.connect()
        with one.peer("fleet-1") as fleet:
            fleet.subscribe("edgeml/1/#")
            odd.subscribe("#")
            fleet.publish(A.desired, b"secret")
            fleet.publish(END, b"")
            assert odd.publish(A.state, b"odd") == "Not authorized"
            fleet.until(lambda: bool(fleet.on(END)))
            assert {found.payload for found in fleet.heard} == {b"secret", b""}
            assert odd.heard == []
    except ConnectionError:
        assert odd.refused, "it is not let in at all, or thrown out"
    finally:
        odd.close()


def test_nobody_gets_in_without_credentials(one: Broker, by_password: Broker) -> None:
    strange = Authority.create("somebody else", datetime.now(UTC))
    key, asked = request("cam-a")
    paths = one.folder / "strange.key", one.folder / "strange.crt"
    paths[0].write_bytes(key)
    paths[1].write_bytes(strange.client(asked, "cam-a", datetime.now(UTC)))
    for where, shown in (
        (one, Credentials("cam-a", one.ca)),
        (one, Credentials("cam-a", one.ca, paths[1], paths[0])),
        (one, Credentials("cam-a", one.ca, password="of nobody")),
        (by_password, Credentials("cam-a", by_password.ca)),
        (by_password, Credentials("cam-a", by_password.ca, password="wrong")),
        (by_password, Credentials(FLEET, by_password.ca, password="wrong")),
    ):
        peer = Peer("cam-a", shown, where.host, where.port)
        with pytest.raises(ConnectionRefusedError):
            peer.connect()
        peer.close()


def test_a_message_above_the_protocols_size_ends_the_session(one: Broker) -> None:
    with one.peer("x", device="cam-a") as device:
        assert device.publish(A.records, b"x" * (256 << 10)) == ""
        with pytest.raises(ConnectionResetError):
            device.publish(A.records, b"x" * (300 << 10))


def test_a_queue_is_not_cut(one: Broker) -> None:
    """mosquitto's default drops what is over 1,000, PUBACKed or not."""
    count = 3000
    absent = Peer("fleet-absent", one.fleet(), one.host, one.fleet_port)
    absent.connect(clean=False, session_s=600)
    absent.subscribe(A.records)
    absent.close()
    with one.peer("x", device="cam-a") as device:
        for _ in range(count - 1):
            device.client.publish(A.records, b"x", 1)
        assert device.publish(A.records, b"x") == ""
    absent.refused = ""
    absent.connect(clean=False, session_s=0)
    absent.until(lambda: len(absent.heard) == count)
    absent.close()


def test_retained_messages_survive_a_stop_and_not_a_wipe() -> None:
    with broker(passwords=True, tls=False) as made:
        with made.peer("fleet-1") as fleet:
            fleet.publish(A.desired, b"what it should run", retain=True)
        made.stop()
        made.start()
        with made.peer("x", device="cam-a") as device:
            device.subscribe(A.desired)
            device.until(lambda: device.on(A.desired) == [b"what it should run"])
        made.restart(wipe=True)
        with made.peer("fleet-1") as fleet:
            fleet.subscribe("edgeml/1/#")
            fleet.publish(END, b"")
            fleet.until(lambda: bool(fleet.heard))
            assert fleet.on(A.desired) == []


def test_its_figures_are_read(one: Broker) -> None:
    figures = one.statistics()
    assert figures["messages/received"] >= 1
    assert figures["bytes/received"] > 0


def test_the_program_starts_it_and_ends_it(tmp_path: Path) -> None:
    port, fleet_port = free_ports()
    command = [
        sys.executable, str(ROOT / "packaging" / "mosquitto" / "broker.py"),
        "--state", str(tmp_path / "b"), "--port", str(port),
        "--fleet-port", str(fleet_port),
    ]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert line.startswith(f"ready: mqtts://127.0.0.1:{port} devices")
    secret = {path.name for path in (tmp_path / "b").glob("*.key")}
    assert secret == {"ca.key", "server.key", "fleet.key"}
    for name in secret:
        assert (tmp_path / "b" / name).stat().st_mode & 0o077 == 0


def test_the_example_of_listeners_is_what_the_program_writes(one: Broker) -> None:
    """Its settings, that is: the places differ."""
    example = (ROOT / "packaging" / "mosquitto" / "listeners.conf").read_text()
    written = (one.folder / "mosquitto.conf").read_text()
    assert _words(example) <= _words(written)


def _words(text: str) -> set[str]:
    """Settings without the places they name; a listener has neither."""
    return {
        re.sub(r" /.*|(?<=listener) .*", "", line)
        for line in text.splitlines()
        if line and not line.startswith("#")
    }
