"""Steps from samples to spectra: STFT, mel, MFCC; definitions of librosa.

The rules it keeps:

1. The window is a periodic Hann, centred in the FFT when it is shorter.
2. ``center`` puts ``fft // 2`` zeros on both sides, so that frame k is around sample
   ``k * hop``; without it frame k starts there.
3. Time comes first: ``[frames, bins]``. Computed in float64, given in float32.

References:
    Slaney, "Auditory Toolbox", 1998 (mel scale and area normalisation).
    Davis and Mermelstein, 1980 (mel-frequency cepstral coefficients).
"""

import math
from functools import cached_property
from typing import Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from .audio import Rate, framed, hann
from .errors import StepError
from .steps import ArrayStep, Positive, check_elements, check_rank
from .tensors import Array

FFT_SAMPLES_MAX = 1 << 16
"""Samples in one FFT."""
MELS_MAX = 1024
"""Bands of one mel spectrum."""

Floats = NDArray[np.float64]
Samples = Annotated[int, Field(ge=1, le=FFT_SAMPLES_MAX)]
Bands = Annotated[int, Field(ge=1, le=MELS_MAX)]


class Stft(ArrayStep):
    """Magnitudes to a power of the short-time Fourier transform.

    ``fft`` 0 means the window's own length.
    """

    word: ClassVar = "stft"
    usage: ClassVar = (
        "{window = samples, hop = samples, fft = samples, center = true|false, "
        "power = 1.0}"
    )
    window: Samples
    hop: Samples
    fft: Annotated[int, Field(ge=0, le=FFT_SAMPLES_MAX)] = 0
    center: bool = True
    power: Positive = 1.0

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        if self.fft and self.fft < self.window:
            raise ValueError(f"fft {self.fft} is below the window {self.window}")
        return self

    @property
    def length(self) -> int:
        """Samples in one FFT."""
        return self.fft or self.window

    def spectrum(self, array: Array) -> Floats:
        """``[frames, length // 2 + 1]``, ``|X| ** power``.

        Raises:
            StepError: not 1-D, or shorter than one frame.
        """
        check_rank(array, (1,), "[samples]")
        samples = array.astype(np.float64)
        if self.center:
            samples = np.pad(samples, self.length // 2)
        weights = np.zeros(self.length)
        start = (self.length - self.window) // 2
        weights[start : start + self.window] = hann(self.window)
        pieces = framed(samples, self.length, self.hop) * weights
        magnitude = np.abs(np.fft.rfft(pieces, axis=1))
        return np.asarray(magnitude**self.power)

    def __call__(self, array: Array) -> Array:
        """``[frames, bins]`` float32."""
        return self.spectrum(array).astype(np.float32)


class LogMel(Stft):
    """The STFT's energy in mel bands, on a logarithmic scale.

    ``log``: ``natural`` and ``log10`` take ``log(x + offset)``; ``db`` takes
    ``20 / power * log10(max(x, offset))``, and with ``top_db`` over 0 nothing is more
    than that below the loudest; ``none`` leaves the energies. ``fmax`` 0 means half the
    rate. ``htk`` takes the HTK mel scale instead of Slaney's.
    """

    word: ClassVar = "log_mel"
    usage: ClassVar = (
        "{rate = Hz, window = samples, hop = samples, mels = count, fft = samples, "
        "fmin = Hz, fmax = Hz, log = natural|log10|db|none, offset = 1e-6, top_db = 0, "
        "center = true|false, htk = true|false, norm = slaney|none, power = 2.0}"
    )
    rate: Rate
    mels: Bands = 40
    fmin: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    fmax: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    log: Literal["natural", "log10", "db", "none"] = "natural"
    offset: Positive = 1e-6
    top_db: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    htk: bool = False
    norm: Literal["slaney", "none"] = "slaney"
    power: Positive = 2.0

    @model_validator(mode="after")
    def _band(self) -> Self:
        top = self.fmax or self.rate / 2
        if not self.fmin < top <= self.rate / 2:
            raise ValueError(
                f"expected fmin < fmax <= half the rate, found fmin {self.fmin}, "
                f"fmax {top}, rate {self.rate}"
            )
        return self

    @cached_property
    def filters(self) -> Floats:
        """``[bins, mels]``: one triangle per band."""
        bins = self.length // 2 + 1
        check_elements(bins * self.mels)
        hertz = np.arange(bins) * (self.rate / self.length)
        edges = self._edges()
        rise = (hertz[:, np.newaxis] - edges[:-2]) / (edges[1:-1] - edges[:-2])
        fall = (edges[2:] - hertz[:, np.newaxis]) / (edges[2:] - edges[1:-1])
        triangles = np.maximum(0.0, np.minimum(rise, fall))
        if self.norm == "slaney":
            triangles *= 2.0 / (edges[2:] - edges[:-2])
        return np.asarray(triangles)

    def _edges(self) -> Floats:
        """``mels + 2`` frequencies in Hz, evenly spaced on the mel scale."""
        mel, hertz = (_htk_mel, _htk_hertz) if self.htk else (_mel, _hertz)
        ends = mel(np.array([self.fmin, self.fmax or self.rate / 2]))
        return hertz(np.linspace(ends[0], ends[1], self.mels + 2))

    def __call__(self, array: Array) -> Array:
        """``[frames, mels]`` float32."""
        bands = self.spectrum(array) @ self.filters
        if self.log == "natural":
            bands = np.log(bands + self.offset)
        elif self.log == "log10":
            bands = np.log10(bands + self.offset)
        elif self.log == "db":
            bands = 20.0 / self.power * np.log10(np.maximum(bands, self.offset))
            if self.top_db:
                bands = np.maximum(bands, bands.max() - self.top_db)
        return bands.astype(np.float32)


# Slaney: linear below 1 kHz (200/3 Hz a mel), then 27 mels to each factor of 6.4
_LINEAR_HZ = 200.0 / 3.0
_KNEE_HZ = 1000.0
_STEP = math.log(6.4) / 27.0


def _mel(hertz: Floats) -> Floats:
    above = np.log(np.maximum(hertz, _KNEE_HZ) / _KNEE_HZ) / _STEP
    return np.where(hertz < _KNEE_HZ, hertz / _LINEAR_HZ, _KNEE_HZ / _LINEAR_HZ + above)


def _hertz(mel: Floats) -> Floats:
    knee = _KNEE_HZ / _LINEAR_HZ
    above = _KNEE_HZ * np.exp(_STEP * np.maximum(mel - knee, 0.0))
    return np.where(mel < knee, mel * _LINEAR_HZ, above)


def _htk_mel(hertz: Floats) -> Floats:
    return np.asarray(2595.0 * np.log10(1.0 + hertz / 700.0))


def _htk_hertz(mel: Floats) -> Floats:
    return np.asarray(700.0 * (10.0 ** (mel / 2595.0) - 1.0))


class Mfcc(ArrayStep):
    """The first ``coefficients`` of the orthonormal DCT-II of each log-mel frame."""

    word: ClassVar = "mfcc"
    shorthand: ClassVar = "coefficients"
    usage: ClassVar = "a count of coefficients, after log_mel"
    coefficients: Bands

    def __call__(self, array: Array) -> Array:
        """``[frames, coefficients]`` float32."""
        check_rank(array, (2,), "[frames, mels]")
        mels = array.shape[1]
        if not self.coefficients <= mels <= MELS_MAX:
            raise StepError(
                f"expected {self.coefficients} to {MELS_MAX} mels, found {mels}"
            )
        order = np.arange(self.coefficients)
        phase = np.pi / mels * np.outer(np.arange(mels) + 0.5, order)
        basis = np.cos(phase) * math.sqrt(2.0 / mels)
        basis[:, 0] /= math.sqrt(2.0)
        cepstra = array.astype(np.float64) @ basis
        return np.asarray(cepstra, np.float32)


STEPS = (Stft, LogMel, Mfcc)
