"""A crash of torch's own kernels, documented; our loop does not run into it.

torch 2.13 on a CPU with two threads or more: ``channels_last``, a 1x1 convolution of
stride 2 with fewer than 16 input channels, an odd batch from 33 on. So the loop's
batches are even, its tensors contiguous, and channel counts are rounded to 16. A crash
that we do not know of ends a child, and is an error.
"""

from pathlib import Path

import pytest

pytest.importorskip("torch")

from edgeml.apart import run_apart
from edgeml.errors import PassError
from edgeml.progress import Silent
from edgeml.training.task import Task

SIMULATORS = Path(__file__).parents[2] / "simulators"


@pytest.fixture(autouse=True)
def importable_there(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(SIMULATORS))


def test_the_crash_is_an_error():
    try:
        run_apart("crashing:directly", None, Silent())
    except PassError as error:
        told = str(error)
    else:
        pytest.skip("this torch on this CPU survives what torch 2.13 crashed on")
    assert "died of SIG" in told
    assert "while it was at: training directly" in told


@pytest.mark.long
def test_our_loop_survives_the_same_network_and_batch(tmp_path):
    run_apart("crashing:by_the_loop", str(tmp_path / "trained"), Silent())
    assert (tmp_path / "trained").read_text() == "10 64"


def test_channels_are_rounded_to_what_does_not_crash():
    assert Task.__dataclass_fields__["channel_multiple"].default == 16
