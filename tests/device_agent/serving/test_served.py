import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np
import pytest
from sessions import Counting, Failing, Hanging, Linear, Slow, feeds, loaded

from device_agent.config import ModelConfig
from device_agent.errors import (
    DeadlineError,
    InferenceError,
    OverloadError,
    UnavailableError,
)
from device_agent.runtimes.base import Session
from device_agent.serving.breaker import State
from device_agent.serving.lane import Lane
from device_agent.serving.served import Served

HANG_S = 0.05
LANE = {"inline_us": 0.0}
"""Everything in the lane."""


@dataclass
class Stage:
    """One lane, and the models that were put on it."""

    lane: Lane
    models: list[Served] = field(default_factory=list)

    def serve(
        self, session: Session, latency_s: float = 0.001, name: str = "linear",
        **config: object,
    ) -> Served:  # fmt: skip
        served = Served(
            loaded(session, latency_s, name=name), self.lane,
            ModelConfig(**{**LANE, **config}),  # type: ignore[arg-type]
        )  # fmt: skip
        self.models.append(served)
        return served

    def check_empty(self) -> None:
        """Nothing is left behind by what has been answered."""
        assert self.lane.pending == 0
        assert self.lane.pending_ns == 0
        assert [served.waiting for served in self.models] == [0] * len(self.models)


def on_stage(story: Callable[[Stage], Awaitable[None]], *, empty: bool = True) -> None:
    async def main() -> None:
        stage = Stage(Lane("lane-0"))
        await asyncio.wait_for(story(stage), 60)
        if empty:
            await until(lambda: not stage.lane.pending and not stage.lane.lost)
            stage.check_empty()
        stage.lane.close()

    asyncio.run(main())


async def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


async def begun(session: Hanging) -> None:
    assert await asyncio.to_thread(session.started.wait, 30)


def ask(served: Served, value: float = 1.0, **how: float) -> asyncio.Task[object]:
    return asyncio.get_running_loop().create_task(served.infer(feeds(value), **how))  # type: ignore[arg-type]


def answer(*values: float) -> list[list[float]]:
    found: list[list[float]] = Linear().predict(feeds(*values))["y"].tolist()
    return found


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


# Who is let in


def test_a_full_queue_refuses_at_once() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        served = stage.serve(hanging, queue_depth=4)
        tasks = [ask(served) for _ in range(4)]
        await begun(hanging)
        with pytest.raises(OverloadError, match="4 requests wait already"):
            await served.infer(feeds(1.0))
        with pytest.raises(OverloadError):
            served.admit()
        hanging.let_go()
        await asyncio.gather(*tasks)
        await served.infer(feeds(1.0))
        assert served.statistics.refused == {"queue": 2}
        assert served.statistics.success.count == 5

    on_stage(story)


def test_what_could_not_be_answered_in_time_is_refused() -> None:
    async def story(stage: Stage) -> None:
        counting = Counting(Slow(Linear(), 0.02))
        served = stage.serve(counting, 0.02, deadline_ms=100.0)
        tasks = [ask(served) for _ in range(20)]
        await asyncio.sleep(0)
        let_in = [task for task in tasks if not task.done()]
        assert 2 <= len(let_in) <= 5
        results = await asyncio.gather(*tasks, return_exceptions=True)
        errors = [one for one in results if isinstance(one, Exception)]
        assert len(errors) == served.statistics.refused["deadline"]
        assert all(isinstance(one, OverloadError) for one in errors)
        assert len(counting.runs) == len(tasks) - len(errors)

    on_stage(story)


@pytest.mark.parametrize("reason", ["queue", "deadline"])
@pytest.mark.parametrize("pending_s", [0.3, 2.4, 7.0, 41.9])
def test_retry_after_is_when_it_would_be_let_in(reason: str, pending_s: float) -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Linear(), 0.1, deadline_ms=300.0, queue_depth=10)
        served.waiting = 10 if reason == "queue" else 1
        stage.lane.pending_ns = int(pending_s * 1e9)
        with pytest.raises(OverloadError) as caught:
            served.admit()
        retry_s = caught.value.retry_after_s
        assert retry_s is not None
        assert 1 <= retry_s <= 1.25 * pending_s + 1
        # that much later, when the lane has worked it off
        served.waiting = 0
        stage.lane.pending_ns = max(0, stage.lane.pending_ns - retry_s * 10**9)
        served.admit()
        assert served.statistics.refused == {reason: 1}
        stage.lane.pending_ns = 0

    on_stage(story)


