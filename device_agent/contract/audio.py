"""Steps on sound and signals: 1-D arrays of samples, from file to fixed length.

The rules it keeps:

1. Decoded sound is mono float32 in [-1, 1].
2. A file at another rate is refused unless the step says ``resample``.
3. ``resample`` is scipy's ``resample_poly`` with its default Kaiser window (5.0).
"""

import math
import struct
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from .errors import StepError
from .steps import (
    ELEMENTS_MAX,
    ArrayStep,
    DecodeStep,
    as_float,
    check_body,
    check_elements,
    check_rank,
)
from .tensors import Array

RATE_HZ_MAX = 384_000
"""Samples per second that a file or a step may name."""
CHANNELS_MAX = 32
"""Channels of one wav file."""
RESAMPLED_MAX = 1 << 22
"""Samples after resampling: 4 minutes at 16 kHz."""
RATE_RATIO_MAX = 64
"""How many times a file's rate may exceed the wanted one; work grows with it."""

FRAMED_MAX = 1 << 24
"""Elements of all overlapping pieces of one signal: 128 MiB of float64."""

_PCM = 1
_EXTENSIBLE = 0xFFFE
"""Wav format tags; the second says its real tag further on."""

Rate = Annotated[int, Field(ge=1, le=RATE_HZ_MAX)]
Count = Annotated[int, Field(ge=1, le=ELEMENTS_MAX)]


class DecodeWav(DecodeStep):
    """A PCM wav file (8, 16, 24, 32 bits) to mono float32 in [-1, 1].

    Channels are averaged. Full scale is 2**(bits - 1).
    """

    word: ClassVar = "decode_wav"
    shorthand: ClassVar = "rate"
    usage: ClassVar = "rate in Hz or {rate = Hz, resample = true|false}"
    rate: Rate
    resample: bool = False

    def decode(self, body: bytes) -> Array:
        """``[samples]`` at ``rate``."""
        check_body(body)
        samples, rate = _read(body)
        if rate == self.rate:
            return samples.astype(np.float32)
        if not self.resample:
            raise StepError(
                f"expected {self.rate} Hz, found {rate} Hz; "
                "record at that rate or set resample = true"
            )
        return resampled(samples, rate, self.rate).astype(np.float32)

    def admit(self, array: Array) -> Array:
        """Samples that were decoded before: float, or int16 at full scale 32768."""
        check_rank(array, (1,), "wav bytes or [samples]")
        if array.dtype == np.int16:
            return array.astype(np.float32) / np.float32(1 << 15)
        if array.dtype.kind != "f":
            raise StepError(f"expected float or int16 samples, found {array.dtype}")
        return array.astype(np.float32)


