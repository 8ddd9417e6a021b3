"""Any story that can happen to the table: what must hold at every point of it.

The machine here is asked as the driver asks it: results come for what is under way or
too late, the state goes through JSON at every restart, and a power cut may fall between
any two events.
"""

from dataclasses import replace
from types import MappingProxyType

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from words import goal

from device_agent.contract.codes import QUARANTINING, Outcome, Phase, Reason
from device_agent.updating.events import (
    Activate,
    Authorized,
    Confirmed,
    Downloaded,
    Effect,
    Event,
    Failed,
    Healthy,
    Installed,
    Probed,
    Quarantine,
    Record,
    Refused,
    Rollback,
    Started,
    Stopped,
    Tick,
    Verified,
    Wanted,
    Withdrawn,
)
from device_agent.updating.facts import State, dump, other, parse
from device_agent.updating.machine import step
from device_agent.updating.policy import Limits

LIMITS = Limits(
    phase_s=MappingProxyType(dict.fromkeys(Phase, 100.0)), remote_tries=6,
    local_tries=3, max_resumes=5, backoff_s=1.0, backoff_max_s=8.0,
)  # fmt: skip
NEXT = {
    Phase.DOWNLOADING: (Downloaded,), Phase.VERIFYING: (Verified,),
    Phase.INSTALLING: (Installed,), Phase.PROBING: (Probed, Confirmed),
    Phase.TRIAL: (Healthy,),
}  # fmt: skip
PERSISTS_MAX = 8 + LIMITS.remote_tries * 3 + LIMITS.local_tries
"""Of one job that nobody disturbs, to its end."""


