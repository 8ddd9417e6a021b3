"""The clock table of docs/trust.md, found by running it: expiry blocks what is new, and
what runs goes on running."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registries import release
from thieves import NEW, OLD, Ground, World

from device_agent.errors import UpdateError
from device_agent.trust.clock import BUILT

PAGE = Path(__file__).resolve().parents[3] / "docs/trust.md"
YEAR_S = 365.25 * 86_400
LATER = datetime(2126, 1, 1, tzinfo=UTC)


def _set(to: float) -> Callable[[World], None]:
    return lambda world: setattr(world.device, "now", to)


def _moved(by: float) -> Callable[[World], None]:
    return lambda world: setattr(world.device, "now", world.device.now + by)


def _ahead_and_back(world: World) -> None:
    """An attempt while it was five years ahead; then somebody set it right."""
    right = world.device.now
    world.device.now += 5 * YEAR_S
    with pytest.raises(UpdateError):
        world.device.update(world.wanted(NEW, not_after=LATER))
    world.device.now = right


CLOCKS: dict[str, Callable[[World], None]] = {
    "right": _moved(0),
    "1970": _set(0.0),
    "a year before the agent was made": _set(BUILT - YEAR_S),
    "a day ahead": _moved(86_400),
    "20 years ahead": _moved(20 * YEAR_S),
    "was 5 years ahead, is right again": _ahead_and_back,
    "a week behind": _moved(-7 * 86_400),
}


def _fresh(world: World) -> None:
    pass


def _ends(world: World, when: datetime) -> None:
    def ended(signed: Any) -> None:
        signed.expires = when.replace(microsecond=0)

    world.thief.sign("timestamp", "timestamp", edit=ended)


def _expired(world: World) -> None:
    """Before the newest time that this device has known."""
    _ends(world, world.honest.now - timedelta(hours=1))


def _stale(world: World) -> None:
    """Since the newest time that this device has known."""
    _ends(world, world.honest.now + timedelta(hours=1))
    world.device.now += 2 * 3600


METADATA = {"fresh": _fresh, "expired": _expired, "expired since": _stale}
NETWORK = ("online", "offline")


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


def outcome(clock: str, metadata: str, network: str, world: World) -> str:
    """``activated``, or the reason why not."""
    METADATA[metadata](world)
    CLOCKS[clock](world)
    if network == "offline":
        world.device.urls = ("http://127.0.0.1:9",)
        world.device.reopen()
    old = world.honest.desired(release(*OLD)).digest
    try:
        world.device.update(world.wanted(NEW, not_after=LATER))
    except UpdateError as error:
        assert world.device.running == old
        return error.reason.value
    assert world.device.running == world.honest.desired(release(*NEW)).digest
    return "activated"


def documented() -> dict[tuple[str, str, str], str]:
    text = PAGE.read_text().split("## What a wrong clock does")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    head = [tuple(cell.split(", ")) for cell in rows[0][1:]]
    return {
        (row[0], metadata, network): cell.strip("`")
        for row in rows[2:]
        for (metadata, network), cell in zip(head, row[1:], strict=True)
    }


def test_every_clock(ground: Ground, tmp_path: Path) -> None:
    found = {}
    for clock in CLOCKS:
        for metadata in METADATA:
            for network in NETWORK:
                folder = tmp_path / f"{clock} {metadata} {network}"
                with ground.world(folder) as world:
                    said = outcome(clock, metadata, network, world)
                found[clock, metadata, network] = said
    for (clock, metadata, network), said in found.items():
        print(f"{clock:<34} {metadata:<14} {network:<8} {said}")
    assert found == documented()
