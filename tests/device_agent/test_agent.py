"""What the agent promises as a process."""

import subprocess
import sys
from pathlib import Path

import requests
from agents import ROOT, agent
from callers import post
from repositories import linear
from updaters import Device, Outcome, tell


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


def test_what_was_committed_is_served_without_an_identity(tmp_path: Path) -> None:
    """Whatever has become of it: the model is there."""

    async def story(device: Device) -> None:
        digest = device.publish(linear(1, release_counter=1))
        device.want(digest, 1)
        assert (await device.ended(1)).outcome is Outcome.COMMITTED

    tell(tmp_path, story)
    state = tmp_path / "state"
    (state / "identity").mkdir()
    (state / "identity/identity.json").write_text("{")
    with agent(args=["--state", str(state)]) as device:
        status, said = post(device.url, "/v2/repository/index")
        assert (status, said[0]["version"], said[0]["state"]) == (200, "1.0.0", "READY")
        assert "identity cannot be used" in device.log()
        shown = requests.get(f"{device.url}/v1/device", timeout=20).json()
        assert shown["committed"] == "a"
        assert shown["running"]["committed"] is True
