"""The transition table, pair by pair and as stories."""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from words import desired, digest, goal

from device_agent.contract.codes import RETRYABLE, Outcome, Phase, Reason
from device_agent.updating import events
from device_agent.updating.events import (
    Abort,
    Activate,
    Authorize,
    Authorized,
    Clean,
    Commit,
    Confirm,
    Confirmed,
    Download,
    Downloaded,
    Effect,
    Event,
    Failed,
    Healthy,
    Install,
    Installed,
    Lost,
    Probe,
    Probed,
    Quarantine,
    Record,
    Refused,
    Rollback,
    Serve,
    Started,
    Stopped,
    Tick,
    Verified,
    Verify,
    Wanted,
    Withdrawn,
)
from device_agent.updating.facts import State, dump, parse
from device_agent.updating.machine import TABLE, step
from device_agent.updating.policy import REJECTING, Limits

ROOT = Path(__file__).parents[3]
LIMITS = Limits()
WAY = (Downloaded, Verified, Installed, Probed, Confirmed)
AT = dict(zip(tuple(Phase)[1:], (0, 1, 2, 3, 5), strict=True))
"""How many events of ``WAY`` lead to a phase."""


def run(state: State, happened: Iterable[Event]) -> tuple[State, list[Effect]]:
    """What comes of events, one second apart from second 0."""
    effects: list[Effect] = []
    for now, event in enumerate(happened):
        state, found = step(state, event, float(now), LIMITS)
        effects += found
    return state, effects


def heard(serial: int = 1, name: str = "one", state: State | None = None) -> State:
    """A state in which that has been authorized."""
    state, _ = run(state or State(), [Wanted(goal(serial, name).envelope)])
    assert state.inbox is not None
    number = state.inbox.number
    return run(state, [Authorized(number, goal(serial, name))])[0]


def at(phase: Phase, serial: int = 1, name: str = "one", before: State | None = None):
    """A state in that phase."""
    if phase is Phase.IDLE:
        return before or State()
    state = heard(serial, name, before)
    assert state.job is not None
    number = state.job.number
    state, _ = run(state, [kind(number) for kind in WAY[: AT[phase]]])
    assert state.phase is phase
    return state


def committed(serial: int = 1, name: str = "one", before: State | None = None) -> State:
    state = at(Phase.TRIAL, serial, name, before)
    return run(state, [Healthy(state.job.number)])[0]


def kinds(effects: Iterable[Effect]) -> list[type]:
    return [type(one) for one in effects]


def an_event(kind: type, number: int) -> Event:
    made = {
        Wanted: lambda: Wanted(b"new"),
        Authorized: lambda: Authorized(number, goal(9, "nine")),
        Refused: lambda: Refused(number, Reason.TARGET_UNKNOWN, desired=desired(9)),
        Failed: lambda: Failed(number, Reason.GOLDEN_MISMATCH),
        Lost: lambda: Lost("a"),
    }
    if kind in (Started, Stopped, Tick, Withdrawn):
        return kind()
    return made.get(kind, lambda: kind(number))()


