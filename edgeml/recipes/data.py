"""The recipe's splits: read, kept apart, identified by digest."""

from dataclasses import dataclass, replace

from calibration.dataset import Dataset, DataSource, identity, load

from ..cache import digest_of
from ..model import Model
from .recipe import Recipe
from .verbs import trains

RANDOM = "random:"


@dataclass(frozen=True)
class Splits:
    """Calibration pool, validation and training samples.

    A split that is declared as ``random:N`` has no samples before the model is known.
    """

    calibration: Dataset
    validation: Dataset
    digest: str
    random: dict[str, tuple[int, int]]
    """Split → how many random samples, from which seed."""
    train: Dataset | None = None
    """Only where the recipe has a pass that trains."""

    def given(self, model: Model) -> "Splits":
        """The splits with random samples made for this model's inputs."""
        from .draft import random_dataset

        def filled(name: str, split: Dataset) -> Dataset:
            if name not in self.random:
                return split
            return random_dataset(model.inputs, *self.random[name])

        return replace(
            self,
            calibration=filled("calibration", self.calibration),
            validation=filled("validation", self.validation),
        )


def load_splits(recipe: Recipe) -> Splits:
    """Read what the recipe names.

    Raises:
        DataError: a split cannot be read; the text says why.
    """
    random: dict[str, tuple[int, int]] = {}
    read: dict[str, Dataset] = {}
    for place, (name, source) in enumerate(_sources(recipe)):
        if source.location.startswith(RANDOM):
            random[name] = (
                int(source.location.removeprefix(RANDOM)),
                recipe.seed * 2 + place,
            )
            read[name] = Dataset(())
        else:
            read[name] = load(source, recipe.folder)
    digest = digest_of({name: split.digest for name, split in read.items()})
    return Splits(
        read["calibration"], read["validation"], digest, random, read.get("train")
    )


def _sources(recipe: Recipe) -> list[tuple[str, DataSource]]:
    data = recipe.data
    found = [("calibration", data.calibration), ("validation", data.validation)]
    if data.train is not None and any(
        trains(one.verb, one.parameters) for one in recipe.passes
    ):
        found.append(("train", data.train))
    return found


def splits_identity(recipe: Recipe) -> str | None:
    """A digest that stays while the recipe's samples do; None where only reading tells.

    Raises:
        DataError: a split is not there.
    """
    found = [
        source.location
        if source.location.startswith(RANDOM)
        else identity(source, recipe.folder)
        for _, source in _sources(recipe)
    ]
    return None if None in found else digest_of(found)
