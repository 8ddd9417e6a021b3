"""One model, served: where it runs, who leaves, how it ends."""

import asyncio

import numpy as np
import pytest
from sessions import Counting, Failing, Hanging, Linear, Slow, feeds
from stages import Stage, answer, ask, begun, on_stage, until

from device_agent.errors import (
    DeadlineError,
    InferenceError,
    OverloadError,
    UnavailableError,
)

# Where it runs


def test_fast_models_run_on_the_loop_and_slow_ones_in_the_lane() -> None:
    async def story(stage: Stage) -> None:
        fast, slow = Counting(Linear()), Counting(Linear())
        quick = stage.serve(fast, 10e-6, inline_us=50.0)
        steady = stage.serve(slow, 60e-6, inline_us=50.0)
        for served in (quick, steady):
            outputs = await served.infer(feeds(3.0))
            assert outputs["y"].tolist() == answer(3.0)
            assert served.statistics.success.count == 1
            assert served.statistics.executions == 1
        assert fast.threads == ["MainThread"]
        assert slow.threads == ["lane-0"]

    on_stage(story)


def test_on_trial_it_stays_off_the_event_loop() -> None:
    """Where a call that hangs would stop everybody."""

    async def story(stage: Stage) -> None:
        counting = Counting(Linear())
        served = stage.serve(counting, 10e-6, inline_us=50.0)
        served.allow_inline(False)
        await served.infer(feeds(1.0))
        served.allow_inline(True)
        await served.infer(feeds(1.0))
        assert counting.threads == ["lane-0", "MainThread"]

    on_stage(story)


def test_rows_decide_where_it_runs() -> None:
    async def story(stage: Stage) -> None:
        counting = Counting(Linear())
        served = stage.serve(counting, 30e-6, inline_us=50.0)
        await served.infer(feeds(1.0), 1)
        await served.infer(feeds(*range(16)), 16)
        assert counting.threads == ["MainThread", "lane-0"]
        assert served.statistics.batches[16].count == 1

    on_stage(story)


def test_the_session_is_never_asked_by_two_threads() -> None:
    async def story(stage: Stage) -> None:
        counting = Counting(Slow(Linear(), row_s=0.0001))
        served = stage.serve(counting, 1e-6, inline_us=1e6, queue_depth=1000)

        async def one(number: int) -> None:
            await asyncio.sleep(number % 7 * 0.0003)
            rows = 1 + number % 5
            task = ask(served, number, rows=rows)
            if number % 4 == 0:  # this caller leaves, perhaps while it runs
                await asyncio.sleep(0.0005)
                task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        served._forecast.row_ns = 1e12  # the first goes to the lane…
        first = ask(served, 0.0)
        await asyncio.sleep(0)
        served._forecast.row_ns = 1.0  # …and all others might run on the loop
        await asyncio.gather(first, *(one(number) for number in range(300)))
        await until(lambda: served.waiting == 0)
        await served.infer(feeds(1.0))
        assert counting.most == 1
        assert set(counting.threads) == {"MainThread", "lane-0"}

    on_stage(story)


def test_first_in_first_out() -> None:
    async def story(stage: Stage) -> None:
        counting = Counting(Slow(Linear(), 0.001))
        served = stage.serve(counting)
        outputs = await asyncio.gather(*(ask(served, n) for n in range(30)))
        assert [run[0, 0] for run in counting.runs] == list(range(30))
        assert [one["y"].tolist() for one in outputs] == [  # type: ignore[index]
            answer(n) for n in range(30)
        ]

    on_stage(story)


# Callers that leave


def test_a_caller_that_leaves_while_it_waits_is_not_run() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        counting = Counting(hanging)
        served = stage.serve(counting, 0.1, queue_depth=2)
        running, leaving = ask(served, 1.0), ask(served, 2.0)
        await begun(hanging)
        assert stage.lane.pending_ns == pytest.approx(0.2e9)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert stage.lane.pending_ns == pytest.approx(0.1e9)
        staying = ask(served, 3.0)  # its place is free again
        await asyncio.sleep(0)
        hanging.let_go()
        await asyncio.gather(running, staying)
        assert [run[0, 0] for run in counting.runs] == [1.0, 3.0]
        assert served.statistics.refused == {"cancelled": 1}

    on_stage(story)