class TestTable:
    def test_is_complete(self) -> None:
        assert set(TABLE) == set(events.Event.__args__)
        assert all(set(row) == set(Phase) for row in TABLE.values())

    @pytest.mark.parametrize("phase", Phase)
    @pytest.mark.parametrize("kind", TABLE, ids=lambda kind: kind.__name__)
    def test_every_pair(self, kind: type, phase: Phase) -> None:
        state = at(phase, 2, "two", committed())
        number = state.job.number if state.job else 0
        after, _ = step(state, an_event(kind, number), 1e9, LIMITS)
        assert (after.job is None) is (after.phase is Phase.IDLE)
        assert after.active in (after.committed, after.job and after.job.slot)
        assert parse(dump(after)) == after
        handler = TABLE[kind][phase].__name__
        if handler == "late":
            assert after == state
        moved = {
            "verify": Phase.VERIFYING, "install": Phase.INSTALLING,
            "probe": Phase.PROBING, "activate": Phase.TRIAL, "commit": Phase.IDLE,
            "undo": Phase.IDLE, "cancel": Phase.IDLE, "watch": Phase.IDLE,
        }  # fmt: skip
        assert after.phase is moved.get(handler, after.phase)

    @pytest.mark.parametrize("phase", tuple(Phase)[1:])
    @pytest.mark.parametrize("kind", [*WAY, Healthy, Failed])
    def test_what_comes_too_late_changes_nothing(self, kind, phase) -> None:
        state = at(phase)
        assert step(state, an_event(kind, state.job.number + 1), 0.0, LIMITS) == (
            state, (),
        )  # fmt: skip

    def test_documented(self) -> None:
        text = (ROOT / "docs/update.md").read_text()
        rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.M)
        said = {name: tuple(cell.strip() for cell in row.split("|"))
                for name, row in rows if name[0].isupper()}  # fmt: skip
        have = {
            kind.__name__: tuple(
                "" if one.__name__ == "late" else one.__name__ for one in row.values()
            )
            for kind, row in TABLE.items()
        }
        assert said == have

    def test_reasons_are_documented(self) -> None:
        text = (ROOT / "docs/update.md").read_text()
        said = re.findall(
            r"^\| `([a-z_]+)` \| (\w+) \| (\w*) ?\| (\w*) ?\|$", text, re.M
        )
        assert [tuple(row) for row in said] == [
            (
                reason.value,
                "rejected" if reason in REJECTING else "failed",
                "yes" if reason in RETRYABLE else "",
                "yes" if reason in events_quarantining() else "",
            )
            for reason in Reason
            if reason is not Reason.NONE
        ]


class TestWayToCommit:
    def test_every_effect_in_order(self) -> None:
        state, effects = run(State(), [Wanted(goal().envelope)])
        assert kinds(effects) == [Authorize]
        state, effects = run(state, [Authorized(state.inbox.number, goal())])
        assert kinds(effects) == [Record, Clean, Download]
        number = state.job.number
        state, effects = run(state, [Downloaded(number)])
        assert kinds(effects) == [Record, Verify]
        state, effects = run(state, [Verified(number)])
        assert kinds(effects) == [Record, Install]
        assert (state.job.slot, state.a) == ("a", None)
        state, effects = run(state, [Installed(number)])
        assert kinds(effects) == [Record, Probe]
        assert state.a.digest == digest("one")
        assert state.active is None
        state, effects = run(state, [Probed(number, {"p50_ms": 1})])
        assert kinds(effects) == [Confirm]
        state, effects = run(state, [Confirmed(number)])
        assert kinds(effects) == [Record, Activate]
        assert (state.active, state.committed, state.job.starts) == ("a", None, 1)
        state, effects = run(state, [Healthy(number, {"inferences": 5})])
        assert kinds(effects) == [Record, Commit, Clean]
        assert (state.active, state.committed, state.job) == ("a", "a", None)
        assert state.attempt.outcome is Outcome.COMMITTED
        assert state.attempt.evidence == {"inferences": 5}

    def test_the_second_goes_into_the_other_slot_and_keeps_the_first(self) -> None:
        state = at(Phase.INSTALLING, 2, "two", committed())
        assert (state.job.slot, state.committed, state.active) == ("b", "a", "a")
        state = committed(2, "two", committed())
        assert (state.committed, state.fallback) == ("b", "a")
        third = at(Phase.INSTALLING, 3, "three", state)
        assert (third.a, third.b.digest) == (None, digest("two"))

    def test_the_same_word_again_is_no_new_attempt(self) -> None:
        state = committed()
        after = heard(1, "one", state)
        assert replace(after, count=0) == replace(state, count=0)

    def test_what_runs_already_is_reported(self) -> None:
        state, effects = run(committed(), [Wanted(goal(2).envelope)])
        state, effects = run(state, [Authorized(state.inbox.number, goal(2))])
        assert kinds(effects) == [Record]
        assert (state.attempt.serial, state.attempt.outcome) == (2, Outcome.COMMITTED)

    def test_a_replayed_word_is_not_followed(self) -> None:
        state = heard(1, "zero", committed(2, "two"))
        assert state.job is None
        assert state.note.reason == Reason.DESIRED_REPLAYED
        assert state.attempt.serial == 2


