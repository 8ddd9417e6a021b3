"""produced = stored, pending and declared dropped, whatever is killed how often.

Real mosquitto, real spools and links, a real database; see ``ledgerrun``. The full
campaign (200 devices, 5,000 records each, over 1,000 faults, packets lost) is
``scripts/test faults``.
"""

import os
import shutil

import pytest
from faultflows import Campaign
from ledgerrun import Settings, alone, room, run

MUTANTS = ("delete on PUBACK", "ack before commit")


def here(settings: Settings) -> Campaign:
    with room() as folder:
        campaign = run(settings, folder)
    print(campaign)
    return campaign


def test_a_few_devices_and_every_kind_of_kill() -> None:
    campaign = here(Settings(devices=4, records=100, faults=12, seconds=3.0))
    assert campaign.faults == 12
    assert not campaign.violations, str(campaign)


@pytest.mark.long
def test_fifty_devices() -> None:
    campaign = here(Settings(devices=50, records=400, faults=80, seconds=20.0, seed=2))
    assert campaign.points == 20_000
    assert not campaign.violations, str(campaign)


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_mutant_is_killed(mutant: str) -> None:
    campaign = here(
        Settings(
            devices=5, records=300, faults=40, seconds=8.0, quiet_s=5.0, mutant=mutant
        )
    )
    assert any("lost" in one for one in campaign.violations), (
        f"{mutant}: not found in {campaign}"
    )


@pytest.mark.faults
@pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("unshare", "iptables"))),
    reason="needs root, unshare and iptables, to lose packets",
)
def test_two_hundred_devices_and_a_million_records() -> None:
    campaign = alone(
        Settings(
            devices=200, records=5_000, faults=1_050, seconds=330.0, loss=True,
            quiet_s=300.0,
        )
    )  # fmt: skip
    print(campaign)
    assert campaign.points == 1_000_000
    assert campaign.faults >= 1_000
    assert not campaign.violations, str(campaign)
