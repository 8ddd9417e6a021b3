"""A picture file to pixels, in little memory.

The rules it keeps:

1. Pixels are Pillow's. A JPEG of more than ``LARGE_PIXELS`` that is made smaller next
   is the one exception: it is decoded at a half, a quarter or an eighth (libjpeg's
   scaled DCT) and keeps ``GAP`` times the sides that are asked for.
2. Beside Pillow's copy of the picture there is one, the array that is returned: modes
   are converted and orientations applied a strip at a time.
3. What decoding takes is known from the header.
"""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from .errors import StepError
from .tensors import Array

IMAGE_PIXELS_MAX = 40_000_000
"""Pixels of one encoded image, checked before it is decompressed."""
IMAGE_SIDE_PIXELS_MAX = 16_384
"""Pixels on one of its sides; WebP knows no more."""
IMAGE_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM")
"""Decoders that untrusted bytes can reach."""
LARGE_PIXELS = 2_000_000
"""Up to here a JPEG is decoded at its full size."""
SCALED_PIXELS_MAX = 3_100_000
"""So much a scaled JPEG has at most, unless fewer were smaller than is asked for."""
GAP = 3
"""Sides of a scaled JPEG to those asked for; Pillow calls ``reducing_gap`` 3.0
indistinguishable from the full size in most cases."""
_STRIP_ROWS = 128
"""Rows of a picture that are copied at once."""
_ORIENTATION = 0x0112
_WEBP_BYTES = 12
"""A pixel in libwebp and in what it hands over, beside Pillow's own copy."""
_COEFFICIENT_BYTES = 2

Mode = Literal["RGB", "L"]
Sides = tuple[int, int]
"""Height, width."""
Fitted = Callable[[int, int], Sides]
"""The sides that a picture of these sides is resized to."""


@dataclass(frozen=True)
class Plan:
    """How a picture is decoded."""

    format: str
    height: int
    width: int
    turn: int
    """The EXIF orientation of a JPEG; others say it when they are decoded."""
    scale: int
    """1, 2, 4 or 8: by how much a JPEG is scaled down while it is decoded."""
    takes_bytes: int
    """Memory while it is decoded, the result included, the file not."""


def plan(body: bytes, mode: Mode, fitted: Fitted | None = None) -> Plan:
    """What decoding would be, from the header alone; needs Pillow.

    Args:
        body: the file.
        mode: the mode that it will be decoded to.
        fitted: what comes next, where that averages over all pixels.

    Raises:
        StepError: it is no image.
    """
    with _opened(body, "opened") as image:
        return _plan(image, body, mode, fitted)