class TestFailing:
    @pytest.mark.parametrize("reason", Reason)
    @pytest.mark.parametrize("phase", tuple(Phase)[1:])
    def test_every_reason_in_every_phase(self, phase: Phase, reason: Reason) -> None:
        before = committed()
        state = at(phase, 2, "two", before)
        number = state.job.number
        tries = 0
        found: list[Effect] = []
        while state.job is not None:
            tries += 1
            state, effects = step(state, Failed(number, reason, "why"), 1.0, LIMITS)
            found += effects
            if state.phase is Phase.DOWNLOADING and phase is not state.phase:
                break
        trial = phase is Phase.TRIAL
        assert tries == 1 or (reason in RETRYABLE and not trial)
        assert (state.active, state.committed, state.a) == ("a", "a", before.a)
        if state.job is not None:
            assert reason in (Reason.STORAGE, *RETRYABLE)
            assert state.b is None
            return
        expected = Outcome.REJECTED if reason in REJECTING else Outcome.FAILED
        assert state.attempt.outcome is (Outcome.ROLLED_BACK if trial else expected)
        assert (state.attempt.reason, state.attempt.text) == (reason, "why")
        assert state.attempt.evidence["phase"] == phase
        assert (Quarantine in kinds(found)) is (reason in events_quarantining())
        assert (Rollback("a") in found) is trial
        assert Abort(number) in found
        assert state.b is None or phase in (Phase.DOWNLOADING, Phase.VERIFYING)

    def test_back_off_is_jittered_capped_and_due(self) -> None:
        state = at(Phase.DOWNLOADING)
        number = state.job.number
        reason = Reason.DOWNLOAD_UNREACHABLE
        waits = []
        for _ in range(12):
            state, _ = step(state, Failed(number, reason, jitter=0.5), 0.0, LIMITS)
            waits.append(state.job.retry_at)
            state, early = step(state, Tick(), waits[-1] - 0.1, LIMITS)
            assert early == ()
            state, due = step(state, Tick(), waits[-1], LIMITS)
            assert kinds(due) == [Download]
        assert waits[:3] == [1.0, 2.0, 4.0]
        assert waits[-1] == 150.0

    def test_a_quarantined_digest_is_rejected_at_once(self) -> None:
        state, _ = run(State(), [Wanted(b"x")])
        said = Authorized(state.inbox.number, goal(), quarantined="golden_mismatch")
        state, effects = run(state, [said])
        assert state.attempt.outcome is Outcome.REJECTED
        assert state.attempt.reason is Reason.QUARANTINED
        assert kinds(effects) == [Record]

    def test_unsigned_words_disturb_nothing(self) -> None:
        state = at(Phase.TRIAL)
        after, effects = run(state, [Wanted(b"liar")])
        assert kinds(effects) == [Authorize]
        refused = Refused(after.inbox.number, Reason.DESIRED_SIGNATURE, "no key")
        after, effects = run(after, [refused])
        assert effects == []
        assert after.note.reason == Reason.DESIRED_SIGNATURE
        assert replace(after, note=None, count=0) == replace(state, count=0)

    def test_a_word_waits_for_the_registry(self) -> None:
        state, _ = run(State(), [Wanted(b"x")])
        number = state.inbox.number
        late = Refused(number, Reason.METADATA_UNREACHABLE, desired=desired())
        state, effects = run(state, [late])
        assert kinds(effects) == [Record]
        assert state.attempt.outcome is None
        state, effects = step(state, Tick(), state.inbox.retry_at, LIMITS)
        assert kinds(effects) == [Authorize]
        state, effects = run(state, [Authorized(number, goal())])
        assert state.phase is Phase.DOWNLOADING

    @pytest.mark.parametrize("phase", tuple(Phase)[1:])
    def test_another_word_supersedes(self, phase: Phase) -> None:
        state = at(phase, 2, "two", committed())
        old = state.job.number
        state, _ = run(state, [Wanted(b"third")])
        state, effects = run(state, [Authorized(state.inbox.number, goal(3, "three"))])
        assert effects[0].attempt.outcome is Outcome.SUPERSEDED
        assert Abort(old) in effects
        assert (Rollback("a") in effects) is (phase is Phase.TRIAL)
        assert state.phase is Phase.DOWNLOADING
        assert (state.active, state.attempt.serial) == ("a", 3)

    def test_the_same_bundle_under_a_later_word_goes_on(self) -> None:
        state = at(Phase.TRIAL, 2, "two", committed())
        after = heard(3, "two", state)
        assert after.phase is Phase.TRIAL
        assert (after.job.number, after.attempt.serial) == (state.job.number, 3)

    @pytest.mark.parametrize("phase", tuple(Phase)[1:])
    def test_deadlines(self, phase: Phase) -> None:
        state = at(phase, 2, "two", committed())
        state, _ = step(state, Tick(), state.job.deadline - 0.1, LIMITS)
        assert state.phase is phase
        state, _ = step(state, Tick(), state.job.deadline, LIMITS)
        assert (state.phase, state.attempt.reason) == (Phase.IDLE, Reason.DEADLINE)
        assert state.active == "a"


