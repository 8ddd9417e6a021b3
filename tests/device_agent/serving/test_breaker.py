import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from device_agent.serving.breaker import TABLE, Breaker, Event, State, Step

K, OPEN_S = 3, 10.0
CLOSED, OPEN, HALF = State.CLOSED, State.OPEN, State.HALF_OPEN


def breaker_in(state: State) -> Breaker:
    """A breaker that has come to ``state`` by what really leads there, at time 0."""
    breaker = Breaker(K, OPEN_S)
    if state is not CLOSED:
        for _ in range(K):
            breaker.failure(-OPEN_S if state is HALF else 0.0)
    if state is HALF:
        assert breaker.allow(0.0)
    assert breaker.state is state
    return breaker


def test_the_table_is_complete() -> None:
    assert set(TABLE) == {(state, event) for state in State for event in Event}


@pytest.mark.parametrize(
    ("state", "event", "step"),
    [
        (CLOSED, Event.SUCCESS, Step(CLOSED)),
        (CLOSED, Event.FAILURE, Step(CLOSED)),
        (CLOSED, Event.LIMIT, Step(OPEN, clock=True)),
        (CLOSED, Event.HANG, Step(OPEN, clock=True)),
        (CLOSED, Event.EARLY, Step(CLOSED, allow=True)),
        (CLOSED, Event.DUE, Step(CLOSED, allow=True)),
        (OPEN, Event.SUCCESS, Step(OPEN)),
        (OPEN, Event.FAILURE, Step(OPEN)),
        (OPEN, Event.LIMIT, Step(OPEN)),
        (OPEN, Event.HANG, Step(OPEN, clock=True)),
        (OPEN, Event.EARLY, Step(OPEN)),
        (OPEN, Event.DUE, Step(HALF, clock=True, allow=True)),
        (HALF, Event.SUCCESS, Step(CLOSED)),
        (HALF, Event.FAILURE, Step(OPEN, clock=True)),
        (HALF, Event.LIMIT, Step(OPEN, clock=True)),
        (HALF, Event.HANG, Step(OPEN, clock=True)),
        (HALF, Event.EARLY, Step(HALF)),
        (HALF, Event.DUE, Step(HALF, clock=True, allow=True)),
    ],
)
def test_every_state_and_event(state: State, event: Event, step: Step) -> None:
    assert TABLE[state, event] == step


@pytest.mark.parametrize("state", State)
def test_what_a_success_does(state: State) -> None:
    breaker = breaker_in(state)
    breaker.success()
    assert breaker.state is {CLOSED: CLOSED, OPEN: OPEN, HALF: CLOSED}[state]


@pytest.mark.parametrize("state", State)
def test_what_a_failure_does(state: State) -> None:
    breaker = breaker_in(state)
    breaker.failure(1.0)
    assert breaker.state is {CLOSED: CLOSED, OPEN: OPEN, HALF: OPEN}[state]


@pytest.mark.parametrize("state", State)
def test_a_hang_opens_at_once_and_for_the_whole_time(state: State) -> None:
    breaker = breaker_in(state)
    breaker.hang(5.0)
    assert not breaker.closed
    assert not breaker.allow(5.0 + OPEN_S - 0.01)
    assert breaker.allow(5.0 + OPEN_S)


@pytest.mark.parametrize("state", State)
def test_asking_early_and_late(state: State) -> None:
    early, late = breaker_in(state), breaker_in(state)
    assert early.allow(OPEN_S - 0.01) is (state is CLOSED)
    assert late.allow(OPEN_S)
    assert late.state is (CLOSED if state is CLOSED else HALF)


def test_opens_only_on_failures_in_a_row() -> None:
    breaker = Breaker(K, OPEN_S)
    for now in range(20):
        for _ in range(K - 1):
            breaker.failure(now)
        assert breaker.streak == K - 1
        breaker.success()
        assert breaker.streak == 0
    assert breaker.closed
    for _ in range(K):
        breaker.failure(20)
    assert not breaker.closed


