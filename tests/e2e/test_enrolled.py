"""From a token to records in the fleet: real enrolment, broker, agent and requests."""

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import bundles
import pytest
from agents import ROOT, agent
from brokers import broker
from enrolment import enrolling
from fleets import fleet

TOML = "[link]\nwindow_s = 1\nlinger_s = 0.1\n"
REQUEST = json.dumps(
    {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1] * 4}]}
).encode()


def run(*words: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "device_agent", *map(str, words)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_a_device_is_enrolled_serves_and_is_counted(tmp_path: Path) -> None:
    bundle, state = tmp_path / "linear.edgeml", tmp_path / "state"
    bundle.write_bytes(bundles.bundle())
    with broker() as there, enrolling(tmp_path / "s", there.authority) as server:
        server.broker = server.broker.model_copy(update={"port": there.port})
        done = run("enroll", "--server", server.url, "--ca", server.ca, "--state",
                   state, "--token", server.token("cam-7"))  # fmt: skip
        assert done.returncode == 0, done.stderr
        with (
            fleet(there) as heard,
            agent([bundle], TOML, ["--state", str(state)]) as device,
        ):
            heard.peer.until(lambda: bool(heard.said("cam-7", "birth")))
            (birth,) = heard.said("cam-7", "birth")
            assert birth.facts["cores"] >= 1
            for _ in range(7):
                url = f"{device.url}/v2/models/linear/infer"
                urllib.request.urlopen(url, REQUEST, timeout=20).close()
            heard.peer.until(lambda: requests(heard.stored("cam-7")) == 7)
            asked = run("status", "--socket", device.socket)
            assert asked.returncode == 0, asked.stderr
            assert "device cam-7 of acme" in asked.stdout
            assert "link: connected" in asked.stdout
            assert run("enroll", "--server", server.url, "--ca", server.ca, "--state",
                       state, "--token", server.token("cam-8"),
                       "--again").returncode == 5, "not while it runs"  # fmt: skip
        states = heard.said("cam-7", "state")
        assert [each.online for each in states] == [True, False], "it said goodbye"
    assert heard.ledgers["cam-7"].missing() == []


@pytest.mark.long
def test_what_the_disk_does_not_let_it_open_is_opened_later(tmp_path: Path) -> None:
    bundle, state = tmp_path / "linear.edgeml", tmp_path / "state"
    bundle.write_bytes(bundles.bundle())
    with broker() as there, enrolling(tmp_path / "s", there.authority) as server:
        server.broker = server.broker.model_copy(update={"port": there.port})
        run("enroll", "--server", server.url, "--ca", server.ca, "--state", state,
            "--token", server.token("cam-7")).check_returncode()  # fmt: skip
        path = state / "identity" / "identity.json"
        kept = path.read_bytes()
        path.unlink()
        path.mkdir()  # it cannot be read, and root reads what it has no right to
        with (
            fleet(there) as heard,
            agent([bundle], TOML, ["--state", str(state)]) as device,
        ):
            url = f"{device.url}/v2/models/linear/infer"
            urllib.request.urlopen(url, REQUEST, timeout=20).close()
            until = time.monotonic() + 20
            while "no part in the fleet" not in device.log():
                assert time.monotonic() < until, device.log()
                time.sleep(0.05)
            path.rmdir()
            path.write_bytes(kept)
            heard.peer.until(lambda: bool(heard.said("cam-7", "birth")), 60)


def test_a_device_whose_bundle_is_refused_can_still_be_helped(tmp_path: Path) -> None:
    bundle, state = tmp_path / "linear.edgeml", tmp_path / "state"
    bundle.write_bytes(bundles.bundle()[:-1024])
    with pytest.raises(RuntimeError, match="ended with 4"), agent([bundle]):
        pass
    with broker() as there, enrolling(tmp_path / "s", there.authority) as server:
        server.broker = server.broker.model_copy(update={"port": there.port})
        run("enroll", "--server", server.url, "--ca", server.ca, "--state", state,
            "--token", server.token("cam-7")).check_returncode()  # fmt: skip
        with (
            fleet(there) as heard,
            agent([bundle], TOML, ["--state", str(state)]) as device,
        ):
            heard.peer.until(lambda: bool(heard.said("cam-7", "birth")))
            asked = run("status", "--socket", device.socket)
            assert "not ready" in asked.stdout
            assert "linear: bundle: the file does not end" in asked.stdout


def requests(records: list[dict[str, Any]]) -> int:
    """What all windows have counted together."""
    return sum(
        one["requests"] for record in records for one in record.get("models", ())
    )


def test_a_device_that_is_not_enrolled_is_on_no_broker(tmp_path: Path) -> None:
    bundle = tmp_path / "linear.edgeml"
    bundle.write_bytes(bundles.bundle())
    with agent([bundle]) as one:
        asked = run("status", "--socket", one.socket)
        assert asked.returncode == 0, asked.stderr
        assert "link" not in asked.stdout
        assert not (one.state / "identity").exists()
