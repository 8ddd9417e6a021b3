"""A real repository with real bundles, for a test's story.

``linear`` in version N multiplies by N what version 1 answers, so that every answer
says whose it is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import bundles
import numpy as np

from device_agent.config import AgentConfig
from device_agent.serving.lane import Lane
from device_agent.serving.repository import Repository

X = np.ones((1, 4), np.float32)
_Y = np.maximum(X @ bundles.WEIGHT, 0)


def linear(number: int, **changes: Any) -> bytes:
    """Version ``number``.0.0 of ``linear``, as a bundle."""
    version = f"{number}.0.0"
    weight = bundles.WEIGHT * np.float32(number)
    return bundles.bundle(weight, **{"version": version, **changes})


@dataclass
class House:
    """A repository, and the folder of its bundles."""

    folder: Path
    repository: Repository

    def write(self, raw: bytes, name: str = "linear") -> Path:
        """Put a bundle's file there, in place of what was."""
        path = self.folder / f"{name}.edgeml"
        part = path.with_suffix(".part")
        part.write_bytes(raw)
        return part.rename(path)

    async def ask(self, name: str = "linear", version: str | None = None) -> int:
        """One request; the number of the version that has answered it."""
        served = self.repository.route(name, version)
        outputs = await served.infer({"x": X})
        number = round(float(outputs["y"].sum() / _Y.sum()))
        np.testing.assert_allclose(outputs["y"], _Y * number, rtol=1e-5)
        return number

    def lines(self) -> list[tuple[str, str, str]]:
        """The index without its reasons."""
        return [(one.name, one.version, one.state) for one in self.repository.index()]

    def reason(self, version: str) -> str:
        """What the index says of a version."""
        (found,) = [one for one in self.repository.index() if one.version == version]
        return found.reason

    def unpacked(self) -> int:
        """How many bundles are in the state directory."""
        return len(list((self.folder / "state" / "run").iterdir()))


Story = Callable[[House], Awaitable[None]]


def tell(folder: Path, story: Story, lanes: int = 1, **changes: Any) -> None:
    """Run a story on its event loop; nothing may be left behind."""

    async def main() -> None:
        made = tuple(Lane(f"lane-{number}") for number in range(lanes))
        config = replace(AgentConfig(folder / "state"), **changes)
        house = House(folder, Repository(config, made))
        await story(house)
        await house.repository.close()
        for lane in made:
            lane.close()
        run = folder / "state" / "run"
        assert not run.exists() or not list(run.iterdir()), "left in state/run"

    asyncio.run(main())


_ADMITTED: dict[str, bytes] = {}
"""Records of bundles that passed the sandbox in a story of this process."""


def remembering(folder: Path, story: Story, **changes: Any) -> None:
    """As :func:`tell`, but what passed in another such story is not tried again.

    For what happens around an installation: starting the sandbox costs far more than
    the rest of a story does.
    """
    admitted = folder / "state" / "admitted"
    admitted.mkdir(mode=0o700, parents=True)
    for name, raw in _ADMITTED.items():
        (admitted / name).write_bytes(raw)
    tell(folder, story, **changes)
    _ADMITTED.update({one.name: one.read_bytes() for one in admitted.glob("*.json")})
