"""Packing a bundle: equal content gives equal bytes.

The rules it keeps:

1. The layout is that of :mod:`device_agent.contract.tar`; nothing of this machine, the
   clock or the user gets into it.
2. What the reader would refuse is refused here: the bundle is read back, whole, before
   it is handed out.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from device_agent.contract import tar
from device_agent.contract.bundle import (
    MANIFEST,
    Bundle,
    BundleLimits,
    read_bundle,
)
from device_agent.contract.errors import BundleError
from device_agent.contract.manifest import Manifest, Member, Role, canonical_json

from ..errors import InputError


def pack(
    manifest: Manifest,
    members: Mapping[str, tuple[Role, bytes]],
    limits: BundleLimits | None = None,
) -> bytes:
    """The bundle as bytes; its SHA-256 is its name.

    Args:
        manifest: everything but ``members``, which is filled in here.
        members: path → role and bytes.
        limits: what a bundle may be at most; None: the reader's defaults.

    Raises:
        InputError: a member's path, size or format is not allowed, or the artifact
            named in the manifest is not among the members.
    """
    listed = tuple(
        Member(
            path=_short(path), size=len(data), role=role,
            sha256=hashlib.sha256(data).hexdigest(),
        )
        for path, (role, data) in sorted(members.items())
    )  # fmt: skip
    whole = manifest.model_copy(update={"members": listed})
    try:
        parts = [_entry(MANIFEST, whole.canonical())]
        parts += [_entry(one.path, members[one.path][1]) for one in listed]
        packed = b"".join([*parts, tar.END])
        read_bundle(packed, limits)
    except (BundleError, ValueError) as error:
        raise InputError(f"the bundle cannot be packed: {error}") from error
    return packed


def renumbered(bundle: Bundle, counter: int) -> bytes:
    """The same bundle with another release counter: the same content, another digest.

    Raises:
        InputError: the bundle changed since it was verified; the counter is below 0.
    """
    value = json.loads(bundle.manifest_bytes)
    value["release_counter"] = counter
    try:
        parts = [_entry(MANIFEST, canonical_json(value))]
        parts += [_entry(path, bundle.member(path)) for path in bundle.paths()]
        packed = b"".join([*parts, tar.END])
        read_bundle(packed)
    except BundleError as error:
        raise InputError(f"release counter {counter}: {error}") from error
    return packed


def opened(path: Path) -> Bundle:
    """A verified bundle; a refusal names the file.

    Raises:
        InputError: it is not what it says.
    """
    try:
        return read_bundle(path)
    except BundleError as error:
        text = str(error)
        named = text if path.name in text else f"{path.name}: {text}"
        raise InputError(named) from error


def _entry(path: str, data: bytes) -> bytes:
    return tar.header(path, len(data)) + data + tar.padding(len(data))


def _short(path: str) -> str:
    try:
        tar.check_path(path)
    except BundleError as error:
        raise InputError(f"the bundle cannot be packed: {error}") from error
    return path
