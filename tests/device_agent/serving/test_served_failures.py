"""A served model whose runs fail, or do not come back."""

import asyncio
import time

import pytest
from sessions import Counting, Failing, Hanging, Linear, feeds
from stages import Stage, answer, ask, begun, on_stage, until

from device_agent.errors import InferenceError, UnavailableError
from device_agent.serving.breaker import State

HANG_S = 0.05


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
