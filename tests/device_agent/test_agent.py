"""What the agent promises as a process."""

import subprocess
import sys
from pathlib import Path

from agents import ROOT, agent


def test_one_agent_per_state_directory(tmp_path: Path) -> None:
    state = ["--state", str(tmp_path / "state")]
    with agent(args=state) as device:
        command = [sys.executable, "-m", "device_agent", "run", *state]
        second = subprocess.run(
            [*command, "--listen", "127.0.0.1:0"], cwd=ROOT, capture_output=True,
            text=True, timeout=60,
        )  # fmt: skip
        assert second.returncode == 5
        assert f"is in use by process {device.process.pid}" in second.stderr