def read(body: bytes, mode: Mode, fitted: Fitted | None = None) -> Array:
    """The pixels, the right way up: HWC for ``RGB``, HW for ``L``; needs Pillow.

    Args:
        body: the file.
        mode: what the pixels are converted to.
        fitted: what comes next, where that averages over all pixels.

    Raises:
        StepError: it is no image, is damaged, or has too many pixels.
    """
    with _opened(body, "decoded") as image:
        _check_pixels(image.width, image.height)
        planned = _plan(image, body, mode, fitted)
        if planned.scale > 1:
            image.draft(None, tuple(side // planned.scale for side in image.size))
        image.load()
        turn = planned.turn if _is_jpeg(image) else _turn(image)
        return _pixels(image, mode, turn)


@contextmanager
def _opened(body: bytes, aim: str) -> Iterator[Any]:
    try:
        from PIL import Image
    except ImportError as error:
        raise StepError("needs Pillow: pip install pillow") from error
    try:
        with Image.open(io.BytesIO(body), formats=IMAGE_FORMATS) as image:
            yield image
    except StepError:
        raise
    except Exception as error:  # Pillow's decoders raise about any type
        raise StepError(
            f"expected an image ({', '.join(IMAGE_FORMATS)}), "
            f"found bytes that cannot be {aim}: {error}"
        ) from error


def _check_pixels(width: int, height: int) -> None:
    if width * height > IMAGE_PIXELS_MAX:
        raise StepError(
            f"image of {width} x {height} pixels; at most {IMAGE_PIXELS_MAX} allowed"
        )
    if max(width, height) > IMAGE_SIDE_PIXELS_MAX:
        raise StepError(
            f"image of {width} x {height} pixels; "
            f"at most {IMAGE_SIDE_PIXELS_MAX} on a side allowed"
        )


def _plan(image: Any, body: bytes, mode: Mode, fitted: Fitted | None) -> Plan:
    width, height = image.size
    turn = _turn(image) if _is_jpeg(image) else 1
    scale = 1
    if fitted is not None and _is_jpeg(image) and width * height > LARGE_PIXELS:
        sides = (width, height) if turn >= 5 else (height, width)
        scale = _scale(sides, fitted(*sides))
    decoded = -(-width // scale) * -(-height // scale)
    takes = decoded * (_stored_bytes(image) + (3 if mode == "RGB" else 1))
    takes += _beside_bytes(image, body)
    return Plan(image.format, height, width, turn, scale, takes)


def _scale(sides: Sides, wanted: Sides) -> int:
    scale = 1
    while scale < 8:
        large = sides[0] * sides[1] > SCALED_PIXELS_MAX * scale**2
        gap = 2 * scale * (1 if large else GAP)
        if any(has < gap * want for has, want in zip(sides, wanted, strict=True)):
            break
        scale *= 2
    return scale


def _is_jpeg(image: Any) -> bool:
    return image.format in ("JPEG", "MPO")  # a phone's JPEG with more pictures behind


def _turn(image: Any) -> int:
    turn = image.getexif().get(_ORIENTATION)
    return int(turn) if turn in range(1, 9) else 1


def _stored_bytes(image: Any) -> int:
    """A pixel in Pillow's memory."""
    if image.mode.startswith("I;16"):
        return 2
    return 1 if image.mode in ("1", "L", "P") else 4


def _beside_bytes(image: Any, body: bytes) -> int:
    """What the decoder itself keeps of the whole picture, at its full size."""
    pixels: int = image.width * image.height
    if image.format == "WEBP":
        return pixels * _WEBP_BYTES
    if not _is_jpeg(image) or not _in_scans(body, len(image.layer)):
        return 0
    shares: list[int] = [across * down for _, across, down, _ in image.layer]
    _, acrosses, downs, _ = zip(*image.layer, strict=True)
    most: int = max(acrosses) * max(downs)
    return pixels * _COEFFICIENT_BYTES * sum(shares) // most


def _in_scans(body: bytes, components: int) -> bool:
    """Whether a JPEG is in several scans: libjpeg then holds all its coefficients."""
    at = 2
    while True:
        at = body.find(b"\xff", at)
        while body[at + 1 : at + 2] == b"\xff":
            at += 1
        marker = body[at + 1 : at + 2]
        if at < 0 or not marker:
            return False  # it will not be decoded
        if marker in b"\xc2\xc6\xca\xce":  # progressive
            return True
        if marker == b"\xda":
            return body[at + 4 : at + 5] != bytes([components])
        at += 2
        if not (marker in b"\x00\x01" or b"\xd0" <= marker <= b"\xd8"):
            at += int.from_bytes(body[at : at + 2])


def _pixels(image: Any, mode: Mode, turn: int) -> Array:
    if image.mode in ("I", "F"):
        raise StepError(f"expected 8 or 16 bits a channel, found mode {image.mode}")
    width, height = image.size
    sides = (width, height) if turn >= 5 else (height, width)
    upright = np.empty((*sides, *(3,) * (mode == "RGB")), np.uint8)
    stored = _as_stored(upright, turn)
    for top in range(0, height, _STRIP_ROWS):
        # numpy would first copy the whole picture twice
        strip = image.crop((0, top, width, min(top + _STRIP_ROWS, height)))
        stored[top : top + _STRIP_ROWS] = _converted(strip, mode)
    return upright


def _as_stored(upright: Array, turn: int) -> Array:
    """A view of the picture as its file has it."""
    if turn >= 5:
        upright = upright.swapaxes(0, 1)
    down = -1 if turn in (3, 4, 6, 7) else 1
    across = -1 if turn in (2, 3, 7, 8) else 1
    return upright[::down, ::across]


def _converted(strip: Any, mode: Mode) -> Any:
    if strip.mode.startswith("I;16"):
        # Pillow would clip 16 bits at 255 instead of scaling them
        grey = (np.asarray(strip) >> 8).astype(np.uint8)
        return grey if mode == "L" else grey[:, :, np.newaxis]
    return strip if strip.mode == mode else strip.convert(mode)
