"""Spoken digits: int16 sound of any length at 8 kHz, labels 0 to 9, slice speaker.

Official split: recordings 0 to 4 of each speaker and digit are for testing.
"""

from dataclasses import replace
from pathlib import Path

from calibration import arrays
from calibration.sample import DataSource, Sample

TEST_BELOW = 5


def train(path: Path) -> list[Sample]:
    """Recordings 5 to 49."""
    return _part(path, testing=False)


def validation(path: Path) -> list[Sample]:
    """Recordings 0 to 4."""
    return _part(path, testing=True)


def _part(path: Path, *, testing: bool) -> list[Sample]:
    source = DataSource(path.name, ["audio", "offsets"], "label", ("speaker", "index"))
    return [
        replace(one, slices={"speaker": one.slices["speaker"]})
        for one in arrays.read(path, source)
        if (int(one.slices["index"]) < TEST_BELOW) == testing
    ]
