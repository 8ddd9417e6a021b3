"""Steps on sound against the wave module, scipy and a mel reference of our own."""

import io
import math
import struct
import wave
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import fft, signal

from device_agent.contract.audio import CHANNELS_MAX, RESAMPLED_MAX
from device_agent.contract.errors import StepError
from device_agent.contract.preprocess import Preprocess, parse_steps

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


def run(array, *raw):
    return Preprocess(parse_steps(raw, "preprocess"))(array)


def sound(seed, count):
    return np.random.default_rng(seed).uniform(-1, 1, count)


def wav(samples, rate=8000, width=2, channels=1):
    """A wav file of whole numbers."""
    body = io.BytesIO()
    with wave.open(body, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        signed = width > 1
        file.writeframes(
            b"".join(
                int(v + (0 if signed else 128)).to_bytes(width, "little", signed=signed)
                for v in samples
            )
        )
    return body.getvalue()


@given(st.integers(1, 4), st.data())
def test_pcm_of_every_width_decodes_exactly(width, data):
    full = 1 << (8 * width - 1)
    values = data.draw(st.lists(st.integers(-full, full - 1), max_size=9))
    done = run(wav(values, width=width), {"decode_wav": 8000})
    assert done.dtype == np.float32
    assert np.array_equal(done, (np.array(values) / full).astype(np.float32))


def test_channels_are_averaged():
    body = wav([100, 300, -200, 0], channels=2)
    assert np.allclose(run(body, {"decode_wav": 8000}) * 32768, [200, -100])


def test_the_extensible_header_of_recorders_is_read():
    plain = wav([5, -7], width=3)
    header = plain[20:34] + struct.pack("<HHHI", 24, 22, 24, 4)
    guid = b"\1\0\0\0\0\0\x10\0\x80\0\0\xaa\0\x38\x9b\x71"
    header = struct.pack("<H", 0xFFFE) + header[2:] + guid
    extra = b"LIST" + struct.pack("<I", 3) + b"abc\0"
    body = plain[:12] + extra + b"fmt " + struct.pack("<I", 40) + header + plain[36:]
    step = {"decode_wav": 8000}
    assert np.array_equal(run(body, step), run(plain, step))


@pytest.mark.parametrize(
    ("path", "rate"),
    [("tflm/yes_1000ms.wav", 16000), ("basic_pitch/vocadito_10.wav", 44100)],
)
def test_real_recordings_decode_as_the_wave_module_reads_them(path, rate):
    if not (DATA / path).is_file():
        pytest.skip(f"../shared/data/{path} is absent")
    with wave.open(str(DATA / path)) as file:
        assert file.getframerate() == rate
        raw = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        oracle = raw.reshape(-1, file.getnchannels()).mean(axis=1) / 32768
    done = run((DATA / path).read_bytes(), {"decode_wav": rate})
    assert np.array_equal(done, oracle.astype(np.float32))


def test_another_rate_is_refused_unless_resampling_is_declared():
    body = wav([0] * 80, rate=16000)
    with pytest.raises(StepError, match="expected 8000 Hz, found 16000 Hz"):
        run(body, {"decode_wav": 8000})
    done = run(body, {"decode_wav": {"rate": 8000, "resample": True}})
    assert done.shape == (40,)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from([8000, 11025, 16000, 22050, 44100, 48000]),
    st.sampled_from([8000, 16000, 22050, 12345]),
    st.integers(1, 300),
)
def test_resampling_is_scipys(before, after, count):
    values = (sound(count, count) * 32767).astype(int)
    step = {"decode_wav": {"rate": after, "resample": True}}
    done = run(wav(values, rate=before), step)
    shared = math.gcd(before, after)
    oracle = signal.resample_poly(values / 32768, after // shared, before // shared)
    assert done.shape == oracle.shape
    assert np.allclose(done, oracle, atol=1e-6)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "expected a wav file"),
        (b"RIFF1234WAVE", "expected a wav file"),
        (wav([1]).replace(b"fmt \x10\0\0\0\1", b"fmt \x10\0\0\0\3"), "format 3"),
        (wav([1, 2, 3])[:-2], "cut short"),
        (wav([1] * 50, channels=CHANNELS_MAX + 18), "channels"),
        (wav([1] * 9, rate=1_000_000_000), "expected a rate"),
        (wav([1] * (RESAMPLED_MAX // 8000 + 1), rate=1), "resampled samples"),
    ],
)
def test_hostile_files_are_refused(body, words):
    with pytest.raises(StepError, match=words):
        run(body, {"decode_wav": {"rate": 8000, "resample": True}})


def test_a_rate_far_over_the_wanted_one_is_refused():
    with pytest.raises(StepError, match="over 64 times the wanted 1 Hz"):
        run(wav([1] * 9), {"decode_wav": {"rate": 1, "resample": True}})


@settings(max_examples=200)
@given(st.data())
def test_damaged_wavs_are_step_errors(data):
    body = bytearray(wav(range(20)))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(body)))
    try:
        done = run(bytes(body[:cut]), {"decode_wav": {"rate": 8000, "resample": True}})
    except StepError:
        return
    assert done.dtype == np.float32
    assert done.ndim == 1


