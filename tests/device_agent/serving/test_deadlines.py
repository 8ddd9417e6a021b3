import asyncio
import time
from collections.abc import Awaitable, Callable

from device_agent.serving.batching import Request
from device_agent.serving.deadlines import Deadlines


class Expired:
    """What has expired, and how late."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.late_ns: list[float] = []

    def __call__(self, request: Request) -> None:
        self.requests.append(request)
        self.late_ns.append(time.perf_counter_ns() - request.deadline_ns)
        request.deadline_ns += 60e9


def watching(story: Callable[[Deadlines, Expired], Awaitable[None]]) -> None:
    async def main() -> None:
        expired = Expired()
        await story(Deadlines(asyncio.get_running_loop(), expired), expired)

    asyncio.run(main())


def request(in_s: float) -> Request:
    one = Request({}, 1, asyncio.get_running_loop().create_future())
    one.deadline_ns = time.perf_counter_ns() + in_s * 1e9
    return one


def test_each_expires_at_its_own_time_and_never_early() -> None:
    async def story(deadlines: Deadlines, expired: Expired) -> None:
        requests = [request(in_s) for in_s in (0.08, 0.02, 0.05, 60)]
        for one in requests:
            deadlines.add(one)
        while len(expired.requests) < 3:
            await asyncio.sleep(0.001)
        assert expired.requests == [requests[1], requests[2], requests[0]]
        assert all(late >= 0 for late in expired.late_ns)
        assert all(not one.done.done() for one in requests)

    watching(story)


def test_what_is_removed_never_expires() -> None:
    async def story(deadlines: Deadlines, expired: Expired) -> None:
        gone, stays = request(0.01), request(0.03)
        deadlines.add(gone)
        deadlines.add(stays)
        deadlines.remove(gone)
        while not expired.requests:
            await asyncio.sleep(0.001)
        assert expired.requests == [stays]

    watching(story)


def test_a_new_deadline_counts() -> None:
    async def story(deadlines: Deadlines, expired: Expired) -> None:
        one = request(0.01)
        deadlines.add(one)
        while not expired.requests:
            await asyncio.sleep(0.001)
        one.deadline_ns = time.perf_counter_ns()
        deadlines.add(one)
        while len(expired.requests) < 2:
            await asyncio.sleep(0.001)

    watching(story)


def test_a_deadline_that_has_passed_already() -> None:
    async def story(deadlines: Deadlines, expired: Expired) -> None:
        deadlines.add(request(-1))
        while not expired.requests:
            await asyncio.sleep(0.001)

    watching(story)
