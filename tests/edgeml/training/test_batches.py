"""Batches: order, sizes, types; any of them can be made again."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from edgeml.errors import PassError  # noqa: E402
from edgeml.training.batches import Batches, outputs_of, step_seed  # noqa: E402
from edgeml.training.task import Samples  # noqa: E402


def samples(count, labels=None):
    return Samples({"x": np.arange(count, dtype=np.float32)[:, None]}, labels)


@settings(max_examples=50, deadline=None)
@given(
    count=st.integers(1, 70), size=st.integers(1, 80), seed=st.integers(0, 2**31 - 1)
)
def test_an_epoch_takes_each_sample_at_most_once(count, size, seed):
    batches = Batches(samples(count), size, seed)
    found = [batch.places for batch in batches.epoch(3)]
    assert len(found) == batches.steps >= 1
    assert {len(places) for places in found} == {batches.size}
    assert batches.size == 1 or batches.size % 2 == 0
    assert batches.size <= min(size, count)
    every = np.concatenate(found)
    assert len(set(every)) == len(every) > count - batches.size
    for batch in batches.epoch(3):
        assert (batch.inputs["x"][:, 0].numpy() == batch.places).all()


def test_epochs_differ_and_any_batch_can_be_made_again():
    batches, again = (Batches(samples(40), 8, 7) for _ in range(2))
    first, second = ([b.places.tolist() for b in batches.epoch(e)] for e in (0, 1))
    assert first != second
    assert again.batch(1, 3).places.tolist() == second[3]
    assert again.batch(0, 2).places.tolist() == first[2]


def test_augmentation_draws_by_seed_and_step():
    def noise(inputs, generator):
        return {"x": torch.rand(inputs["x"].shape, generator=generator)}

    def drawn(seed, epoch, place):
        batches = Batches(samples(8), 4, seed, augment=noise)
        return batches.batch(epoch, place).inputs["x"]

    assert torch.equal(drawn(0, 1, 1), drawn(0, 1, 1))
    others = [drawn(0, 1, 0), drawn(0, 0, 1), drawn(1, 1, 1)]
    assert not any(torch.equal(drawn(0, 1, 1), one) for one in others)
    assert len({step_seed(s, n) for s in range(20) for n in range(50)}) == 1000


@pytest.mark.parametrize(
    ("labels", "dtype", "first"),
    [
        (np.array([3, 1], np.uint8), torch.int64, 3),
        (np.array([True, False]), torch.int64, 1),
        (np.array([0.5, 1.5]), torch.float32, 0.5),
        (np.array(["no", "yes"]), torch.int64, 0),
    ],
)
def test_labels(labels, dtype, first):
    batch = Batches(samples(2, labels), 2, 0).batch(0, 0)
    assert batch.labels.dtype == dtype
    assert batch.labels[list(batch.places).index(0)] == first


def test_refusals():
    with pytest.raises(PassError, match="no training samples"):
        Batches(samples(0), 2, 0)
    with pytest.raises(PassError, match="labels of type complex64"):
        Batches(samples(2, np.zeros(2, np.complex64)), 2, 0)


def test_outputs_of_all_samples_in_order_without_gradients():
    weight = torch.ones(1, requires_grad=True)
    found = outputs_of(
        lambda x: {"y": (x * weight).to(torch.bfloat16), "n": x.long()},
        ["x"], samples(7), 3,
    )  # fmt: skip
    assert found["y"].dtype == np.float32
    assert found["y"][:, 0].tolist() == found["n"][:, 0].tolist() == list(range(7))