class TestRestarting:
    @pytest.mark.parametrize("phase", tuple(Phase)[1:-1])
    def test_repeats_the_phase(self, phase: Phase) -> None:
        state = at(phase, 2, "two", committed())
        works = {Phase.DOWNLOADING: Download, Phase.VERIFYING: Verify,
                 Phase.INSTALLING: Install, Phase.PROBING: Probe}  # fmt: skip
        again, effects = run(parse(dump(state)), [Started()])
        assert again.phase is phase
        assert kinds(effects) == [Serve, Clean, works[phase]]
        for _ in range(LIMITS.max_resumes - 1):
            again, _ = run(again, [Started()])
        assert again.phase is phase
        again, effects = run(again, [Started()])
        assert again.attempt.outcome is Outcome.FAILED
        assert Serve("a") in effects

    def test_counts_the_starts_of_the_candidate_only(self) -> None:
        state = at(Phase.TRIAL, 2, "two", committed())
        for start in range(2, LIMITS.max_starts + 1):
            state, effects = run(state, [Started()])
            assert state.job.starts == start
            assert kinds(effects) == [Serve, Clean, Activate]
        state, effects = run(state, [Started()])
        assert state.attempt.reason is Reason.CRASH_LOOP
        assert state.attempt.outcome is Outcome.ROLLED_BACK
        assert kinds(effects) == [Record, Quarantine, Clean, Serve, Clean]
        assert Serve("a") in effects

    def test_clean_stops_do_not_count(self) -> None:
        state = at(Phase.TRIAL, 2, "two", committed())
        for _ in range(20):
            state, _ = run(state, [Stopped(), Started()])
        assert state.phase is Phase.TRIAL
        assert state.job.starts == 1

    def test_a_damaged_slot_gives_way_to_the_one_before(self) -> None:
        state = committed(2, "two", committed())
        state, effects = run(state, [Lost("b", "other bytes")])
        assert (state.committed, state.active, state.b) == ("a", "a", None)
        assert Serve("a") in effects
        state, effects = run(state, [Lost("a")])
        assert (state.committed, state.active) == (None, None)
        assert Serve not in kinds(effects)


def events_quarantining() -> frozenset[Reason]:
    from device_agent.contract.codes import QUARANTINING

    return QUARANTINING
