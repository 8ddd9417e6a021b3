"""Scenes with real faces for a face detector: uint8 ``[240, 320, 3]``, no labels.

Each is a crop of a photograph, lit and noised anew, with one to three faces: the
portrait of an astronaut with its surroundings, or small grey faces of Labeled Faces
in the Wild, enlarged. Calibration and validation share the portrait and the
backgrounds (in other crops), but none of the small faces. Where the faces are is not
kept: the scenes serve metrics against the float model.
"""

from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from calibration.errors import MissingData
from calibration.sample import Sample

HEIGHT, WIDTH = 240, 320
CALIBRATION, VALIDATION = 80, 160
FACES = 100
"""The first of the 200 pictures in LFW's subset; the others show no face."""
FACES_CALIBRATION = 40
BACKGROUNDS = (
    "coffee", "rocket", "brick", "grass", "gravel", "chelsea",
)  # fmt: skip
HEAD = (0, 230, 110, 340)
"""Top, bottom, left, right of head and shoulders in the portrait."""

Pixels = NDArray[np.uint8]


def calibration() -> list[Sample]:
    """80 scenes."""
    return _scenes(CALIBRATION, 1, slice(0, FACES_CALIBRATION))


def validation() -> list[Sample]:
    """160 other scenes, with other people."""
    return _scenes(VALIDATION, 2, slice(FACES_CALIBRATION, FACES))


def _scenes(count: int, seed: int, people: slice) -> list[Sample]:
    try:
        data: Any = import_module("skimage.data")  # it has types for half of itself
    except ImportError as error:
        raise MissingData(
            "the set ultraface is made of scikit-image's pictures; "
            "pip install scikit-image"
        ) from error
    from sklearn.datasets import load_sample_images

    backgrounds = [np.asarray(one, np.uint8) for one in load_sample_images().images]
    backgrounds += [_coloured(getattr(data, name)()) for name in BACKGROUNDS]
    top, bottom, left, right = HEAD
    portrait = _coloured(data.astronaut())[top:bottom, left:right]
    small = (data.lfw_subset()[people] * 255).round().astype(np.uint8)
    generator = np.random.default_rng(seed)
    return [
        Sample(
            f"scene {number:03}",
            _scene(generator, backgrounds, portrait, [_coloured(one) for one in small]),
        )
        for number in range(count)
    ]


def _coloured(picture: NDArray[np.uint8]) -> Pixels:
    grey = picture.ndim == 2
    return np.repeat(picture[..., None], 3, axis=2) if grey else picture[..., :3]


def _scene(
    generator: np.random.Generator,
    backgrounds: list[Pixels],
    portrait: Pixels,
    small: list[Pixels],
) -> Pixels:
    scene = _crop(generator, backgrounds[generator.integers(len(backgrounds))])
    for place in range(generator.integers(1, 4)):
        if place == 0 and generator.random() < 0.65:
            _paste(generator, scene, portrait, int(generator.integers(60, 230)))
        else:
            face = small[generator.integers(len(small))]
            _paste(generator, scene, face, int(generator.integers(28, 110)))
    light, grain = generator.uniform(0.6, 1.3), generator.uniform(0, 6)
    lit = scene * light + generator.normal(0, 1, scene.shape).round(1) * grain
    return np.ascontiguousarray(np.clip(lit, 0, 255).astype(np.uint8))


def _crop(generator: np.random.Generator, picture: Pixels) -> Pixels:
    """A part of the picture in the scene's proportions, mirrored half the time."""
    most = min(picture.shape[0], picture.shape[1] * HEIGHT // WIDTH)
    height = int(generator.integers(most // 2, most))
    width = height * WIDTH // HEIGHT
    top = generator.integers(0, picture.shape[0] - height + 1)
    left = generator.integers(0, picture.shape[1] - width + 1)
    part = picture[top : top + height, left : left + width]
    scene = _resized(part, WIDTH, HEIGHT)
    return scene[:, ::-1].copy() if generator.random() < 0.5 else scene


def _paste(
    generator: np.random.Generator, scene: Pixels, face: Pixels, side: int
) -> None:
    """Put an oval of the picture into the scene, its rim blended in."""
    figure = _resized(face, side, side)
    if generator.random() < 0.5:
        figure = figure[:, ::-1]
    y, x = np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j]
    share = np.clip((1.05 - np.hypot(x, y)) / 0.2, 0, 1)[..., None]
    top = generator.integers(0, HEIGHT - side)
    left = generator.integers(0, WIDTH - side)
    place = scene[top : top + side, left : left + side]
    place[:] = (figure * share + place * (1 - share)).round().astype(np.uint8)


def _resized(picture: Pixels, width: int, height: int) -> Pixels:
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.array(image.resize((width, height), Image.Resampling.BILINEAR))
