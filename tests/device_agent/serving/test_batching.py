import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import bundles
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sessions import Linear, feeds

from device_agent.contract.tensors import Array, Feeds
from device_agent.runtimes import runtime
from device_agent.serving.batching import Batcher, Request, join, split

LONG_S = 30.0
"""A delay that no test waits for."""


class Sent:
    """What a batcher has dispatched, and when."""

    def __init__(self) -> None:
        self.batches: list[list[Request]] = []
        self.at: list[float] = []

    def __call__(self, requests: list[Request]) -> None:
        self.batches.append(requests)
        self.at.append(time.monotonic())

    @property
    def rows(self) -> list[list[int]]:
        return [[request.rows for request in batch] for batch in self.batches]


def gathering(
    story: Callable[[Batcher, Sent], Awaitable[None]],
    max_rows: int = 8,
    max_delay_s: float = LONG_S,
) -> None:
    async def main() -> None:
        sent = Sent()
        await story(Batcher(sent, max_rows, max_delay_s), sent)

    asyncio.run(main())


def request(rows: int = 1, given: Feeds | None = None) -> Request:
    done = asyncio.get_running_loop().create_future()
    return Request(feeds(*range(rows)) if given is None else given, rows, done)


def test_a_full_batch_goes_at_once() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        for rows in (3, 1, 3, 1, 2):
            batcher.put(request(rows))
        assert sent.rows == [[3, 1, 3, 1]]

    gathering(story)


def test_the_first_request_waits_no_longer_than_the_delay() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        began = time.monotonic()
        batcher.put(request())
        await asyncio.sleep(0.01)
        batcher.put(request())
        assert not sent.batches
        while not sent.batches:
            await asyncio.sleep(0.001)
        assert sent.rows == [[1, 1]]
        assert sent.at[0] - began >= 0.045
        batcher.put(request())  # a new batch has a new delay
        await asyncio.sleep(0.03)
        assert len(sent.batches) == 1
        await asyncio.sleep(0.1)
        assert sent.rows == [[1, 1], [1]]

    gathering(story, max_delay_s=0.05)


def test_without_delay_only_what_comes_together_goes_together() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        batcher.put(request())
        batcher.put(request())
        await asyncio.sleep(0.01)
        batcher.put(request())
        await asyncio.sleep(0.01)
        assert sent.rows == [[1, 1], [1]]

    gathering(story, max_delay_s=0.0)


def test_never_more_rows_than_the_limit_and_first_in_first_out() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        for rows in (5, 4, 3, 20, 1, 8, 7):
            batcher.put(request(rows))
        batcher.flush()
        assert sent.rows == [[5], [4, 3], [20], [1], [8], [7]]

    gathering(story)


@pytest.mark.parametrize(
    "other",
    [
        {"x": np.zeros((1, 5), np.float32)},
        {"x": np.zeros((1, 4), np.float64)},
        {"x": np.zeros((1, 4, 1), np.float32)},
        {"x": np.zeros((1, 4), np.float32), "z": np.zeros((1, 4), np.float32)},
        {"z": np.zeros((1, 4), np.float32)},
    ],
    ids=["columns", "datatype", "dimensions", "one more input", "another input"],
)
def test_only_what_fits_is_joined_and_the_order_is_kept(other: Feeds) -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        requests = [request(), request(), request(1, other), request()]
        for one in requests:
            batcher.put(one)
        batcher.flush()
        assert [len(batch) for batch in sent.batches] == [2, 1, 1]
        assert [one for batch in sent.batches for one in batch] == requests

    gathering(story)


def test_the_order_of_the_inputs_does_not_matter() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        a, b = np.ones((1, 2), np.float32), np.ones((1, 3), np.int32)
        batcher.put(request(1, {"a": a, "b": b}))
        batcher.put(request(1, {"b": b * 2, "a": a * 2}))
        batcher.flush()
        (batch,) = sent.batches
        joined = join(batch)
        assert joined["a"].tolist() == [[1, 1], [2, 2]]
        assert joined["b"].tolist() == [[1, 1, 1], [2, 2, 2]]

    gathering(story)


