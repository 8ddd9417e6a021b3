"""Rows by whoever sits on the way or owns the web server."""

from collections.abc import Callable
from dataclasses import replace

from liars import (
    Lie,
    bomb,
    content,
    cut,
    endless,
    endless_chunks,
    redirected,
    silent,
    status,
    trickle,
    trickled_header,
)
from registries import release
from thieves import NEW, World

from device_agent.contract.bundle import read_bundle
from device_agent.contract.codes import Reason
from device_agent.trust.client import asked
from edgeml.registry.metadata import TIMESTAMP, versioned, versions
from edgeml.registry.publish import stored, target_path

from .attacks import Row, attack, row


def path_of(world: World, role: str) -> str:
    if role == "timestamp":
        return TIMESTAMP
    if role == "next root":
        return versioned(2, "root")
    if role == "bundle":
        bundle = read_bundle(release(*NEW))
        return stored(target_path(bundle.manifest), bundle.sha256)
    return versioned(versions(world.thief.storage, role)[-1], role)


def told(role: str, lie: Lie | Callable[[World], Lie]) -> Row:
    def act(world: World) -> None:
        if role == "targets":  # the device has this version: there must be a newer one
            world.thief.sign("targets", "root-1", "root-2")
            world.thief.relist("targets")
        world.server.lies[f"/{path_of(world, role)}"] = lie  # type: ignore[assignment]

    return act


ROLES = ("next root", "timestamp", "snapshot", "targets", "model-linear")

for _role in ROLES:
    row("endless data", f"{_role} never ends", Reason.METADATA_TOO_LARGE,
        told(_role, endless))  # fmt: skip
row("endless data", "timestamp never ends, in chunks", Reason.METADATA_TOO_LARGE,
    told("timestamp", endless_chunks))  # fmt: skip
row("endless data", "bundle never ends", Reason.DOWNLOAD_TOO_LARGE,
    told("bundle", endless))  # fmt: skip
row("endless data", "a little that unpacks to a lot", Reason.METADATA_TOO_LARGE,
    told("timestamp", bomb))  # fmt: skip

for _role in ("next root", "timestamp", "model-linear"):
    row("slow retrieval", f"{_role} trickles", Reason.METADATA_UNREACHABLE,
        told(_role, trickle))  # fmt: skip


@attack("slow retrieval", Reason.METADATA_UNREACHABLE)
def the_server_says_nothing(world: World) -> None:
    _told_briefly(world, wait_s=0.3)
    told("timestamp", silent)(world)


@attack("slow retrieval", Reason.METADATA_UNREACHABLE)
def fast_enough_but_for_ever(world: World) -> None:
    _told_briefly(world, total_s=0.6, bytes_per_s=0.0)
    told("timestamp", trickle)(world)


def _told_briefly(world: World, **limits: float) -> None:
    """Not to wait long for what is slow on purpose."""
    kept = world.device.limits
    world.device.limits = replace(kept, **limits)
    world.device.reopen()
    world.device.limits = kept


row("slow retrieval", "the connection is cut", Reason.METADATA_UNREACHABLE,
    told("snapshot", cut))  # fmt: skip


@attack("slow retrieval", Reason.METADATA_UNREACHABLE)
def a_header_that_never_ends(world: World) -> None:
    """No read ever times out; the alarm of the verifying process ends it."""
    told("timestamp", trickled_header)(world)
    world.device.ask = asked
    _told_briefly(world, total_s=1.0)


for _name, _to in (
    ("another host", "http://example.invalid/metadata/timestamp.json"),
    ("a file", "file:///etc/passwd"),
    ("another path", "/metadata/1.root.json"),
):
    row("redirect", f"to {_name}", Reason.METADATA_UNREACHABLE,
        told("timestamp", redirected(_to)))  # fmt: skip


@attack("redirect", Reason.METADATA_UNREACHABLE)
def from_tls_to_plain_http(world: World) -> None:
    """A registry that is configured with TLS is not asked without."""
    world.device.urls = (world.server.url.replace("http:", "https:"),)
    world.device.reopen()
    healed = world.heal

    def heal() -> None:
        world.device.urls = (world.server.url,)
        world.device.reopen()
        healed()

    world.heal = heal  # type: ignore[method-assign]


for _code in (400, 403, 404, 429, 500, 503):
    row("refused", f"timestamp answers {_code}", Reason.METADATA_UNREACHABLE,
        told("timestamp", status(_code)))  # fmt: skip
row("refused", "release metadata is not there", Reason.METADATA_UNREACHABLE,
    told("model-linear", status(404)))  # fmt: skip

for _name, _raw in (
    ("nothing", b""),
    ("no JSON", b"<html>login</html>"),
    ("JSON of another kind", b"[]"),
    ("JSON that is too deep", b"[" * 8_000),
    ("a number that is too large", b'{"signed": ' + b"9" * 8_000 + b"}"),
    ("NaN", b'{"signed": NaN, "signatures": []}'),
    ("no signed part", b'{"signatures": []}'),
):
    row("malformed", f"timestamp holds {_name}", Reason.METADATA_MALFORMED,
        told("timestamp", content(_raw)))  # fmt: skip


def _edited_bundle(edit: Callable[[bytes], bytes]) -> Row:
    def act(world: World) -> None:
        path = path_of(world, "bundle")
        raw = world.thief.storage.read(path) or b""
        world.thief.storage.write(path, edit(raw))

    return act


row("wrong bytes", "bundle with one byte changed", Reason.DOWNLOAD_DIGEST,
    _edited_bundle(lambda raw: raw[:700] + b"?" + raw[701:]))  # fmt: skip
row("wrong bytes", "bundle cut short", Reason.DOWNLOAD_DIGEST,
    _edited_bundle(lambda raw: raw[:-512]))  # fmt: skip
row("wrong bytes", "bundle with more behind it", Reason.DOWNLOAD_TOO_LARGE,
    _edited_bundle(lambda raw: raw + b"\0" * 512))  # fmt: skip