class Update(RuleBasedStateMachine):
    """A device, its disk, and a director that says anything."""

    def __init__(self) -> None:
        super().__init__()
        self.state = State()
        self.now = 0.0
        self.serial = 0
        self.quarantined: dict[str, str] = {}
        self.once_committed = False
        self.ended: set[int] = set()
        self.loads: dict[int, int] = {}
        """By job: how often the candidate was loaded without an orderly stop after."""

    def tell(self, event: Event) -> tuple[Effect, ...]:
        before = self.state
        self.state, effects = step(before, event, self.now, LIMITS)
        kept = before.slot(before.committed)
        if self.state.committed == before.committed:
            assert self.state.slot(before.committed) == kept, "the committed slot"
        else:
            assert isinstance(event, Healthy)
            assert before.committed != self.state.committed
            assert self.state.slot(before.committed) == kept, "the fallback went early"
        for effect in effects:
            if isinstance(effect, Quarantine):
                self.quarantined[effect.digest] = effect.text
            if isinstance(effect, Activate):
                number = effect.job.number
                self.loads[number] = self.loads.get(number, 0) + 1
                assert effect.job.starts >= 1, "counted before it is loaded"
                assert effect.job.slot != self.state.committed
            if isinstance(effect, Rollback):
                assert effect.slot == self.state.committed
            if isinstance(effect, Record):
                assert (effect.attempt.outcome is None) is (
                    effect.attempt.phase is not Phase.IDLE
                ) or effect.attempt.reason is not None
        if before.job is not None and self.state.job is None:
            assert before.job.number not in self.ended
            self.ended.add(before.job.number)
        return effects

    @rule(name=strategies.sampled_from("xyz"), older=strategies.booleans())
    def a_word(self, name: str, older: bool) -> None:
        self.serial += 1
        serial = max(1, self.serial - 3) if older else self.serial
        said = goal(serial, name)
        running = self.state.slot(self.state.committed)
        self.tell(Wanted(said.envelope))
        assert self.state.inbox is not None
        wrong = self.quarantined.get(said.desired.digest, "")
        job, last = self.state.job, self.state.attempt
        self.tell(Authorized(self.state.inbox.number, said, wrong))
        begun = self.state.job is not None and self.state.job != job
        if wrong and not (running and running.digest == said.desired.digest):
            adopted = job is not None and job.goal.desired.digest == said.desired.digest
            assert not begun or adopted, "a quarantined digest is tried"
        if last is not None and serial < last.serial:
            assert not begun, "a replayed word is followed"

    @rule(reason=strategies.sampled_from(Reason), signed=strategies.booleans())
    def a_refused_word(self, reason: Reason, signed: bool) -> None:
        self.serial += 1
        said = goal(self.serial, "w")
        self.tell(Wanted(said.envelope))
        assert self.state.inbox is not None
        desired = said.desired if signed else None
        job = self.state.job
        self.tell(Refused(self.state.inbox.number, reason, "", {}, desired))
        assert self.state.job == job, "a refused word disturbs the job"

    @rule()
    def withdrawn(self) -> None:
        self.tell(Withdrawn())
        assert self.state.phase is Phase.IDLE

    @precondition(lambda self: self.state.job is not None)
    @rule(probed=strategies.booleans(), late=strategies.booleans())
    def goes_well(self, probed: bool, late: bool) -> None:
        job = self.state.job
        assert job is not None
        kinds = NEXT[self.state.phase]
        kind = kinds[-1] if job.probed or not probed else kinds[0]
        if kind is Confirmed and not job.probed:
            kind = Probed
        before = self.state
        self.tell(kind(job.number - 1 if late else job.number))
        if late:
            assert self.state == before
        elif kind is Healthy:
            self.once_committed = True

    @precondition(lambda self: self.state.job is not None)
    @rule(reason=strategies.sampled_from(Reason), jitter=strategies.floats(0, 1))
    def goes_wrong(self, reason: Reason, jitter: float) -> None:
        job = self.state.job
        assert job is not None
        self.tell(Failed(job.number, reason, "why", {}, jitter))
        if reason in QUARANTINING:
            assert self.state.job is None
            assert job.goal.desired.digest in self.quarantined

    @rule(passed=strategies.floats(0, 60))
    def time(self, passed: float) -> None:
        self.now += passed
        self.tell(Tick())

    @rule(orderly=strategies.booleans())
    def restart(self, orderly: bool) -> None:
        if orderly and self.state.job is not None:
            self.tell(Stopped())
            self.loads[self.state.job.number] = (
                self.loads.get(self.state.job.number, 0) - 1
            )
        self.state = parse(dump(self.state))
        self.now = 0.0
        self.tell(Started())

    @invariant()
    def whole(self) -> None:
        state = self.state
        assert (state.job is None) is (state.phase is Phase.IDLE)
        assert (state.committed is not None) is self.once_committed
        if state.committed is not None:
            assert state.slot(state.committed) is not None
        if state.active != state.committed:
            assert state.phase is Phase.TRIAL
            assert state.job is not None
            assert state.active == state.job.slot == other(state.committed)
            assert state.slot(state.active) == state.job.goal.held
        if state.job is not None:
            assert state.job.slot != state.committed or state.job.slot is None
            assert state.job.starts <= max(LIMITS.max_starts, LIMITS.max_resumes)
            assert self.loads.get(state.job.number, 0) <= LIMITS.max_starts
        assert parse(dump(state)) == state

    @invariant()
    def ends(self) -> None:
        """Left alone, it is idle soon, and has written to disk only so often."""
        state, now, persists = self.state, self.now, 0
        for _ in range(5_000):
            if state.job is None:
                break
            now += 1.0
            after, _ = step(state, Tick(), now, LIMITS)
            persists += after != state
            state = after
            job = state.job
            if job is not None and job.retry_at is None and job.tries % 2 == 0:
                state, _ = step(
                    state, Failed(job.number, Reason.DOWNLOAD_SLOW), now, LIMITS
                )
                persists += 1
        assert state.job is None
        assert persists <= PERSISTS_MAX
        last = state.attempt
        assert last is None or last.outcome is not None or state.inbox is not None
        unending = replace(state, inbox=None)
        assert step(unending, Tick(), now + 1e6, LIMITS) == (unending, ())


TestUpdate = Update.TestCase
TestUpdate.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True
)


def test_outcomes_are_all_reachable() -> None:
    """The stories above would be worth little if they all ended the same way."""
    seen = set()
    for event in (Healthy, Failed, Withdrawn):
        state, _ = step(State(), Wanted(b"1"), 0, LIMITS)
        assert state.inbox is not None
        state, _ = step(state, Authorized(state.inbox.number, goal()), 0, LIMITS)
        assert state.job is not None
        number = state.job.number
        for kind in (Downloaded, Verified, Installed, Probed, Confirmed):
            state, _ = step(state, kind(number), 0, LIMITS)
        last = {
            Healthy: Healthy(number), Failed: Failed(number, Reason.HUNG),
            Withdrawn: Withdrawn(),
        }[event]  # fmt: skip
        state, _ = step(state, last, 0, LIMITS)
        assert state.attempt is not None
        seen.add((state.attempt.outcome, state.attempt.reason))
    assert seen == {
        (Outcome.COMMITTED, Reason.NONE), (Outcome.ROLLED_BACK, Reason.HUNG),
        (Outcome.ROLLED_BACK, Reason.CANCELLED),
    }  # fmt: skip
