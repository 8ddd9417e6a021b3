"""Which samples a quantizer sees: drawn, seeded, the same in every process.

The rules it keeps:

1. A drawn list is in an order of which every beginning is a fair draw too.
2. Fewer samples than asked for are all taken.
3. The same data set, count, seed and embeddings give the same indexes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .sample import Array, Dataset

STRATA_MAX = 20
"""From this many distinct numbers on, numeric labels are grouped into tenths."""
RANGE_BINS = 10
CLASSES_SHOWN = 50

Draw = Callable[[Dataset, int, int, Array | None], list[int]]


def draw(
    dataset: Dataset,
    sampler: str,
    count: int,
    seed: int,
    embeddings: NDArray[Any] | None = None,
) -> tuple[int, ...]:
    """Indexes of ``count`` samples, or of all when there are fewer.

    Args:
        dataset: the pool.
        sampler: one of :data:`SAMPLERS`.
        count: at least 1.
        seed: all randomness comes from it.
        embeddings: ``[samples, …]`` of the model, for ``k_center``; when they are of
            the first samples only, the draw is from these.

    Raises:
        DataError: an empty pool, an unknown sampler, or embeddings that are missing
            or not finite.
    """
    if sampler not in SAMPLERS:
        raise DataError(f"no sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    if not len(dataset) or count < 1:
        raise DataError(
            f"cannot draw {count} of {len(dataset)} samples; expected at least one"
        )
    return tuple(SAMPLERS[sampler](dataset, count, seed, embeddings))


def _random(
    dataset: Dataset, count: int, seed: int, embeddings: Array | None
) -> list[int]:
    return _shuffled(np.arange(len(dataset)), seed)[:count]


def _stratified(
    dataset: Dataset, count: int, seed: int, embeddings: Array | None
) -> list[int]:
    """As many of each class as it has in the pool, and one of each if there is room.

    Without labels all samples are of one class.
    """
    strata: dict[Any, list[int]] = {}
    for index, stratum in enumerate(_strata(dataset.labels, len(dataset))):
        strata.setdefault(stratum, []).append(index)
    names = sorted(strata)
    sizes = np.asarray([len(strata[name]) for name in names])
    shares = _apportioned(sizes, min(count, len(dataset)))
    placed: list[tuple[float, int, int]] = []
    for place, name in enumerate(names):
        chosen = _shuffled(np.asarray(strata[name]), seed + place)[: shares[place]]
        placed += [
            ((rank + 0.5) / shares[place], place, index)
            for rank, index in enumerate(chosen)
        ]
    return [index for _, _, index in sorted(placed)]


def _k_center(
    dataset: Dataset, count: int, seed: int, embeddings: Array | None
) -> list[int]:
    """Farthest first: each next sample is the one farthest from all chosen.

    References:
        Sener and Savarese, Active Learning for Convolutional Neural Networks: A
        Core-Set Approach, ICLR 2018 (algorithm 1).
    """
    if embeddings is None:
        raise DataError("k_center needs embeddings of the samples; found none")
    rows = np.asarray(embeddings, np.float64).reshape(len(embeddings), -1)
    if not 1 <= len(rows) <= len(dataset) or not np.isfinite(rows).all():
        raise DataError(
            f"expected finite embeddings of at most {len(dataset)} samples, "
            f"found {len(rows)}, finite: {bool(np.isfinite(rows).all())}"
        )
    chosen = [int(np.random.default_rng(seed).integers(len(rows)))]
    nearest = np.full(len(rows), np.inf)
    while len(chosen) < min(count, len(rows)):
        distance = ((rows - rows[chosen[-1]]) ** 2).sum(axis=1)
        nearest = np.minimum(nearest, distance)
        nearest[chosen[-1]] = -1.0  # twins of a chosen one are at 0, and come last
        chosen.append(int(np.argmax(nearest)))
    return chosen


SAMPLERS: Mapping[str, Draw] = {
    "random": _random,
    "stratified": _stratified,
    "k_center": _k_center,
}


def coverage(dataset: Dataset, drawn: Sequence[int]) -> dict[str, Any]:
    """How much of the pool the drawn samples show, as JSON.

    ``class_share`` is the share of the pool's classes that were drawn and ``classes``
    their counts, both with labels only. ``range_share`` compares, input by input, the
    values drawn with those of the pool: the mean over features of the drawn range as
    a share of the pool's (encoded files: their sizes in bytes stand for the values).
    """
    facts: dict[str, Any] = {}
    labels = dataset.labels
    if labels is not None:
        strata = _strata(labels, len(dataset))
        seen = Counter(strata[index] for index in drawn)
        facts["class_share"] = len(seen) / len(set(strata))
        if len(seen) <= CLASSES_SHOWN:
            facts["classes"] = {
                dataset.classes[key] if dataset.classes else str(key): seen[key]
                for key in sorted(seen)
            }
    ranges = {
        name or "values": _range_share(dataset, name, drawn)
        for name in _inputs(dataset)
    }
    facts["range_share"] = {key: one for key, one in ranges.items() if one is not None}
    return facts


def _inputs(dataset: Dataset) -> list[str]:
    value = dataset[0].value
    return sorted(value) if isinstance(value, Mapping) else [""]


def _range_share(dataset: Dataset, name: str, drawn: Sequence[int]) -> float | None:
    """Mean over features of drawn range / pool range; None when nothing varies."""
    shapes = {_features(sample.value, name).shape for sample in dataset.samples}
    fold = len(shapes) > 1  # samples of different sizes are compared by their extremes

    def extremes(indexes: Sequence[int]) -> tuple[Array, Array]:
        low = high = _features(dataset[indexes[0]].value, name, fold=fold)
        for index in indexes:
            row = _features(dataset[index].value, name, fold=fold)
            low, high = np.minimum(low, row), np.maximum(high, row)
        return low.astype(np.float64), high.astype(np.float64)

    low, high = extremes(range(len(dataset)))
    few_low, few_high = extremes(drawn)
    varies = high > low
    if not varies.any():
        return None
    shares = (few_high - few_low)[varies] / (high - low)[varies]
    return float(shares.mean())


def _features(
    value: Array | bytes | Mapping[str, Array], name: str, *, fold: bool = False
) -> Array:
    part = value[name] if isinstance(value, Mapping) else value
    if isinstance(part, bytes):
        return np.asarray([len(part)])
    if fold:
        return np.asarray([part.min(), part.max()])
    return part


def _strata(labels: list[Any] | None, count: int) -> list[Any]:
    """Each sample's stratum: its class, or the tenth that a numeric label is in."""
    if labels is None or any(isinstance(label, list | np.ndarray) for label in labels):
        return [0] * count
    numeric = all(isinstance(label, int | float) for label in labels)
    if not numeric:
        return [str(label) for label in labels]
    whole = all(float(label).is_integer() for label in labels)
    if whole or len(set(labels)) <= STRATA_MAX:
        return list(labels)
    edges = np.quantile(labels, np.arange(1, RANGE_BINS) / RANGE_BINS)
    return [int(place) for place in np.searchsorted(edges, labels, side="right")]


def _apportioned(sizes: Array, count: int) -> list[int]:
    """``count`` split in proportion to ``sizes``, by largest remainder.

    No share exceeds its size; each is at least 1 when ``count`` allows it.
    """
    least = np.full(len(sizes), int(count >= len(sizes)))
    exact = sizes * (count / sizes.sum())
    shares = np.minimum(np.maximum(np.floor(exact).astype(int), least), sizes)
    while shares.sum() != count:
        step = 1 if shares.sum() < count else -1
        able = shares < sizes if step > 0 else shares > least
        need = np.where(able, (exact - shares) * step, -np.inf)
        shares[int(np.argmax(need))] += step
    return [int(share) for share in shares]


def _shuffled(indexes: Array, seed: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).permutation(indexes)]
