"""scikit-learn's digits: uint8 images ``[8, 8]``, white on black, labels 0 to 9.

Their 17 grey levels are spread over 0 to 255, as an image file would hold them.

Every fourth image of each digit is validation. The few images that are there twice
keep their first place, so that no split holds a copy of the other's.
"""

import numpy as np

from calibration.sample import Array

VALIDATION_EVERY = 4


def train() -> tuple[Array, Array]:
    """Three of four images."""
    images, labels, held = _split()
    return images[~held], labels[~held]


def validation() -> tuple[Array, Array]:
    """One of four images, equally many of every digit."""
    images, labels, held = _split()
    return images[held], labels[held]


def _split() -> tuple[Array, Array, Array]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    labels = digits.target
    _, first = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
    first.sort()
    images, labels = images[first], labels[first]
    held = np.zeros(len(labels), bool)
    for label in range(10):
        held[np.flatnonzero(labels == label)[::VALIDATION_EVERY]] = True
    return images, labels, held
