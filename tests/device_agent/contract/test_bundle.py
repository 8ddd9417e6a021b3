"""A bundle is read back as it was packed; anything else is refused by name."""

import gzip
import io
import os
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import bundles
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.contract import tar
from device_agent.contract.bundle import BundleLimits, read_bundle, unpack
from device_agent.contract.errors import BundleError
from device_agent.contract.inert import check_inert
from device_agent.contract.manifest import Member


@pytest.fixture(scope="module")
def packed() -> bytes:
    return bundles.bundle()


def repacked(entries: list[tuple[str, bytes]]) -> bytes:
    """A tar in the right layout, whatever its manifest says."""
    parts = [
        tar.header(path, len(data)) + data + tar.padding(len(data))
        for path, data in entries
    ]
    return b"".join([*parts, tar.END])


def entries_of(raw: bytes) -> list[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        return [
            (one.name, archive.extractfile(one).read())  # type: ignore[union-attr]
            for one in archive.getmembers()
        ]


def listing(*paths: str, size: int = 1) -> bytes:
    """A bundle that lists these members; only the manifest is really in it."""
    members = tuple(
        Member(path=path, size=size, sha256="0" * 64, role="artifact") for path in paths
    )
    raw = bundles.manifest(members=members, artifact=paths[0]).canonical()
    return repacked([("manifest.json", raw)])


def refusal(raw: bytes, limits: BundleLimits | None = None) -> str:
    with pytest.raises(BundleError) as caught:
        read_bundle(raw, limits)
    return str(caught.value)


def test_what_was_packed_is_read(packed: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.edgeml"
    path.write_bytes(packed)
    for source in (packed, path):
        bundle = read_bundle(source)
        assert bundle.member("labels.json") == b'["a","b","c"]'
        assert bundle.path_of("golden") == "golden.npz"
        assert bundle.size_bytes == len(packed)


def test_any_tar_program_can_list_it(packed: bytes) -> None:
    names = [name for name, _ in entries_of(packed)]
    assert names[0] == "manifest.json"
    assert names[1:] == sorted(names[1:])


@given(st.data())
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    raw = bytearray(PACKED)
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        read_bundle(bytes(raw))
    except BundleError:
        return
    # only the manifest vouches for itself; its digest is what the world vouches for
    assert 512 <= at < 512 + 4096, f"byte {at} can be changed unseen"


@given(st.integers(0, 15_000))
def test_no_truncation_passes(size: int) -> None:
    refusal(PACKED[:size])


PACKED = bundles.bundle()


def test_trailing_bytes(packed: bytes) -> None:
    assert "bytes follow" in refusal(packed + b"\0")


def test_manifest_not_first(packed: bytes) -> None:
    first, *rest = entries_of(packed)
    assert "the first member is" in refusal(repacked([*rest, first]))


def test_unlisted_member(packed: bytes) -> None:
    raw = repacked([*entries_of(packed), ("more.txt", b"x")])
    assert "'more.txt' is not listed" in refusal(raw)


def test_missing_member(packed: bytes) -> None:
    assert "'labels.json'" in refusal(repacked(entries_of(packed)[:-1]))


def test_doubled_member(packed: bytes) -> None:
    entries = entries_of(packed)
    assert "'card.md'" in refusal(repacked([*entries[:3], *entries[2:]]))


def test_wrong_digest(packed: bytes) -> None:
    entries = [
        (path, b'["a","b","x"]' if path == "labels.json" else data)
        for path, data in entries_of(packed)
    ]
    assert "'labels.json' has SHA-256" in refusal(repacked(entries))


def test_wrong_size(packed: bytes) -> None:
    entries = [(p, d + b" " * (p == "card.md")) for p, d in entries_of(packed)]
    assert "'card.md' has 10 bytes; manifest.json says 9" in refusal(repacked(entries))


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (["/etc/passwd"], "is absolute"),
        (["a/../../b"], "climbs out"),
        (["a\\b"], "backslash"),
        (["a//b"], "each part"),
        (["./a"], "each part"),
        (["a", "a"], "listed twice"),
        (["A", "a"], "case is ignored"),
        (["Manifest.json"], "case is ignored"),
        (["a", "a/b"], "both a file and the folder"),
        (["b", "a"], "unsorted"),
    ],
)
def test_paths_that_are_refused(paths: list[str], why: str) -> None:
    assert why in refusal(listing(*paths))


@pytest.mark.parametrize(
    "kind", [b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"x", b"g", b"L", b"K", b"S"]
)
def test_only_regular_files(packed: bytes, kind: bytes) -> None:
    at = packed.index(b"artifact/model.onnx\0")
    raw = bytearray(packed)
    raw[at + 156 : at + 157] = kind
    assert "only regular files" in refusal(bytes(raw))


def test_headers_of_other_tars_are_refused() -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        entry = tarfile.TarInfo("manifest.json")
        entry.size = 2
        archive.addfile(entry, io.BytesIO(b"{}"))
    assert "tar header is not the one" in refusal(stream.getvalue())


def test_claimed_size_is_not_believed() -> None:
    raw = tar.header("manifest.json", 2 << 30) + b"{}"
    assert "claims 2147483648 bytes" in refusal(raw)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (BundleLimits(total_bytes=1000), "the bundle has"),
        (BundleLimits(member_bytes=100), "'artifact/model.onnx' has"),
        (BundleLimits(members=2), "lists 4 members"),
        (BundleLimits(manifest_bytes=10), "manifest.json has"),
    ],
)
def test_limits(packed: bytes, limits: BundleLimits, why: str) -> None:
    assert why in refusal(packed, limits)


