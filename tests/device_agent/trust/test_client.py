"""The honest story of a device, and what its agent must not carry."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from liars import Liar, liar
from registries import House, house, release
from trusting import Device

from device_agent.contract.codes import RETRYABLE, Reason
from device_agent.errors import StorageError, UpdateError
from device_agent.trust.client import asked


@pytest.fixture
def publisher(tmp_path: Path) -> House:
    return house(tmp_path, "linear")


@pytest.fixture
def server(publisher: House, tmp_path: Path) -> Iterator[Liar]:
    with liar(tmp_path / "registry") as running:
        yield running


@pytest.fixture
def device(publisher: House, server: Liar, tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "device", publisher, (server.url,))
    yield made
    made.client.close()


def test_two_releases_one_after_the_other(publisher: House, device: Device) -> None:
    for number in (1, 2):
        raw = release(f"{number}.0.0", number)
        (published,) = publisher.publish(raw)
        allowed = device.update(publisher.envelope(raw, serial=number))
        assert device.running == published.digest
        assert allowed.path == published.path
        assert allowed.length == len(raw)
        assert allowed.custom["release_counter"] == number
    floors = device.client.floors
    assert floors.counters["linear/cpu-x86_64"].counter == 2
    assert floors.serial == 2
    assert (
        floors.versions["timestamp"]
        == publisher.change().state.timestamp.signed.version
    )


def test_a_process_of_its_own_verifies_and_the_agent_stays_light(
    publisher: House, server: Liar, device: Device, tmp_path: Path
) -> None:
    raw = release("1.0.0", 1)
    publisher.publish(raw)
    envelope = tmp_path / "envelope"
    envelope.write_bytes(publisher.envelope(raw))
    code = """
import json, sys
from pathlib import Path
from device_agent.trust.client import TrustClient, TrustConfig
from device_agent.trust.wire import Facts
folder, url, now = Path(sys.argv[1]), sys.argv[2], float(sys.argv[3])
client = TrustClient(
    TrustConfig(folder / "identity/root.json", folder / "identity/director.json",
                (url,), Facts("device-1", ("x86_64-linux",), "0.1.0")),
    folder / "state", folder / "floors")
allowed = client.authorize((folder.parent / "envelope").read_bytes(), now)
names = ("tuf", "securesystemslib", "cryptography", "urllib3")
print(json.dumps([allowed.desired.digest, [n for n in names if n in sys.modules]]))
"""
    device.client.close()
    done = subprocess.run(
        [sys.executable, "-c", code, str(device.folder), server.url, str(device.now)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    digest, loaded = json.loads(done.stdout)
    assert digest == publisher.desired(raw).digest
    assert loaded == []


def test_the_same_word_again_is_no_replay(publisher: House, device: Device) -> None:
    raw = release("1.0.0", 1)
    publisher.publish(raw)
    envelope = publisher.envelope(raw, serial=5)
    assert device.update(envelope) == device.update(envelope)


def test_what_was_allowed_expires_before_it_is_activated(
    publisher: House, device: Device
) -> None:
    raw = release("1.0.0", 1)
    publisher.publish(raw)
    allowed = device.client.authorize(publisher.envelope(raw), device.now)
    device.client.still(allowed, allowed.valid_until - 1)
    with pytest.raises(UpdateError) as caught:
        device.client.still(allowed, allowed.valid_until)
    assert caught.value.reason is Reason.DESIRED_EXPIRED


def test_enrolled_anew_it_begins_anew(
    publisher: House, server: Liar, device: Device, tmp_path: Path
) -> None:
    """Another fleet's registry, whose versions are lower than those that were seen."""
    raw = release("1.0.0", 7)
    for number in range(3):
        publisher.publish(release(f"0.{number}.0", number))
    publisher.publish(raw)
    device.update(publisher.envelope(raw, serial=9))
    clock = device.client.floors.clock
    other = house(tmp_path / "other", "linear")
    other.publish(raw)
    server.folder = tmp_path / "other/registry"
    device.client.close()
    device.house = other
    device.__post_init__()
    assert any("enrolled anew" in note for note in device.client.notes)
    device.update(other.envelope(raw, serial=1))
    floors = device.client.floors
    assert (floors.serial, floors.versions["timestamp"]) == (1, 3)
    assert floors.clock >= clock
    device.reopen()
    assert device.client.notes == ()
    assert device.client.floors == floors


def test_a_mirror_stands_in(publisher: House, server: Liar, device: Device) -> None:
    raw = release("1.0.0", 1)
    publisher.publish(raw)
    device.urls = ("http://127.0.0.1:9", server.url)
    device.reopen()
    allowed = device.client.authorize(publisher.envelope(raw), device.now)
    assert [url.startswith(server.url) for url in allowed.urls] == [False, True]


@pytest.mark.parametrize("name", ["root.json", "director.json"])
def test_a_disk_that_does_not_read_is_no_word_of_the_keys(
    publisher: House, device: Device, name: str
) -> None:
    raw = release("1.0.0", 1)
    publisher.publish(raw)
    path = device.identity / name
    kept = path.read_bytes()
    path.unlink()
    path.mkdir()  # it cannot be read, and root reads what it has no right to
    with pytest.raises(StorageError) as caught:
        device.client.authorize(publisher.envelope(raw), device.now)
    assert caught.value.reason in RETRYABLE
    path.rmdir()
    path.write_bytes(kept)
    device.client.authorize(publisher.envelope(raw), device.now)


def test_a_process_that_dies_is_a_refusal_that_may_pass() -> None:
    with pytest.raises(UpdateError) as caught:
        asked(b"no question", 30.0)
    assert caught.value.reason is Reason.TRUST_FAILED
    with pytest.raises(UpdateError, match="took longer"):
        asked(b"{}", 0.001)
