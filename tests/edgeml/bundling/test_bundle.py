"""Packing: same content, same bytes; nothing packed that a device would refuse."""

import hashlib
import pickle
import subprocess
import sys
from pathlib import Path

import bundles
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract.bundle import BundleLimits, read_bundle
from edgeml.bundling.bundle import pack
from edgeml.errors import InputError


def test_the_same_bytes_in_any_process() -> None:
    here = hashlib.sha256(bundles.bundle()).hexdigest()
    code = (
        "import bundles, hashlib;"
        "print(hashlib.sha256(bundles.bundle()).hexdigest())"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(bundles.__file__).parent,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == here


@given(st.permutations(list(bundles.members())))
def test_order_does_not_matter(order: list[str]) -> None:
    members = bundles.members()
    shuffled = {path: members[path] for path in order}
    assert pack(bundles.manifest(), shuffled) == pack(bundles.manifest(), members)


SEGMENT = st.from_regex(r"[a-z0-9_][a-z0-9_.-]{0,20}", fullmatch=True)


@given(
    st.dictionaries(
        SEGMENT.map("extra/{}".format), st.binary(max_size=2000), max_size=6
    )
)
def test_round_trip(extra: dict[str, bytes]) -> None:
    members = bundles.members()
    members |= {path: ("artifact", data) for path, data in extra.items()}
    try:
        packed = pack(bundles.manifest(), members)
    except InputError as error:
        assert "code" in str(error) or "hides" in str(error)
        return
    bundle = read_bundle(packed)
    assert {path: bundle.member(path) for path in bundle.paths()} == {
        path: data for path, (_, data) in members.items()
    }


@pytest.mark.parametrize("path", ["../up", "/abs", "a\\b", "A/model", "x" * 300, ""])
def test_paths_that_no_reader_takes(path: str) -> None:
    members = {**bundles.members(), "a/model": ("artifact", b"")}
    with pytest.raises(InputError, match="cannot be packed"):
        pack(bundles.manifest(), {**members, path: ("artifact", b"x")})


def test_pickles_are_refused() -> None:
    members = bundles.members()
    members["artifact/weights.bin"] = ("artifact", pickle.dumps({"w": [1.0]}))
    with pytest.raises(InputError, match=r"weights\.bin.*pickle"):
        pack(bundles.manifest(), members)


def test_an_artifact_that_is_not_there() -> None:
    with pytest.raises(InputError, match="is to be loaded but"):
        pack(bundles.manifest(artifact="artifact/other.onnx"), bundles.members())


def test_limits() -> None:
    with pytest.raises(InputError, match="at most 1000"):
        pack(bundles.manifest(), bundles.members(), BundleLimits(total_bytes=1000))
