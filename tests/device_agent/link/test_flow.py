"""The window of batches, told as a story with a clock."""

import random
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.link.flow import Flow, Following, Missing
from device_agent.spool.rules import Mark

ACK_S, MOST_S = 10.0, 100.0


def begun(flights_max: int = 4, chance: float = 0.0) -> Flow:
    flow = Flow(flights_max, ACK_S, MOST_S, lambda: chance)
    flow.begin()
    return flow


def mark(seq: int, epoch: str = "e") -> Mark:
    return Mark(epoch, seq)


def test_a_session_begins_with_one_batch_and_grows_with_every_ack() -> None:
    flow, sent = begun(flights_max=3), 0
    widths = []
    for _ in range(5):
        width = 0
        while (due := flow.due(0.0)) is not None:
            assert due == Following(mark(sent) if sent else None)
            sent += 1
            width += 1
            flow.sent(mark(sent), 0.0)
        widths.append((width, flow.in_flight))
        flow.acknowledged(mark(sent - flow.in_flight + 1))
    assert [in_flight for _, in_flight in widths] == [1, 2, 3, 3, 3]


def test_an_ack_of_several_batches_frees_them_all() -> None:
    flow = begun()
    flow.sent(mark(5), 0.0)
    flow.acknowledged(mark(5))
    for seq in (10, 15):
        flow.sent(mark(seq), 0.0)
    flow.acknowledged(mark(15))
    assert flow.in_flight == 0
    assert flow.acked == mark(15)


def test_an_ack_of_one_epoch_says_nothing_of_another() -> None:
    flow = begun()
    flow.sent(mark(5, "old"), 0.0)
    flow.acknowledged(mark(9, "new"))
    assert flow.in_flight == 1
    assert flow.due(ACK_S - 0.1) == Following(mark(5, "old"))


def test_silence_costs_one_batch_after_ever_longer_waits() -> None:
    flow = begun(chance=1.0)
    now_s, sends = 0.0, []
    while now_s < 2000:
        if flow.due(now_s) is not None:
            sends.append(now_s)
            flow.sent(mark(1), now_s)
        wait_s = flow.wait_s(now_s)
        assert wait_s is not None
        assert wait_s > 0 or flow.due(now_s) is None
        now_s += max(wait_s, 0.001)
    gaps = [round(b - a) for a, b in pairwise(sends)]
    assert gaps[:5] == [20, 30, 50, 90, 110]
    assert set(gaps[5:]) == {110}
    assert flow.timeouts in (len(sends) - 1, len(sends))


def test_an_ack_that_comes_late_ends_the_waiting() -> None:
    flow = begun()
    flow.sent(mark(5), 0.0)
    assert flow.due(ACK_S) is None
    assert flow.timeouts == 1
    flow.acknowledged(mark(5))
    assert flow.timeouts == 0
    assert flow.due(ACK_S) is not None


def test_an_ack_that_was_heard_before_is_no_news() -> None:
    flow = begun()
    flow.sent(mark(5), 0.0)
    flow.acknowledged(mark(5))
    flow.sent(mark(10), 0.0)
    assert flow.due(ACK_S) is None
    assert flow.timeouts == 1
    flow.acknowledged(mark(5))
    assert flow.timeouts == 1


def test_what_is_missing_goes_first_and_the_list_is_not_taken_too_often() -> None:
    flow = begun()
    flow.sent(mark(9), 0.0)
    flow.missing("e", ((2, 3), (5, 4), (6, 6)), 1.0)
    flow.missing("e", ((2, 3),), 1.1)
    assert [flow.due(1.2), flow.due(1.2), flow.due(1.2)] == [
        Missing("e", 2, 3), Missing("e", 6, 6), None,
    ]  # fmt: skip
    flow.missing("e", ((2, 3),), 1.0 + ACK_S)
    assert flow.due(1.3) == Missing("e", 2, 3)


def test_the_rest_of_what_is_missing_is_not_forgotten() -> None:
    flow = begun()
    flow.again(Missing("e", 3, 7))
    assert flow.wait_s(0.0) == 0.0
    assert flow.due(0.0) == Missing("e", 3, 7)


def test_a_new_session_sends_from_the_oldest_on() -> None:
    flow = begun()
    flow.sent(mark(5), 0.0)
    assert flow.due(ACK_S) is None
    flow.begin()
    assert flow.due(ACK_S) == Following(None)


@settings(max_examples=60, deadline=None)
@given(
    loss=st.floats(0.0, 0.6), ack_loss=st.floats(0.0, 0.6), seed=st.integers(0, 999),
    count=st.integers(1, 60),
)  # fmt: skip
def test_everything_arrives_over_any_loss(
    loss: float, ack_loss: float, seed: int, count: int
) -> None:
    """A fleet that stores what comes, acknowledges what has no gap, names the rest."""
    chance = random.Random(seed)
    flow = Flow(4, ACK_S, MOST_S, chance.random)
    flow.begin()
    stored: set[int] = set()
    deleted, now_s, turns = 0, 0.0, 0
    while deleted < count:
        turns += 1
        assert turns < 1000 * count + 10_000, "it does not come to an end"
        due = flow.due(now_s)
        seq: int | None = None
        if isinstance(due, Missing):
            seq = due.first
        elif due is not None:
            seq = max(deleted, due.after.seq if due.after else 0) + 1
            if seq <= count:
                flow.sent(mark(seq), now_s)
        if seq is None or seq > count:
            now_s += max(flow.wait_s(now_s) or ACK_S, 0.01)
            continue
        if chance.random() >= loss:
            stored.add(seq)
            upto = next(n for n in range(count + 1) if n + 1 not in stored)
            if chance.random() >= ack_loss:
                deleted = max(deleted, upto)
                flow.acknowledged(mark(upto))
                gaps = tuple(
                    (n, n) for n in range(upto + 1, max(stored)) if n not in stored
                )
                flow.missing("e", gaps, now_s)
        now_s += 0.01
