"""The cache of stages: whole entries or none, keys of everything, damage remade."""

import os
import pickle
import signal
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.cache import (
    Cache,
    check_writable,
    digest_of,
    file_digest,
    source_digest,
    sweep,
    tool_versions,
    write_atomic,
)
from edgeml.candidate import Spec
from edgeml.errors import MachineLacks, UsageError
from edgeml.outcome import Latency

KEY = "ab" * 32
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Pair:
    left: int
    right: tuple[str, ...] = ()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def entry(cache: Cache, key: str = KEY) -> Path:
    (found,) = cache.folder.rglob(key)
    return found


# --- digests


def test_bytes_count_as_they_are() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digest_of(b"") == empty


def test_a_dataclass_counts_by_its_fields_and_a_tuple_as_a_list() -> None:
    assert digest_of(Pair(1, ("a",))) == digest_of({"right": ["a"], "left": 1})
    assert digest_of({"x": (1, 2)}) == digest_of({"x": [1, 2]})
    assert digest_of([Pair(1)]) != digest_of([Pair(2)])


def test_bytes_inside_a_record_count() -> None:
    assert digest_of({"x": b"\xff\x00"}) != digest_of({"x": b"\xff\x01"})


@given(st.dictionaries(st.text(max_size=5), st.integers(-5, 5), max_size=5))
def test_the_order_of_a_mapping_does_not_count(value: dict[str, int]) -> None:
    assert digest_of(value) == digest_of(dict(reversed(value.items())))


def test_what_json_cannot_hold_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(Exception, match=r"[Ss]erialize"):
        digest_of({"x": object()})


def test_a_files_digest_is_that_of_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc" * 100_000)
    assert file_digest(path) == digest_of(b"abc" * 100_000)


# --- keys


def test_a_key_changes_with_stage_input_name_and_value(cache: Cache) -> None:
    plain = {"model": "a", "spec": Spec("int8", "int8", "ort", {"percentile": 99.9})}
    keys = [
        cache.key("lower", **plain),
        cache.key("proxy", **plain),
        cache.key("lower", model="b", spec=plain["spec"]),
        cache.key("lower", other="a", spec=plain["spec"]),
        cache.key("lower", model="a"),
        cache.key(
            "lower", model="a", spec=Spec("int8", "int8", "ort", {"percentile": 99.8})
        ),
        cache.key(
            "lower", model="a",
            spec=Spec("int8", "int8", "ort", {"percentile": 99.9}, keep=("x",)),
        ),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert cache.key("lower", **plain) == keys[0]


def test_a_key_does_not_depend_on_where_the_cache_is(tmp_path: Path) -> None:
    keys = {Cache(tmp_path / name).key("lower", model="a") for name in ("x", "y")}
    assert len(keys) == 1


@pytest.mark.parametrize("name", ["tool_versions", "source_digest"])
def test_a_key_changes_with_the_tools_and_with_the_source(
    name: str, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cache.key("lower", model="a")
    monkeypatch.setattr(f"edgeml.cache.{name}", lambda: "another")
    assert Cache(cache.folder).key("lower", model="a") != before


def test_versions_are_of_tools_that_are_installed() -> None:
    assert {"numpy", "onnx", "onnxruntime"} <= tool_versions().keys()


def test_the_source_has_one_digest_in_every_process() -> None:
    code = "from edgeml.cache import source_digest; print(source_digest())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONHASHSEED": "7"},
    )  # fmt: skip
    assert done.stdout.strip() == source_digest()


# --- entries


