"""A broker for the tests that do not harm it, and stories told to a link."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, broker
from fleets import Fleet, fleet
from linked import QUICK, Linked, identity, linked

from device_agent.link.link import LinkSettings

Story = Callable[[Linked, Fleet], Awaitable[None]]
Tell = Callable[..., None]


@pytest.fixture(scope="module")
def shared() -> Iterator[Broker]:
    with broker() as made:
        yield made


@pytest.fixture
def own() -> Iterator[Broker]:
    """One that the test may kill."""
    with broker() as made:
        yield made


@pytest.fixture
def tell(tmp_path: Path) -> Tell:
    """Run a story with a device and a fleet on a broker."""

    def told(
        where: Broker, story: Story, device: str = "cam-1",
        settings: LinkSettings = QUICK, **more: Any,
    ) -> None:  # fmt: skip
        async def main() -> None:
            who = identity(where, device, tmp_path / device / "identity")
            async with linked(who, settings, **more) as one:
                await story(one, heard)

        with fleet(where) as heard:
            asyncio.run(main())

    return told
