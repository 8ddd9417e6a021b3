"""Samples: held out, numbered, taken."""

import numpy as np
import pytest

from edgeml.training.task import HOLDOUT_MAX, Samples, hold_out, numbered


def samples(count, labels=None):
    x = np.arange(count, dtype=np.float32)
    return Samples({"x": x, "y": -x}, labels)


@pytest.mark.parametrize(("count", "held"), [(1, 1), (2, 1), (10, 1), (90, 9)])
def test_a_tenth_is_held_out_and_nothing_is_in_both(count, held):
    train, holdout = hold_out(samples(count, np.arange(count)), 0)
    assert (len(train), len(holdout)) == (count - held, held)
    both = np.concatenate([train.inputs["x"], holdout.inputs["x"]])
    assert sorted(both) == list(range(count))
    for one in (train, holdout):
        assert (one.inputs["x"] == one.labels).all()
        assert (one.inputs["y"] == -one.labels).all()


def test_no_more_than_needed_is_held_out():
    train, holdout = hold_out(samples(HOLDOUT_MAX * 20), 0)
    assert len(holdout) == HOLDOUT_MAX
    assert len(train) == HOLDOUT_MAX * 19


def test_the_seed_decides_which():
    first, again, other = (hold_out(samples(90), s)[1].inputs["x"] for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_text_labels_mean_the_same_in_both_parts():
    names = np.array(["rare", *["often"] * 44, *["always"] * 45])
    train, holdout = hold_out(samples(90, names), 0)
    for one in (train, holdout):
        assert one.classes == ("always", "often", "rare")
        places = one.inputs["x"].astype(int)
        assert [one.classes[n] for n in one.labels] == names[places].tolist()


def test_numbers_stay_as_they_are():
    for labels in (None, np.array([2.5, 1.0]), np.array([4, 2])):
        given = samples(2, labels)
        assert numbered(given) is given