def test_a_slow_model_is_asked_though_its_deadline_is_short() -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Slow(Linear(), 0.05), 0.05, deadline_ms=10.0)
        assert served.admit() == pytest.approx(0.15)
        await served.infer(feeds(1.0))

    on_stage(story)


def test_other_models_of_the_lane_count() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        slow = stage.serve(hanging, 0.4, name="slow")
        small = stage.serve(Linear(), 0.001, name="small", deadline_ms=600.0)
        task = ask(slow)
        await begun(hanging)
        assert small.admit() == 0.6
        more = ask(slow)
        await asyncio.sleep(0)
        with pytest.raises(OverloadError, match="small: the answer would take"):
            await small.infer(feeds(1.0))
        hanging.let_go()
        await asyncio.gather(task, more)
        await small.infer(feeds(1.0))

    on_stage(story)


def test_a_lane_that_is_stuck_does_not_let_others_in_to_wait_in_vain() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        stuck = stage.serve(hanging, 0.001, name="stuck")
        other = stage.serve(Linear(), 0.001, name="other", deadline_ms=50.0)
        task = ask(stuck)
        await begun(hanging)
        await asyncio.sleep(0.1)
        with pytest.raises(OverloadError):
            await other.infer(feeds(1.0))
        hanging.let_go()
        await task
        await other.infer(feeds(1.0))

    on_stage(story)


# Deadlines


def test_a_callers_deadline_can_only_shorten() -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Linear(), 0.001, deadline_ms=500.0)
        assert served.admit(1, 0.2) == 0.2
        assert served.admit(1, 20.0) == 0.5
        assert served.admit(1, math.inf) == 0.5
        assert served.admit(1, math.nan) == 0.5
        for never in (0.0, -1.0):  # the API takes 0 for none before it comes here
            served._forecast.ran(1, 1_000_000, time.perf_counter_ns())
            with pytest.raises(OverloadError):
                served.admit(1, never)

    on_stage(story)


def test_who_waits_is_answered_at_the_deadline_not_when_the_turn_comes() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        counting = Counting(hanging)
        served = stage.serve(counting, 0.001)
        running = ask(served, 1.0)
        await begun(hanging)
        began = time.monotonic()
        waiting = ask(served, 2.0, timeout_s=0.08)
        with pytest.raises(
            DeadlineError, match="its turn did not come within its deadline"
        ):
            await waiting
        assert 0.08 <= time.monotonic() - began < 5
        assert served.waiting == 1, "only the one that runs"
        hanging.let_go()
        await running
        await served.infer(feeds(3.0))
        assert [run[0, 0] for run in counting.runs] == [1.0, 3.0]
        assert served.statistics.refused == {"expired": 1}

    on_stage(story)


def test_a_callers_own_deadline_ends_the_waiting_for_a_run_too() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        served = stage.serve(hanging, 0.001)
        with pytest.raises(
            DeadlineError, match="its run did not end within its deadline"
        ):
            await served.infer(feeds(1.0), 1, 0.05)
        assert served.waiting == 1, "the thread is still in the session"
        assert served.statistics.fail.count == 1
        hanging.let_go()
        await until(lambda: served.waiting == 0)
        assert served.statistics.executions == 1
        assert served.statistics.refused == {}

    on_stage(story)


def test_a_run_may_overrun_the_configured_deadline() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        served = stage.serve(hanging, 0.001, deadline_ms=50.0)
        patient = ask(served, 1.0)
        await begun(hanging)
        await asyncio.sleep(0.12)
        assert not patient.done()
        hanging.let_go()
        await patient
        hanging.hold()
        began = time.monotonic()
        with pytest.raises(DeadlineError, match="its run did not end"):
            await served.infer(feeds(1.0))
        assert time.monotonic() - began >= 0.5
        hanging.let_go()
        await until(lambda: served.waiting == 0)

    on_stage(story)


