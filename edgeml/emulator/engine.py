"""The device's check in the agent's image, by a container engine that is here.

For hosts that the pinned QEMU does not run on, and for an image of one's own. What the
engine emulates with is its host's business (binfmt_misc, Docker Desktop); the processor
is named to it where it is QEMU. Memory counts with what emulates, so it is shown and
not held against the bundle's limit; the target's memory is the engine's limit.
"""

import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from ..errors import MachineLacks, UsageError, one_line
from .guest import Ran

_PLATFORMS = {
    "aarch64": "linux/arm64",
    "armv7l": "linux/arm/v7",
    "x86_64": "linux/amd64",
}
_PLACE = "/bundles/"
_KILLED = 137
"""The engine ended it (SIGKILL): it took more memory than it was given."""
_NOT_STARTED = 125


@dataclass(frozen=True)
class Engine:
    """A container engine, and the image that holds the device's program."""

    program: str
    image: str | None = None
    """None: the one that ``scripts/image`` makes for the bundle's runtime."""

    def image_for(self, arch: str, runtime: str) -> str:
        """The image that runs a bundle.

        Raises:
            UsageError: none was named, and none is made for that architecture.
        """
        if self.image is not None:
            return self.image
        if arch != "aarch64":
            raise UsageError(f"scripts/image makes none for {arch}; --image names one")
        return f"localhost/edgeml-agent:arm64-{runtime}"

    def version(self) -> str:
        """The engine and its version, as it says itself.

        Raises:
            MachineLacks: it is not here.
        """
        if shutil.which(self.program) is None:
            raise MachineLacks(
                f"{self.program} is not installed; without --engine nothing of the "
                "kind is needed"
            )
        done = self._ask("version", "--format", "{{.Client.Version}}")
        if done.returncode:
            raise MachineLacks(f"{self.program}: {one_line(done.stderr)}")
        return f"{self.program} {done.stdout.strip()}"

    def check(
        self, path: Path, image: str, arch: str, cpu: str, memory_bytes: int,
        timeout_s: float,
    ) -> Ran:  # fmt: skip
        """Run the device's check of a bundle in the image.

        Raises:
            MachineLacks: the engine does not start it; the text says why.
        """
        started = time.monotonic()
        place = f"{_PLACE}{path.name}"
        words = [
            "run", "--rm", "--network", "none", "--read-only",
            "--platform", _PLATFORMS[arch],
            "--memory", str(memory_bytes), "--env", f"QEMU_CPU={cpu}",
            "--volume", f"{path.resolve()}:{place}:ro", image,
            "check", place, "--json", "--emulated",
        ]  # fmt: skip
        try:
            done = self._ask(*words, timeout_s=timeout_s)
        except subprocess.TimeoutExpired:
            return Ran(-1, "", "", timeout_s, 0, 0, False, "time")
        if done.returncode == _NOT_STARTED:
            ours = "" if self.image else "; scripts/image makes it"
            raise MachineLacks(
                f"{self.program} does not run {image}: {_last(done.stderr)}{ours}"
            )
        ended = "memory" if done.returncode == _KILLED else ""
        wall_s = time.monotonic() - started
        return Ran(
            done.returncode, done.stdout, done.stderr, wall_s, 0, memory_bytes, False,
            ended,
        )  # fmt: skip

    def _ask(
        self, *words: str, timeout_s: float | None = None
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [self.program, *words], capture_output=True, text=True, check=False,
            timeout=timeout_s,
        )  # fmt: skip


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else "it does not say why"