def test_the_session_stays_open_when_the_caller_of_a_run_leaves() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        served = stage.serve(hanging)
        leaving = ask(served)
        await begun(hanging)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        assert served.waiting == 1
        assert not await served.drain(0.02), "a thread is in the session"
        hanging.let_go()
        assert await served.drain(30)
        served.loaded.session.close()
        assert served.statistics.executions == 1

    on_stage(story)


# On its way out


def test_draining_answers_who_is_inside_and_refuses_who_comes() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        served = stage.serve(hanging, queue_depth=10)
        inside = [ask(served, n) for n in range(5)]
        await begun(hanging)
        draining = asyncio.create_task(served.drain(30))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="is being unloaded"):
            await served.infer(feeds(1.0))
        with pytest.raises(UnavailableError), served.held():
            pass
        assert not draining.done()
        hanging.let_go()
        assert await draining
        assert served.state == "closed"
        assert all(task.done() for task in inside)
        await asyncio.gather(*inside)

    on_stage(story)


def test_draining_an_idle_model_is_done_at_once() -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Linear())
        assert await served.drain(0)

    on_stage(story)


def test_who_holds_it_keeps_it_open() -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Linear())
        with served.held():
            assert not await served.drain(0.01)
        assert await served.drain(0.01)

    on_stage(story)


# All together


def test_everything_at_once_and_the_books_balance() -> None:
    async def story(stage: Stage) -> None:
        rng = np.random.default_rng(3)
        sessions = [
            Counting(Failing(Slow(Linear(), 0.0005), lambda f: f["x"][0, 0] % 7 == 0)),
            Counting(Slow(Linear(), 0.002, row_s=0.0002)),
            Counting(Linear()),
        ]
        models = [
            stage.serve(sessions[0], 0.0005, name="fails", queue_depth=8),
            stage.serve(
                sessions[1], 0.002, name="batched", max_batch=8, queue_depth=30
            ),
            stage.serve(sessions[2], 0.00002, name="quick", inline_us=50.0),
        ]
        asked = [0, 0, 0]
        outcomes: list[object] = []

        async def caller(number: int) -> None:
            await asyncio.sleep(rng.random() * 0.3)
            which = number % 3
            rows = int(rng.integers(1, 4))
            values = rng.integers(1, 50, rows).astype(float)
            timeout_s = [None, 0.02, 0.005][int(rng.integers(0, 3))]
            asked[which] += 1
            task = asyncio.create_task(
                models[which].infer(feeds(*values), rows, timeout_s)
            )
            if rng.random() < 0.15:
                await asyncio.sleep(rng.random() * 0.01)
                task.cancel()
            (outcome,) = await asyncio.gather(task, return_exceptions=True)
            outcomes.append(outcome)
            if isinstance(outcome, dict):
                assert outcome["y"].tolist() == answer(*values)

        await asyncio.gather(*(caller(number) for number in range(600)))
        await until(lambda: all(not served.waiting for served in models))
        for served, session, count in zip(models, sessions, asked, strict=True):
            books = served.statistics
            assert session.most <= 1
            left = sum(isinstance(o, asyncio.CancelledError) for o in outcomes)
            known = books.success.count + books.fail.count + sum(books.refused.values())
            # who left while it ran is counted by its run alone
            assert count - left <= known <= count
        kinds = {type(outcome) for outcome in outcomes}
        assert {dict, InferenceError, OverloadError} <= kinds
        assert kinds <= {
            dict, InferenceError, OverloadError, DeadlineError, asyncio.CancelledError,
        }  # fmt: skip

    on_stage(story)
