"""Samples and data sets, identified by what they hold.

The rules it keeps:

1. A sample's digest is of its content alone: not of its id, label or place.
2. A data set's digest is of everything in it: content, labels, slices, ids, order.
3. Values are numbers (no text, no objects) and finite; the first that is not is named.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from .errors import DataError

Array = NDArray[Any]

SAMPLES_MAX = 1_000_000
"""Samples of one data set."""
NUMBERS = "biuf"
"""Kinds of numpy dtype that a model can be fed with."""


@dataclass(frozen=True)
class Sample:
    """One raw sample, before any pre-processing.

    ``value`` is an array, the bytes of a file (image, wav), or one array per model
    input. ``slices`` maps a slice column to this sample's value in it.
    """

    id: str
    value: Array | bytes | Mapping[str, Array]
    label: Any = None
    slices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSource:
    """Where samples come from, as the recipe says it.

    ``location`` is a path, ``module:function`` or ``set:name/split``. ``inputs`` maps
    a model input to a key or to columns; a plain string or list serves one input.
    """

    location: str
    inputs: str | list[str] | dict[str, str | list[str]] | None = None
    label: str | None = None
    slices: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class Dataset(Sequence[Sample]):
    """Samples in order. ``classes`` names the labels where the data itself does."""

    samples: tuple[Sample, ...]
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> "Dataset": ...
    def __getitem__(self, index: int | slice) -> "Sample | Dataset":
        if isinstance(index, slice):
            return Dataset(self.samples[index], self.classes)
        return self.samples[index]

    @cached_property
    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each sample's content, dtype and shape included."""
        return tuple(content_digest(sample.value) for sample in self.samples)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the whole: content, labels, slices, ids, in order."""
        digest = hashlib.sha256()
        for sample, content in zip(self.samples, self.digests, strict=True):
            about = [content, sample.id, _plain(sample.label), dict(sample.slices)]
            digest.update(json.dumps(about, sort_keys=True).encode() + b"\n")
        digest.update(json.dumps(self.classes).encode())
        return digest.hexdigest()

    @property
    def labels(self) -> list[Any] | None:
        """Every sample's label; None when there are none."""
        labels = [sample.label for sample in self.samples]
        return None if any(label is None for label in labels) else labels

    @property
    def slice_values(self) -> dict[str, list[str]]:
        """Slice column → each sample's value; "" where a sample has none."""
        columns = sorted({name for sample in self.samples for name in sample.slices})
        return {
            name: [sample.slices.get(name, "") for sample in self.samples]
            for name in columns
        }


def content_digest(value: Array | bytes | Mapping[str, Array]) -> str:
    """SHA-256 of a sample's content."""
    digest = hashlib.sha256()
    if isinstance(value, bytes):
        digest.update(b"bytes\n" + value)
    elif isinstance(value, Mapping):
        for name in sorted(value):
            digest.update(f"{name!r}:{content_digest(value[name])}\n".encode())
    else:
        little = np.asarray(value, value.dtype.newbyteorder("<"))
        digest.update(f"{value.dtype.name} {value.shape}\n".encode())
        digest.update(little.tobytes())
    return digest.hexdigest()


def checked(
    samples: Iterable[Sample],
    name: str,
    *,
    classes: tuple[str, ...] = (),
    limit: int | None = None,
) -> Dataset:
    """A data set of ``samples``, each looked at; ``name`` is for errors.

    Raises:
        DataError: no samples, too many, text or objects, NaN or infinity, labels for
            some samples only, or an id twice.
    """
    taken: list[Sample] = []
    for sample in samples:
        if limit is not None and len(taken) >= limit:
            break
        if len(taken) >= SAMPLES_MAX:
            raise DataError(
                f"{name}: more than {SAMPLES_MAX} samples; take fewer with limit"
            )
        _check(sample, name)
        taken.append(sample)
    if not taken:
        raise DataError(f"{name}: no samples; expected at least one")
    _check_labels(taken, name)
    ids = [sample.id for sample in taken]
    if len(set(ids)) != len(ids):
        twice = next(one for one in ids if ids.count(one) > 1)
        raise DataError(f"{name}: two samples have the id {twice!r}; ids must differ")
    return Dataset(tuple(taken), classes)


def _check(sample: Sample, name: str) -> None:
    if not isinstance(sample, Sample):
        raise DataError(
            f"{name}: expected calibration.dataset.Sample, "
            f"found {type(sample).__name__}"
        )
    value = sample.value
    parts = value if isinstance(value, Mapping) else {"": value}
    if not parts:
        raise DataError(f"{name}: sample {sample.id} has no inputs")
    for key, part in parts.items():
        where = f"{name}: sample {sample.id}" + (f", input {key!r}" if key else "")
        if isinstance(part, bytes):
            if not part:
                raise DataError(f"{where} is empty (0 bytes)")
            continue
        check_numbers(part, where)
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise DataError(
                f"{where} holds NaN or infinity; repair or leave out that sample"
            )
    label = sample.label
    if isinstance(label, float | list) and not _finite(label):
        raise DataError(f"{name}: the label of sample {sample.id} is NaN or infinite")


def check_numbers(array: object, where: str) -> None:
    """Refuse what is no array of numbers, or has no elements.

    Raises:
        DataError: so; ``where`` begins the text.
    """
    if not isinstance(array, np.ndarray):
        raise DataError(
            f"{where} is a {type(array).__name__}; expected an array or bytes"
        )
    if array.dtype.kind not in NUMBERS:
        raise DataError(
            f"{where} has the dtype {array.dtype}; expected numbers (bool, integers, "
            "floats), never objects or text"
        )
    if array.size == 0:
        raise DataError(f"{where} is empty: its shape is {list(array.shape)}")


def _check_labels(samples: Sequence[Sample], name: str) -> None:
    without = [sample.id for sample in samples if sample.label is None]
    if without and len(without) < len(samples):
        raise DataError(
            f"{name}: {len(samples) - len(without)} samples have a label and "
            f"{len(without)} have none, such as {without[0]}; expected all or none"
        )


def _finite(label: Any) -> bool:
    if isinstance(label, list):
        return all(_finite(item) for item in label)
    return not isinstance(label, float) or bool(np.isfinite(label))


def _plain(label: Any) -> Any:
    return label.tolist() if isinstance(label, np.ndarray | np.generic) else label
