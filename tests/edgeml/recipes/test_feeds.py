"""Samples become feeds: steps, batch dimension, refusals that name the sample."""

import numpy as np
import pytest

from calibration.dataset import Dataset, Sample
from device_agent.contract.tensors import TensorSpec
from edgeml.errors import InputError
from edgeml.recipes.feeds import Preparer

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
ONES = np.ones(4, np.float32)


def test_a_bare_array_goes_to_the_first_input_with_a_batch_dimension() -> None:
    feeds = Preparer((), None, (X,)).feeds(Sample("a", ONES))
    assert [*feeds] == ["x"]
    assert feeds["x"].shape == (1, 4)
    assert feeds["x"].dtype == np.float32


def test_steps_are_run_on_their_input_only() -> None:
    other = TensorSpec(name="z", datatype="FP32", shape=(-1, 4))
    preparer = Preparer(({"scale": 0.5},), "z", (X, other))
    feeds = preparer.feeds(Sample("a", {"x": ONES, "z": ONES}))
    assert feeds["x"].tolist() == [[1.0] * 4]
    assert feeds["z"].tolist() == [[0.5] * 4]


def test_an_input_that_the_model_lacks_cannot_be_prepared() -> None:
    with pytest.raises(InputError, match="'y' is not an input of the model; it has x"):
        Preparer((), "y", (X,))


@pytest.mark.parametrize(
    "value", [{"y": ONES}, {"x": ONES, "y": ONES}, {}], ids=["other", "more", "none"]
)
def test_missing_and_unknown_inputs_are_named_with_the_sample(value: object) -> None:
    with pytest.raises(InputError, match=r"sample s7: .*missing .*unknown"):
        Preparer((), None, (X,)).feeds(Sample("s7", value))


@pytest.mark.parametrize("value", [np.ones(5, np.float32), b"bytes"])
def test_a_sample_that_does_not_fit_is_named_with_its_input(value: object) -> None:
    with pytest.raises(InputError, match="sample s7, input 'x'"):
        Preparer((), None, (X,)).feeds(Sample("s7", {"x": value}))


def test_a_split_keeps_order_ids_labels_and_slices_of_what_was_drawn() -> None:
    samples = tuple(
        Sample(f"s{n}", ONES * n, n, {"half": str(n > 2)} if n else {})
        for n in range(5)
    )
    dataset = Dataset(samples)
    preparer = Preparer((), None, (X,))
    split = preparer.split(dataset, (4, 0, 2))
    assert split.ids == ("s4", "s0", "s2")
    assert split.labels is not None
    assert split.labels.tolist() == [4, 0, 2]
    assert split.slices == {"half": ["True", "", "False"]}
    assert split.digests == tuple(dataset.digests[n] for n in (4, 0, 2))
    assert len(split) == 3
    assert preparer.split(dataset, (0, 4, 2)).digest != split.digest
    assert len(preparer.split(dataset)) == 5


def test_a_split_in_which_a_label_is_missing_has_none() -> None:
    samples = (Sample("a", ONES, 1), Sample("b", ONES * 2))
    assert Preparer((), None, (X,)).split(Dataset(samples)).labels is None
