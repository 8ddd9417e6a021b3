"""What device and fleet say to each other stays readable: golden files, only added."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from device_agent.contract import codes, enrolment, messages
from device_agent.contract.envelope import DESIRED_TYPE, read_envelope
from device_agent.contract.errors import MessageError
from device_agent.contract.messages import (
    DESIRED_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    Desired,
    Message,
    read,
    write,
)
from device_agent.contract.topics import Topics

FOLDER = Path(__file__).parents[2] / "golden" / "messages"
ENVELOPE = "desired-envelope"
KINDS: dict[str, type[Message]] = {
    kind.__name__.lower(): kind
    for module in (messages, enrolment)
    for kind in vars(module).values()
    if isinstance(kind, type)
    and issubclass(kind, Message)
    and kind is not Message
    and kind is not enrolment.BrokerAddress  # a part of another
}
BYTES_MAX = enrolment.MEMBERSHIP_BYTES_MAX


def golden(name: str) -> bytes:
    return (FOLDER / f"{name}.json").read_bytes()


def changed(name: str, **fields: Any) -> bytes:
    return json.dumps({**json.loads(golden(name)), **fields}).encode()


def test_every_message_has_a_golden_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.json")} == {*KINDS, ENVELOPE}


def test_golden_files_never_change() -> None:
    """A new one takes a new line; a line that is there stays as it is."""
    listed = dict(
        reversed(line.split())
        for line in (FOLDER / "SHA256SUMS").read_text().splitlines()
    )
    found = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in FOLDER.glob("*.json")
    }
    assert found == listed


@pytest.mark.parametrize("name", KINDS)
def test_a_message_is_written_as_it_was_read(name: str) -> None:
    assert write(read(golden(name), KINDS[name], BYTES_MAX)) == golden(name)


@pytest.mark.parametrize("name", KINDS)
def test_fields_of_later_versions_are_ignored(name: str) -> None:
    found = read(changed(name, colour="blue"), KINDS[name], BYTES_MAX)
    assert found == read(golden(name), KINDS[name], BYTES_MAX)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("version", [0, 2, "1", None, 1.5])
def test_another_version_is_refused_by_name(name: str, version: Any) -> None:
    with pytest.raises(MessageError, match=f"{name}: v .* is unknown"):
        read(changed(name, v=version), KINDS[name], BYTES_MAX)


@pytest.mark.parametrize("name", KINDS)
def test_a_message_without_one_of_its_fields_is_refused_or_has_its_default(
    name: str,
) -> None:
    whole = json.loads(golden(name))
    required = {key for key, field in KINDS[name].model_fields.items()
                if field.is_required()}  # fmt: skip
    for key in whole:
        rest = json.dumps({one: whole[one] for one in whole if one != key}).encode()
        if key in required or key == "v":
            with pytest.raises(MessageError, match=key):
                read(rest, KINDS[name], BYTES_MAX)
        else:
            read(rest, KINDS[name], BYTES_MAX)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000])
def test_what_is_no_message_is_refused(name: str, raw: bytes) -> None:
    with pytest.raises(MessageError, match=name):
        read(raw, KINDS[name])


def test_a_message_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(MessageError, match="at most 262144"):
        read(b"[" * (MESSAGE_BYTES_MAX + 1), Desired)


def test_the_envelope_is_read_signed_and_written_back() -> None:
    raw = golden(ENVELOPE)
    envelope = read_envelope(raw, DESIRED_BYTES_MAX)
    assert envelope.write() == raw
    assert envelope.payload == golden("desired")
    assert envelope.payload_type == DESIRED_TYPE
    key = Ed25519PrivateKey.from_private_bytes(bytes(range(32))).public_key()
    (signature,) = envelope.signatures
    key.verify(signature.sig, envelope.signed)


def test_the_largest_desired_fits_its_envelope() -> None:
    """With every field as long as it may be, and two signatures."""
    plain = json.loads(golden("desired"))
    largest = Desired.model_validate(
        {**plain, "device": "d" * 64, "rollout": "r" * 64, "serial": 2**53 - 1,
         "counter": 2**53 - 1, "attempt": 10**6,
         "release": {"model": "m" * 64, "version": "1" * 20 + ".2.3"},
         "config": dict.fromkeys((f"trial_setting_{n}" for n in range(8)), 86400.5)}
    )  # fmt: skip
    signatures = 2 * (64 + 88 + 30)
    envelope = len(write(largest)) * 4 / 3 + signatures + 100
    assert envelope <= DESIRED_BYTES_MAX


def test_records_of_any_kind_are_carried() -> None:
    batch = read(golden("batch"), messages.Batch)
    assert [record.kind for record in batch.records] == [
        "window", "drift", "event", "step", "sample", "dropped",
    ]  # fmt: skip
    messages.Dropped.model_validate(batch.records[-1].body)
    unknown = json.loads(golden("batch"))
    unknown["records"][0]["kind"] = "something_new"
    read(json.dumps(unknown).encode(), messages.Batch)


PROTOCOL = (Path(__file__).parents[3] / "docs" / "protocol.md").read_text()
PARTS = (messages.Attempt, messages.Running, messages.Record, messages.Dropped,
         enrolment.BrokerAddress)  # fmt: skip


@pytest.mark.parametrize(
    "kind", [*KINDS.values(), *PARTS], ids=lambda one: one.__name__
)
def test_the_documentation_has_every_field(kind: type[Message]) -> None:
    section = PROTOCOL.split(f"### `{kind.__name__}`\n", 1)[1].split("\n#", 1)[0]
    table = section.split("| field | meaning |", 1)[1]
    assert re.findall(r"^\| `(\w+)`( \*)? \|", table, re.MULTILINE) == [
        (name, " *" if field.is_required() else "")
        for name, field in kind.model_fields.items()
        if name != "v"
    ]


def test_the_documentation_has_every_reason() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| (yes|) ?\| (yes|) ?\|$", PROTOCOL, re.M)
    assert rows == [
        (
            one.value,
            "yes" if one in codes.RETRYABLE else "",
            "yes" if one in codes.QUARANTINING else "",
        )
        for one in codes.Reason
    ]


def test_the_documentation_has_every_topic() -> None:
    topics = Topics("t", "d")
    rows = re.findall(r"^\| `((?:up|dn)/\w+)` \|", PROTOCOL, re.MULTILINE)
    assert [f"{topics.root}/{row}" for row in rows] == [
        topics.desired, topics.command, topics.ack, topics.state, topics.birth,
        topics.reported, topics.records, topics.response,
    ]  # fmt: skip
