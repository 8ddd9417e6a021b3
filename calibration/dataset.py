"""Data sets: samples by name and digest, read from files or a function.

:func:`load` reads what a :class:`DataSource` names:

1. ``set:NAME/SPLIT``     a data set described in ``calibration/sets``
2. ``module:function``    the user's own code
3. ``*.npz``              arrays by key, never pickled
4. ``*.csv|txt|tsv|parquet``  one sample per row
5. a folder               image or wav files, one sub-folder per class
"""

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from . import arrays, catalog, folder, function, table
from .errors import DataError, MissingData, OverlapError
from .sample import Array, Dataset, DataSource, Sample

OVERLAPS_SHOWN = 5
SAMPLE_PACKAGES = ("numpy", "scikit-learn", "scikit-image")
"""Packages that ship samples, or make them, for the sets that we describe."""


def load(source: DataSource, home: Path) -> Dataset:
    """Read the samples that ``source`` names; relative paths are to ``home``.

    The same files give the same samples in the same order.

    Raises:
        DataError: the data is not there, damaged, too large, not numbers, or not
            finite; the text says what was expected, what was found and what to do.
    """
    files: dict[str, Path] = {}
    if source.location.startswith(catalog.PREFIX):
        source, home, files = catalog.resolve(source)
    if function.names_code(source.location):
        return function.read(source, home, files)
    return _read(home / source.location, source)


def identity(source: DataSource, home: Path) -> str | None:
    """A digest that is the same while ``load`` would give the same, without loading.

    None where that cannot be told: the user's own function may read anything.

    Raises:
        MissingData: the set or its files are not there.
    """
    given: dict[str, Path] = {}
    if source.location.startswith(catalog.PREFIX):
        source, home, given = catalog.resolve(source)
    elif function.names_code(source.location):
        return None
    digest = hashlib.sha256(repr(source).encode())
    for path in given.values() or [home / source.location]:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                digest.update(f"\0{file.relative_to(path)}\0".encode())
                with file.open("rb") as stream:
                    digest.update(hashlib.file_digest(stream, "sha256").digest())
    digest.update(repr([_version(name) for name in SAMPLE_PACKAGES]).encode())
    return digest.hexdigest()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _read(path: Path, source: DataSource) -> Dataset:
    if not path.exists():
        raise MissingData(
            f"{source.location}: no such file or folder; the path is relative to "
            f"{path.parent if path.parent.exists() else 'the recipe'}"
        )
    if path.is_dir():
        return folder.read(path, source)
    suffix = path.suffix.lower()
    if suffix == ".npz":
        return arrays.read(path, source)
    if suffix in table.SUFFIXES:
        return table.read(path, source)
    raise DataError(
        f"{source.location}: expected .npz, {', '.join(table.SUFFIXES)}, a folder of "
        f"images or wav files, or module:function; found {suffix or 'no suffix'!r}"
    )


def check_disjoint(calibration: Dataset, validation: Dataset) -> None:
    """Refuse splits that share content, or that number their classes differently.

    Raises:
        OverlapError: samples with equal content; names the first five pairs.
        DataError: both name their classes, and not the same ones.
    """
    if calibration.classes and validation.classes:
        only = set(calibration.classes) ^ set(validation.classes)
        if only:
            raise DataError(
                f"calibration has {len(calibration.classes)} classes and validation "
                f"{len(validation.classes)}; only one of them has "
                f"{', '.join(sorted(only)[:5])}, so their labels would not agree"
            )
    known = dict(zip(calibration.digests, calibration.samples, strict=True))
    pairs = [
        f"{known[digest].id} = {sample.id}"
        for digest, sample in zip(validation.digests, validation.samples, strict=True)
        if digest in known
    ]
    if pairs:
        shown = ", ".join(pairs[:OVERLAPS_SHOWN])
        raise OverlapError(
            f"{len(pairs)} validation samples are calibration samples too: {shown}"
            f"{', …' if len(pairs) > OVERLAPS_SHOWN else ''}; accuracy is never judged "
            "on samples that a quantizer saw: take them out of one split"
        )


__all__ = [
    "Array", "DataError", "DataSource", "Dataset", "MissingData", "OverlapError",
    "Sample", "check_disjoint", "identity", "load",
]  # fmt: skip
