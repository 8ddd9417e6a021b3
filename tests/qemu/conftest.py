"""What scripts/qemu-test has built and fetched; without it the tests skip by name."""

import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from armbundles import EXPORTS
from images import Image
from machines import Machine, Tools, make_ext4

BINFMT = Path("/proc/sys/fs/binfmt_misc")


def exported(runtime: str) -> Path:
    """The folder of ``scripts/image --export``; skips by name when it is absent."""
    folder = EXPORTS / runtime
    if not (folder / "rootfs.tar").is_file():
        pytest.skip(f"build/image/{runtime}/rootfs.tar is absent: scripts/qemu-test")
    return folder


@pytest.fixture(scope="session", params=["onnxruntime", "litert"])
def runtime(request) -> str:
    return request.param


@pytest.fixture(scope="session")
def image(runtime: str, tmp_path_factory: pytest.TempPathFactory) -> Image:
    registered = any(BINFMT.glob("edgeml-aarch64-*"))
    if not registered and platform.machine() != "aarch64":
        pytest.skip("arm64 programs cannot be run here: scripts/qemu-test image")
    folder = exported(runtime)
    return Image.unpacked(folder, tmp_path_factory.mktemp("image") / runtime)


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    """A Raspberry Pi 4; its files are in memory."""
    try:
        tools = Tools.found()
    except LookupError as error:
        pytest.skip(str(error))
    with tempfile.TemporaryDirectory(prefix="machine-", dir="/dev/shm") as work:
        yield Machine.of_target("rpi4", tools, Path(work))


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory):
    """The image's root file system on a disk."""
    folder = tmp_path_factory.mktemp("root")
    Image.unpacked(exported("onnxruntime"), folder / "files")
    return make_ext4(folder / "root.img", 512 << 20, folder / "files")
