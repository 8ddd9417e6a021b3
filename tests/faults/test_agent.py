"""The agent as it is installed, killed and failed at its system calls in an update."""

import shutil
from pathlib import Path

import pytest
import stricken

FIELDS = 4
"""At once: much of a fault's third of a minute is waited for."""
pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (apt install strace)"
)


@pytest.mark.faults
def test_an_update_at_every_call(tmp_path: Path) -> None:
    campaign = stricken.strike(tmp_path, seed=1, fields=FIELDS)
    print(campaign)
    assert not campaign.violations, str(campaign)
