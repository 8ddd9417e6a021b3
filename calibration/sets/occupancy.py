"""Room occupancy: float32 vectors of five sensors, labels 0 and 1, slice period.

``datatest2`` is another period (door mostly open): a natural covariate shift. Six rows
of ``datatest`` read exactly as rows of the training period do; validation has them not.
"""

from dataclasses import replace
from pathlib import Path

from calibration import table
from calibration.sample import Dataset, DataSource, Sample

SENSORS = ["Temperature", "Humidity", "Light", "CO2", "HumidityRatio"]


def train(training: Path) -> Dataset:
    """The training period."""
    return _read(training)


def validation(training: Path, test: Path, test2: Path) -> list[Sample]:
    """Both test periods, without readings that the training period has too."""
    seen = set(_read(training).digests)
    both = Dataset((*_read(test), *_read(test2)))
    return [
        one
        for one, digest in zip(both, both.digests, strict=True)
        if digest not in seen
    ]


def _read(path: Path) -> Dataset:
    rows = table.read(path, DataSource(path.name, SENSORS, "Occupancy"))
    return Dataset(tuple(replace(one, slices={"period": path.stem}) for one in rows))
