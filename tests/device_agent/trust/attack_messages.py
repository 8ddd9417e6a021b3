"""Rows by whoever speaks to the device, moves its clock, or packs its bundles."""

import base64
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from registries import release
from thieves import NEW, OLD, OLDER, World, evil

from device_agent.contract import tar
from device_agent.contract.bundle import read_bundle
from device_agent.contract.codes import Reason
from device_agent.contract.envelope import DESIRED_TYPE, Envelope, Signature
from device_agent.contract.messages import Release, write
from edgeml.keys.director import sign_desired
from edgeml.registry import ceremony

from .attacks import Row, attack, row


def _enveloped(world: World, payload: bytes, kind: str = DESIRED_TYPE) -> bytes:
    """Anything, signed by the true director."""
    envelope = Envelope(payload, kind, ())
    made = world.honest.signer("director").sign(envelope.signed)
    signature = Signature(made.keyid, bytes.fromhex(made.signature))
    return Envelope(payload, kind, (signature,)).write()


def _said(edit: Callable[[dict[str, Any]], None]) -> Row:
    """The envelope, edited after it was signed."""

    def act(world: World) -> bytes:
        value = json.loads(world.wanted())
        edit(value)
        return json.dumps(value).encode()

    return act


def _wants(**changes: Any) -> Row:
    return lambda world: world.wanted(**changes)


# -- the director's message


@attack("director", Reason.DESIRED_SIGNATURE)
def a_key_that_nobody_trusts(world: World) -> bytes:
    return sign_desired(world.honest.desired(release(*NEW), 99), evil())


@attack("director", Reason.DESIRED_SIGNATURE)
def a_key_that_nobody_trusts_under_the_true_id(world: World) -> bytes:
    value = json.loads(sign_desired(world.honest.desired(release(*NEW), 99), evil()))
    value["signatures"][0]["keyid"] = world.honest.ring.entry("director").key.keyid
    return json.dumps(value).encode()


@attack("director", Reason.DESIRED_SIGNATURE)
def the_key_of_a_team(world: World) -> bytes:
    wanted = world.honest.desired(release(*NEW), 99)
    return sign_desired(wanted, world.honest.signer("team-linear"))


@attack("director", Reason.DESIRED_SIGNATURE)
def a_revoked_director(world: World) -> bytes:
    """Its key is still that of the enrolment; the registry names another."""
    old = world.honest.ring.entry("director").key
    envelope = world.wanted()
    change = world.honest.change()
    ceremony.replace(change, "director", old, world.honest.ring.entry("spare").key)
    change.commit(world.honest.storage)
    world.server.folder, world.healed = world.folder / "next", True

    def by_the_new(raw: bytes, serial: int = 1, **changes: Any) -> bytes:
        wanted = world.honest.desired(raw, serial, **changes)
        return sign_desired(wanted, world.honest.signer("spare"))

    world.honest.envelope = by_the_new  # type: ignore[method-assign]
    return envelope


