"""Searches that train: networks are shared, hopeless ones spared, kills cost little."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from commands import ROOT, Done, edgeml
from digits import splits

pytestmark = pytest.mark.long

NETWORK = """
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(256, 10),
    )
"""
RECIPE = """
[model]
source = "nets:net"
name = "digits"
version = "1.0.0"
inputs = { x = [-1, 1, 8, 8] }

[data]
train = "train.npz"
calibration = "calibration.npz"
validation = "held.npz"
inputs = "x"
label = "y"
samples = 32

[metric]
name = "top1"

[quantize]
quantizers = ["ort"]
methods = ["minmax"]

[[pass]]
verb = "train"
epochs = 3
batch = 32

[[pass]]
verb = "prune"
epochs = 4
batch = 32
checkpoint_s = 1

[search]
samples = [32]
keep = [0]
"""


def project(folder: Path, search: str, budget: str) -> Path:
    (folder / "nets.py").write_text(NETWORK)
    images, labels, held, answers = splits()
    np.savez(folder / "train.npz", x=images[:700], y=labels[:700])
    np.savez(folder / "calibration.npz", x=images[700:], y=labels[700:])
    np.savez(folder / "held.npz", x=held, y=answers)
    path = folder / "recipe.toml"
    rest = f"{search}\n[budget]\n{budget}\n[build]\ntargets = ['cpu-x86_64']\n"
    path.write_text(RECIPE + rest)
    return path


def search_of(out: Path) -> Any:
    report = json.loads((out / "digits-1.0.0" / "report.json").read_text())
    return report["targets"][0]["search"]


def trainings(done: Done) -> list[str]:
    """The passes that trained, as the progress tells it."""
    lines = done.err.splitlines()
    return [
        line.split()[1].rstrip(":1234567890") for line in lines if "epoch 1" in line
    ]


def test_trials_share_the_training_of_their_network(tmp_path: Path) -> None:
    space = 'prune = [0.0, 0.5]\ndistill = [false]\nprecisions = ["fp32", "int8"]'
    path = project(tmp_path, space, "max_accuracy_drop = 0.3")
    done = edgeml("build", path, "--out", tmp_path / "out", cache=tmp_path / "user")
    assert done.code == 0, done.err
    assert trainings(done) == ["train", "prune"], "one each for four trials"
    search = search_of(tmp_path / "out")
    sizes = {one["name"]: one["size_bytes"] for one in search["trials"]}
    assert len(sizes) == 4
    whole, cut = (sizes[f"prune {share}, fp32"] for share in ("0", "0.5"))
    assert cut < 0.6 * whole
    macs = {one["name"]: one["macs"] for one in search["trials"]}
    assert macs["prune 0.5, fp32"] < 0.7 * macs["prune 0, fp32"]
    for one in search["trials"]:
        assert one["size_bytes"] >= 0.99 * one["predicted_size_bytes"]


def test_what_is_hopeless_is_not_trained(tmp_path: Path) -> None:
    space = 'prune = [0.0, 0.5]\nprecisions = ["fp32"]'
    path = project(tmp_path, space, "max_size_bytes = 5000")
    done = edgeml("build", path, "--out", tmp_path / "out", cache=tmp_path / "user")
    assert done.code == 3
    assert trainings(done) == ["train"], "what all points have in common"
    statuses = {
        one["name"]: one["status"] for one in search_of(tmp_path / "out")["trials"]
    }
    assert statuses == {
        "prune 0, fp32": "missed",
        "prune 0.5, fp32": "pruned",
        "prune 0.5, distilled, fp32": "pruned",
    }


def test_a_search_killed_while_it_trains_ends_as_it_would_have(tmp_path: Path) -> None:
    space = 'prune = [0.5]\ndistill = [false]\nprecisions = ["fp32", "int8"]'
    path = project(tmp_path, space, "max_accuracy_drop = 0.5")
    cache = tmp_path / "user"
    done = edgeml("search", path, "--out", tmp_path / "whole", cache=cache)
    assert done.code == 0, done.err
    command = [sys.executable, "-m", "edgeml", "search", str(path),
               "--out", str(tmp_path / "torn")]  # fmt: skip
    running = subprocess.Popen(
        command, cwd=ROOT, text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stderr is not None
    for line in running.stderr:
        if "prune" in line and "epoch" in line:
            running.send_signal(signal.SIGKILL)
            break
    assert running.wait() == -signal.SIGKILL
    running.stderr.close()
    again = edgeml(*command[3:], cache=cache)
    assert again.code == 0, again.err
    assert "… train:" not in again.err, "a pass that was finished is not run again"
    assert search_of(tmp_path / "torn") == search_of(tmp_path / "whole")
    bundle = Path("digits-1.0.0", "cpu-x86_64.edgeml")
    whole, torn = (
        (tmp_path / name / bundle).read_bytes() for name in ("whole", "torn")
    )
    assert whole == torn
