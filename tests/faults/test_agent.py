"""The agent as it is installed, killed and failed at its system calls in an update."""

import shutil
from pathlib import Path

import pytest
import stricken
from fields import fielded

SAMPLE = 60
"""Of some 300 faults, a third of a minute each; None: every one."""
pytestmark = pytest.mark.skipif(
    shutil.which("strace") is None, reason="needs strace (apt install strace)"
)


@pytest.mark.faults
def test_an_update_at_every_call(tmp_path: Path) -> None:
    with fielded(tmp_path) as site:
        campaign = stricken.strike(site, seed=1, sample=SAMPLE)
    print(campaign)
    assert not campaign.violations, str(campaign)