@pytest.mark.parametrize(
    "change",
    [
        lambda raw: b" " + raw,
        lambda raw: raw.replace(b'"format":1', b'"format":1,"format":1'),
        lambda raw: raw.replace(b'"format":1', b'"format": 1'),
    ],
)
def test_manifest_must_be_canonical(packed: bytes, change: object) -> None:
    (name, raw), *rest = entries_of(packed)
    changed = change(raw)  # type: ignore[operator]
    assert "canonical" in refusal(repacked([(name, changed), *rest]))


def test_unknown_fields_are_kept_by_unpack(packed: bytes, tmp_path: Path) -> None:
    (name, raw), *rest = entries_of(packed)
    newer = raw[:-1] + b',"zzz":1}'
    bundle = read_bundle(repacked([(name, newer), *rest]))
    unpack(bundle, tmp_path / "out")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == newer


def test_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path, tmp_path / "pipe"):
        with pytest.raises(BundleError):
            read_bundle(path)


class TestUnpack:
    def test_writes_every_member(self, packed: bytes, tmp_path: Path) -> None:
        unpack(read_bundle(packed), tmp_path / "new" / "out")
        for path, data in entries_of(packed):
            assert (tmp_path / "new" / "out" / path).read_bytes() == data
        assert [one.name for one in (tmp_path / "new").iterdir()] == ["out"]

    def test_an_empty_folder_is_used(self, packed: bytes, tmp_path: Path) -> None:
        unpack(read_bundle(packed), tmp_path)
        assert (tmp_path / "card.md").is_file()

    def test_a_full_folder_is_refused(self, packed: bytes, tmp_path: Path) -> None:
        (tmp_path / "mine").touch()
        with pytest.raises(BundleError, match="is there already"):
            unpack(read_bundle(packed), tmp_path)
        assert [one.name for one in tmp_path.iterdir()] == ["mine"]

    def test_nothing_is_left_of_a_changed_bundle(
        self, packed: bytes, tmp_path: Path
    ) -> None:
        path = tmp_path / "a.edgeml"
        path.write_bytes(packed)
        bundle = read_bundle(path)
        raw = bytearray(packed)
        raw[packed.index(b'["a","b"') + 2] ^= 1
        path.write_bytes(raw)
        with pytest.raises(BundleError, match=r"'labels\.json' changed"):
            unpack(bundle, tmp_path / "out")
        assert [one.name for one in tmp_path.iterdir()] == ["a.edgeml"]


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("true",)


def npy(array: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)  # type: ignore[arg-type]
    return stream.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return stream.getvalue()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_are_found(protocol: int) -> None:
    raw = pickle.dumps(Evil(), protocol)
    hidden = [raw, zipped("m/data", raw), zipped("x.npy", npy(np.array([Evil()])))]
    for data in hidden:
        with pytest.raises(BundleError, match="can run code"):
            check_inert("artifact/model.bin", io.BytesIO(data))


@pytest.mark.parametrize(
    "data",
    [
        npy(np.array([None])),
        gzip.compress(b"x", mtime=0),
        zipped("archive/data.pkl", b"anything"),
        zipped("in.zip", zipped("a", b"b")),
        b"PK\x03\x04 damaged",
        pickle.dumps([1, 2], 4) + b"more",
        struct.pack("257x5s250x", b"ustar"),
    ],
)
def test_hidden_content_is_refused(data: bytes) -> None:
    with pytest.raises(BundleError):
        check_inert("a", io.BytesIO(data))


@pytest.mark.parametrize(
    "data",
    [b"", b"# card\n", b"{}", b"card.", b"I am.", b"(.", npy(np.zeros(3)),
     zipped("x.npy", npy(np.zeros(3))), b"\x80\x02\xff\xff", bytes(1000)],
)  # fmt: skip
def test_plain_data_passes(data: bytes) -> None:
    check_inert("artifact/model.bin", io.BytesIO(data))


@pytest.mark.parametrize("opcode", [b"\x8d", b"\x8e", b"\x96", b"T", b"\x8b"])
def test_claimed_lengths_are_not_believed(opcode: bytes) -> None:
    """Found by hypothesis: a string of 2**56 bytes in a file of nine."""
    for size in (2**56, 2**31 - 1):
        data = opcode + size.to_bytes(8, "little")
        check_inert("a", io.BufferedReader(io.BytesIO(data)))  # type: ignore[arg-type]


def test_a_zip_that_is_all_listing_is_not_listed() -> None:
    raw = bytearray(zipped("a", b"b"))
    end = raw.rindex(b"PK\x05\x06")
    raw[end + 12 : end + 16] = (5 << 20).to_bytes(4, "little")
    with pytest.raises(BundleError, match="bytes of listing"):
        check_inert("a", io.BytesIO(bytes(5 << 20) + raw))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_with_long_strings_are_found(protocol: int) -> None:
    raw = pickle.dumps(["x" * (3 << 20), b"y" * (3 << 20), Evil()], protocol)
    with pytest.raises(BundleError, match="can run code"):
        check_inert("a", io.BytesIO(raw))


@given(st.binary(max_size=2000))
def test_any_bytes_get_an_answer(data: bytes) -> None:
    for head in (b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04", b"\x80\x04"):
        try:
            check_inert("a", io.BytesIO(head + data))
        except BundleError as error:
            assert "'a'" in str(error)


SEGMENT = st.from_regex(r"[a-z0-9_][a-z0-9_.+@-]{0,30}", fullmatch=True)


PATHS = st.lists(SEGMENT, min_size=1, max_size=5).map("/".join)


@given(PATHS, st.integers(0, tar.MEMBER_BYTES_MAX))
def test_headers_round_trip(path: str, size: int) -> None:
    block = tar.header(path, size)
    assert len(block) == tar.BLOCK_BYTES
    assert tar.parse(block) == (path, size)
    assert tarfile.TarInfo.frombuf(block, "ascii", "strict").name == path
