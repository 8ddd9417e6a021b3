"""Samples → feeds: the declared pre-processing, exactly as the device runs it."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibration.dataset import Dataset, Sample
from device_agent.contract.errors import StepError
from device_agent.contract.preprocess import Preprocess, batched, parse_steps
from device_agent.contract.tensors import Array, Feeds, TensorSpec

from ..errors import InputError


@dataclass(frozen=True)
class Prepared:
    """A split, ready to run: one feed per sample, and what is known of each."""

    feeds: tuple[Feeds, ...]
    ids: tuple[str, ...]
    labels: Array | None
    slices: Mapping[str, Sequence[str]]
    digest: str
    digests: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.feeds)


class Preparer:
    """Runs the declared steps on samples and fits them to the model's inputs."""

    def __init__(
        self,
        steps: Sequence[Mapping[str, Any]],
        step_input: str | None,
        inputs: Sequence[TensorSpec],
    ) -> None:
        self._preprocess = Preprocess(parse_steps(steps, "preprocess"))
        self._inputs = {spec.name: spec for spec in inputs}
        self._step_input = step_input or inputs[0].name
        if self._step_input not in self._inputs:
            raise InputError(
                f"preprocess.input {self._step_input!r} is not an input of the model; "
                f"it has {', '.join(self._inputs)}"
            )

    def feeds(self, sample: Sample) -> Feeds:
        """One sample as the model takes it, batch dimension 1 included.

        Raises:
            InputError: the sample does not fit the steps or the model; names it.
        """
        value = sample.value
        named = value if isinstance(value, Mapping) else {self._step_input: value}
        missing = sorted(self._inputs.keys() - named.keys())
        unknown = sorted(named.keys() - self._inputs.keys())
        if missing or unknown:
            raise InputError(
                f"sample {sample.id}: the model's inputs are "
                f"{', '.join(self._inputs)}; missing {missing}, unknown {unknown}"
            )
        feeds: dict[str, Array] = {}
        for name, raw in named.items():
            try:
                if name == self._step_input:
                    raw = self._preprocess(raw)
                elif isinstance(raw, bytes):
                    raise StepError("bytes, but preprocess steps make another input")
                feeds[name] = batched(raw, self._inputs[name])
            except StepError as error:
                about = f"input {name!r}: "  # which the error may say itself
                text = about + str(error).removeprefix(about)
                raise InputError(f"sample {sample.id}, {text}") from error
        return feeds

    def split(self, dataset: Dataset, indices: Iterable[int] | None = None) -> Prepared:
        """A whole split, or the drawn part of it."""
        chosen = list(range(len(dataset)) if indices is None else indices)
        samples = [dataset[index] for index in chosen]
        digests = tuple(dataset.digests[index] for index in chosen)
        return Prepared(
            feeds=tuple(map(self.feeds, samples)),
            ids=tuple(sample.id for sample in samples),
            labels=_labels(samples),
            slices=_slices(samples),
            digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
            digests=digests,
        )


def _labels(samples: Sequence[Sample]) -> Array | None:
    import numpy as np

    labels = [sample.label for sample in samples]
    return None if any(label is None for label in labels) else np.asarray(labels)


def _slices(samples: Sequence[Sample]) -> dict[str, list[str]]:
    columns = sorted({column for sample in samples for column in sample.slices})
    return {
        column: [sample.slices.get(column, "") for sample in samples]
        for column in columns
    }
