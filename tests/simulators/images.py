"""The agent's image, run as a container engine would run it, without one.

::

    image = Image.unpacked(folder_of_scripts_image_export, somewhere)
    done = image.run(["edgeml-agent", "check", "/bundles/x.edgeml"], volumes)

1. The image's own user, environment and entry point; no capability.
2. Its root file system is read-only; ``/tmp`` is a tmpfs; what a test gives as volumes
   (a place in the image → a folder of the host) is bind-mounted; /proc, /sys and /dev
   are the host's.
3. The host's network, as with ``--network host``.
4. It needs root, and binfmt_misc that runs arm64 programs (``scripts/qemu-test`` sees
   to both). ``QEMU_CPU`` is the processor of the target.
"""

import json
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agents import Agent, watched
from commands import Done

STATE = "/var/lib/edgeml-agent"
LIMIT_S = 300.0


@dataclass(frozen=True)
class Image:
    """An unpacked image and the part of its configuration that running it needs."""

    root: Path
    user: str
    environment: tuple[str, ...]
    entrypoint: tuple[str, ...]
    health: tuple[str, ...]

    @classmethod
    def unpacked(cls, exported: Path, folder: Path) -> "Image":
        """Unpack what ``scripts/image --export`` wrote."""
        folder.mkdir(parents=True)
        subprocess.run(
            ["tar", "--extract", "--numeric-owner", "--preserve-permissions",
             "--file", exported / "rootfs.tar", "--directory", folder],
            check=True,
        )  # fmt: skip
        config = json.loads((exported / "config.json").read_text())
        kind, *health = config["Healthcheck"]["Test"]
        assert kind == "CMD", config["Healthcheck"]
        return cls(
            folder, config["User"], tuple(config["Env"]), tuple(config["Entrypoint"]),
            tuple(health),
        )  # fmt: skip

    @property
    def size_bytes(self) -> int:
        """Bytes of all its files, each counted once."""
        seen = {}
        for path in self.root.rglob("*"):
            facts = path.lstat()
            seen[facts.st_ino] = facts.st_size if path.is_file() else 0
        return sum(seen.values())

    def command(
        self, words: Sequence[str], volumes: Mapping[str, Path], cpu: str
    ) -> list[str]:
        """What runs these words in the image; the process becomes theirs (exec)."""
        root = shlex.quote(str(self.root))
        steps = [f"mount --bind {root} {root}", f"cd {root}"]
        for place, folder in volumes.items():
            inside = self.root / place.lstrip("/")
            inside.mkdir(parents=True, exist_ok=True)
            steps.append(f"mount --bind {shlex.quote(str(folder))} .{place}")
        steps += [
            "mount -t proc proc ./proc",
            "mount --rbind /sys ./sys",
            "mount --rbind /dev ./dev",
            "mount -t tmpfs -o mode=1777 tmpfs ./tmp",
            f"mount -o remount,ro,bind {root}",
            'exec "$@"',
        ]
        return [
            "unshare", "--mount", "sh", "-ec", "; ".join(steps), "sh",
            "chroot", f"--userspec={self.user}", "--groups=", str(self.root),
            "/usr/bin/env", "-i", *self.environment, f"QEMU_CPU={cpu}", *words,
        ]  # fmt: skip

    def run(
        self,
        words: Sequence[str],
        volumes: Mapping[str, Path] | None = None,
        cpu: str = "cortex-a72",
    ) -> Done:
        """Run a command to its end.

        Raises:
            subprocess.TimeoutExpired: it took more than ``LIMIT_S`` seconds.
        """
        done = subprocess.run(
            self.command(words, volumes or {}, cpu),
            capture_output=True, text=True, check=False, timeout=LIMIT_S,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def serving(
        self, bundles: Path, state: Path, cpu: str = "cortex-a72"
    ) -> Iterator[Agent]:
        """The agent on every bundle of a folder, on a free port of this machine.

        Args:
            bundles: the folder; its user must be able to read it.
            state: the volume that the agent writes to; it is made the image's user's.
            cpu: the target's processor, as QEMU calls it.
        """
        give(state, self.user)
        inside = [f"/bundles/{path.name}" for path in sorted(bundles.iterdir())]
        words = [*self.entrypoint, "run", "--listen", "127.0.0.1:0", "--bundle"]
        volumes = {"/bundles": bundles, STATE: state}
        with watched(
            self.command([*words, *inside], volumes, cpu),
            socket=state / "agent.sock", state=state, ready_s=LIMIT_S,
        ) as device:  # fmt: skip
            yield device

    def healthy(self, state: Path, cpu: str = "cortex-a72") -> Done:
        """What its HEALTHCHECK says of the agent with that state."""
        return self.run(self.health, {STATE: state}, cpu)


def give(folder: Path, user: str) -> None:
    """Make a folder, and its owner the image's user (``10001:10001``)."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["chown", user, folder], check=True)
