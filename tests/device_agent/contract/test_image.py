"""Steps on images against Pillow, torch and a brute force."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from device_agent.contract.errors import StepError
from device_agent.contract.picture import IMAGE_PIXELS_MAX
from device_agent.contract.preprocess import Preprocess, parse_steps

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
SIDE = st.integers(1, 40)
WIDE = st.integers(2, 40)
"""torch 2.13 returns garbage for antialias on a width of 1."""


def run(array, *raw):
    return Preprocess(parse_steps(raw, "preprocess"))(array)


def noise(seed, *shape):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def encoded(array, form="PNG", **options):
    body = io.BytesIO()
    Image.fromarray(array).save(body, form, **options)
    return body.getvalue()


@settings(max_examples=60)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(sorted(PILLOW)), st.integers(0, 9))
def test_antialiased_resize_of_bytes_is_pillows(h, w, out_h, out_w, method, seed):
    image = noise(seed, h, w, 3)
    done = run(image, {"resize": {"size": [out_h, out_w], "method": method}})
    wide = Image.fromarray(image).resize((out_w, h), PILLOW[method])
    assert np.array_equal(done, np.asarray(wide.resize((out_w, out_h), PILLOW[method])))


@settings(max_examples=40)
@given(SIDE, SIDE, SIDE, SIDE, st.integers(0, 9))
def test_bilinear_is_within_one_level_of_pillow_in_one_call(h, w, out_h, out_w, seed):
    image = noise(seed, h, w)
    done = run(image, {"resize": [out_h, out_w]}).astype(int)
    oracle = np.asarray(
        Image.fromarray(image).resize((out_w, out_h), PILLOW["bilinear"])
    )
    assert np.abs(done - oracle).max() <= 1


@settings(max_examples=40)
@given(SIDE, SIDE, SIDE, SIDE, st.sampled_from(sorted(PILLOW)), st.integers(0, 9))
def test_antialiased_resize_of_floats_is_pillows(h, w, out_h, out_w, method, seed):
    image = np.random.default_rng(seed).normal(size=(h, w)).astype(np.float32)
    done = run(image, {"resize": {"size": [out_h, out_w], "method": method}})
    oracle = Image.fromarray(image).resize((out_w, out_h), PILLOW[method])
    assert done.dtype == np.float32
    assert np.allclose(done, np.asarray(oracle), atol=2e-6)


@given(SIDE, SIDE, SIDE, SIDE)
def test_nearest_is_pillows_but_for_ties(h, w, out_h, out_w):
    image = noise(5, h, w)
    done = run(image, {"resize": {"size": [out_h, out_w], "method": "nearest"}})
    size = (out_w, out_h)
    oracle = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.NEAREST))
    rows, columns = (
        [(2 * i + 1) * before % (2 * after) != 0 for i in range(after)]
        for before, after in ((h, out_h), (w, out_w))
    )
    assert np.array_equal(done[rows][:, columns], oracle[rows][:, columns])


@settings(max_examples=40, deadline=None)
@given(
    WIDE, WIDE, WIDE, WIDE, st.sampled_from(["bilinear", "bicubic"]), st.booleans(),
)  # fmt: skip
def test_resize_is_torchs_half_pixel_interpolation(h, w, out_h, out_w, method, wide):
    torch = pytest.importorskip("torch")
    image = np.random.default_rng(h).normal(size=(h, w, 2)).astype(np.float32)
    options = {"size": [out_h, out_w], "method": method, "antialias": wide}
    done = run(image, {"resize": options})
    oracle = torch.nn.functional.interpolate(
        torch.from_numpy(image.transpose(2, 0, 1)[None].copy()),
        (out_h, out_w), mode=method, align_corners=False, antialias=wide,
    )  # fmt: skip
    assert np.allclose(done, oracle[0].numpy().transpose(1, 2, 0), atol=2e-5)


@settings(max_examples=40)
@given(SIDE, SIDE)
def test_area_is_the_mean_over_what_a_pixel_covers(before, after):
    row = np.random.default_rng(before).normal(size=(1, before))
    done = run(row, {"resize": {"size": [1, after], "method": "area"}})
    oracle = np.repeat(row, after).reshape(after, before).mean(axis=1)
    assert np.allclose(done[0], oracle, atol=1e-12)


@given(SIDE, SIDE, SIDE, SIDE)
def test_cover_and_inside_keep_the_aspect(h, w, out_h, out_w):
    image = np.zeros((h, w), np.uint8)
    size = [out_h, out_w]
    cover = run(image, {"resize": {"size": size, "fit": "cover"}}).shape
    inside = run(image, {"resize": {"size": size, "fit": "inside"}}).shape
    assert cover[0] >= out_h
    assert cover[1] >= out_w
    assert out_h in (cover[0], inside[0]) or out_w in (cover[1], inside[1])
    assert inside[0] <= out_h
    assert inside[1] <= out_w
    run(image, {"resize": {"size": size, "fit": "cover"}}, {"center_crop": size})
    run(image, {"resize": {"size": size, "fit": "inside"}}, {"pad": size})


def test_imagenet_sizes_are_torchvisions():
    image = np.zeros((375, 500), np.uint8)
    step = {"resize": {"size": [256, 256], "fit": "cover"}}
    assert run(image, step).shape == (256, 341)


def test_crop_undoes_pad():
    image = noise(0, 5, 6, 3)
    padded = run(image, {"pad": {"size": [9, 8], "value": 7}})
    assert padded.shape == (9, 8, 3)
    assert (padded[0] == 7).all()
    assert np.array_equal(run(padded, {"center_crop": [5, 6]}), image)
    with pytest.raises(StepError, match="cannot hold the value -1"):
        run(image, {"pad": {"size": [9, 8], "value": -1}})
    with pytest.raises(StepError, match="expected at most"):
        run(image, {"pad": [4, 8]})


@pytest.mark.parametrize("array", [np.zeros((2, 2), np.int32), np.zeros((0, 4)),
                                   np.zeros(4), np.zeros((1, 2, 3, 4))])  # fmt: skip
def test_resize_refuses_what_is_no_image(array):
    with pytest.raises(StepError, match="resize"):
        run(array, {"resize": [2, 2]})


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM"])
def test_decode_gives_the_pixels(form):
    image = noise(1, 6, 5, 3)
    assert np.array_equal(run(encoded(image, form), {"decode_image": "RGB"}), image)


def test_decode_to_grey_is_pillows_and_has_one_channel():
    body = encoded(noise(1, 6, 5, 3), "JPEG")
    oracle = np.asarray(Image.open(io.BytesIO(body)).convert("L"))
    assert np.array_equal(run(body, {"decode_image": "L"})[:, :, 0], oracle)


def test_decode_scales_sixteen_bits():
    body = encoded(np.array([[0, 256, 65535]], np.uint16))
    assert run(body, {"decode_image": "L"})[0, :, 0].tolist() == [0, 1, 255]
    assert run(body, {"decode_image": "RGB"}).shape == (1, 3, 3)


@pytest.mark.parametrize("turn", range(1, 9))
def test_decode_applies_the_orientation(turn):
    image = noise(turn, 8, 4)
    exif = Image.Exif()
    exif[0x0112] = turn
    done = run(encoded(image, exif=exif), {"decode_image": "L"})[:, :, 0]
    flips = {
        1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1],
        5: image.T, 6: np.rot90(image, -1), 7: image[::-1, ::-1].T, 8: np.rot90(image),
    }  # fmt: skip
    assert np.array_equal(done, flips[turn])


def test_decoded_pixels_pass_a_decode_step_only_as_they_would_come_out():
    image = noise(2, 4, 4, 3)
    assert np.array_equal(run(image, {"decode_image": "RGB"}), image)
    assert run(image[:, :, 0], {"decode_image": "L"}).shape == (4, 4, 1)
    for wrong in (image[:, :, :2], image.astype(np.float32), image[0]):
        with pytest.raises(StepError, match="expected image bytes or uint8"):
            run(wrong, {"decode_image": "RGB"})


def test_a_bomb_is_refused_before_it_is_unpacked():
    side = int(IMAGE_PIXELS_MAX**0.5) + 1
    body = io.BytesIO()
    Image.new("1", (side, side)).save(body, "PNG")
    with pytest.raises(StepError, match=f"at most {IMAGE_PIXELS_MAX} allowed"):
        run(body.getvalue(), {"decode_image": "RGB"})


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_images_are_step_errors(data):
    form = data.draw(st.sampled_from(["PNG", "JPEG", "BMP", "WEBP"]))
    body = bytearray(encoded(noise(3, 9, 9, 3), form))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        done = run(
            bytes(body[: data.draw(st.integers(0, len(body)))]), {"decode_image": "RGB"}
        )
    except StepError:
        return
    assert done.dtype == np.uint8
    assert done.shape[2] == 3


def test_other_formats_do_not_reach_a_decoder():
    with pytest.raises(StepError, match="cannot be decoded"):
        run(encoded(noise(0, 4, 4, 3), "GIF"), {"decode_image": "RGB"})
