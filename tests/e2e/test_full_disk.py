"""A device is started while its disk is full: it serves what is committed."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from callers import calling
from fields import check, fielded, release

from device_agent.contract.codes import Outcome
from device_agent.serving.folders import sweep

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.getuid() != 0, reason="needs root: it mounts a small disk"),
]


@contextmanager
def disk(place: Path, size: str) -> Iterator[None]:
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(place)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(path: Path) -> None:
    step = 1 << 16
    with path.open("wb", 0) as file:
        while step:
            try:
                file.write(bytes(step))
            except OSError:
                step //= 2


def test_what_is_committed_is_served_and_updated_when_there_is_room(
    tmp_path: Path,
) -> None:
    with disk(tmp_path / "state", "64m"), fielded(tmp_path) as site:
        site.publish(release(1), release(2))
        site.want(release(1), serial=1)
        with site.agent():
            assert site.ended(1).outcome is Outcome.COMMITTED
        hog = site.state / "hog"
        fill(hog)
        with site.agent() as device, calling(device.url, check, count=1) as callers:
            assert {one.version for one in callers.more(3)} == {"1.0.0"}
            site.want(release(2), serial=2)
            hog.unlink()
            assert site.ended(2, within_s=90).outcome is Outcome.COMMITTED
            assert {one.version for one in callers.more(3)} == {"2.0.0"}
            assert not callers.failures
        sweep(site.state)  # its folder in memory, which is empty now
