"""The parts that the handlers of :mod:`.machine` are made of; pure as they are."""

from dataclasses import replace

from ..contract.codes import QUARANTINING, Outcome, Phase, Reason
from ..contract.messages import Attempt, Desired
from .events import (
    Abort,
    Activate,
    Authorize,
    Authorized,
    Clean,
    Confirm,
    Download,
    Effect,
    Evidence,
    Install,
    Probe,
    Quarantine,
    Record,
    Rollback,
    Serve,
    Verify,
)
from .facts import Goal, Held, Job, Slot, State
from .policy import PATIENT, REJECTING, Limits

Result = tuple[State, tuple[Effect, ...]]


def is_mine(state: State, number: int) -> bool:
    """Whether that is the job under way."""
    return state.job is not None and state.job.number == number


def put(state: State, slot: Slot, held: Held | None) -> State:
    """The state with that in the slot."""
    return replace(state, a=held) if slot == "a" else replace(state, b=held)


def serve(state: State) -> tuple[Effect, ...]:
    """What is committed is to be served."""
    return () if state.committed is None else (Serve(state.committed),)


def kept(state: State) -> str | None:
    """The digest whose download may still be of use."""
    last = state.attempt
    useful = last is not None and last.reason in PATIENT
    return last.digest if last is not None and useful else None


def attempt_of(
    wanted: Desired, phase: Phase, outcome: Outcome | None, reason: Reason | None,
    text: str, evidence: Evidence,
) -> Attempt:  # fmt: skip
    """How an attempt at what was wanted stands."""
    return Attempt(
        rollout=wanted.rollout, attempt=wanted.attempt, serial=wanted.serial,
        digest=wanted.digest, phase=phase, outcome=outcome, reason=reason, text=text,
        evidence=evidence,
    )  # fmt: skip


def followed(last: Attempt | None, wanted: Desired) -> bool:
    """Whether that word has been followed to an end, or a later one was heard."""
    if last is None or wanted.serial > last.serial:
        return False
    return wanted.serial < last.serial or last.outcome is not None


def unwaited(state: State, outcome: Outcome, reason: Reason, text: str) -> Result:
    """A word that waited for its time has waited in vain."""
    last = state.attempt
    if state.job is not None or last is None or last.outcome is not None:
        return state, ()
    ended = last.model_copy(update={"outcome": outcome, "reason": reason, "text": text})
    return replace(state, attempt=ended), (Record(ended),)


def is_settled(state: State, wanted: Desired) -> bool:
    """Whether the very same word is being followed, or was to its end."""
    last = state.attempt
    if last is None or (last.serial, last.digest) != (wanted.serial, wanted.digest):
        return False
    return state.job is not None or last.outcome is not None


def outcome_of(reason: Reason) -> Outcome:
    """How an attempt that never ran ends, for that reason."""
    return Outcome.REJECTED if reason in REJECTING else Outcome.FAILED


def unsuccessful(state: State) -> Outcome:
    """How the job ends that is ended now."""
    return Outcome.ROLLED_BACK if state.phase is Phase.TRIAL else Outcome.FAILED


def allowed_s(job: Job, phase: Phase, limits: Limits) -> float:
    """How long a phase may take; a trial as long as the director says, and as much
    again to load."""
    if phase is not Phase.TRIAL:
        return limits.phase_s[phase]
    wanted = job.goal.desired.config.get("trial_s", 0)
    asked_s = float(wanted) if isinstance(wanted, int | float) else 0.0
    return max(limits.phase_s[phase], 2 * min(asked_s, 7 * 86_400.0))


def armed(job: Job, phase: Phase, now: float, limits: Limits) -> Job:
    """The job with the deadline of a phase that begins now."""
    deadline = now + allowed_s(job, phase, limits)
    return replace(job, deadline=deadline, retry_at=None)


def work(phase: Phase, job: Job) -> Effect:
    """What a phase does."""
    if phase is Phase.DOWNLOADING:
        return Download(job)
    if phase is Phase.VERIFYING:
        return Verify(job)
    if phase is Phase.INSTALLING:
        return Install(job)
    if phase is Phase.PROBING:
        return Confirm(job) if job.probed else Probe(job)
    return Activate(job)


def go(state: State, number: int, phase: Phase, now: float, limits: Limits) -> Result:
    """The next phase of the job, said to the fleet."""
    if not is_mine(state, number):
        return state, ()
    assert state.job is not None and state.attempt is not None
    job = armed(replace(state.job, starts=0), phase, now, limits)
    attempt = attempt_of(
        job.goal.desired, phase, None, None, "", state.attempt.evidence
    )
    state = replace(state, phase=phase, job=job, attempt=attempt)
    return state, (Record(attempt), work(phase, job))


def begin(state: State, event: Authorized, now: float, limits: Limits) -> Result:
    """A new job, unless it runs already or has failed here before."""
    wanted = event.goal.desired
    running = state.slot(state.committed)
    if running is not None and running.digest == wanted.digest:
        attempt = attempt_of(
            wanted, Phase.IDLE, Outcome.COMMITTED, Reason.NONE, "it runs already", {}
        )
        return replace(state, attempt=attempt), (Record(attempt),)
    if event.quarantined:
        attempt = attempt_of(
            wanted, Phase.IDLE, Outcome.REJECTED, Reason.QUARANTINED,
            f"it failed here before: {event.quarantined}", {},
        )  # fmt: skip
        return replace(state, attempt=attempt), (Record(attempt),)
    count = state.count + 1
    job = armed(Job(count, event.goal), Phase.DOWNLOADING, now, limits)
    attempt = attempt_of(wanted, Phase.DOWNLOADING, None, None, "", {})
    state = replace(
        state, phase=Phase.DOWNLOADING, job=job, attempt=attempt, count=count
    )
    return state, (Record(attempt), Clean(wanted.digest), Download(job))


def adopt(state: State, goal: Goal) -> Result:
    """The same bundle in the name of a later word: the work goes on."""
    assert state.job is not None
    job = replace(state.job, goal=goal)
    attempt = attempt_of(goal.desired, state.phase, None, None, "", {})
    return replace(state, job=job, attempt=attempt), (Record(attempt),)


def end(
    state: State, outcome: Outcome, reason: Reason, text: str,
    evidence: Evidence | None = None,
) -> Result:  # fmt: skip
    """The job is over without success; what it had installed is given up."""
    job = state.job
    assert job is not None
    wanted = job.goal.desired
    found = {"phase": state.phase.value, **(evidence or {})}
    attempt = attempt_of(wanted, Phase.IDLE, outcome, reason, text, found)
    effects: list[Effect] = [Record(attempt)]
    if reason in QUARANTINING:
        effects.append(Quarantine(wanted.digest, reason, text))
    effects.append(Abort(job.number))
    if state.phase is Phase.TRIAL:
        effects.append(Rollback(state.committed))
    if job.slot is not None:
        state = put(state, job.slot, None)
    state = replace(
        state, phase=Phase.IDLE, job=None, active=state.committed, attempt=attempt
    )
    return state, (*effects, Clean(kept(state)))


def again(state: State) -> Result:
    """What lay in the inbox is judged again after a start."""
    if state.inbox is None:
        return state, ()
    inbox = replace(state.inbox, retry_at=None)
    return replace(state, inbox=inbox), (Authorize(inbox.number, inbox.envelope),)