def test_who_has_left_is_not_dispatched() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        requests = [request(), request(), request()]
        for one in requests:
            batcher.put(one)
        requests[1].done.cancel()
        batcher.flush()
        assert sent.batches == [[requests[0], requests[2]]]
        alone = request()
        batcher.put(alone)
        alone.done.cancel()
        batcher.flush()
        assert len(sent.batches) == 1

    gathering(story)


def test_flushing_an_empty_batcher_does_nothing() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        batcher.flush()
        batcher.put(request())
        batcher.flush()
        batcher.flush()
        assert sent.rows == [[1]]

    gathering(story)


def test_what_cannot_be_joined_goes_alone_after_what_was_gathered() -> None:
    async def story(batcher: Batcher, sent: Sent) -> None:
        requests = [request(), request(), request()]
        batcher.put(requests[0])
        batcher.joins = False
        batcher.put(requests[1])
        batcher.put(requests[2])
        assert sent.batches == [[one] for one in requests]

    gathering(story)


@given(
    st.lists(
        st.tuples(st.integers(0, 10), st.sampled_from([4, 5]), st.booleans()),
        max_size=40,
    ),
    st.integers(2, 9),
)
def test_any_arrivals_keep_the_rules(
    arrivals: list[tuple[int, int, bool]], max_rows: int
) -> None:
    """(rows, columns, whether the delay passes before the next one)."""

    async def story(batcher: Batcher, sent: Sent) -> None:
        requests = []
        for rows, columns, passes in arrivals:
            given = {"x": np.zeros((rows, columns), np.float32)}
            requests.append(request(rows, given))
            batcher.put(requests[-1])
            if passes:
                batcher.flush()
        batcher.flush()
        assert [one for batch in sent.batches for one in batch] == requests
        for batch in sent.batches:
            assert len({one.feeds["x"].shape[1] for one in batch}) == 1
            assert len(batch) == 1 or sum(one.rows for one in batch) <= max_rows

    gathering(story, max_rows)


def joined(session_outputs: Callable[[Feeds], dict[str, Array]],
           parts: Sequence[Feeds]) -> list[dict[str, Array]] | None:  # fmt: skip
    async def main() -> list[dict[str, Array]] | None:
        requests = [request(len(part["x"]), part) for part in parts]
        return split(session_outputs(join(requests)), requests)

    return asyncio.run(main())


@settings(deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5),
        min_size=1, max_size=8,
    )
)  # fmt: skip
def test_joined_and_split_is_what_each_would_have_got_alone(
    values: list[list[float]],
) -> None:
    session = Linear()
    parts = [feeds(*some) for some in values]
    together = joined(session.predict, parts)
    assert together is not None
    for part, got in zip(parts, together, strict=True):
        assert got["y"].tobytes() == session.predict(part)["y"].tobytes()
        assert got["y"].flags.c_contiguous


def test_the_same_with_a_real_session(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(bundles.linear())
    session = runtime("onnxruntime").load(path, {})
    rng = np.random.default_rng(1)
    parts: list[Feeds] = [
        {"x": rng.standard_normal((rows, 4), dtype=np.float32)}
        for rows in (1, 3, 1, 2, 7, 1)
    ]
    together = joined(session.predict, parts)
    assert together is not None
    for part, got in zip(parts, together, strict=True):
        alone = session.predict(part)["y"]
        assert got["y"].shape == alone.shape
        # the kernel of another size may add up in another order
        np.testing.assert_allclose(got["y"], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "outputs",
    [
        {"y": np.zeros((3, 2))},
        {"y": np.zeros((5, 2))},
        {"y": np.zeros(())},
        {"y": np.zeros((4, 2)), "boxes": np.zeros((1, 6))},
    ],
    ids=["fewer", "more", "scalar", "one of two"],
)
def test_outputs_that_are_no_batch_are_not_split(outputs: dict[str, Array]) -> None:
    async def main() -> None:
        assert split(outputs, [request(1), request(3)]) is None

    asyncio.run(main())


def test_a_request_is_claimed_once() -> None:
    async def main() -> None:
        one = request()
        assert one.claim()
        assert not one.claim()

    asyncio.run(main())
