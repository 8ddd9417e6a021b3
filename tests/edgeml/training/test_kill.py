"""Trainings that are killed, really, and go on as if nothing had been."""

import contextlib
import os
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import learning  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402


def later(moment):
    return pytest.param(moment, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    life = learning.live(tmp_path_factory.mktemp("undisturbed"))
    assert life.result is not None
    assert len(life.steps) == learning.STEPS
    return life.result


@pytest.mark.parametrize("moment", [1, 6, *map(later, (2, 5, 8, 15))])
def test_kill_9_in_a_step_loses_at_most_that_step(tmp_path: Path, undisturbed, moment):
    killed = learning.live(tmp_path, kill_at=moment)
    assert killed.result is None
    resumed = learning.live(tmp_path)
    assert resumed.result == undisturbed
    assert len(resumed.steps) == learning.STEPS - (moment - 1)


@pytest.mark.parametrize("moment", [4, *map(later, (1, 9, 16))])
def test_kill_9_while_a_checkpoint_is_written(tmp_path: Path, undisturbed, moment):
    killed = learning.live(tmp_path, kill_in_write=moment)
    assert killed.result is None
    assert [path.suffix for path in tmp_path.rglob(".*")] == [".part"]
    resumed = learning.live(tmp_path)
    assert resumed.result == undisturbed
    assert len(resumed.steps) <= learning.STEPS - len(killed.steps) + 1
    assert not list(tmp_path.rglob(".*"))


def test_killed_again_and_again(tmp_path: Path, undisturbed):
    for moment in (3, 3, 4, 2):
        assert learning.live(tmp_path, kill_at=moment).result is None
    resumed = learning.live(tmp_path)
    assert resumed.result == undisturbed
    rows = (tmp_path / "train" / "log.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows[1:]] == [
        [str(epoch), str(5 * epoch)] for epoch in (1, 2, 3)
    ]


def test_a_seldom_checkpoint_loses_what_came_after_it_and_no_more(
    tmp_path: Path, undisturbed
):
    assert learning.live(tmp_path, kill_at=7, checkpoint_s=0.0).result is None
    assert learning.live(tmp_path, kill_at=5, checkpoint_s=3600.0).result is None
    resumed = learning.live(tmp_path)
    assert resumed.result == undisturbed
    assert len(resumed.steps) == learning.STEPS - 6


def test_the_other_optimizer_resumes_too(tmp_path: Path):
    how = {"optimizer": "sgd", "schedule": "constant", "patience": 2}
    whole = learning.live(tmp_path / "whole", **how)
    assert learning.live(tmp_path / "part", kill_at=8, **how).result is None
    assert learning.live(tmp_path / "part", **how).result == whole.result


def test_what_is_finished_is_not_trained_again(tmp_path: Path, undisturbed):
    assert learning.live(tmp_path).result == undisturbed
    again = learning.live(tmp_path)
    assert again.result == undisturbed
    assert again.steps == []


class _Crash(BaseException):
    """Ends a run in the middle, as nothing that the loop catches would."""


@pytest.fixture(scope="module")
def swift():
    """One thread; and no fsync, for here it is not the machine that dies."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield learning.learn(None)
    torch.set_num_threads(threads)


@settings(max_examples=12, deadline=None)
@given(
    crashes=st.lists(
        st.tuples(st.integers(1, learning.STEPS), st.booleans()), max_size=4
    )
)
def test_any_crashes_any_checkpoints_the_same_bytes(swift, tmp_path_factory, crashes):
    work = tmp_path_factory.mktemp("work")
    for moment, often in crashes:
        left = [moment]

        def crash(left=left) -> None:
            left[0] -= 1
            if not left[0]:
                raise _Crash

        with contextlib.suppress(_Crash):
            learning.learn(work, crash, checkpoint_s=0.0 if often else 3600.0)
    assert learning.learn(work) == swift
