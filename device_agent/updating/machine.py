"""The update as a transition table: pure, no clock, no disk, no chance.

::

    IDLE → DOWNLOADING → VERIFYING → INSTALLING → PROBING → TRIAL → IDLE

The rules it keeps:

1. ``step`` says what the state becomes and what to do. The state is written first, then
   the effects are acted on; each may be done again after a power cut.
2. :data:`TABLE` has an entry for every phase and every event.
3. A restart repeats the phase that it interrupted. On trial it counts as a start of the
   candidate, before that is loaded; an orderly stop gives the start back.
4. The slot of the committed bundle is never written. What was committed before stays in
   the other slot until the next installation begins.
5. Every phase has a deadline, every retry a bound: with time passing, every job ends.
6. A word of the director is judged before it disturbs anything: who cannot sign cannot
   stop an update.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from ..contract.codes import Outcome, Phase, Reason
from .events import (
    Abort,
    Activate,
    Authorize,
    Authorized,
    Clean,
    Commit,
    Confirm,
    Confirmed,
    Downloaded,
    Effect,
    Event,
    Failed,
    Healthy,
    Installed,
    Lost,
    Probed,
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
from .facts import Inbox, Note, State, other
from .moves import (
    Result,
    adopt,
    again,
    allowed_s,
    armed,
    attempt_of,
    begin,
    end,
    followed,
    go,
    is_mine,
    is_settled,
    kept,
    outcome_of,
    put,
    serve,
    unsuccessful,
    unwaited,
    work,
)
from .policy import Limits

Handler = Callable[[State, Any, float, Limits], Result]


def step(state: State, event: Event, now: float, limits: Limits) -> Result:
    """What the state becomes, and what to do then.

    Args:
        state: what was.
        event: what has happened.
        now: seconds of a monotonic clock.
        limits: how long and how often.
    """
    return TABLE[type(event)][state.phase](state, event, now, limits)


# Nothing to do -----------------------------------------------------------------------


def late(state: State, event: Event, now: float, limits: Limits) -> Result:
    """A result that nobody waits for any more changes nothing."""
    return state, ()


# What the director says --------------------------------------------------------------


def judge(state: State, event: Wanted, now: float, limits: Limits) -> Result:
    """The newest word replaces what lay in the inbox; it is judged first."""
    old = state.inbox
    if old is not None and old.envelope == event.envelope:
        return state, ()
    count = state.count + 1
    before = None if old is None else old if old.signed else old.before
    if before is not None:
        before = replace(before, before=None)
    inbox = Inbox(count, event.envelope, before=before)
    return (
        replace(state, inbox=inbox, count=count),
        (Authorize(count, event.envelope),),
    )


def take(state: State, event: Authorized, now: float, limits: Limits) -> Result:
    """Follow the word; a job for something else ends as superseded."""
    if state.inbox is None or state.inbox.number != event.number:
        return state, ()
    wanted, last = event.goal.desired, state.attempt
    if last is not None and wanted.serial < last.serial:
        text = f"its serial is {wanted.serial}; {last.serial} was followed already"
        note = Note(Reason.DESIRED_REPLAYED, text)
        return again(replace(state, inbox=state.inbox.before, note=note))
    state = replace(state, inbox=None)
    state = replace(state, note=None)
    if is_settled(state, wanted):
        return state, ()  # the same word again, as at every connect
    if state.job is not None and state.job.goal.desired.digest == wanted.digest:
        return adopt(state, event.goal)
    text = f"{wanted.release.model} {wanted.release.version} is desired instead"
    if state.job is not None:
        state, before = end(state, Outcome.SUPERSEDED, Reason.NONE, text)
    elif last is not None and last.serial < wanted.serial:
        state, before = unwaited(state, Outcome.SUPERSEDED, Reason.NONE, text)
    else:
        before = ()
    state, effects = begin(state, event, now, limits)
    return state, (*before, *effects)


def decline(state: State, event: Refused, now: float, limits: Limits) -> Result:
    """Do not follow the word; try again later where that may help."""
    inbox = state.inbox
    if inbox is None or inbox.number != event.number:
        return state, ()
    state = replace(state, note=Note(event.reason, event.text))
    wanted = event.desired
    signed = inbox.signed or wanted is not None
    later = inbox.tries < limits.tries(event.reason)
    stale = wanted is not None and followed(state.attempt, wanted)
    if later and not stale:
        retry_at = now + limits.wait_s(inbox.tries, event.jitter)
        tries = inbox.tries + 1
        inbox = replace(inbox, tries=tries, retry_at=retry_at, signed=signed)
        state = replace(state, inbox=inbox)
    elif signed and not stale:
        state = replace(state, inbox=None)
    else:  # a lie or an old word: what it displaced is still to be followed
        return again(replace(state, inbox=inbox.before))
    if wanted is None:
        return state, ()
    outcome = None if later else outcome_of(event.reason)
    found = attempt_of(
        wanted, Phase.IDLE, outcome, event.reason, event.text, event.evidence
    )
    if state.job is not None:
        return state, () if later else (Record(found),)
    last = state.attempt
    ended: tuple[Effect, ...] = ()
    if last is not None and last.serial < wanted.serial:
        state, ended = unwaited(state, Outcome.SUPERSEDED, Reason.NONE, "")
    same = found == last
    return replace(state, attempt=found), ended if same else (*ended, Record(found))


def forget(state: State, event: Withdrawn, now: float, limits: Limits) -> Result:
    """Nothing is under way; what lay in the inbox is not wanted any more."""
    text = "it is not desired any more"
    return unwaited(replace(state, inbox=None), Outcome.FAILED, Reason.CANCELLED, text)


def cancel(state: State, event: Withdrawn, now: float, limits: Limits) -> Result:
    """End the job; on trial what is committed comes back."""
    text = "it is not desired any more"
    outcome = unsuccessful(state)
    return end(replace(state, inbox=None), outcome, Reason.CANCELLED, text)


# The way of a job --------------------------------------------------------------------


def verify(state: State, event: Downloaded, now: float, limits: Limits) -> Result:
    """Every byte is there: is it what was meant?"""
    return go(state, event.number, Phase.VERIFYING, now, limits)


def install(state: State, event: Verified, now: float, limits: Limits) -> Result:
    """Into the slot that is not committed; from now on that slot holds nothing."""
    target = other(state.committed)
    if not is_mine(state, event.number):
        return state, ()
    state = put(state, target, None)
    assert state.job is not None
    state = replace(state, job=replace(state.job, slot=target))
    return go(state, event.number, Phase.INSTALLING, now, limits)


def probe(state: State, event: Installed, now: float, limits: Limits) -> Result:
    """The slot holds it; try it in the sandbox."""
    if not is_mine(state, event.number):
        return state, ()
    job = state.job
    assert job is not None and job.slot is not None
    state = put(state, job.slot, job.goal.held)
    return go(state, event.number, Phase.PROBING, now, limits)


def confirm(state: State, event: Probed, now: float, limits: Limits) -> Result:
    """It is right on this device; is it still wanted and signed?"""
    if not is_mine(state, event.number):
        return state, ()
    assert state.job is not None and state.attempt is not None
    job = replace(state.job, probed=True)
    attempt = state.attempt.model_copy(update={"evidence": event.evidence})
    return replace(state, job=job, attempt=attempt), (Confirm(job),)


def activate(state: State, event: Confirmed, now: float, limits: Limits) -> Result:
    """The pointer is switched and the start counted, then it is loaded."""
    if not is_mine(state, event.number):
        return state, ()
    assert state.job is not None
    state = replace(state, active=state.job.slot)
    state, effects = go(state, event.number, Phase.TRIAL, now, limits)
    assert state.job is not None
    job = replace(state.job, starts=1)
    kept = tuple(one for one in effects if not isinstance(one, Activate))
    return replace(state, job=job), (*kept, Activate(job))


def commit(state: State, event: Healthy, now: float, limits: Limits) -> Result:
    """The only success."""
    if not is_mine(state, event.number):
        return state, ()
    job = state.job
    assert job is not None and job.slot is not None
    attempt = attempt_of(
        job.goal.desired, Phase.IDLE, Outcome.COMMITTED, Reason.NONE, "", event.evidence
    )
    state = replace(
        state, phase=Phase.IDLE, job=None, committed=job.slot, active=job.slot,
        attempt=attempt,
    )  # fmt: skip
    return state, (Record(attempt), Commit(job.slot), Clean())


def retry(state: State, event: Failed, now: float, limits: Limits) -> Result:
    """Again later where that may help, else the job has failed."""
    if not is_mine(state, event.number):
        return state, ()
    job = state.job
    assert job is not None and state.attempt is not None
    if job.tries >= limits.tries(event.reason):
        return end(
            state, outcome_of(event.reason), event.reason, event.text, event.evidence
        )
    phase = state.phase
    lost = event.reason is Reason.STORAGE and not job.probed
    if phase in (Phase.VERIFYING, Phase.INSTALLING) or lost:
        phase = Phase.DOWNLOADING  # who knows what is left of the file
    retry_at = now + limits.wait_s(job.tries, event.jitter)
    deadline = job.deadline if phase is state.phase else now + limits.phase_s[phase]
    slot = None if phase is Phase.DOWNLOADING else job.slot
    if job.slot is not None and slot is None:
        state = put(state, job.slot, None)
    job = replace(
        job, tries=job.tries + 1, retry_at=retry_at, deadline=deadline, slot=slot
    )
    attempt = attempt_of(
        job.goal.desired, phase, None, event.reason, event.text, event.evidence
    )
    same = attempt == state.attempt
    state = replace(state, phase=phase, job=job, attempt=attempt)
    return state, () if same else (Record(attempt),)


def undo(state: State, event: Failed, now: float, limits: Limits) -> Result:
    """Back to what is committed."""
    if not is_mine(state, event.number):
        return state, ()
    return end(state, Outcome.ROLLED_BACK, event.reason, event.text, event.evidence)


# Time, starts and stops --------------------------------------------------------------


def wait(state: State, event: Tick, now: float, limits: Limits) -> Result:
    """Judge what lies in the inbox again when that is due."""
    inbox = state.inbox
    if inbox is None or inbox.retry_at is None or now < inbox.retry_at:
        return state, ()
    inbox = replace(inbox, retry_at=None)
    return replace(state, inbox=inbox), (Authorize(inbox.number, inbox.envelope),)


def watch(state: State, event: Tick, now: float, limits: Limits) -> Result:
    """End what takes too long; try again what is due."""
    job = state.job
    assert job is not None
    if job.deadline is None or now >= job.deadline:
        text = (
            f"{state.phase} took longer than {allowed_s(job, state.phase, limits):g} s"
        )
        return end(state, unsuccessful(state), Reason.DEADLINE, text)
    state, effects = wait(state, event, now, limits)
    if job.retry_at is not None and now >= job.retry_at:
        job = replace(job, retry_at=None)
        state = replace(state, job=job)
        effects = (*effects, work(state.phase, job))
    return state, effects


def rest(state: State, event: Started, now: float, limits: Limits) -> Result:
    """Serve what is committed, judge what lies in the inbox."""
    state, effects = again(state)
    return state, (*serve(state), Clean(kept(state)), *effects)


def resume(state: State, event: Started, now: float, limits: Limits) -> Result:
    """The interrupted phase again; too many interruptions end the job."""
    job = state.job
    assert job is not None
    if job.starts >= limits.max_resumes:
        probing = state.phase is Phase.PROBING
        reason = Reason.CRASH_LOOP if probing else Reason.DEADLINE
        text = f"the agent ended {job.starts} times while {state.phase}"
        state, effects = end(state, Outcome.FAILED, reason, text)
        state, more = rest(state, event, now, limits)
        return state, (*effects, *more)
    job = armed(replace(job, starts=job.starts + 1), state.phase, now, limits)
    state, effects = again(replace(state, job=job))
    return (
        state,
        (*serve(state), Clean(job.goal.desired.digest), *effects,
         work(state.phase, job)),
    )  # fmt: skip


def retrial(state: State, event: Started, now: float, limits: Limits) -> Result:
    """Another start of the candidate, counted before it is loaded, or none any more."""
    job = state.job
    assert job is not None
    if job.starts >= limits.max_starts:
        text = f"the agent ended {job.starts} times while it was on trial"
        evidence = {"starts": job.starts}
        state, effects = end(
            state, Outcome.ROLLED_BACK, Reason.CRASH_LOOP, text, evidence
        )
        kept = tuple(one for one in effects if not isinstance(one, Rollback | Abort))
        state, more = rest(state, event, now, limits)
        return state, (*kept, *more)
    job = armed(replace(job, starts=job.starts + 1), Phase.TRIAL, now, limits)
    state, effects = again(replace(state, job=job))
    return state, (*serve(state), Clean(), *effects, Activate(job))


def give_back(state: State, event: Stopped, now: float, limits: Limits) -> Result:
    """An orderly stop is not held against the candidate."""
    job = state.job
    assert job is not None
    return replace(state, job=replace(job, starts=max(0, job.starts - 1))), ()


def lose(state: State, event: Lost, now: float, limits: Limits) -> Result:
    """A slot's file is damaged: what was committed before it is committed again."""
    if state.slot(event.slot) is None or event.slot != state.committed:
        return state, ()
    back = state.fallback
    state = put(state, event.slot, None)
    active = state.active if state.active != event.slot else back
    note = Note(Reason.STORAGE, f"slot {event.slot}: {event.text}")
    state = replace(state, committed=back, active=active, note=note)
    return state, (*serve(state), Clean(kept(state)))


