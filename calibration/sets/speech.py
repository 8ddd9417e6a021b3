"""Frames for Silero VAD: ``input [1, 576]``, ``state [2, 1, 128]``, ``sr``.

A frame is 64 samples of context and 512 new ones. The state is what the float model
made of all frames before, from zeros at the start of the sound: with zeros everywhere
a quantizer would see a range of states that never occurs while it runs.
"""

import os
from pathlib import Path

import numpy as np

from calibration.sample import Sample

from . import wav

RATE_HZ = 16_000
CONTEXT, FRAME = 64, 512
VALIDATION_FRAMES = 20 * RATE_HZ // FRAME


def validation(sound: Path, model: Path) -> list[Sample]:
    """The first 20 s: 625 frames."""
    return _frames(sound, model, with_rate=True)[:VALIDATION_FRAMES]


def calibration(sound: Path, model: Path) -> list[Sample]:
    """The rest: 1,250 frames."""
    return _frames(sound, model, with_rate=True)[VALIDATION_FRAMES:]


def validation_16k(sound: Path, model: Path) -> list[Sample]:
    """The first 20 s, without ``sr``."""
    return _frames(sound, model, with_rate=False)[:VALIDATION_FRAMES]


def calibration_16k(sound: Path, model: Path) -> list[Sample]:
    """The rest, without ``sr``."""
    return _frames(sound, model, with_rate=False)[VALIDATION_FRAMES:]


def _frames(sound: Path, model: Path, *, with_rate: bool) -> list[Sample]:
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the same states on every run
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"]
    )
    audio = wav.read(sound, RATE_HZ)
    padded = np.concatenate([np.zeros(CONTEXT, np.float32), audio])
    state = np.zeros((2, 1, 128), np.float32)
    samples = []
    for number in range(len(audio) // FRAME):
        start = number * FRAME
        feeds = {"input": padded[None, start : start + CONTEXT + FRAME], "state": state}
        if with_rate:
            feeds["sr"] = np.asarray(RATE_HZ, np.int64)
        samples.append(Sample(f"frame {number:04}", feeds))
        state = session.run(["stateN"], feeds)[0]
    return samples
