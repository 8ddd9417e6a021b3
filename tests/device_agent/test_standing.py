"""How a device stands by its state directory, where no agent runs to say it."""

import argparse
import json
from pathlib import Path

import pytest

from device_agent import status
from device_agent.contract.messages import Release
from device_agent.durable import REAL
from device_agent.updating.facts import Held, State
from device_agent.updating.state import StateStore


def ask(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    status.arguments(parser)
    return status.run(parser.parse_args(list(map(str, arguments))))


def test_the_slots_are_read_from_the_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = Held(Release(model="digits", version="1.0.0"), "ab" * 32, 1)
    store = StateStore(tmp_path, REAL)
    store.save(State(a=held, committed="a", active="a"), (), 0.0)
    store.close()
    assert ask("--state", tmp_path) == 5
    said = capsys.readouterr()
    assert said.out.splitlines() == [
        "slot a: digits 1.0.0 (abababababab) committed active", "slot b: empty",
    ]  # fmt: skip
    assert "no agent is there" in said.err
    assert ask("--state", tmp_path, "--json") == 5
    told = json.loads(capsys.readouterr().out)
    assert told["device"]["slots"]["a"]["version"] == "1.0.0"


def test_a_damaged_state_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "state.db").write_bytes(b"\xff" * 5000)
    assert ask("--state", tmp_path) == 5
    assert "state.db" in capsys.readouterr().err
