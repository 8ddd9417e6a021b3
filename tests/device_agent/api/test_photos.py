"""predict: a phone's photo is taken, and what would take too much memory is not."""

import io

import pytest
import sites
from PIL import Image

from device_agent.config import LimitsConfig

from .conftest import EYE, refusal, write


def encoded(size, form, mode="RGB", **options):
    body = io.BytesIO()
    Image.new(mode, size, 200).save(body, form, **options)
    return body.getvalue()


@pytest.mark.parametrize(
    "photo",
    [
        encoded((4032, 3024), "JPEG"),
        encoded((3300, 3300), "PNG", "1"),
        encoded((2000, 1600), "PNG", "RGBA"),
        encoded((1070, 1070), "WEBP"),
        encoded((2000, 1200), "JPEG", progressive=True),
    ],
    ids=["phone", "fax", "alpha", "webp", "progressive"],
)
def test_photos_that_are_taken(ask, photo):
    assert ask("eye", photo).status_code == 200


@pytest.mark.parametrize(
    ("photo", "text"),
    [
        (encoded((4000, 3000), "PNG"), "12000000 pixels and would take 60"),
        (encoded((3990, 3990), "PNG", "1"), "would take 31.8 MB to decode as PNG"),
        (encoded((2000, 1500), "WEBP"), "to decode as WEBP"),
        (encoded((4000, 3000), "JPEG", progressive=True), "send fewer pixels"),
    ],
    ids=["colour", "fax", "webp", "progressive"],
)
def test_photos_that_take_too_much(ask, photo, text):
    assert text.lower() in refusal(ask("eye", photo), 413).lower()


def test_who_has_more_memory_may_say_so(tmp_path):
    paths = [write(tmp_path, "eye", preprocess=EYE)]
    limits = LimitsConfig(decoding_bytes=100_000_000)
    with sites.site(tmp_path, paths, limits=limits) as roomy:
        photo = encoded((4000, 3000), "PNG")
        answer = roomy.ask("POST", "/v1/models/eye/predict", content=photo)
    assert answer.status_code == 200
