"""What all trials of a search stand on: data read once, and builds of variations.

Trials are judged on half of the validation samples, drawn by the recipe's seed; the
whole is left for what a search chooses.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from calibration.dataset import Dataset
from targets.profile import Target

from ..errors import BackendError
from ..passing import Imported, channel_multiple
from ..pipeline import Build, Place, Variation
from ..progress import Progress
from ..recipes.data import Splits, load_splits
from ..recipes.recipe import Recipe
from ..recipes.verbs import trains
from ..workbench import Reference, Subject, Workbench
from .variation import shaped

HALF = 0.5


@dataclass(frozen=True)
class Stage:
    """A network ready to make artifacts of, and to judge them."""

    imported: Imported
    bench: Workbench
    reference: Reference


class Quiet:
    """Passes on what is being done, and not what single steps find out."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def stage(self, text: str) -> None:
        """Something has begun."""
        self._progress.stage(text)

    def step(self, done: int, total: int) -> None:
        """So much of what has begun is done."""
        self._progress.step(done, total)

    def result(self, text: str) -> None:
        """Trials say themselves what they found."""


class Ground:
    """Builds variations of the recipe at ``path`` for one target."""

    def __init__(
        self, path: Path, place: Place, progress: Progress, target: str, trust: bool
    ) -> None:
        self._path = path
        self._place = place
        self._progress = progress
        self.name = target
        self._trust = trust
        self._read: dict[bool, Splits] = {}
        self._subjects: dict[object, Subject] = {}

    def build(self, recipe: Recipe, command: str, progress: Progress) -> Build:
        """The build of a variation, for this target alone."""
        return Build(
            self._path, self._place, progress, targets=[self.name],
            trust_model_code=self._trust, variation=Variation(recipe, command),
        )  # fmt: skip

    def splits(self, recipe: Recipe) -> Splits:
        """The recipe's samples, read once; those to train on only where it trains."""
        training = any(trains(one.verb, one.parameters) for one in recipe.passes)
        if training not in self._read:
            self._read[training] = load_splits(recipe)
        return self._read[training]

    def imported(self, recipe: Recipe) -> Imported:
        """The network of a variation, trained where it must be."""
        return self._quiet(recipe).graph(self.splits(recipe))

    def shape(self, recipe: Recipe) -> Imported:
        """The network of a variation in its final shape, before it learned in it."""
        return self.imported(shaped(recipe, channel_multiple(recipe)))

    def stage(self, recipe: Recipe, target: Target) -> Stage:
        """The network of a variation with everything to judge it by.

        Raises:
            BackendError: the target does not take it; gives every reason.
            ModelError: the model is refused.
            PassError: a pass failed.
        """
        build = self._quiet(recipe)
        imported = self.imported(recipe)
        subject = self._subject(build, imported)
        bench, refusals = build.bench(target, subject)
        if bench is None:
            raise BackendError("; ".join(refusals))
        if not bench.host.timed:
            raise BackendError(
                f"a search compares latencies, and here {bench.host.validated_on} "
                f"stands in for {target.name}; search on a machine that has the "
                "device, or take the recipe without [search]"
            )
        return Stage(imported, bench, build.reference(imported, subject))

    def _quiet(self, recipe: Recipe) -> Build:
        return self.build(recipe, "", Quiet(self._progress))

    def _subject(self, build: Build, imported: Imported) -> Subject:
        """Samples are prepared once: what they become depends on the inputs alone.

        Only ``k_center`` draws calibration samples by what the network sees in them.
        """
        data = build.recipe.data
        by = imported.digest if data.sampler == "k_center" else ""
        key = (data.samples, by, imported.model.inputs)
        if key not in self._subjects:
            splits = self.splits(build.recipe).given(imported.model)
            half = half_of(splits.validation, build.recipe.seed)
            halved = replace(splits, validation=half)
            self._subjects[key] = build.subject(imported, halved)[0]
        return replace(
            self._subjects[key], model=imported.model, model_digest=imported.digest
        )


def half_of(dataset: Dataset, seed: int) -> Dataset:
    """Half of the samples, drawn by the seed, in their order; one of a single one."""
    count = max(1, round(len(dataset) * HALF))
    order = np.random.default_rng(seed).permutation(len(dataset))
    places = np.sort(order[:count])
    return Dataset(tuple(dataset[int(place)] for place in places), dataset.classes)
