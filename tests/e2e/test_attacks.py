"""Whatever is thrown at the agent: health answers, memory stays, it goes on serving.

Each attack runs in a process of its own, against one agent for all of them, while a
second client asks for health again and again, on a new connection every time.
"""

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import bundles
import numpy as np
import pytest
from agents import ROOT, Agent, agent

from device_agent.contract.golden import Bound, write_golden
from device_agent.contract.tensors import TensorSpec
from edgeml.bundling.bundle import pack

from .attack_tools import Target
from .attacks import ATTACKS

HEALTH_S_MAX = 1.0
RSS_BYTES_MAX = 150_000_000
ATTACK_S_MAX = 60.0
LATER = frozenset(
    {"slow_headers", "slow_body", "half_bodies", "half_requests", "answers_unread",
     "json_unread", "pipelined_unread", "idle_2000", "idle_after_use",
     "every_place_taken", "hard_questions", "churn", "many_paths", "large_photos"}
)  # fmt: skip
"""Seconds each; others of their kind are among those of the default run."""
HEADER_S, BODY_S, RESPONSE_S = 1.5, 2.0, 2.0
TOML = f"""
[limits]
header_s = {HEADER_S}
body_s = {BODY_S}
response_s = {RESPONSE_S}
"""
EYE = ({"decode_image": "L"}, {"resize": [2, 2]}, {"reshape": [4]},
       {"scale": 1 / 255})  # fmt: skip
LOOK = ({"decode_image": "RGB"}, {"resize": [224, 224]}, {"center_crop": [2, 2]},
        {"reshape": [12]}, {"scale": 1 / 255})  # fmt: skip
EAR = ({"decode_wav": 8000}, {"fit_length": 4})


@dataclass
class Health:
    """Asks whether the agent lives, until it is told to stop."""

    device: Agent
    worst_s: float = 0.0
    asked: int = 0
    again: int = 0
    """Times that the first connection was closed and a second one answered."""
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        target = Target(self.device.port)
        while not self._stop.is_set():
            started = time.monotonic()
            while True:
                try:
                    answered = target.ask("/v2/health/live", timeout_s=5.0)[0] == 200
                except OSError:
                    answered = False
                took_s = time.monotonic() - started
                if answered or took_s > 5.0:
                    break
                self.again += 1
            self.worst_s = max(self.worst_s, took_s)
            self.asked += 1
            time.sleep(0.02)

    def __enter__(self) -> "Health":
        self._thread = threading.Thread(target=self.run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def zeros(name: str, rows: int, **changes: Any) -> bytes:
    """A model of so many inputs; with 8192 of them bodies may be as large as any."""
    weight = np.zeros((rows, 3), np.float32)
    runs = bundles.vectors(rows=rows)
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, rows))
    members = {
        "artifact/model.onnx": ("artifact", bundles.linear(weight)),
        "card.md": ("card", b"# zeros\n"),
        "golden.npz": (
            "golden",
            write_golden(runs, [{"y": run["x"] @ weight} for run in runs],
                         {"y": Bound(1e-5, 1e-5)}),
        ),
    }  # fmt: skip
    return pack(bundles.manifest(name=name, inputs=(spec,), **changes), members)


def wide() -> bytes:
    """A model that answers a thousand times what it is asked."""
    weight = np.ones((4, 4096), np.float32)
    spec = TensorSpec(name="y", datatype="FP32", shape=(-1, 4096))
    return bundles.bundle(weight, name="wide", outputs=(spec,))


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Agent]:
    folder = tmp_path_factory.mktemp("attacked")
    made = {
        "linear": bundles.bundle(),
        "broad": zeros("broad", 8192),
        "wide": wide(),
        "eye": bundles.bundle(name="eye", preprocess=EYE),
        "look": zeros("look", 12, preprocess=LOOK),
        "ear": bundles.bundle(name="ear", preprocess=EAR),
    }
    for name, raw in made.items():
        (folder / f"{name}.edgeml").write_bytes(raw)
    with agent(sorted(folder.iterdir()), toml=TOML) as running:
        yield running


@pytest.fixture(scope="module")
def figures() -> Iterator[list[str]]:
    """A line for each attack; shown with ``-s``."""
    lines: list[str] = []
    yield lines
    print("\n" + "\n".join(lines))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long if name in LATER else ())
        for name in ATTACKS
    ],
)
def test_attack(name: str, device: Agent, figures: list[str]) -> None:
    _forget_peak(device)
    started = time.monotonic()
    with Health(device) as health:
        deadlines = map(str, (HEADER_S, BODY_S, RESPONSE_S))
        done = subprocess.run(
            [sys.executable, "-m", "tests.e2e.attacks", name, str(device.port),
             *deadlines],
            cwd=ROOT, capture_output=True, text=True, timeout=ATTACK_S_MAX, check=False,
        )  # fmt: skip
    took_s = time.monotonic() - started
    peak = device.peak_rss_bytes()
    figures.append(
        f"{name:24} {took_s:5.1f} s  health {health.worst_s * 1e3:6.0f} ms of "
        f"{health.asked:5} ({health.again} again)  peak {peak / 1e6:5.1f} MB  "
        f"{done.stdout.strip()}"
    )
    assert done.returncode == 0, done.stderr
    assert health.worst_s < HEALTH_S_MAX
    assert peak <= RSS_BYTES_MAX
    _infer_right(device)


def test_nothing_is_left(device: Agent) -> None:
    _infer_right(device)
    end = time.monotonic() + 10
    while _connections(device) > 1:
        assert time.monotonic() < end
        time.sleep(0.2)
    assert device.process.poll() is None
    assert "Traceback" not in device.log()


def _infer_right(device: Agent) -> None:
    """A good inference, and its numbers."""
    run, expected = bundles.vectors()[0]["x"], bundles.answers()[0]["y"]
    tensor = {"name": "x", "shape": [1, 4], "datatype": "FP32",
              "data": run.ravel().tolist()}  # fmt: skip
    asked = urllib.request.Request(
        f"{device.url}/v2/models/linear/infer",
        data=json.dumps({"inputs": [tensor]}).encode(),
    )
    with urllib.request.urlopen(asked, timeout=5) as answer:
        found = json.load(answer)["outputs"][0]["data"]
    assert found == pytest.approx(expected.ravel().tolist(), rel=1e-5, abs=1e-6)


def _connections(device: Agent) -> int:
    with urllib.request.urlopen(f"{device.url}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    found = re.findall(r"^edgeml_connections\{[^}]*\} ([\d.]+)", text, re.MULTILINE)
    return int(sum(map(float, found)))


def _forget_peak(device: Agent) -> None:
    """Let the kernel count the peak of the process's memory anew."""
    Path(f"/proc/{device.process.pid}/clear_refs").write_text("5")