@given(data=st.binary(max_size=200))
def test_what_was_written_is_read(
    data: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = Cache(tmp_path_factory.getbasetemp() / "entries")
    cache.write(KEY, data)
    assert cache.read(KEY) == data


def test_an_entry_is_made_once(cache: Cache) -> None:
    made: list[int] = []

    def make() -> bytes:
        made.append(1)
        return b"result"

    assert [cache.bytes(KEY, make) for _ in range(3)] == [b"result"] * 3
    assert made == [1]


def test_a_failure_leaves_no_entry(cache: Cache) -> None:
    def fail() -> bytes:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        cache.bytes(KEY, fail)
    assert cache.read(KEY) is None


def test_a_record_comes_back_as_it_was(cache: Cache) -> None:
    latency = Latency(0.1 + 0.2, 1.5, 0.7, 1, "here", 30, (0.1, 0.2))
    assert cache.record(Latency, KEY, lambda: latency) == latency
    assert cache.record(Latency, KEY, lambda: pytest.fail("made twice")) == latency


WHOLE = digest_of(b"result").encode() + b"\nresult"
DAMAGES = {
    "empty": b"",
    "cut": WHOLE[:-1],
    "cut in the digest": WHOLE[:20],
    "longer": WHOLE + b"\0",
    "another byte": WHOLE[:-1] + b"X",
    "another digest": b"0" + WHOLE[1:],
    "zeros": bytes(len(WHOLE)),
    "not text": b"\xff\xfe" + WHOLE[2:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_entry_is_made_again(damage: str, cache: Cache) -> None:
    cache.write(KEY, b"result")
    assert entry(cache).read_bytes() == WHOLE
    entry(cache).write_bytes(DAMAGES[damage])
    assert cache.read(KEY) is None
    assert cache.bytes(KEY, lambda: b"result") == b"result"
    assert entry(cache).read_bytes() == WHOLE


def test_two_keys_are_two_entries(cache: Cache) -> None:
    cache.write("aa" * 32, b"one")
    cache.write("aab" + "a" * 61, b"two")
    assert cache.read("aa" * 32) == b"one"


# --- files


def test_a_reader_sees_the_old_file_or_the_whole_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with path.open("rb") as before:
        write_atomic(path, b"new and longer")
        assert before.read() == b"old"
    assert path.read_bytes() == b"new and longer"
    assert list(tmp_path.iterdir()) == [path]


def test_folders_on_the_way_are_made(tmp_path: Path) -> None:
    write_atomic(tmp_path / "a" / "b" / "file", b"x")
    assert (tmp_path / "a" / "b" / "file").read_bytes() == b"x"


def test_a_writer_killed_between_the_bytes_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomic(path, b"old")
    code = (
        "import os, signal, sys, pathlib, edgeml.cache as cache\n"
        "cache.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        "cache.write_atomic(pathlib.Path(sys.argv[1]), b'new')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.glob(".*.part"))) == 1
    sweep(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_no_place_to_write_is_a_mistake_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UsageError, match="cannot be written"):
        write_atomic(tmp_path / "file" / "inside", b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError, match="cannot be written"):
        write_atomic(tmp_path / "folder", b"x")
    assert not list(tmp_path.glob(".*.part"))


def test_no_room_is_the_machines_fault_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("edgeml.cache.os.fsync", full)
    with pytest.raises(MachineLacks, match="No space left"):
        write_atomic(tmp_path / "file", b"x")
    assert not list(tmp_path.iterdir())


# --- sweeping


def test_only_what_dead_writers_left_is_swept(tmp_path: Path) -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    deep = tmp_path / "ab"
    deep.mkdir()
    dead = deep / f".model.onnx.{done.pid}.part"
    ours = deep / f".model.onnx.{os.getpid()}.part"
    for path in (dead, ours, deep / "model.onnx", deep / "a.part", deep / ".hidden"):
        path.write_bytes(b"")
    sweep(tmp_path)
    assert sorted(path.name for path in deep.iterdir()) == sorted(
        [ours.name, "model.onnx", "a.part", ".hidden"]
    )


def test_a_folder_that_is_not_there_is_swept_already(tmp_path: Path) -> None:
    sweep(tmp_path / "absent")


# --- where to write


def test_a_folder_that_can_be_made_is_writable(tmp_path: Path) -> None:
    check_writable(tmp_path)
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir()), "asking makes nothing"


def test_a_file_or_a_dangling_link_in_the_way_is_named(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    file.write_bytes(b"")
    link.symlink_to(tmp_path / "nowhere")
    for way in (file, link):
        with pytest.raises(UsageError, match=f"{way} is not a folder"):
            check_writable(way / "out")


def test_a_closed_folder_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=stat.S_IRUSR | stat.S_IXUSR)
    # Root may write anywhere, so that the system's answer is given here.
    monkeypatch.setattr("edgeml.cache.os.access", lambda *_: False)
    with pytest.raises(UsageError, match="not open to you"):
        check_writable(closed / "out")


def test_a_cache_that_was_sent_finds_what_its_sender_finds(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody edits the program while a build trains in another process."""
    raw = pickle.dumps(cache)
    monkeypatch.setattr("edgeml.cache.source_digest", lambda: "edited")
    assert pickle.loads(raw).key("stage", a=1) == cache.key("stage", a=1)
    assert Cache(cache.folder).key("stage", a=1) != cache.key("stage", a=1)