def test_decoded_samples_pass_a_decode_step():
    assert run(np.array([-32768, 16384], np.int16), {"decode_wav": 1}).tolist() == [
        -1.0,
        0.5,
    ]
    assert run(np.array([0.25]), {"decode_wav": 1}).dtype == np.float32
    with pytest.raises(StepError, match="float or int16"):
        run(np.array([1]), {"decode_wav": 1})


@pytest.mark.parametrize(
    ("keep", "wanted"), [("start", [0, 1]), ("center", [1, 2]), ("end", [3, 4])]
)
def test_fit_length_cuts_where_it_says_and_pads_at_the_end(keep, wanted):
    signal_ = np.arange(5)
    step = {"fit_length": {"samples": 2, "keep": keep}}
    assert run(signal_, step).tolist() == wanted
    assert run(signal_, {"fit_length": 7}).tolist() == [0, 1, 2, 3, 4, 0, 0]


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 12))
def test_windows_are_slices(count, size, hop):
    table = np.arange(count * 2).reshape(count, 2)
    step = {"window": {"size": size, "hop": hop}}
    if count < size:
        with pytest.raises(StepError, match=f"at least {size} samples"):
            run(table, step)
        return
    pieces = [table[s : s + size] for s in range(0, count - size + 1, hop)]
    assert np.array_equal(run(table, step), pieces)


