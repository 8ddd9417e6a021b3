"""The recipe's splits: read by name, told apart by digest, random ones made late."""

from pathlib import Path

import numpy as np
import pytest

from calibration.dataset import DataError
from device_agent.contract.tensors import TensorSpec
from edgeml.model import Model
from edgeml.recipes.data import Splits, load_splits
from edgeml.recipes.recipe import read_recipe

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
MODEL = Model("graph", None, (X,), ())


def splits(
    folder: Path, calibration: str, validation: str = "held.npz", seed: int = 0
) -> Splits:
    (folder / "model.onnx").write_bytes(b"")
    path = folder / "recipe.toml"
    path.write_text(
        '[model]\nsource = "model.onnx"\nname = "m"\nversion = "1.0.0"\n'
        f'[data]\ncalibration = "{calibration}"\nvalidation = "{validation}"\n'
        '[metric]\nname = "agreement"\n'
        f'[build]\ntargets = ["cpu-x86_64"]\nseed = {seed}\n'
    )
    return load_splits(read_recipe(path))


@pytest.fixture
def work(tmp_path: Path) -> Path:
    rows = np.arange(40, dtype=np.float32).reshape(10, 4)
    np.savez(tmp_path / "train.npz", x=rows)
    np.savez(tmp_path / "held.npz", x=-rows - 1)
    return tmp_path


def test_files_are_read_and_known_by_their_samples(work: Path) -> None:
    found = splits(work, "train.npz")
    assert (len(found.calibration), len(found.validation)) == (10, 10)
    assert found.random == {}
    assert splits(work, "train.npz").digest == found.digest
    np.savez(work / "held.npz", x=np.full((10, 4), 7, np.float32))
    assert splits(work, "train.npz").digest != found.digest


def test_random_samples_are_made_for_the_model(work: Path) -> None:
    found = splits(work, "random:6", "random:8")
    assert (len(found.calibration), len(found.validation)) == (0, 0)
    given = found.given(MODEL)
    assert (len(given.calibration), len(given.validation)) == (6, 8)
    assert set(given.calibration.digests).isdisjoint(given.validation.digests)
    assert given.calibration[0].value["x"].dtype == np.float32


def test_random_samples_follow_from_the_seed(work: Path) -> None:
    def drawn(seed: int) -> tuple[str, ...]:
        found = splits(work, "random:6", "random:8", seed).given(MODEL)
        return (*found.calibration.digests, *found.validation.digests)

    assert drawn(3) == drawn(3)
    assert set(drawn(3)).isdisjoint(drawn(4))


def test_a_split_that_was_read_is_not_touched(work: Path) -> None:
    found = splits(work, "random:6")
    assert found.given(MODEL).validation is found.validation


def test_what_goes_after_the_recipe_was_read_is_named(work: Path) -> None:
    splits(work, "train.npz")
    recipe = read_recipe(work / "recipe.toml")
    (work / "train.npz").unlink()
    with pytest.raises(DataError, match=r"train\.npz: no such file"):
        load_splits(recipe)
