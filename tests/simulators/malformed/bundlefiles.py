"""Bundles that are not what they say: name → their bytes, and what is said of them."""

import gzip
import hashlib
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import bundles
import numpy as np

from device_agent.contract import tar


@dataclass(frozen=True)
class Malformed:
    """Who makes the bytes, and words of the reason that must be given (a pattern)."""

    make: Callable[[], bytes]
    reason: str


Entries = list[tuple[str, bytes]]


def entries() -> Entries:
    """Members of a sound bundle, the manifest first."""
    with tarfile.open(fileobj=io.BytesIO(bundles.bundle())) as archive:
        return [
            (one.name, archive.extractfile(one).read())  # type: ignore[union-attr]
            for one in archive.getmembers()
        ]


def entry(path: str, data: bytes) -> bytes:
    """One member in the right layout."""
    return tar.header(path, len(data)) + data + tar.padding(len(data))


def packed(members: Entries) -> bytes:
    """A tar in the right layout, whatever its manifest says."""
    return b"".join([*(entry(path, data) for path, data in members), tar.END])


def _changed(change: Callable[[Entries], Entries]) -> Callable[[], bytes]:
    return lambda: packed(change(entries()))


def _said(**changes: Any) -> Callable[[], bytes]:
    """With fields of the manifest replaced."""

    def make() -> bytes:
        (name, raw), *rest = entries()
        value = {**json.loads(raw), **changes}
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return packed([(name, text.encode()), *rest])

    return make


def _listed(change: Callable[[dict[str, Any]], object]) -> Callable[[], bytes]:
    """With what the manifest says of ``card.md`` changed."""

    def make() -> bytes:
        (name, raw), *rest = entries()
        value = json.loads(raw)
        change(next(one for one in value["members"] if one["path"] == "card.md"))
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return packed([(name, text.encode()), *rest])

    return make


def _odd(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[], bytes]:
    """The first member's header as ``tarfile`` writes it, of another kind or name."""

    def make() -> bytes:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, "/etc/passwd"
        manifest = entries()[0]
        return entry(*manifest) + info.tobuf(tarfile.USTAR_FORMAT) + tar.END

    return make


def _doubled(members: Entries) -> Entries:
    (name, raw), *rest = members
    value = json.loads(raw)
    value["members"].append(value["members"][-1])
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return [(name, text.encode()), *rest, rest[-1]]


def _with(path: str, data: bytes) -> Callable[[], bytes]:
    """A whole bundle with one more, listed member."""

    def make() -> bytes:
        (name, raw), *rest = entries()
        value = json.loads(raw)
        digest = hashlib.sha256(data).hexdigest()
        value["members"].append(
            {"path": path, "size": len(data), "sha256": digest, "role": "artifact"}
        )
        value["members"].sort(key=lambda one: one["path"])
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        members = sorted([*rest, (path, data)])
        return packed([(name, text.encode()), *members])

    return make


def _objects() -> bytes:
    stream = io.BytesIO()
    np.savez(stream, x=np.array([{}], object))
    return stream.getvalue()


MALFORMED: dict[str, Malformed] = {
    "empty": Malformed(lambda: b"", "ends where member 'manifest.json'"),
    "no bundle at all": Malformed(lambda: b"hello\n" * 200, "damaged, or no bundle"),
    "an image": Malformed(lambda: b"\x89PNG\r\n" + bytes(2000), "no bundle"),
    "compressed": Malformed(lambda: gzip.compress(bundles.bundle()), "no bundle"),
    "truncated": Malformed(
        lambda: bundles.bundle()[:-700], "does not end|cut off|missing"
    ),
    "half": Malformed(
        lambda: bundles.bundle()[: len(bundles.bundle()) // 2], "the file ends"
    ),
    "trailing garbage": Malformed(lambda: bundles.bundle() + b"\0", "bytes follow"),
    "unlisted member": Malformed(
        _changed(lambda found: [*found, ("more.txt", b"x")]), "'more.txt' is not listed"
    ),
    "missing member": Malformed(_changed(lambda found: found[:-1]), "'labels.json'"),
    "manifest missing": Malformed(
        _changed(lambda found: found[1:]), "expected 'manifest.json'"
    ),
    "listed twice": Malformed(_changed(_doubled), "'labels.json' is listed twice"),
    "there twice": Malformed(
        _changed(lambda found: [*found[:3], *found[2:]]), "doubled"
    ),
    "absolute path": Malformed(
        _listed(lambda one: one.update(path="/etc/passwd")), "is absolute"
    ),
    "climbing path": Malformed(
        _listed(lambda one: one.update(path="a/../../b")), "climbs out"
    ),
    "climbing member": Malformed(_odd("../../b"), "climbs out"),
    "symbolic link": Malformed(
        _odd("artifact/model.onnx", tarfile.SYMTYPE), "is a symbolic link"
    ),
    "hard link": Malformed(_odd("artifact/model.onnx", tarfile.LNKTYPE), "hard link"),
    "device": Malformed(_odd("artifact/model.onnx", tarfile.CHRTYPE), "character dev"),
    "wrong digest": Malformed(
        _listed(lambda one: one.update(sha256="0" * 64)), "'card.md' has SHA-256"
    ),
    "wrong size": Malformed(
        _listed(lambda one: one.update(size=one["size"] + 1)), "'card.md' has 9 bytes"
    ),
    "huge size": Malformed(
        _listed(lambda one: one.update(size=2**40)), "at most .* allowed"
    ),
    "unknown format": Malformed(_said(format=2), "format 2 is unknown"),
    "manifest that is no JSON": Malformed(
        _changed(lambda found: [("manifest.json", b"{"), *found[1:]]), "not JSON"
    ),
    "manifest with a wrong field": Malformed(_said(runtime=3), "runtime"),
    "manifest with spaces": Malformed(
        _changed(lambda found: [(found[0][0], found[0][1] + b" "), *found[1:]]),
        "not canonical JSON",
    ),
    "artifact not listed": Malformed(_said(artifact="a.onnx"), "'a.onnx'"),
    "pickle": Malformed(_with("artifact/w.bin", pickle.dumps({1: print})), "pickle"),
    "name of a pickle": Malformed(_with("artifact/w.pth", b"x"), "pickle"),
    "pickled objects": Malformed(_with("artifact/w.npz", _objects()), "pickled object"),
    "archive within": Malformed(
        _with("artifact/w.bin", gzip.compress(b"x")), "gzip-compressed"
    ),
}