def test_the_window_function_is_scipys_periodic_hann():
    step = {"window": {"size": 16, "hop": 16, "function": "hann"}}
    assert np.allclose(run(np.ones(16), step)[0], signal.windows.hann(16, sym=False))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(20, 400), st.integers(2, 40), st.integers(1, 30), st.integers(0, 30),
    st.booleans(), st.sampled_from([1.0, 2.0]),
)  # fmt: skip
def test_stft_is_scipys(count, window, hop, more, center, power):
    samples = sound(count, count)
    length = window + more
    step = {
        "stft": {"window": window, "hop": hop, "fft": length, "center": center,
                 "power": power}
    }  # fmt: skip
    padded = np.pad(samples, length // 2) if center else samples
    if len(padded) < length:
        with pytest.raises(StepError, match=f"at least {length} samples"):
            run(samples, step)
        return
    weights = np.zeros(length)
    weights[more // 2 : more // 2 + window] = signal.windows.hann(window, sym=False)
    starts = range(0, len(padded) - length + 1, hop)
    oracle = [np.abs(fft.rfft(padded[s : s + length] * weights)) for s in starts]
    assert np.allclose(run(samples, step), np.array(oracle) ** power, atol=1e-4)


def hz_to_mel(hz, htk):
    """The two mel scales, one number at a time."""
    if htk:
        return 2595 * math.log10(1 + hz / 700)
    return 15 + 27 * math.log(hz / 1000, 6.4) if hz >= 1000 else hz * 3 / 200


def reference_filters(rate, length, mels, fmin, fmax, htk, norm):
    """Triangles drawn edge by edge; the scale is inverted by bisection."""

    def mel_to_hz(mel):
        low, high = 0.0, 1e6
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (
                (middle, high) if hz_to_mel(middle, htk) < mel else (low, middle)
            )
        return low

    first, last = hz_to_mel(fmin, htk), hz_to_mel(fmax, htk)
    step = (last - first) / (mels + 1)
    filters = np.zeros((mels, length // 2 + 1))
    for band in range(mels):
        left, peak, right = (mel_to_hz(first + step * (band + i)) for i in range(3))
        height = 2 / (right - left) if norm else 1.0
        for k in range(length // 2 + 1):
            hz = k * rate / length
            if left < hz <= peak:
                filters[band, k] = height * (hz - left) / (peak - left)
            elif peak < hz < right:
                filters[band, k] = height * (right - hz) / (right - peak)
    return filters


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from([8000, 16000, 22050]), st.sampled_from([64, 100, 256]),
    st.integers(1, 40), st.booleans(), st.booleans(), st.floats(0, 500),
    st.floats(600, 4000),
)  # fmt: skip
def test_mel_energies_are_the_references(rate, window, mels, htk, norm, fmin, fmax):
    samples = sound(window, 400)
    options = {
        "rate": rate, "window": window, "hop": 50, "mels": mels, "htk": htk,
        "norm": "slaney" if norm else "none", "fmin": fmin, "fmax": fmax, "log": "none",
    }  # fmt: skip
    done = run(samples, {"log_mel": options})
    power = run(samples, {"stft": {"window": window, "hop": 50, "power": 2.0}})
    filters = reference_filters(rate, window, mels, fmin, fmax, htk, norm)
    oracle = power.astype(float) @ filters.T
    assert done.shape == (400 // 50 + 1, mels)
    assert np.allclose(done, oracle, rtol=1e-4, atol=1e-5 * (oracle.max() + 1e-9))


def test_slaney_scale_has_librosas_known_points():
    assert hz_to_mel(60, False) == pytest.approx(0.9)
    assert hz_to_mel(440, False) == pytest.approx(6.6)
    assert hz_to_mel(6400, False) == pytest.approx(42.0)


@pytest.mark.parametrize(
    ("log", "power", "oracle"),
    [
        ("natural", 2.0, lambda x: np.log(x + 1e-3)),
        ("log10", 2.0, lambda x: np.log10(x + 1e-3)),
        ("db", 2.0, lambda x: 10 * np.log10(np.maximum(x, 1e-3))),
        ("db", 1.0, lambda x: 20 * np.log10(np.maximum(x, 1e-3))),
    ],
)
def test_logarithms(log, power, oracle):
    options = {"rate": 8000, "window": 64, "hop": 32, "mels": 8, "power": power}
    plain = run(sound(1, 200), {"log_mel": {**options, "log": "none"}})
    done = run(sound(1, 200), {"log_mel": {**options, "log": log, "offset": 1e-3}})
    assert np.allclose(done, oracle(plain.astype(float)), atol=1e-4)


def test_silence_is_finite_and_top_db_is_a_floor():
    options = {"rate": 8000, "window": 64, "hop": 64, "log": "db", "mels": 4}
    assert np.allclose(run(np.zeros(64), {"log_mel": options}), -60.0)
    click = np.zeros(640)
    click[0] = 1.0
    floored = run(click, {"log_mel": {**options, "top_db": 20}})
    assert floored.max() - floored.min() == pytest.approx(20)


@given(st.integers(1, 20), st.integers(1, 20))
def test_mfcc_is_scipys_orthonormal_dct(mels, coefficients):
    frames = sound(mels, 3 * mels).reshape(3, mels)
    if coefficients > mels:
        with pytest.raises(StepError, match=f"found {mels}"):
            run(frames, {"mfcc": coefficients})
        return
    oracle = fft.dct(frames, type=2, norm="ortho", axis=1)[:, :coefficients]
    assert np.allclose(run(frames, {"mfcc": coefficients}), oracle, atol=1e-6)


def test_overlap_that_would_fill_the_memory_is_refused():
    with pytest.raises(StepError, match="elements in pieces"):
        run(np.zeros(60_000, np.float32), {"window": {"size": 1024, "hop": 1}})
