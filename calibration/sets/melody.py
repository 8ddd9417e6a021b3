"""Windows for Basic Pitch: float32 ``[43844, 1]`` at 22,050 Hz.

Windows overlap inside a split, never across: calibration is the first 5 s of the
recording, validation the rest.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.sample import Sample

from . import wav

RATE_HZ = 22_050
WINDOW = 43_844
HOP = 2_205
CUT = 5 * RATE_HZ
TAPS = 63
"""Of the low-pass filter before every second sample is taken."""

Sound = NDArray[np.float32]


def calibration(sound: Path) -> list[Sample]:
    """Windows of the first 5 s."""
    return _windows(_halved(wav.read(sound, 2 * RATE_HZ))[:CUT], 0)


def validation(sound: Path) -> list[Sample]:
    """Windows of the rest."""
    return _windows(_halved(wav.read(sound, 2 * RATE_HZ))[CUT:], CUT)


def _windows(sound: Sound, offset: int) -> list[Sample]:
    return [
        Sample(
            f"{(offset + start) / RATE_HZ:.1f} s", sound[start : start + WINDOW, None]
        )
        for start in range(0, len(sound) - WINDOW + 1, HOP)
    ]


def _halved(sound: Sound) -> Sound:
    """Half the rate, by a windowed sinc at nine tenths of the new band."""
    place = np.arange(TAPS) - TAPS // 2
    taps = np.sinc(place * 0.45) * np.hamming(TAPS)
    smooth = np.convolve(sound, taps / taps.sum(), "same")
    return smooth[::2].astype(np.float32)
