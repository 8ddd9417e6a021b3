"""Large pictures: decoded at a fraction, close to the full size, in little memory."""

import io

import numpy as np
import pytest
from PIL import Image

from device_agent.contract import picture
from device_agent.contract.errors import StepError
from device_agent.contract.image import DecodeImage, Resize
from device_agent.contract.preprocess import Preprocess, parse_steps

PHONE = (4000, 3000)


def encoded(image, form="JPEG", **options):
    body = io.BytesIO()
    image.save(body, form, **options)
    return body.getvalue()


@pytest.fixture(scope="module")
def photo():
    """Soft shapes with grain, as a phone takes them; the halves differ."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(rng.integers(0, 256, (94, 125, 3), dtype=np.uint8))
    large = np.asarray(soft.resize(PHONE, Image.Resampling.BICUBIC)).astype(np.int16)
    grainy = large + rng.integers(-12, 13, large.shape, dtype=np.int16)
    return Image.fromarray(grainy.clip(0, 255).astype(np.uint8))


def run(body, *raw):
    return Preprocess(parse_steps(raw, "preprocess"))(body)


def both(body, mode, resize):
    """With the resize known to the decoder, and not."""
    steps = {"decode_image": mode}, {"resize": resize}
    return run(body, *steps), run(run(body, steps[0]), *steps)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(
    "resize",
    [
        [224, 224],
        [640, 640],
        [1024, 1024],
        {"size": [224, 224], "fit": "cover"},
        {"size": [96, 96], "method": "area"},
        {"size": [320, 320], "method": "bicubic", "fit": "inside"},
    ],
    ids=str,
)
def test_a_scaled_photo_is_close_to_the_whole_one(photo, mode, resize):
    found, whole = both(encoded(photo, quality=90), mode, resize)
    apart = np.abs(found.astype(int) - whole)
    assert found.shape == whole.shape
    assert apart.mean() < 1
    assert np.percentile(apart, 99) <= 8


@pytest.mark.parametrize("turn", range(1, 9))
def test_a_scaled_photo_is_turned(photo, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    body = encoded(photo, exif=exif)
    assert picture.plan(body, "L", lambda *_: (50, 200)).scale == 4
    found, whole = both(body, "L", [50, 200])
    assert np.abs(found.astype(int) - whole).mean() < 1


@pytest.mark.parametrize(
    ("size", "wanted", "scale"),
    [
        ((1600, 1250), [96, 96], 1),  # 2 megapixels: as ever
        ((1601, 1250), [96, 96], 4),
        (PHONE, [96, 96], 8),
        (PHONE, [224, 224], 4),
        (PHONE, [640, 640], 2),
        (PHONE, [1500, 1500], 2),  # more than 3.1 megapixels, so the gap is given up
        (PHONE, [1501, 1500], 1),
        ((16_000, 190), [90, 90], 1),
    ],
)
def test_how_much_a_photo_is_scaled(size, wanted, scale):
    body = encoded(Image.new("RGB", size))
    plan = DecodeImage().plan(body, Resize(size=tuple(wanted)))
    assert plan.scale == scale
    steps = parse_steps([{"resize": {"size": wanted, "method": "nearest"}}],
                        "preprocess")  # fmt: skip
    assert DecodeImage().plan(body, steps[0]).scale == 1
    assert DecodeImage().plan(body).scale == 1


@pytest.mark.parametrize(
    ("form", "image_mode", "mode", "options", "bytes_a_pixel"),
    [
        ("PNG", "RGB", "RGB", {}, 7),
        ("PNG", "RGBA", "L", {}, 5),
        ("PNG", "1", "L", {}, 2),
        ("PNG", "I;16", "RGB", {}, 5),
        ("WEBP", "RGB", "RGB", {}, 19),
        ("JPEG", "RGB", "RGB", {}, 7),
        ("JPEG", "RGB", "RGB", {"progressive": True}, 10),
        ("JPEG", "RGB", "RGB", {"progressive": True, "subsampling": 0}, 13),
    ],
)
def test_what_decoding_takes(form, image_mode, mode, options, bytes_a_pixel):
    body = encoded(Image.new(image_mode, (320, 160)), form, **options)
    assert picture.plan(body, mode).takes_bytes == 320 * 160 * bytes_a_pixel


def test_a_jpeg_with_a_scan_for_each_colour_is_known():
    body = bytearray(encoded(Image.new("RGB", (320, 160))))
    body[body.index(b"\xff\xda") + 4] = 1
    assert picture.plan(bytes(body), "RGB").takes_bytes == 320 * 160 * 10


def test_a_picture_of_one_endless_column_is_refused():
    body = encoded(Image.new("L", (1, picture.IMAGE_SIDE_PIXELS_MAX + 1)), "PNG")
    with pytest.raises(StepError, match="at most 16384 on a side"):
        run(body, {"decode_image": "L"})


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_a_resize_in_blocks_is_the_resize(kind, monkeypatch):
    image = np.random.default_rng(3).integers(0, 256, (700, 9, 3)).astype(kind)
    for size in ([31, 40], [700, 4], [900, 9], [5, 300]):
        resize = {"resize": {"size": size, "method": "bicubic"}}
        whole = run(image, resize)
        with monkeypatch.context() as small:
            small.setattr("device_agent.contract.image._BLOCK_ELEMENTS", 500)
            assert np.array_equal(run(image, resize), whole)