PHASES: Final = tuple(Phase)


def _row(*handlers: Handler) -> Mapping[Phase, Handler]:
    return MappingProxyType(dict(zip(PHASES, handlers, strict=True)))


TABLE: Final[Mapping[type, Mapping[Phase, Handler]]] = MappingProxyType({
    # event          IDLE     DOWNLOAD. VERIFYING INSTALL.  PROBING   TRIAL
    Started:    _row(rest,    resume,   resume,   resume,   resume,   retrial),
    Stopped:    _row(late,    give_back, give_back, give_back, give_back, give_back),
    Tick:       _row(wait,    watch,    watch,    watch,    watch,    watch),
    Wanted:     _row(judge,   judge,    judge,    judge,    judge,    judge),
    Authorized: _row(take,    take,     take,     take,     take,     take),
    Refused:    _row(decline, decline,  decline,  decline,  decline,  decline),
    Withdrawn:  _row(forget,  cancel,   cancel,   cancel,   cancel,   cancel),
    Downloaded: _row(late,    verify,   late,     late,     late,     late),
    Verified:   _row(late,    late,     install,  late,     late,     late),
    Installed:  _row(late,    late,     late,     probe,    late,     late),
    Probed:     _row(late,    late,     late,     late,     confirm,  late),
    Confirmed:  _row(late,    late,     late,     late,     activate, late),
    Healthy:    _row(late,    late,     late,     late,     late,     commit),
    Failed:     _row(late,    retry,    retry,    retry,    retry,    undo),
    Lost:       _row(lose,    lose,     lose,     lose,     lose,     lose),
})  # fmt: skip
"""For every event, what is done in each phase."""