def _read(body: bytes) -> tuple[NDArray[np.float64], int]:
    """Mono samples and their rate.

    Not the ``wave`` module: which files it takes depends on the version of Python, and
    host and device must agree.
    """
    chunks = _chunks(body)
    header, raw = chunks.get(b"fmt "), chunks.get(b"data")
    if header is None or raw is None or len(header) < 16:
        raise StepError("expected a wav file, found no RIFF header and data")
    tag, channels, rate, _, frame, bits = struct.unpack_from("<HHIIHH", header)
    if tag == _EXTENSIBLE and len(header) >= 26:
        (tag,) = struct.unpack_from("<H", header, 24)
    if tag != _PCM or bits not in (8, 16, 24, 32):
        raise StepError(
            f"expected PCM of 8, 16, 24 or 32 bits, found wav format {tag}, {bits} bits"
        )
    if not 1 <= channels <= CHANNELS_MAX or frame != channels * bits // 8:
        raise StepError(
            f"expected 1 to {CHANNELS_MAX} channels, found {channels} in {frame} bytes"
        )
    if not 1 <= rate <= RATE_HZ_MAX:
        raise StepError(f"expected a rate of 1 to {RATE_HZ_MAX} Hz, found {rate}")
    if len(raw) % frame:
        raise StepError("the wav file is cut short inside a sample")
    frames = _unpacked(raw, bits // 8).reshape(-1, channels)
    mono: NDArray[np.float64] = frames.sum(axis=1) / channels
    return mono, rate


def _chunks(body: bytes) -> dict[bytes, bytes]:
    """The first chunk of each kind, up to the sound."""
    found: dict[bytes, bytes] = {}
    if body[:4] != b"RIFF" or body[8:12] != b"WAVE":
        return found
    at = 12
    while at + 8 <= len(body) and b"data" not in found:
        kind, size = struct.unpack_from("<4sI", body, at)
        if at + 8 + size > len(body):
            raise StepError(
                f"the wav header says {size} bytes of {kind!r}, "
                f"found {len(body) - at - 8}: the file is cut short"
            )
        found.setdefault(kind, body[at + 8 : at + 8 + size])
        at += 8 + size + size % 2  # chunks start at even bytes
    return found


def _unpacked(raw: bytes, width: int) -> NDArray[np.float64]:
    if width == 1:  # 8 bits are unsigned, the wider ones are signed
        return np.subtract(np.frombuffer(raw, np.uint8), 128.0, dtype=np.float64) / 128
    # shifted to the top of 32 bits, so that the sign comes along
    wide = np.zeros((len(raw) // width, 4), np.uint8)
    wide[:, 4 - width :] = np.frombuffer(raw, np.uint8).reshape(-1, width)
    return wide.view("<i4")[:, 0] / float(1 << 31)


def resampled(
    samples: NDArray[np.float64], before_hz: int, after_hz: int
) -> NDArray[np.float64]:
    """Band-limited samples at another rate, ``ceil(n * after / before)`` of them.

    Raises:
        StepError: over ``RESAMPLED_MAX`` samples or ``RATE_RATIO_MAX``.
    """
    if before_hz > RATE_RATIO_MAX * after_hz:
        raise StepError(
            f"{before_hz} Hz is over {RATE_RATIO_MAX} times the wanted {after_hz} Hz"
        )
    shared = math.gcd(before_hz, after_hz)
    up, down = after_hz // shared, before_hz // shared
    count = -(-len(samples) * up // down)
    if count > RESAMPLED_MAX:
        raise StepError(f"{count} resampled samples; at most {RESAMPLED_MAX} allowed")
    if up == down or not count:
        return samples
    low_pass = _low_pass(max(up, down)) * up
    half = len(low_pass) // 2
    # output n lies at n * down on the fine grid, where input k lies at k * up
    fine = np.arange(count) * down
    first = -(-(fine - half) // up)
    taps = 2 * half // up + 1
    padded = np.concatenate([np.zeros(taps), samples, np.zeros(taps + 1)])
    result = np.zeros(count)
    for tap in range(taps):
        source = first + tap
        lag = half + fine - source * up
        weight = np.where(lag >= 0, low_pass[np.maximum(lag, 0)], 0.0)
        where = np.clip(source + taps, 0, len(padded) - 1)
        result += padded[where] * weight
    return result


def _low_pass(ratio: int) -> NDArray[np.float64]:
    """A sinc of cut-off ``1 / ratio`` under a Kaiser window, sum 1."""
    half = 10 * ratio
    grid = np.arange(-half, half + 1)
    taps = np.sinc(grid / ratio) * np.kaiser(2 * half + 1, 5.0)
    return np.asarray(taps / taps.sum())


class FitLength(ArrayStep):
    """Exactly ``samples`` on the first axis: cut, or zeros added at the end."""

    word: ClassVar = "fit_length"
    shorthand: ClassVar = "samples"
    usage: ClassVar = "a count or {samples = count, keep = start|center|end}"
    samples: Count
    keep: Literal["start", "center", "end"] = "start"

    def __call__(self, array: Array) -> Array:
        """``[samples, …]`` of the same dtype."""
        check_rank(array, (1, 2), "[samples] or [samples, columns]")
        check_elements(self.samples * (array.shape[1] if array.ndim == 2 else 1))
        more = self.samples - len(array)
        if more > 0:
            return np.pad(array, [(0, more)] + [(0, 0)] * (array.ndim - 1))
        start = {"start": 0, "center": -more // 2, "end": -more}[self.keep]
        return array[start : start + self.samples]


class Window(ArrayStep):
    """Overlapping pieces of a signal or of a table's rows; a rest is dropped.

    ``function`` weighs each piece: ``hann`` (periodic), or ``none``.
    """

    word: ClassVar = "window"
    usage: ClassVar = "{size = count, hop = count, function = none|hann}"
    size: Count
    hop: Count
    function: Literal["none", "hann"] = "none"

    def __call__(self, array: Array) -> Array:
        """``[pieces, size]`` or ``[pieces, size, columns]``."""
        check_rank(array, (1, 2), "[samples] or [samples, columns]")
        pieces = framed(array, self.size, self.hop)
        if self.function == "none":
            return np.ascontiguousarray(pieces)
        floats = as_float(pieces)
        weights = hann(self.size).astype(floats.dtype)
        shape = (1, -1) + (1,) * (array.ndim - 1)
        return np.asarray(floats * weights.reshape(shape))


def framed(array: Array, size: int, hop: int) -> Array:
    """Pieces of ``size`` rows that start every ``hop`` rows: ``[pieces, size, …]``.

    Raises:
        StepError: fewer than ``size`` rows, or too many elements in all.
    """
    if len(array) < size:
        raise StepError(f"expected at least {size} samples, found {len(array)}")
    count = (len(array) - size) // hop + 1
    total = count * size * math.prod(array.shape[1:])
    if total > FRAMED_MAX:
        raise StepError(f"{total} elements in pieces; at most {FRAMED_MAX} allowed")
    starts = np.arange(count) * hop
    return np.take(array, starts[:, np.newaxis] + np.arange(size), axis=0)


def hann(size: int) -> NDArray[np.float64]:
    """The periodic Hann window (the one for spectra)."""
    return 0.5 - 0.5 * np.cos(2.0 * np.pi * np.arange(size) / size)


STEPS = (DecodeWav, FitLength, Window)
