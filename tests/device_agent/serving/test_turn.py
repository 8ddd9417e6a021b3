"""Batches on their way through a served model: who is run, together or alone."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import bundles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import Counting, Detections, Failing, Hanging, Linear, Slow, feeds, loaded

from device_agent.config import ModelConfig
from device_agent.contract.tensors import Array, Feeds
from device_agent.errors import DeadlineError, InferenceError, OverloadError
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Session
from device_agent.serving.lane import Lane
from device_agent.serving.served import Served

Outputs = dict[str, Array]
BAD = 13.0


def batched(
    session: Session,
    story: Callable[[Served, Lane], Awaitable[None]],
    latency_s: float = 0.001,
    **config: object,
) -> None:
    async def main() -> None:
        lane = Lane("lane-0")
        chosen = {"inline_us": 0.0, "max_batch": 8, "max_delay_ms": 5.0, **config}
        served = Served(
            loaded(session, latency_s), lane, ModelConfig(**chosen)  # type: ignore[arg-type]
        )  # fmt: skip
        await asyncio.wait_for(story(served, lane), 60)
        while served.waiting or lane.pending or lane.lost:
            await asyncio.sleep(0.001)
        assert lane.pending_ns == 0
        lane.close()

    asyncio.run(main())


def ask(
    served: Served, *values: float, timeout_s: float | None = None
) -> asyncio.Task[Outputs]:
    return asyncio.get_running_loop().create_task(
        served.infer(feeds(*values), len(values), timeout_s)
    )


def answer(*values: float) -> bytes:
    return Linear().predict(feeds(*values))["y"].tobytes()


async def begun(session: Hanging) -> None:
    assert await asyncio.to_thread(session.started.wait, 30)


def is_bad(given: Feeds) -> bool:
    return bool((given["x"][:, 0] == BAD).any())


def test_requests_that_come_together_are_run_together() -> None:
    counting = Counting(Linear())

    async def story(served: Served, lane: Lane) -> None:
        values = [(1.0,), (2.0, 3.0), (4.0,), (5.0, 6.0, 7.0), (8.0,)]
        outputs = await asyncio.gather(*(ask(served, *some) for some in values))
        for some, got in zip(values, outputs, strict=True):
            assert got["y"].tobytes() == answer(*some)
        assert counting.rows == [8]
        assert counting.threads == ["lane-0"]
        books = served.statistics
        assert (books.executions, books.inferences, books.success.count) == (1, 8, 5)
        assert books.batches[8].count == 1

    batched(counting, story)


def test_the_books_say_how_long_each_waited_and_ran() -> None:
    async def story(served: Served, lane: Lane) -> None:
        await asyncio.gather(*(ask(served, n) for n in range(4)))
        books = served.statistics
        assert books.infer.count == books.queue.count == 4
        assert books.infer.ns >= 4 * 0.02e9, "each took part in a run of 20 ms"
        assert books.queue.ns >= 4 * 0.005e9, "each waited for the batch"
        assert books.success.ns == books.infer.ns + books.queue.ns
        assert books.batches[4].ns == pytest.approx(books.infer.ns / 4)

    batched(Slow(Linear(), 0.02), story)


def test_one_bad_request_does_not_fail_its_neighbours() -> None:
    counting = Counting(Failing(Linear(), is_bad))

    async def story(served: Served, lane: Lane) -> None:
        values = [1.0, 2.0, BAD, 4.0]
        results = await asyncio.gather(
            *(ask(served, value) for value in values), return_exceptions=True
        )
        for value, got in zip(values, results, strict=True):
            if value == BAD:
                assert isinstance(got, InferenceError)
            else:
                assert isinstance(got, dict)
                assert got["y"].tobytes() == answer(value)
        assert counting.rows == [4, 1, 1, 1, 1]
        assert served.statistics.fail.count == 1
        assert served.statistics.success.count == 3
        assert served.breaker.streak == 0, "the last one was answered"

    batched(counting, story)


def test_when_all_fail_each_counts_for_the_breaker() -> None:
    async def story(served: Served, lane: Lane) -> None:
        results = await asyncio.gather(
            *(ask(served, n) for n in range(4)), return_exceptions=True
        )
        assert all(isinstance(one, InferenceError) for one in results)
        assert len({id(one) for one in results}) == 4
        assert served.breaker.streak == 4
        assert served.statistics.executions == 0

    batched(Failing(Linear()), story)


def test_who_leaves_harms_nobody_and_is_not_run() -> None:
    hanging = Hanging(Linear())
    counting = Counting(hanging)

    async def story(served: Served, lane: Lane) -> None:
        before = ask(served, 0.0)
        await begun(hanging)
        tasks = [ask(served, n) for n in range(1, 9)]
        await asyncio.sleep(0.05)  # they are a batch in the lane by now
        tasks[2].cancel()
        tasks[5].cancel()
        await asyncio.sleep(0)
        hanging.let_go()
        results = await asyncio.gather(before, *tasks, return_exceptions=True)
        for n, got in enumerate(results):
            if n in (3, 6):
                assert isinstance(got, asyncio.CancelledError)
            else:
                assert isinstance(got, dict)
                assert got["y"].tobytes() == answer(n)
        assert counting.rows == [1, 6]
        assert served.statistics.refused == {"cancelled": 2}

    batched(counting, story)


def test_whose_deadline_passes_in_the_lane_is_not_run() -> None:
    hanging = Hanging(Linear())
    counting = Counting(hanging)

    async def story(served: Served, lane: Lane) -> None:
        before = ask(served, 0.0)
        await begun(hanging)
        patient = [ask(served, n) for n in (1, 2)]
        hasty = [ask(served, n, timeout_s=0.1) for n in (3, 4)]
        for task in hasty:
            with pytest.raises(DeadlineError, match="its turn did not come"):
                await task
        hanging.let_go()
        await asyncio.gather(before, *patient)
        assert counting.rows == [1, 2]
        assert served.statistics.refused == {"expired": 2}

    batched(counting, story)


def test_whose_deadline_passes_while_it_gathers_is_not_run() -> None:
    counting = Counting(Linear())

    async def story(served: Served, lane: Lane) -> None:
        hasty, patient = ask(served, 1.0, timeout_s=0.02), ask(served, 2.0)
        with pytest.raises(DeadlineError):
            await hasty
        assert (await patient)["y"].tobytes() == answer(2.0)
        assert counting.rows == [1]

    batched(counting, story, max_delay_ms=200.0)


def test_a_batch_of_which_nobody_is_left_is_not_run() -> None:
    hanging = Hanging(Linear())
    counting = Counting(hanging)

    async def story(served: Served, lane: Lane) -> None:
        before = ask(served, 0.0)
        await begun(hanging)
        tasks = [ask(served, n) for n in range(8)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert served.waiting == 1
        hanging.let_go()
        await before
        assert counting.rows == [1]

    batched(counting, story)


def test_outputs_that_are_no_batch_end_the_joining() -> None:
    counting = Counting(Detections(Linear()))

    async def story(served: Served, lane: Lane) -> None:
        for _ in range(2):
            outputs = await asyncio.gather(*(ask(served, n) for n in range(3)))
            for n, got in enumerate(outputs):
                assert got["y"].tobytes() == answer(n)
        assert counting.rows == [3, 1, 1, 1, 1, 1, 1], "joined once, and never again"

    batched(counting, story)


def test_draining_does_not_wait_for_the_delay() -> None:
    async def story(served: Served, lane: Lane) -> None:
        tasks = [ask(served, n) for n in range(3)]
        await asyncio.sleep(0)
        began = time.monotonic()
        assert await served.drain(10)
        await asyncio.gather(*tasks)
        assert time.monotonic() - began < 2

    batched(Linear(), story, max_delay_ms=5000.0)


def test_what_gathers_counts_for_admission() -> None:
    async def story(served: Served, lane: Lane) -> None:
        tasks = [ask(served, n) for n in range(6)]
        await asyncio.sleep(0)
        assert lane.pending == 0
        assert lane.pending_ns == pytest.approx(0.6e9)
        with pytest.raises(OverloadError):
            await ask(served, 7.0, timeout_s=0.5)
        for task in tasks:
            task.cancel()

    batched(Linear(), story, latency_s=0.1)


def test_a_hung_batch_fails_for_all_of_it() -> None:
    hanging = Hanging(Linear())

    async def story(served: Served, lane: Lane) -> None:
        tasks = [ask(served, n) for n in range(8)]
        await begun(hanging)
        assert lane.abandon(InferenceError("given up"))
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(one, InferenceError) for one in results)
        assert len({id(one) for one in results}) == 8
        assert (lane.pending_ns, served.waiting, served.hung) == (0, 8, 1)
        hanging.let_go()

    batched(hanging, story)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from([1.0, 2.5, -3.0, BAD]), min_size=1, max_size=10),
            st.sampled_from([0.0, 0.0, 0.0, 0.0005, 0.002]),
        ),
        min_size=1, max_size=25,
    ),
    st.sampled_from([2, 5, 8]),
    st.sampled_from([0.0, 1.0]),
)  # fmt: skip
def test_any_arrivals_get_what_they_would_get_alone(
    arrivals: list[tuple[list[float], float]], max_batch: int, max_delay_ms: float
) -> None:
    """(rows of a request, pause before the next one)."""
    counting = Counting(Failing(Linear(), is_bad))

    async def story(served: Served, lane: Lane) -> None:
        tasks = []
        for values, pause_s in arrivals:
            tasks.append(ask(served, *values))
            if pause_s:
                await asyncio.sleep(pause_s)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for (values, _), got in zip(arrivals, results, strict=True):
            if BAD in values:
                assert isinstance(got, InferenceError)
            else:
                assert isinstance(got, dict)
                assert got["y"].tobytes() == answer(*values)
        allowed = max(max_batch, *(len(values) for values, _ in arrivals))
        assert max(counting.rows) <= allowed
        assert counting.most == 1

    batched(
        counting, story, max_batch=max_batch, max_delay_ms=max_delay_ms,
        breaker_failures=1000, deadline_ms=30_000.0,
    )  # fmt: skip


def test_the_same_with_a_real_session(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bundles.linear())
    session = runtime("onnxruntime").load(path, {})
    rng = np.random.default_rng(5)

    async def story(served: Served, lane: Lane) -> None:
        async def caller(number: int) -> None:
            for _ in range(20):
                rows = int(rng.integers(1, 4))
                x = rng.standard_normal((rows, 4), dtype=np.float32)
                outputs = await served.infer({"x": x}, rows)
                want = np.maximum(x @ bundles.WEIGHT, 0)
                np.testing.assert_allclose(outputs["y"], want, rtol=1e-5, atol=1e-6)

        await asyncio.gather(*(caller(number) for number in range(12)))
        assert served.statistics.success.count == 240
        assert served.statistics.executions < 200, "some were run together"

    batched(session, story)
