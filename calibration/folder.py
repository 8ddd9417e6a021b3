"""Data sets in folders: one file per sample, one sub-folder per class.

The rules it keeps:

1. A sample's value is the file's bytes; decoding is a pre-processing step.
2. Labels number the sub-folders in the order of their names.
3. Files straight in the folder are samples without labels, where there are no
   sub-folders. Names that begin with a dot are not looked at; any other file that is
   not a sample is refused, so that none is missing unseen.
"""

from collections.abc import Iterator
from pathlib import Path

from .errors import DataError
from .sample import Dataset, DataSource, Sample, checked

IMAGES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm"})
SOUNDS = frozenset({".wav"})
FILE_BYTES_MAX = 64 << 20
"""Bytes of one image or wav file."""
FOLDER_BYTES_MAX = 4 << 30
"""Bytes of all files together; they are held in memory."""


def read(path: Path, source: DataSource) -> Dataset:
    """The samples below a folder.

    Raises:
        DataError: no samples, a file that is none, too large, or images and sounds
            side by side.
    """
    unknown = sorted(set(source.slices) - {"class"})
    if unknown:
        raise DataError(
            f"{path.name}: a folder has no column {', '.join(unknown)}; only 'class' "
            "(the sub-folder) can be a slice"
        )
    folders = sorted(
        (item for item in path.iterdir() if item.is_dir() and item.name[0] != "."),
        key=lambda item: item.name,
    )
    loose = [item for item in _files(path) if _is_sample(item)]
    if folders and loose:
        raise DataError(
            f"{path.name}: {loose[0].name} lies beside the class folders; which class "
            "is it? move it into one"
        )
    files = [(item, None) for item in loose] if not folders else []
    classes = [(item, index) for index, one in enumerate(folders) for item in _of(one)]
    names = tuple(one.name for one in folders)
    chosen: list[tuple[Path, int | None]] = [*files, *classes]
    _check(path, [item for item, _ in chosen], source.limit)
    return checked(
        _samples(path, chosen, "class" in source.slices),
        path.name,
        classes=names,
        limit=source.limit,
    )


def _samples(
    root: Path, files: list[tuple[Path, int | None]], sliced: bool
) -> Iterator[Sample]:
    for path, label in files:
        yield Sample(
            id=path.relative_to(root).as_posix(),
            value=path.read_bytes(),
            label=label,
            slices={"class": path.parent.name} if sliced and label is not None else {},
        )


def _files(path: Path) -> list[Path]:
    return sorted(
        (item for item in path.iterdir() if item.name[0] != "." and item.is_file()),
        key=lambda item: item.name,
    )


def _of(path: Path) -> list[Path]:
    """The files of one class."""
    nested = [item for item in path.iterdir() if item.is_dir() and item.name[0] != "."]
    if nested:
        raise DataError(
            f"{path.name}/{nested[0].name} is a folder inside a class; expected files"
        )
    files = _files(path)
    for item in files:
        if not _is_sample(item):
            raise DataError(
                f"{path.name}/{item.name} is no sample; expected "
                f"{', '.join(sorted(IMAGES | SOUNDS))}: take it out of the folder"
            )
    return files


def _is_sample(path: Path) -> bool:
    return path.suffix.lower() in IMAGES | SOUNDS


def _check(path: Path, files: list[Path], limit: int | None) -> None:
    if not files:
        raise DataError(
            f"{path.name}: no samples; expected sub-folders, one per class, with "
            f"{', '.join(sorted(IMAGES | SOUNDS))} files"
        )
    sounds = [item for item in files if item.suffix.lower() in SOUNDS]
    if sounds and len(sounds) != len(files):
        raise DataError(f"{path.name}: images and wav files side by side; split them")
    sizes = [(item.stat().st_size, item) for item in files[:limit]]
    largest, where = max(sizes, key=lambda pair: pair[0])
    if largest > FILE_BYTES_MAX:
        raise DataError(
            f"{path.name}: {where.name} has {largest} bytes; "
            f"at most {FILE_BYTES_MAX} allowed"
        )
    total = sum(size for size, _ in sizes)
    if total > FOLDER_BYTES_MAX:
        raise DataError(
            f"{path.name}: the files have {total} bytes together; at most "
            f"{FOLDER_BYTES_MAX} are held in memory: take fewer with limit"
        )
