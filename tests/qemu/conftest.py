"""The image that scripts/qemu-test has built; without it the tests skip by name."""

import subprocess
from pathlib import Path

import pytest
from commands import ROOT
from images import Image

EXPORTS = ROOT / "build" / "image"
BINFMT = Path("/proc/sys/fs/binfmt_misc/edgeml-aarch64")


def exported(runtime: str) -> Path:
    """The folder of ``scripts/image --export``; skips by name when it is absent."""
    folder = EXPORTS / runtime
    if not (folder / "rootfs.tar").is_file():
        pytest.skip(f"build/image/{runtime}/rootfs.tar is absent: scripts/qemu-test")
    return folder


@pytest.fixture(scope="session", params=["onnxruntime", "litert"])
def image(request, tmp_path_factory: pytest.TempPathFactory) -> Image:
    if not BINFMT.exists() and not native():
        pytest.skip("arm64 programs cannot be run here: scripts/qemu-test image")
    folder = exported(request.param)
    return Image.unpacked(folder, tmp_path_factory.mktemp("image") / request.param)


def native() -> bool:
    return subprocess.run(["uname", "-m"], capture_output=True).stdout == b"aarch64\n"
