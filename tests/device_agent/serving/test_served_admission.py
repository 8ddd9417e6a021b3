"""Who is let in by a served model, for how long, and what it expects of a run."""

import asyncio
import math
import time
from contextlib import suppress

import pytest
from sessions import Counting, Hanging, Linear, Slow, feeds
from stages import Stage, ask, begun, on_stage, until

from device_agent.errors import DeadlineError, OverloadError

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