def test_a_turn_that_comes_too_late_is_not_run() -> None:
    async def story(stage: Stage) -> None:
        counting = Counting(Slow(Linear(), 0.06))
        served = stage.serve(counting, 0.01, deadline_ms=100.0)
        tasks = [ask(served, n) for n in range(5)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        late = [one for one in results if isinstance(one, DeadlineError)]
        assert len(late) >= 2
        assert len(counting.runs) == len(tasks) - len(late)
        assert served.statistics.refused == {"expired": len(late)}

    on_stage(story)


def test_a_deadline_that_passes_while_a_turn_is_found_late_counts_once() -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Slow(Linear(), 0.02), 0.02, deadline_ms=70.0)
        first, second = ask(served, 1.0), ask(served, 2.0)
        await asyncio.sleep(0)
        for request in served._deadlines._open:
            request.start_by_ns = 0  # it is late when its turn comes…
        time.sleep(0.1)  # …and the loop is busy past its deadline
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(one) for one in results] == [DeadlineError, DeadlineError]
        books = served.statistics
        assert books.fail.count + sum(books.refused.values()) == 2

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


# Failures and the breaker


@pytest.mark.parametrize("inline_us", [0.0, 1e6], ids=["lane", "loop"])
def test_failures_in_a_row_open_the_breaker(inline_us: float) -> None:
    async def story(stage: Stage) -> None:
        failing = Failing(Linear())
        served = stage.serve(failing, breaker_failures=3, inline_us=inline_us)

        async def fails() -> None:
            with pytest.raises(
                InferenceError, match=r"linear 1\.0\.0: model\.onnx: the test says so"
            ):
                await served.infer(feeds(1.0))

        await fails()
        await fails()
        failing.bad = lambda _: False
        await served.infer(feeds(1.0))
        failing.bad = lambda _: True
        await fails()
        await fails()
        assert served.breaker.closed, "they were not in a row"
        await fails()
        assert served.breaker.state is State.OPEN
        assert served.statistics.fail.count == 5
        assert served.statistics.success.count == 1

    on_stage(story)


@pytest.mark.parametrize("inline_us", [0.0, 1e6], ids=["lane", "loop"])
def test_a_probe_closes_or_opens(inline_us: float) -> None:
    async def story(stage: Stage) -> None:
        failing = Failing(Linear())
        served = stage.serve(
            failing, breaker_failures=1, breaker_open_s=0.05, inline_us=inline_us
        )
        for again in (True, False):
            with pytest.raises(InferenceError):
                await served.infer(feeds(1.0))
            assert not served.breaker.allow(time.monotonic())
            await asyncio.sleep(0.06)
            assert served.breaker.allow(time.monotonic())
            assert not served.breaker.allow(time.monotonic()), "one at a time"
            failing.bad = lambda _, again=again: again
        await served.infer(feeds(1.0))
        assert served.breaker.state is State.CLOSED

    on_stage(story)


@pytest.mark.parametrize("inline_us", [0.0, 1e6], ids=["lane", "loop"])
@pytest.mark.parametrize("error", [ZeroDivisionError("no"), MemoryError()])
def test_what_no_session_may_raise_is_an_inference_error_too(
    error: Exception, inline_us: float
) -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Failing(Linear(), error=error), inline_us=inline_us)
        with pytest.raises(InferenceError, match=type(error).__name__):
            await served.infer(feeds(1.0))
        assert served.breaker.streak == 1

    on_stage(story)


def test_a_caller_that_left_changes_nothing_for_the_breaker() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Failing(Linear()))
        served = stage.serve(hanging, breaker_failures=1)
        leaving = ask(served)
        await begun(hanging)
        leaving.cancel()
        hanging.let_go()
        await until(lambda: not served.breaker.closed)

    on_stage(story)


# What is expected


def test_one_hiccup_does_not_close_the_door() -> None:
    async def story(stage: Stage) -> None:
        slow = Slow(Linear(), 0.001)
        served = stage.serve(slow, 0.001)
        slow.run_s = 0.5
        await served.infer(feeds(1.0))
        slow.run_s = 0.001
        for _ in range(20):
            await served.infer(feeds(1.0), 1, 0.1)

    on_stage(story)


def test_a_model_that_was_slow_for_long_is_not_refused_for_ever() -> None:
    """All callers have deadlines far below what was measured when it was slow."""

    async def story(stage: Stage) -> None:
        slow = Slow(Linear(), 0.0005)
        served = stage.serve(slow, 5.0)  # so the loader found
        served._forecast.ran(1, 5_000_000_000, time.perf_counter_ns() - 29_900_000_000)
        answered = refusals = 0
        end = time.monotonic() + 10
        while answered < 50:
            assert time.monotonic() < end, (answered, refusals)
            try:
                await served.infer(feeds(1.0), 1, 0.1)
                answered += 1
            except OverloadError as error:
                assert error.retry_after_s is not None
                refusals += 1
                await asyncio.sleep(0.005)
        assert refusals > 0
        assert served.expected_ns < 10_000_000

    on_stage(story)


