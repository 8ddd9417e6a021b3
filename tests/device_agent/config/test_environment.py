"""Where state is kept, and what a service manager says."""

import os
from pathlib import Path

import pytest

from device_agent.config import (
    Overrides,
    default_state,
    is_watched,
    load_config,
    notify_socket,
)
from device_agent.errors import ConfigError

from .conftest import NOTHING, SOMEWHERE


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (
        "STATE_DIRECTORY", "XDG_STATE_HOME", "NOTIFY_SOCKET", "WATCHDOG_USEC",
        "WATCHDOG_PID",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    return monkeypatch


def test_where_state_is_kept(bare: pytest.MonkeyPatch):
    ours = Path("/home/somebody/.local/state/edgeml-agent")
    assert default_state() == ours
    bare.setenv("XDG_STATE_HOME", "relative")
    assert default_state() == ours
    bare.setenv("XDG_STATE_HOME", "/xdg")
    assert default_state() == Path("/xdg/edgeml-agent")
    bare.setenv("STATE_DIRECTORY", "/var/lib/edgeml-agent:/var/lib/other")
    assert default_state() == Path("/var/lib/edgeml-agent")
    assert load_config(None, NOTHING).state == Path("/var/lib/edgeml-agent")


def test_without_a_home_state_must_be_given(bare: pytest.MonkeyPatch):
    def homeless() -> Path:
        raise RuntimeError("no home")

    bare.setattr(Path, "home", homeless)
    said = Overrides(log_format="xml")
    with pytest.raises(ConfigError, match=r"--log-format.*\nstate: .*--state DIR"):
        load_config(None, said)
    assert load_config(None, SOMEWHERE).state == Path("/state")


def test_the_notify_socket(bare: pytest.MonkeyPatch):
    assert notify_socket() is None
    for good in ("/run/systemd/notify", "@abstract"):
        bare.setenv("NOTIFY_SOCKET", good)
        assert notify_socket() == good
    for other in ("", "vsock:2:1234"):
        bare.setenv("NOTIFY_SOCKET", other)
        assert notify_socket() is None


def test_the_watchdog_of_this_process(bare: pytest.MonkeyPatch):
    assert not is_watched()
    bare.setenv("WATCHDOG_USEC", "60000000")
    assert is_watched()
    bare.setenv("WATCHDOG_PID", str(os.getpid()))
    assert is_watched()
    bare.setenv("WATCHDOG_PID", "1")
    assert not is_watched(), "it is meant for the process that started us"
