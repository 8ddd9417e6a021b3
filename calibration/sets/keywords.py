"""MLPerf Tiny keywords: int8 features ``[49, 10]``, labels 0 to 11, in two ways apart.

1. ``calibration`` (a fifth of every word, 100) and ``validation`` (400).
2. ``fold0`` and ``fold1``, halves for cross-fitting: calibrate on one, judge on the
   other, then the other way round, and all 500 are judged.

Of each word the samples are taken in the order of their SHA-256: a draw that nobody
chose and that every machine repeats.
"""

from pathlib import Path

from calibration import arrays
from calibration.sample import Dataset, DataSource, Sample

PARTS = 10


def calibration(path: Path) -> list[Sample]:
    """100 samples."""
    return _parts(path, {0, 5})


def validation(path: Path) -> list[Sample]:
    """The other 400."""
    return _parts(path, set(range(PARTS)) - {0, 5})


def fold0(path: Path) -> list[Sample]:
    """One half."""
    return _parts(path, {0, 2, 4, 6, 8})


def fold1(path: Path) -> list[Sample]:
    """The other half."""
    return _parts(path, {1, 3, 5, 7, 9})


def _parts(path: Path, wanted: set[int]) -> list[Sample]:
    """Samples in the file's order whose tenth of the draw is wanted."""
    dataset = arrays.read(path, DataSource(path.name, "x", "y"))
    tenth = _tenths(dataset)
    return [one for one, part in zip(dataset, tenth, strict=True) if part in wanted]


def _tenths(dataset: Dataset) -> list[int]:
    """Each sample's tenth, dealt out word after word so that all are equally large."""
    order = sorted(
        range(len(dataset)),
        key=lambda index: (dataset[index].label, dataset.digests[index], index),
    )
    tenth = [0] * len(dataset)
    for place, index in enumerate(order):
        tenth[index] = place % PARTS
    return tenth
