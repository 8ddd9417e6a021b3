"""Data sets in ``.npz`` files: one array per key, the first dimension the samples.

The rules it keeps:

1. Pickles are never loaded, and no array is made before its size is checked.
2. ``inputs`` names the key, or the keys by model input; without it, ``x`` or the only
   key that is neither label nor slice.
3. Arrays of different lengths are two keys, ``[values, offsets]``: sample ``k`` is
   ``values[offsets[k]:offsets[k + 1]]``.
"""

import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DataError, MissingData
from .sample import Array, Dataset, DataSource, Sample, check_numbers, checked

ARRAY_BYTES_MAX = 4 << 30
"""Bytes of one array in memory."""


def read(path: Path, source: DataSource) -> Dataset:
    """The samples in an npz file.

    Raises:
        DataError: not an npz, damaged, pickled, too large, or the keys do not fit.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            held = [item.filename.removesuffix(".npy") for item in archive.infolist()]
            wanted = _inputs(source, held, path.name)
            keys = {key for part in wanted.values() for key in part}
            keys |= {*source.slices, *((source.label,) if source.label else ())}
            missing = sorted(keys - set(held))
            if missing:
                raise MissingData(
                    f"{path.name} has no key {', '.join(map(repr, missing))}; "
                    f"it has {', '.join(sorted(held)) or 'none'}"
                )
            found = {key: _array(archive, key, path.name) for key in sorted(keys)}
    except (
        zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError,
        NotImplementedError,
    ) as error:  # fmt: skip
        raise DataError(
            f"{path.name} cannot be read as npz: {error}; write it with numpy.savez"
        ) from error
    values = {
        name: _samples([found[key] for key in part], part, path.name)
        for name, part in wanted.items()
    }
    columns = {name: found[name] for name in source.slices}
    labels = found[source.label] if source.label else None
    return checked(
        rows(path.stem, values, labels, columns, path.name),
        path.name,
        limit=source.limit,
    )


def rows(
    stem: str,
    values: Mapping[str, Any],
    labels: Any,
    slices: Mapping[str, Any],
    name: str,
) -> Iterator[Sample]:
    """Columns → samples ``stem[0]``, ``stem[1]``, …; ``values`` by model input.

    The key "" stands for the one input of a model, whatever its name.

    Raises:
        DataError: the columns differ in length.
    """
    parts = {f"input {key!r}" if key else "input": part for key, part in values.items()}
    parts |= {f"slice {key!r}": column for key, column in slices.items()}
    parts |= {} if labels is None else {"label": labels}
    lengths = {key: len(part) for key, part in parts.items()}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{key} {count}" for key, count in lengths.items())
        raise DataError(f"{name}: the numbers of samples differ: {counts}")
    plain = labels.tolist() if isinstance(labels, np.ndarray) else labels
    texts = {key: [str(item) for item in _list(of)] for key, of in slices.items()}
    for index in range(next(iter(lengths.values()))):
        value = {key: part[index] for key, part in values.items()}
        yield Sample(
            id=f"{stem}[{index}]",
            value=np.asarray(value[""]) if "" in value else value,
            label=None if plain is None else plain[index],
            slices={key: column[index] for key, column in texts.items()},
        )


def _list(column: Any) -> Any:
    return column.tolist() if isinstance(column, np.ndarray) else column


def _inputs(source: DataSource, held: list[str], name: str) -> dict[str, list[str]]:
    """Model input → its one key, or its two keys ``[values, offsets]``."""
    inputs = source.inputs
    if inputs is None:
        others = sorted(set(held) - {*source.slices, source.label})
        if "x" not in others and len(others) != 1:
            raise MissingData(
                f"{name}: which key holds the samples? inputs does not say and it has "
                f"{', '.join(sorted(held)) or 'none'}"
            )
        inputs = "x" if "x" in others else others[0]
    named = inputs if isinstance(inputs, dict) else {"": inputs}
    wanted = {
        key: [part] if isinstance(part, str) else list(part)
        for key, part in named.items()
    }
    for part in wanted.values():
        if len(part) not in (1, 2):
            raise DataError(
                f"{name}: inputs {part}; expected one key, or [values, offsets] for "
                "samples of different lengths"
            )
    return wanted


def _array(archive: zipfile.ZipFile, key: str, name: str) -> Array:
    """One array, its header checked before its data is read."""
    with archive.open(f"{key}.npy") as stream:
        try:
            version = np.lib.format.read_magic(stream)
            header = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = header(stream)
        except (ValueError, SyntaxError) as error:
            raise DataError(f"{name}, key {key!r}: not an array: {error}") from error
    if dtype.hasobject or dtype.names:
        raise DataError(
            f"{name}, key {key!r} holds Python objects (a pickle), which are never "
            "loaded; save plain arrays of numbers or text"
        )
    size = math.prod(shape) * dtype.itemsize
    if size > ARRAY_BYTES_MAX:
        raise DataError(
            f"{name}, key {key!r} has {size} bytes; at most {ARRAY_BYTES_MAX} are "
            "read: split the file, or give samples with a module:function"
        )
    if not shape:
        raise DataError(f"{name}, key {key!r} is one number; expected [samples, …]")
    with archive.open(f"{key}.npy") as stream:
        try:
            array: Array = np.lib.format.read_array(stream, allow_pickle=False)
        except ValueError as error:
            raise DataError(f"{name}, key {key!r} is cut off: {error}") from error
    return array


def _samples(found: list[Array], keys: list[str], name: str) -> Any:
    values = found[0]
    if len(found) == 1:
        return values
    offsets = found[1]
    check_numbers(offsets, f"{name}, key {keys[1]!r}")
    good = (
        offsets.ndim == 1
        and offsets.dtype.kind in "iu"
        and offsets[0] == 0
        and offsets[-1] == len(values)
        and bool((np.diff(offsets.astype(np.int64)) >= 0).all())
    )
    if not good:
        raise DataError(
            f"{name}: expected {keys[1]!r} to be whole numbers that grow from 0 to "
            f"{len(values)} (the length of {keys[0]!r}), one more than samples"
        )
    return np.split(values, offsets[1:-1])