def _other_payload(value: dict[str, Any]) -> None:
    payload = json.loads(base64.b64decode(value["payload"]))
    payload["counter"] += 1
    value["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()


row("director", "payload changed after signing", Reason.DESIRED_SIGNATURE,
    _said(_other_payload))  # fmt: skip
row("director", "payload type changed", Reason.DESIRED_MALFORMED,
    _said(lambda value: value.update(payloadType="text/plain")))  # fmt: skip
row("director", "no signature", Reason.DESIRED_MALFORMED,
    _said(lambda value: value.update(signatures=[])))  # fmt: skip
row("director", "nine signatures", Reason.DESIRED_MALFORMED,
    _said(lambda value: value.update(signatures=value["signatures"] * 9)))  # fmt: skip
row("director", "an empty signature", Reason.DESIRED_SIGNATURE,
    _said(lambda value: value["signatures"][0].update(sig="")))  # fmt: skip
row("director", "no JSON", Reason.DESIRED_MALFORMED, lambda _: b"\x00\x01")
row("director", "too large", Reason.DESIRED_MALFORMED, lambda _: b"{" * 100_000)
row("director", "signed, but of another version", Reason.DESIRED_MALFORMED,
    lambda world: _enveloped(world, b'{"v": 2}'))  # fmt: skip
row("director", "signed, but no JSON", Reason.DESIRED_MALFORMED,
    lambda world: _enveloped(world, b"\xff"))  # fmt: skip
row("director", "signed for another purpose", Reason.DESIRED_MALFORMED,
    lambda world: _enveloped(
        world, write(world.honest.desired(release(*NEW), 99)), "application/x-other"
    ))  # fmt: skip
row("director", "an old message again", Reason.DESIRED_REPLAYED, _wants(serial=1))
row("director", "for another device", Reason.DESIRED_DEVICE, _wants(device="device-2"))
row("director", "good until yesterday", Reason.DESIRED_EXPIRED,
    _wants(not_after=datetime(2026, 10, 31, tzinfo=UTC)))  # fmt: skip


# -- a stolen director: it can choose among valid bundles that are not older, no more

row("stolen director", "an older release", Reason.RELEASE_ROLLBACK, _wants(which=OLDER))
row("stolen director", "an older release with a higher counter",
    Reason.TARGET_MISMATCH, _wants(which=OLDER, counter=99))  # fmt: skip
row("stolen director", "bytes that nobody published", Reason.TARGET_MISMATCH,
    lambda world: world.claimed(b"evil"))  # fmt: skip
row("stolen director", "a model that nobody published", Reason.TARGET_UNKNOWN,
    _wants(release=Release(model="nothing", version="2.0.0")))  # fmt: skip
row("stolen director", "a version that nobody published", Reason.TARGET_UNKNOWN,
    _wants(release=Release(model="linear", version="9.9.9")))  # fmt: skip
row("stolen director", "the digest of one version as another", Reason.TARGET_MISMATCH,
    _wants(release=Release(model="linear", version="1.0.0")))  # fmt: skip
row("stolen director", "a path in the place of a name", Reason.DESIRED_MALFORMED,
    lambda world: _enveloped(world, write(world.honest.desired(
        release(*NEW), 99)).replace(b'"linear"', b'"../linear"')))  # fmt: skip


# -- a device that lacks what it needs to believe


def _identity(name: str, raw: bytes | None) -> Row:
    def act(world: World) -> None:
        """All local metadata is gone too, so that the enrolment counts."""
        path: Path = world.device.identity / name
        kept = path.read_bytes()
        world.device.client.close()
        for database in (world.folder / "device/state").glob("trust.db*"):
            database.unlink()
        if raw is None:
            path.unlink()
        else:
            path.write_bytes(raw)
        world.device.open()
        healed = world.heal

        def heal() -> None:
            path.write_bytes(kept)
            healed()

        world.heal = heal  # type: ignore[method-assign]

    return act


row("key loss", "the trusted root is gone", Reason.TRUST_UNAVAILABLE,
    _identity("root.json", None))  # fmt: skip
row("key loss", "the trusted root is damaged", Reason.TRUST_UNAVAILABLE,
    _identity("root.json", b"{}"))  # fmt: skip
row("key loss", "the director's keys are damaged", Reason.TRUST_UNAVAILABLE,
    _identity("director.json", b"[]"))  # fmt: skip
row("key loss", "the key ring is empty", Reason.TRUST_UNAVAILABLE,
    _identity("director.json", b'{"keys": {}}'))  # fmt: skip
row("key loss", "a director's key of another kind", Reason.TRUST_UNAVAILABLE,
    _identity("director.json", b'{"keys": {"a": {"keytype": "rsa", "scheme": "x", '
              b'"keyval": {"public": "00"}}}}'))  # fmt: skip


# -- wrong target


def _fits(**changes: Any) -> Row:
    def act(world: World) -> None:
        kept = world.device.facts
        world.device.facts = replace(kept, **changes)
        world.device.reopen()
        healed = world.heal

        def heal() -> None:
            world.device.facts = kept
            world.device.reopen()
            healed()

        world.heal = heal  # type: ignore[method-assign]

    return act


row("wrong target", "another kind of device", Reason.INCOMPATIBLE,
    _fits(compatible=("rpi4",)))  # fmt: skip
row("wrong target", "an agent that is too old", Reason.INCOMPATIBLE,
    _fits(agent="0.0.9"))  # fmt: skip
row("wrong target", "a runtime that is too old", Reason.RUNTIME_LACKING,
    _fits(runtimes={"onnxruntime": "1.16.3"}))  # fmt: skip
row("wrong target", "a runtime that is not installed", Reason.RUNTIME_LACKING,
    _fits(runtimes={"onnxruntime": ""}))  # fmt: skip


@attack("wrong target", Reason.DOWNLOAD_TOO_LARGE)
def larger_than_the_device_takes(world: World) -> None:
    limits = world.device.limits
    world.device.limits = replace(limits, bundle_bytes=100)
    world.device.reopen()
    world.device.limits = limits


# -- clocks


def _clock(**moved: float) -> Row:
    def act(world: World) -> bytes:
        kept = world.device.now
        world.device.now += timedelta(**moved).total_seconds()
        healed = world.heal

        def heal() -> None:
            world.device.now = kept
            healed()

        world.heal = heal  # type: ignore[method-assign]
        return world.wanted(not_after=datetime(2060, 1, 1, tzinfo=UTC))

    return act


row("clock", "20 years ahead", Reason.CLOCK_WRONG, _clock(days=7305))
row("clock", "5 years ahead", Reason.METADATA_EXPIRED, _clock(days=1826))


@attack("clock", Reason.METADATA_EXPIRED)
def of_1970_with_metadata_that_had_expired(world: World) -> None:
    """The floor is the newest time at which anything was good."""

    def ended(signed: Any) -> None:
        signed.expires = (world.honest.now - timedelta(days=1)).replace(microsecond=0)

    world.thief.sign("timestamp", "timestamp", edit=ended)
    world.device.now = 0.0


@attack("clock", Reason.DESIRED_EXPIRED)
def of_1970_with_a_message_of_last_month(world: World) -> bytes:
    world.device.now = 0.0
    return world.wanted(not_after=datetime(2026, 10, 1, tzinfo=UTC))


# -- metadata that is signed, but of a kind that this client does not know


def _signed(edit: Callable[[Any], None]) -> Row:
    return lambda world: world.thief.stamp(edit=edit)


row("unknown", "specification version 2", Reason.METADATA_MALFORMED,
    _signed(lambda signed: setattr(signed, "spec_version", "2.0.0")))  # fmt: skip
row("unknown", "a specification version that is none", Reason.METADATA_MALFORMED,
    _signed(lambda signed: setattr(signed, "spec_version", "one")))  # fmt: skip


# -- bundles that a team has signed for, and that are not what they must be


def _packed(edit: Callable[[bytes], bytes], **said: Any) -> Row:
    """A stolen team key, stolen online keys, and the true director was fooled."""

    def act(world: World) -> bytes:
        raw = edit(release("6.6.6", 66))
        world.thief.plant(raw, "team-linear", **said)
        chosen = Release(model="linear", version="6.6.6")
        counter = said.get("release_counter", 66)
        return world.claimed(raw, release=chosen, counter=counter)

    return act


def _renamed(raw: bytes, name: str) -> bytes:
    """The last member's header, under another name."""
    bundle = read_bundle(raw)
    path = bundle.paths()[-1]
    size = next(one.size for one in bundle.manifest.members if one.path == path)
    old = tar.header(path, size)
    new = bytearray(old)
    new[:100] = name.encode().ljust(100, b"\0")
    return raw.replace(old, _summed(new))


def _typed(raw: bytes, kind: bytes, link: str = "") -> bytes:
    bundle = read_bundle(raw)
    path = bundle.paths()[-1]
    size = next(one.size for one in bundle.manifest.members if one.path == path)
    old = tar.header(path, size)
    new = bytearray(old)
    new[156:157] = kind
    new[157:257] = link.encode().ljust(100, b"\0")
    return raw.replace(old, _summed(new))


def _summed(block: bytearray) -> bytes:
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


for _name, _edit in (
    ("an absolute path", lambda raw: _renamed(raw, "/etc/cron.d/x")),
    ("a path that climbs", lambda raw: _renamed(raw, "../../x")),
    ("a symbolic link", lambda raw: _typed(raw, b"2", "/etc/passwd")),
    ("a hard link", lambda raw: _typed(raw, b"1", "manifest.json")),
    ("a device node", lambda raw: _typed(raw, b"3")),
    ("a folder", lambda raw: _typed(raw, b"5")),
    ("bytes after its end", lambda raw: raw + b"\0" * 10_240),
    ("no tar", lambda _: b"PK\x03\x04" * 64),
    ("a damaged member", lambda raw: raw.replace(b"# linear", b"# Linear")),
):
    row("archive", _name, Reason.BUNDLE_INVALID, _packed(_edit))

row("archive", "another counter inside", Reason.BUNDLE_INVALID,
    _packed(lambda _: release("6.6.6", 5)))  # fmt: skip
row("archive", "another version inside", Reason.BUNDLE_INVALID,
    _packed(lambda _: release("1.2.3", 66)))  # fmt: skip
row("archive", "for other devices inside", Reason.BUNDLE_INVALID,
    _packed(lambda _: release("6.6.6", 66, compatible=("rpi4",))))  # fmt: skip


@attack("swap", Reason.DOWNLOAD_DIGEST)
def between_download_and_verification(world: World) -> None:
    fetch = world.device.fetch

    def swapped(allowed: Any) -> Path:
        path = fetch(allowed)
        path.write_bytes(release(*OLD))
        return path

    world.device.fetch = swapped  # type: ignore[method-assign]
    healed = world.heal

    def heal() -> None:
        world.device.fetch = fetch  # type: ignore[method-assign]
        healed()

    world.heal = heal  # type: ignore[method-assign]


@attack("swap", Reason.METADATA_EXPIRED)
def time_passes_between_permission_and_activation(world: World) -> bytes:
    fetch = world.device.fetch
    kept = world.device.now

    def slow(allowed: Any) -> Path:
        world.device.now += 30 * 86_400
        return fetch(allowed)

    world.device.fetch = slow  # type: ignore[method-assign]
    healed = world.heal

    def heal() -> None:
        world.device.fetch, world.device.now = fetch, kept  # type: ignore[method-assign]
        healed()

    world.heal = heal  # type: ignore[method-assign]
    return world.wanted(not_after=datetime(2060, 1, 1, tzinfo=UTC))