def test_half_open_lets_one_through_at_a_time() -> None:
    breaker = breaker_in(OPEN)
    assert breaker.allow(OPEN_S)
    assert not any(breaker.allow(OPEN_S + part / 100) for part in range(100))
    breaker.success()
    assert all(breaker.allow(OPEN_S + 1) for _ in range(5))


def test_a_probe_that_never_reports_blocks_for_open_s_only() -> None:
    breaker = breaker_in(HALF)
    assert not breaker.allow(OPEN_S - 0.01)
    assert breaker.allow(OPEN_S)
    assert not breaker.allow(OPEN_S)


def test_after_a_failed_probe_one_failure_does_not_count_from_zero() -> None:
    breaker = breaker_in(HALF)
    breaker.failure(0.0)
    assert breaker.state is OPEN
    assert breaker.allow(OPEN_S)
    breaker.success()
    breaker.failure(OPEN_S)  # closed again: k are needed
    assert breaker.closed


def test_late_reports_do_not_prolong_the_open_time() -> None:
    breaker = breaker_in(OPEN)
    for now in range(9):
        breaker.failure(now)
    assert breaker.allow(OPEN_S)


@given(st.sampled_from([OPEN, HALF]), st.floats(0, 30), st.floats(0.001, 100_000))
def test_retry_after_is_honest(state: State, now: float, open_s: float) -> None:
    breaker = Breaker(1, open_s)
    breaker.failure(0.0)
    if state is HALF:
        breaker.allow(open_s)
    seconds = breaker.retry_after_s(now)
    assert seconds >= 1
    assert breaker.allow(now + seconds + 1e-6)


def test_retry_after_of_a_closed_breaker() -> None:
    assert Breaker(K, OPEN_S).retry_after_s(0.0) == 1


class Machine(RuleBasedStateMachine):
    """Any history, beside a model that remembers all of it."""

    @initialize(failures=st.integers(1, 4), open_s=st.sampled_from([0.1, 1.0, 10.0]))
    def start(self, failures: int, open_s: float) -> None:
        self.breaker = Breaker(failures, open_s)
        self.failures, self.open_s = failures, open_s
        self.now = 1000.0
        self.row = 0  # failures since the last success that counted
        self.probe = -math.inf  # when the last probe went
        self.opened = -math.inf

    @rule(seconds=st.sampled_from([0.0, 0.05, 0.1, 0.9, 1.0, 5.0, 10.0, 1e6]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def ask(self) -> None:
        before = self.breaker.state
        allowed = self.breaker.allow(self.now)
        if before is CLOSED:
            assert allowed
        elif before is OPEN:
            assert allowed == (self.now - self.opened >= self.open_s)
        else:
            assert allowed == (self.now - self.probe >= self.open_s)
        if allowed and before is not CLOSED:
            self.probe = self.now

    @rule()
    def succeed(self) -> None:
        before = self.breaker.state
        self.breaker.success()
        if before is not OPEN:
            assert self.breaker.closed
            self.row = 0

    @rule()
    def fail(self) -> None:
        before = self.breaker.state
        self.breaker.failure(self.now)
        self.row += 1
        assert self.breaker.closed == (before is CLOSED and self.row < self.failures)
        if before is not OPEN and not self.breaker.closed:
            self.opened = self.now

    @rule()
    def hang(self) -> None:
        self.breaker.hang(self.now)
        self.row += 1
        assert self.breaker.state is OPEN
        self.opened = self.now

    @precondition(lambda self: not self.breaker.closed)
    @rule()
    def nobody_waits_for_ever(self) -> None:
        self.now += self.breaker.retry_after_s(self.now) + 1e-6
        assert self.breaker.allow(self.now)
        self.probe = self.now

    @invariant()
    def closed_is_what_the_hot_path_may_trust(self) -> None:
        if hasattr(self, "breaker"):
            assert self.breaker.closed == (self.breaker.state is CLOSED)
            assert (self.breaker.streak == 0) <= self.breaker.closed
            assert self.breaker.retry_after_s(self.now) >= 1


Machine.TestCase.settings = settings(deadline=None)
TestMachine = Machine.TestCase
