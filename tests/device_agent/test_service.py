"""The systemd unit: systemd takes it, and it fits the defaults of the agent."""

import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import faulty
import httpx
import pytest
from agents import agent

from device_agent import status
from device_agent.config import AgentConfig

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "edgeml-agent.service"
CONFIG = AgentConfig(state=Path("/state"))

systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def settings() -> dict[str, str]:
    lines = UNIT.read_text().splitlines()
    pairs = [line.split("=", 1) for line in lines if re.match(r"[A-Z]\w+=", line)]
    found = dict(pairs)
    assert len(found) == len(pairs), "a setting is there twice"
    return found


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The unit with a program that is there: systemd looks for it."""
    unit = tmp_path / UNIT.name
    program = settings()["ExecStart"].split()[0]
    unit.write_text(UNIT.read_text().replace(program, sys.executable))
    return unit


@systemd
def test_systemd_takes_it(installed: Path):
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@systemd
def test_systemd_does_not_take_anything(installed: Path):
    """So that the test above means something."""
    installed.write_text(installed.read_text().replace("Type=notify", "Type=notfy"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", installed],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "notfy" in done.stderr


@systemd
def test_it_exposes_little(installed: Path):
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager",
         "--threshold=20", installed],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze is too old for --offline")
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_fits_the_agents_defaults():
    found = settings()
    assert int(found["TimeoutStopSec"]) > CONFIG.drain_s
    limits = CONFIG.limits
    assert int(found["LimitNOFILE"]) > 4 * (
        limits.connections + limits.reserved_connections
    )
    assert found["StateDirectory"] == status.SERVICE_STATE.name
    assert status.SERVICE_STATE.parent == Path("/var/lib")


def test_it_starts_a_verb_that_there_is():
    _, verb, option, path = settings()["ExecStart"].split()
    done = subprocess.run(
        [sys.executable, "-m", "device_agent", verb, "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert f"{option} FILE" in done.stdout
    assert path == "/etc/edgeml/agent.toml"
    assert path in (ROOT / "docs" / "agent.md").read_text()


def test_it_is_always_started_again():
    found = settings()
    assert found["Restart"] == "always"
    assert found["RestartPreventExitStatus"] == "2"
    assert found["StartLimitIntervalSec"] == "0"


def test_the_watchdog_waits_longer_than_anything_that_ends():
    assert settings()["Type"] == "notify"
    assert int(settings()["WatchdogSec"]) > CONFIG.hang_s


def test_the_agent_says_when_it_is_ready_and_when_it_stops(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd_hears:
        systemd_hears.bind(str(tmp_path / "notify"))
        systemd_hears.settimeout(30)
        with agent(env={"NOTIFY_SOCKET": str(tmp_path / "notify")}):
            assert "READY=1" in systemd_hears.recv(4096).decode().splitlines()
        assert "STOPPING=1" in systemd_hears.recv(4096).decode().splitlines()


@pytest.mark.long
def test_the_watchdog_hears_no_more_when_a_call_keeps_the_event_loop(tmp_path: Path):
    bundle = tmp_path / "hangs.edgeml"
    bundle.write_bytes(faulty.hangs_when_asked())
    data = [1e18, 0.0, 0.0, 0.0]
    asked = {
        "inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": data}]
    }
    watched = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "60000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd_hears:
        systemd_hears.bind(watched["NOTIFY_SOCKET"])
        systemd_hears.settimeout(30)
        with agent(
            [bundle], env=watched, toml="[model]\ninline_us = 100000.0\n"
        ) as device:
            heard = [systemd_hears.recv(4096) for _ in range(4)]
            assert heard.count(b"WATCHDOG=1") == 3
            with pytest.raises(httpx.TimeoutException):
                httpx.post(
                    f"{device.url}/v2/models/linear/infer", json=asked, timeout=2.0
                )
            systemd_hears.settimeout(3)
            with pytest.raises(TimeoutError):
                for _ in range(10):
                    systemd_hears.recv(4096)
            device.process.kill()
