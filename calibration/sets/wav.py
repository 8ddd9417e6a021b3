"""Mono 16-bit wav files, as the sets here have them."""

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.errors import DataError


def read(path: Path, rate_hz: int) -> NDArray[np.float32]:
    """Sound from -1 to 1.

    Raises:
        DataError: not mono, 16 bits, at that rate.
    """
    with wave.open(str(path)) as stream:
        found = (stream.getnchannels(), stream.getsampwidth(), stream.getframerate())
        if found != (1, 2, rate_hz):
            raise DataError(
                f"{path.name}: expected mono, 2 bytes, {rate_hz} Hz; found {found}"
            )
        raw = stream.readframes(stream.getnframes())
    return np.frombuffer(raw, "<i2").astype(np.float32) / np.float32(32768)