def test_a_model_that_stays_too_slow_is_tried_only_now_and_then() -> None:
    async def story(stage: Stage) -> None:
        counting = Counting(Slow(Linear(), 0.05))
        served = stage.serve(counting, 0.05)
        began = time.monotonic()
        while time.monotonic() - began < 1.5:
            with pytest.raises((OverloadError, DeadlineError)):
                await served.infer(feeds(1.0), 1, 0.02)
            await asyncio.sleep(0.002)
        assert 2 <= len(counting.runs) <= 6

    on_stage(story)


def test_no_deadline_brings_a_slow_model_onto_the_loop() -> None:
    async def story(stage: Stage) -> None:
        counting = Counting(Slow(Linear(), 0.001))
        served = stage.serve(counting, 0.001, inline_us=500.0)
        for timeout_s in (1e-9, 1e-6, 1e-5, 0.0001, 0.0009) * 5:
            with suppress(OverloadError, DeadlineError):
                await served.infer(feeds(1.0), 1, timeout_s)
            await asyncio.sleep(0.012)
        assert set(counting.threads) <= {"lane-0"}
        await served.infer(feeds(1.0))

    on_stage(story)


def test_many_rows_are_not_refused_because_of_what_one_takes() -> None:
    async def story(stage: Stage) -> None:
        served = stage.serve(Slow(Linear(), 0.01), 0.01, deadline_ms=5000.0)
        for _ in range(3):
            await served.infer(feeds(1.0))
            await served.infer(feeds(*range(100)), 100, 0.3)
        assert served._forecast.expected_ns(100) < 100e6

    on_stage(story)


# Hangs


def test_a_hang_is_given_up_and_the_session_left_alone() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        counting = Counting(hanging)
        served = stage.serve(counting, 0.001, breaker_open_s=0.1)
        other = stage.serve(Linear(), 0.001, name="other")
        hung, waiting, others = ask(served, 1.0), ask(served, 2.0), ask(other)
        await begun(hanging)
        await asyncio.sleep(2 * HANG_S)
        said = stage.lane.watch(HANG_S)
        assert said is not None
        assert "linear 1.0.0" in said
        with pytest.raises(InferenceError, match="did not come back"):
            await hung
        assert served.breaker.state is State.OPEN
        with pytest.raises(
            UnavailableError, match="an earlier call of its runtime hangs"
        ):
            await waiting
        await others  # another model of the same lane goes on
        await asyncio.sleep(0.12)
        assert served.breaker.allow(time.monotonic())
        with pytest.raises(UnavailableError, match="a call of its runtime hangs"):
            await served.infer(feeds(1.0))
        assert served.breaker.state is State.OPEN, "no more probes while it hangs"
        assert served.hung == 1
        assert not await served.drain(0.02)
        served.state = "ready"
        hanging.let_go()
        await until(lambda: served.hung == 0)
        outputs = await served.infer(feeds(5.0))
        assert outputs["y"].tolist() == answer(5.0)
        assert counting.most == 1, "nobody came in while a call hung"
        assert served.breaker.state is State.OPEN, "this was no probe"
        assert served.statistics.refused == {"hung": 2}
        assert served.statistics.fail.count == 1

    on_stage(story)


def test_a_fast_model_that_hangs_is_not_asked_on_the_loop() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        served = stage.serve(hanging, 0.001, inline_us=500.0)
        hung = ask(served)
        await begun(hanging)
        served._forecast.row_ns = 1.0
        stage.lane.abandon(InferenceError("given up"))
        with pytest.raises(InferenceError):
            await hung
        with pytest.raises(UnavailableError):
            await served.infer(feeds(1.0))
        hanging.let_go()

    on_stage(story)


def test_draining_ends_when_the_hung_call_comes_back() -> None:
    async def story(stage: Stage) -> None:
        hanging = Hanging(Linear())
        served = stage.serve(hanging)
        hung = ask(served)
        await begun(hanging)
        stage.lane.abandon(InferenceError("given up"))
        await asyncio.gather(hung, return_exceptions=True)
        draining = asyncio.create_task(served.drain(30))
        await asyncio.sleep(0.01)
        assert not draining.done()
        hanging.let_go()
        assert await draining

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
