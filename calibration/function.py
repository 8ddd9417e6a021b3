"""Data sets from the user's own code: ``module:function``.

The function takes nothing and gives one of

1. samples: any iterable of :class:`~calibration.dataset.Sample`;
2. columns: ``{"inputs": array or {input: array}, "labels": …, "slices": {name: …}}``,
   the last two if there are any;
3. ``(inputs, labels)``, arrays as above.

The first dimension of every array counts the samples. What it raises becomes a
:class:`DataError` of one line.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module, invalidate_caches
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from .arrays import rows
from .errors import DataError, MissingData
from .sample import SAMPLES_MAX, Dataset, DataSource, Sample, checked

CODE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


def names_code(location: str) -> bool:
    """Whether ``location`` is written as ``module:function``."""
    return CODE.fullmatch(location) is not None


def read(
    source: DataSource, folder: Path, given: Mapping[str, Path] | None = None
) -> Dataset:
    """Call the function with ``given`` and take its samples.

    Args:
        source: its location, the slices that must be there, the limit.
        folder: first on ``sys.path`` while the code runs.
        given: files for a function of ours (:mod:`.catalog`).

    Raises:
        DataError: the code is not found or raises, or gives no samples.
    """
    name = source.location
    try:
        with _importable(folder, name.partition(":")[0]):
            made = _call(name, given or {})
            samples = list(islice(_samples(made, name), _most(source)))
    except DataError:
        raise
    except (Exception, SystemExit) as error:
        text = " ".join(str(error).split())
        raise DataError(f"{name} raised {type(error).__name__}: {text}") from error
    dataset = checked(samples, name, limit=source.limit)
    for sample in dataset.samples:
        missing = [column for column in source.slices if column not in sample.slices]
        if missing:
            raise MissingData(
                f"{name}: sample {sample.id} has no slice {missing[0]!r}; it has "
                f"{', '.join(sorted(sample.slices)) or 'none'}"
            )
    return dataset


def _most(source: DataSource) -> int:
    return SAMPLES_MAX + 1 if source.limit is None else source.limit


def _call(name: str, given: Mapping[str, Path]) -> Any:
    module, _, attribute = name.partition(":")
    found = getattr(import_module(module), attribute)
    return found(**given)


def _samples(made: Any, name: str) -> Iterator[Sample]:
    if isinstance(made, Dataset):
        yield from made.samples
    elif isinstance(made, Mapping):
        unknown = sorted(made.keys() - {"inputs", "labels", "slices"})
        if "inputs" not in made or unknown:
            raise DataError(
                f"{name} gave the keys {', '.join(map(str, made))}; expected inputs, "
                "and labels and slices if there are any"
            )
        yield from _columns(
            made["inputs"], made.get("labels"), made.get("slices") or {}, name
        )
    elif isinstance(made, tuple) and len(made) == 2 and not _holds_samples(made):
        yield from _columns(made[0], made[1], {}, name)
    elif isinstance(made, Iterable) and not isinstance(made, str | bytes | np.ndarray):
        yield from made
    else:
        raise DataError(
            f"{name} gave a {type(made).__name__}; expected samples, a dict with "
            "inputs, or (inputs, labels)"
        )


def _columns(
    inputs: Any, labels: Any, slices: Mapping[str, Any], name: str
) -> Iterator[Sample]:
    values = dict(inputs) if isinstance(inputs, Mapping) else {"": inputs}
    if not values:
        raise DataError(f"{name} gave no inputs")
    arrays = {
        key: part if isinstance(part, np.ndarray) else [np.asarray(one) for one in part]
        for key, part in values.items()
    }
    plain = labels if labels is None else np.asarray(labels)
    return rows(name.rpartition(":")[2], arrays, plain, slices, name)


def _holds_samples(made: tuple[Any, ...]) -> bool:
    return all(isinstance(one, Sample) for one in made)


@contextmanager
def _importable(folder: Path, module: str) -> Iterator[None]:
    """Have ``folder`` first on ``sys.path``, and ``module`` taken from there.

    A module of that name from another recipe's folder is forgotten first, or its code
    would answer for this one's.
    """
    top = module.partition(".")[0]
    here = folder.resolve()
    known = getattr(sys.modules.get(top), "__file__", None)
    mine = any((here / name).exists() for name in (f"{top}.py", top))
    if mine and known and not Path(known).resolve().is_relative_to(here):
        for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
            del sys.modules[name]
    sys.path.insert(0, str(here))
    invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(here))
