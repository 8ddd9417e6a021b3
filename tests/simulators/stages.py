"""One lane, the models that were put on it, and stories about them.

::

    async def story(stage: Stage) -> None:
        served = stage.serve(Linear())
        await served.infer(feeds(1.0))

    on_stage(story)
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sessions import Hanging, Linear, feeds, loaded

from device_agent.config import ModelConfig
from device_agent.runtimes.base import Session
from device_agent.serving.lane import Lane
from device_agent.serving.served import Served

LANE = {"inline_us": 0.0}
"""Everything in the lane."""


@dataclass
class Stage:
    """One lane, and the models that were put on it."""

    lane: Lane
    models: list[Served] = field(default_factory=list)

    def serve(
        self, session: Session, latency_s: float = 0.001, name: str = "linear",
        **config: object,
    ) -> Served:  # fmt: skip
        served = Served(
            loaded(session, latency_s, name=name), self.lane,
            ModelConfig(**{**LANE, **config}),  # type: ignore[arg-type]
        )  # fmt: skip
        self.models.append(served)
        return served

    def check_empty(self) -> None:
        """Nothing is left behind by what has been answered."""
        assert self.lane.pending == 0
        assert self.lane.pending_ns == 0
        assert [served.waiting for served in self.models] == [0] * len(self.models)


def on_stage(story: Callable[[Stage], Awaitable[None]], *, empty: bool = True) -> None:
    async def main() -> None:
        stage = Stage(Lane("lane-0"))
        await asyncio.wait_for(story(stage), 60)
        if empty:
            await until(lambda: not stage.lane.pending and not stage.lane.lost)
            stage.check_empty()
        stage.lane.close()

    asyncio.run(main())


async def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def begun(session: Hanging) -> None:
    assert await asyncio.to_thread(session.started.wait, 30)


def ask(served: Served, value: float = 1.0, **how: float) -> asyncio.Task[object]:
    return asyncio.get_running_loop().create_task(served.infer(feeds(value), **how))  # type: ignore[arg-type]


def answer(*values: float) -> list[list[float]]:
    found: list[list[float]] = Linear().predict(feeds(*values))["y"].tolist()
    return found
