"""What lies in the cache: whole or not at all, and told."""

import os
from pathlib import Path

import archives
import pytest
from archives import deb, file, package

from device_agent.contract import machine
from edgeml.emulator import debian
from edgeml.emulator.lock import Lock, Part
from edgeml.emulator.store import Store
from edgeml.errors import MachineLacks

QEMU = deb(*(file(f"./usr/bin/qemu-{cpu}") for cpu in ("arm", "mips", "aarch64")))
GUEST = deb(
    file("./usr/lib/arm-linux-gnueabihf/blas/libblas.so.3", b"blas"),
    file("./usr/share/doc/x"),
)
PATHS = {"pool/main/q.deb": QEMU, "pool/main/g.deb": GUEST}


@pytest.fixture
def store(tmp_path, monkeypatch) -> Store:
    monkeypatch.setattr(debian, "SNAPSHOT", "http://127.0.0.1:9/{moment}")
    monkeypatch.setattr(debian, "APT_HELPER", Path("/nonexistent"))
    qemu, guest = (package(path, data) for path, data in PATHS.items())
    here = machine.arch()
    locked = Lock(
        "now", {here: Part(f"qemu-{here}", (qemu,))},
        {"armv7l": Part("armv7l", (guest,), (), "3.11", "arm-linux-gnueabihf")},
    )  # fmt: skip
    return Store(tmp_path / "emulator", locked)


def test_parts_are_made_once(store, monkeypatch):
    said: list[str] = []
    with archives.archive(PATHS) as url:
        monkeypatch.setenv(debian.MIRROR, url)
        programs = store.qemu(said.append)
        _, root = store.guest("armv7l", said.append)
    assert sorted(path.name for path in programs.iterdir()) == [
        "qemu-aarch64", "qemu-arm",
    ]  # fmt: skip
    library = root / "usr/lib/arm-linux-gnueabihf/libblas.so.3"
    assert library.read_bytes() == b"blas"
    assert len(said) == 4
    # the archive is gone: nothing is asked of it
    assert store.qemu(said.append) == programs
    assert len(said) == 4
    assert [one.current for one in store.kept()] == [True, True]


def test_what_cannot_be_had_leaves_nothing(store, monkeypatch):
    monkeypatch.setenv(debian.MIRROR, "http://127.0.0.1:9")
    with pytest.raises(MachineLacks, match="cannot be had"):
        store.qemu(lambda line: None)
    assert list(store.folder.iterdir()) == []


def test_no_guest_of_that_kind(store):
    with pytest.raises(MachineLacks, match="no guest for riscv64; there are armv7l"):
        store.guest("riscv64", lambda line: None)


def test_a_cache_that_cannot_be_written_is_told(store):
    store.folder.parent.mkdir(exist_ok=True)
    store.folder.write_text("a file")
    with pytest.raises(MachineLacks, match="cannot hold the emulator"):
        store.qemu(lambda line: None)


def test_clean_removes_what_no_lock_asks_for(store, monkeypatch):
    with archives.archive(PATHS) as url:
        monkeypatch.setenv(debian.MIRROR, url)
        store.qemu(lambda line: None)
    old = store.folder / "aarch64-0000"
    (old / "usr").mkdir(parents=True)
    killed = store.folder / ".armv7l.abc.999999999"
    killed.mkdir()
    working = store.folder / f".armv7l.abc.{os.getpid()}"
    working.mkdir()
    assert [one.path for one in store.clean(everything=False)] == [old]
    assert not killed.exists()
    assert working.exists()
    assert len(store.clean(everything=True)) == 1
    assert store.kept() == []
