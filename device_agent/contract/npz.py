"""Lists of named tensors as a deterministic ``.npz``, never pickled.

The rules it keeps:

1. Stored, not compressed: no size can be a lie. Fixed dates and order: equal tensors
   give equal bytes.
2. Plain ``numpy.load(..., allow_pickle=False)`` opens it: ``index`` is JSON as bytes
   and says which entry is which tensor, so names may hold any character.
3. Reading trusts nothing: sizes, datatypes and shapes are checked before an array is
   made.
"""

import io
import json
import tokenize
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import BundleError
from .manifest import canonical_json
from .tensors import Array, Feeds, datatype_of

ENTRIES_MAX = 100_000
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_tensors(groups: Mapping[str, Sequence[Feeds]], about: object = None) -> bytes:
    """Groups of runs as one npz; ``about`` is any JSON value kept beside them.

    Raises:
        ValueError: a tensor has a datatype that the protocol does not know.
    """
    arrays: list[Array] = []
    index: dict[str, list[dict[str, int]]] = {}
    for group, runs in sorted(groups.items()):
        index[group] = []
        for run in runs:
            index[group].append(
                {name: len(arrays) + at for at, name in enumerate(sorted(run))}
            )
            arrays += [run[name] for name in sorted(run)]
    head = canonical_json({"about": about, "groups": index})
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        _put(archive, "index", np.frombuffer(head, np.uint8))
        for number, array in enumerate(arrays):
            datatype_of(array.dtype)
            _put(archive, f"t{number:05d}", array)
    return target.getvalue()


def read_tensors(
    raw: bytes, name: str
) -> tuple[dict[str, list[dict[str, Array]]], Any]:
    """Groups of runs, and what was kept beside them; ``name`` is for errors.

    Raises:
        BundleError: not such a file, damaged, pickled, or sizes contradict each other.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            if len(entries) > ENTRIES_MAX:
                raise ValueError(f"{len(entries)} entries; at most {ENTRIES_MAX}")
            if sum(entry.file_size for entry in entries) > len(raw):
                raise ValueError("its entries overlap")
            arrays = {e.filename: _take(archive, e) for e in entries}
        head = json.loads(arrays["index.npy"].tobytes())
        groups = {
            group: [
                {key: arrays[f"t{number:05d}.npy"] for key, number in run.items()}
                for run in runs
            ]
            for group, runs in head["groups"].items()
        }
        return groups, head["about"]
    except (
        zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError, EOFError,
        OSError, NotImplementedError, RuntimeError, MemoryError, SyntaxError,
        tokenize.TokenError,
    ) as error:  # fmt: skip
        raise BundleError(f"{name} cannot be read: {error}") from error


def _put(archive: zipfile.ZipFile, name: str, array: Array) -> None:
    entry = zipfile.ZipInfo(f"{name}.npy", _EPOCH)
    entry.create_system = 3
    entry.external_attr = 0o644 << 16
    data = io.BytesIO()
    plain = np.ascontiguousarray(array).reshape(array.shape)
    little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
    np.lib.format.write_array(data, little, version=(1, 0), allow_pickle=False)
    archive.writestr(entry, data.getvalue())


def _take(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Array:
    if entry.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"entry {entry.filename!r} is compressed; expected stored")
    data = archive.read(entry)
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    if version != (1, 0):
        raise ValueError(f"entry {entry.filename!r} has npy version {version}")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    if dtype.hasobject or fortran:
        raise ValueError(f"entry {entry.filename!r} is pickled or in Fortran order")
    datatype_of(dtype)
    flat = np.frombuffer(data, np.uint8, offset=stream.tell())
    count = 1
    for dimension in shape:
        count *= dimension
    if count * dtype.itemsize != flat.size:
        raise ValueError(
            f"entry {entry.filename!r} has {flat.size} bytes of data; shape {shape} "
            f"of {dtype} needs {count * dtype.itemsize}"
        )
    return flat.view(dtype).reshape(shape)
