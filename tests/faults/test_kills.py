"""An unmodified process, killed and failed from outside at its system calls."""

import shutil

import killing
import pytest
from faultflows import Campaign, names

FLOWS = names()
SEEDS = (1, 2)
MUTANTS = {
    "state written in place": ("signal=SIGKILL",),
    "errors ignored": ("error=ENOSPC",),
}
pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (apt install strace)"
)


@pytest.mark.long
@pytest.mark.parametrize("name", [one for one in FLOWS if one != "update"])
def test_some_calls(name: str) -> None:
    campaign = killing.strike(name, seed=1, sample=15)
    print(campaign)
    assert campaign.faults >= 12
    assert not campaign.violations, str(campaign)


@pytest.mark.long
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_mutant_is_killed(mutant: str) -> None:
    campaign = killing.strike(
        "replace", seed=1, whats=MUTANTS[mutant], mutant=mutant, sample=30
    )
    assert campaign.violations, f"{mutant}: not found in {campaign}"


@pytest.mark.faults
@pytest.mark.parametrize("name", FLOWS)
def test_every_call(name: str) -> None:
    total = Campaign(f"SIGKILL, ENOSPC and EIO by strace, {name}", SEEDS[0])
    for seed in SEEDS[:1] if name == "update" else SEEDS:
        total += killing.strike(name, seed)
    print(total)
    assert not total.violations, str(total)
