import asyncio
import threading
import time
from collections.abc import Awaitable, Callable

import pytest

from device_agent.errors import InferenceError
from device_agent.serving.lane import LOST_MAX, Job, Lane, beyond_help

GIVEN_UP = InferenceError("given up")


def with_lane(story: Callable[[Lane], Awaitable[None]]) -> None:
    async def main() -> None:
        lane = Lane("lane-test")
        try:
            await asyncio.wait_for(story(lane), 30)
        finally:
            lane.close()

    asyncio.run(main())


class Gate:
    """A call that does not return before it is told to."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.open = threading.Event()

    def __call__(self) -> str:
        self.started.set()
        assert self.open.wait(30)
        return "late"


async def started(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.started.wait, 30)


async def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)


def test_results_and_exceptions_come_back() -> None:
    async def story(lane: Lane) -> None:
        assert await lane.run(lambda: 6 * 7) == 42
        with pytest.raises(ZeroDivisionError):
            await lane.run(lambda: 1 // 0)
        assert await lane.run(lambda: "alive") == "alive"
        assert lane.pending == 0

    with_lane(story)


@pytest.mark.parametrize("kind", [SystemExit, GeneratorExit, StopIteration])
def test_the_thread_survives_any_exception(kind: type[BaseException]) -> None:
    async def story(lane: Lane) -> None:
        def fail() -> None:
            raise kind

        expected = RuntimeError if kind is StopIteration else kind
        with pytest.raises(expected):
            await lane.run(fail)
        assert await lane.run(lambda: 1) == 1
        assert lane.pending == 0

    with_lane(story)


def test_first_in_first_out_and_one_at_a_time() -> None:
    async def story(lane: Lane) -> None:
        order: list[int] = []
        threads: set[int] = set()

        def note(number: int) -> None:
            threads.add(threading.get_ident())
            order.append(number)

        await asyncio.gather(*(lane.run(lambda n=n: note(n)) for n in range(200)))
        assert order == list(range(200))
        assert len(threads) == 1
        assert threads != {threading.get_ident()}

    with_lane(story)


def test_a_call_whose_future_is_cancelled_is_skipped() -> None:
    async def story(lane: Lane) -> None:
        gate, ran = Gate(), []
        first = lane.run(gate)
        second = lane.run(lambda: ran.append("second"))
        third = lane.run(lambda: ran.append("third"))
        second.cancel()
        gate.open.set()
        await asyncio.gather(first, third)
        assert ran == ["third"]
        assert lane.pending == 0

    with_lane(story)


def test_a_call_given_up_fails_and_the_others_go_on() -> None:
    async def story(lane: Lane) -> None:
        gate = Gate()
        hung = lane.run(gate)
        waiting = [lane.run(lambda n=n: n) for n in range(5)]
        await started(gate)
        assert lane.stuck_s() > 0
        assert lane.pending == 6
        assert lane.abandon(GIVEN_UP)
        with pytest.raises(InferenceError, match="given up"):
            await hung
        assert await asyncio.gather(*waiting) == [0, 1, 2, 3, 4]
        assert (lane.pending, lane.abandoned, lane.lost) == (0, 1, 1)
        assert lane.lost_s() > 0
        gate.open.set()
        await until(lambda: lane.lost == 0)
        assert (lane.pending, lane.abandoned, lane.lost_s()) == (0, 1, 0.0)
        assert await lane.run(lambda: "well") == "well"

    with_lane(story)


def test_the_thread_given_up_ends_and_takes_nothing_from_the_queue() -> None:
    async def story(lane: Lane) -> None:
        gate = Gate()
        lane.run(gate).add_done_callback(lambda done: done.exception())
        await started(gate)
        old = next(t for t in threading.enumerate() if t.name == "lane-test")
        lane.abandon(GIVEN_UP)
        blocker = Gate()
        running = lane.run(blocker)
        await started(blocker)
        ran: list[str] = []
        after = lane.run(lambda: ran.append(threading.current_thread().name))
        gate.open.set()
        await until(lambda: not old.is_alive())
        assert not ran, "two threads took jobs at once"
        blocker.open.set()
        await asyncio.gather(running, after)
        assert ran

    with_lane(story)


def test_nothing_to_give_up() -> None:
    async def story(lane: Lane) -> None:
        assert not lane.abandon(GIVEN_UP)
        await lane.run(lambda: None)
        assert not lane.abandon(GIVEN_UP)
        assert lane.watch(0.0) is None
        assert (lane.abandoned, lane.stuck_s()) == (0, 0.0)

    with_lane(story)


class Noted(Job):
    """Counts what a lane says to it."""

    __slots__ = ("call", "said")

    def __init__(self, call: Callable[[], object] = lambda: None) -> None:
        super().__init__()
        self.call = call
        self.said: list[str] = []

    def work(self) -> None:
        self.call()

    def over(self, error: BaseException | None) -> None:
        self.said.append("over")

    def given_up(self, error: Exception) -> None:
        self.said.append("given up")


def test_giving_up_while_jobs_end_at_that_very_moment() -> None:
    """Whoever is first says how a job ended; nothing is lost and nothing runs twice."""

    async def story(lane: Lane) -> None:
        ran: list[int] = []

        def work(number: int) -> None:
            ran.append(number)
            time.sleep(number % 3 * 0.0002)

        jobs = [Noted(lambda n=n: work(n)) for n in range(600)]
        for job in jobs:
            lane.put(job)
        gave_up = 0
        while lane.pending:
            gave_up += lane.abandon(GIVEN_UP)
            await asyncio.sleep(0.0003)
        await until(lambda: lane.lost == 0)
        assert sorted(ran) == list(range(600))
        assert lane.abandoned == gave_up > 0
        said = [tuple(job.said) for job in jobs]
        assert set(said) <= {("over",), ("given up", "over")}
        assert said.count(("given up", "over")) == gave_up

    with_lane(story)


def test_watching_gives_up_what_runs_for_too_long() -> None:
    async def story(lane: Lane) -> None:
        gate = Gate()
        hung = lane.run(gate)
        await started(gate)
        assert lane.watch(20.0) is None
        await asyncio.sleep(0.02)
        said = lane.watch(0.01)
        assert said is not None
        assert "did not come back within 0.01 s" in said
        with pytest.raises(InferenceError):
            await hung
        assert lane.watch(0.01) is None
        gate.open.set()

    with_lane(story)


def test_when_only_a_restart_helps() -> None:
    async def story(lane: Lane) -> None:
        gates = []
        for lost in range(LOST_MAX):
            assert beyond_help([lane], 30.0) is None, lost
            gates.append(Gate())
            done = lane.run(gates[-1])
            await started(gates[-1])
            lane.abandon(GIVEN_UP)
            assert isinstance(done.exception(), InferenceError)
        assert "3 inference threads hang" in str(beyond_help([lane], 30.0))
        gates[0].open.set()
        await until(lambda: lane.lost == LOST_MAX - 1)
        assert beyond_help([lane], 30.0) is None, "those that come back do not count"
        await asyncio.sleep(0.05)
        assert "has been hanging" in str(beyond_help([lane], 0.01))
        for gate in gates:
            gate.open.set()
        await until(lambda: lane.lost == 0)
        assert beyond_help([lane], 0.01) is None

    with_lane(story)


def test_how_long_a_new_job_would_wait() -> None:
    async def story(lane: Lane) -> None:
        lane.pending_ns = 5_000
        assert lane.wait_ns() == 5_000, "nothing runs"
        gate = Gate()
        job = Noted(gate)
        job.expected_ns = lane.pending_ns = 10**9
        lane.put(job)
        await started(gate)
        await asyncio.sleep(0.05)
        assert lane.wait_ns() < 0.96e9, "some of it is done"
        lane.pending_ns += 10**9
        assert 1e9 < lane.wait_ns() < 1.96e9
        job.expected_ns = 10**6
        lane.pending_ns = 10**6
        assert lane.wait_ns() > 0.04e9, "a lane that is stuck does not look free"
        gate.open.set()
        await until(lambda: not lane.pending)
        lane.pending_ns = 0

    with_lane(story)


def test_closing_ends_the_thread_after_what_was_handed_in() -> None:
    async def main() -> None:
        lane = Lane("lane-to-close")
        results = [lane.run(lambda n=n: n) for n in range(10)]
        lane.close()
        assert await asyncio.gather(*results) == list(range(10))
        await until(
            lambda: all(t.name != "lane-to-close" for t in threading.enumerate())
        )

    asyncio.run(main())


def test_a_closed_loop_ends_the_thread() -> None:
    gate = Gate()

    async def main() -> None:
        lane = Lane("lane-orphan")
        lane.run(gate)
        await started(gate)

    asyncio.run(main())
    orphan = next(t for t in threading.enumerate() if t.name == "lane-orphan")
    gate.open.set()
    orphan.join(30)
    assert not orphan.is_alive()
