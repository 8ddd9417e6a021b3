"""Updates from the first word to the end, by the agent's own parts."""

import asyncio
from pathlib import Path

import faulty
import pytest
from repositories import linear
from updaters import LIMITS, TRIAL, Device, tell

from device_agent.contract.codes import Outcome, Phase, Reason
from device_agent.errors import StorageError, UpdateError
from device_agent.updating.facts import Held, Slot

LONG = {"trial_s": 600, "trial_inferences": 1_000_000}


def release(number: int) -> bytes:
    return linear(number, release_counter=number)


async def to(device: Device, number: int, serial: int | None = None) -> str:
    """Commit that version."""
    digest = device.publish(release(number))
    device.want(digest, serial or number)
    attempt = await asking(device, device.ended(serial or number))
    assert attempt.outcome is Outcome.COMMITTED, attempt
    return digest


async def asking(device: Device, work):
    """Ask all the time until ``work`` is done; its result."""
    task = asyncio.ensure_future(work)
    while not task.done():
        if device.repository.served():
            await device.ask()
        await asyncio.sleep(0.002)
    return task.result()


def test_a_first_and_a_second_release(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        first = await to(device, 1)
        assert await device.ask() == 1
        assert device.slots() == {"a": first, "b": None}
        second = await to(device, 2)
        assert await device.ask() == 2
        assert device.slots() == {"a": first, "b": second}
        await device.until(
            lambda: [one.version for one in device.repository.served()] == ["2.0.0"]
        )
        await device.until(lambda: device.fleet.reports[-1][1].outcome is not None)
        running, attempt = device.fleet.reports[-1]
        assert (running.digest, running.committed) == (second, True)
        assert attempt.evidence["inferences"] >= TRIAL.inferences
        assert attempt.evidence["rechecks"] >= TRIAL.rechecks
        await device.until(lambda: len(device.fleet.steps) == 12)
        assert [one["phase"] for one in device.fleet.steps[:6]] == [
            "downloading", "verifying", "installing", "probing", "trial", "idle",
        ]  # fmt: skip
        assert device.library.floors == {"linear": 2}
        assert list((device.config.state / "download").iterdir()) == []

    async def after(device: Device) -> None:
        assert await device.ask() == 2
        assert device.repository.ready
        running = device.updater.running
        assert running is not None and running.committed

    tell(tmp_path, story, after)


def test_a_bad_release_leaves_no_trace_but_its_quarantine(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        first = await to(device, 1)
        bad = device.publish(faulty.gives_nan())
        device.want(bad, 2)
        attempt = await asking(device, device.ended(2))
        assert (attempt.outcome, attempt.reason) == (
            Outcome.FAILED, Reason.GOLDEN_MISMATCH,
        )  # fmt: skip
        assert attempt.evidence["phase"] == Phase.PROBING
        assert await device.ask() == 1
        await device.until(lambda: device.slots() == {"a": first, "b": None})
        device.want(bad, 3)
        attempt = await device.ended(3)
        assert (attempt.outcome, attempt.reason) == (
            Outcome.REJECTED, Reason.QUARANTINED,
        )  # fmt: skip
        await to(device, 4)

    tell(tmp_path, story)


@pytest.mark.parametrize(
    "reason", [Reason.DESIRED_SIGNATURE, Reason.TARGET_MISMATCH, Reason.TARGET_UNKNOWN]
)
def test_what_is_not_authorized_is_not_fetched(tmp_path: Path, reason: Reason) -> None:
    async def story(device: Device) -> None:
        digest = device.publish(release(1))
        device.library.refusal = UpdateError(reason, "no")
        device.want(digest, 1)
        attempt = await device.ended(1)
        assert (attempt.outcome, attempt.reason) == (Outcome.REJECTED, reason)
        assert device.library.fetched == []

    tell(tmp_path, story)


def test_waits_for_the_network(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        digest = device.publish(release(1))
        device.library.offline = True
        device.want(digest, 1)
        await device.until(lambda: device.library.authorized > 1)
        assert device.updater.state.attempt.reason is Reason.METADATA_UNREACHABLE
        device.library.offline = False
        assert (await device.ended(1)).outcome is Outcome.COMMITTED

    tell(tmp_path, story)


def test_another_bundle_than_was_promised(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        digest = device.publish(release(1))
        device.want(digest, 1, counter=7)
        attempt = await device.ended(1)
        assert attempt.reason is Reason.BUNDLE_INVALID
        assert "its release_counter is 1, 7 was signed for" in attempt.text

    tell(tmp_path, story)


def test_a_later_word_during_the_trial(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        await to(device, 1)
        second, third = device.publish(release(2)), device.publish(release(3))
        device.want(second, 2, config=LONG)
        await device.until(lambda: device.updater.state.phase is Phase.TRIAL)
        await device.until(lambda: device.updater.running.counter == 2)
        assert await device.ask() == 2
        device.want(third, 3)
        assert (await asking(device, device.ended(3))).outcome is Outcome.COMMITTED
        assert await device.ask() == 3
        await device.until(
            lambda: "superseded" in [one["outcome"] for one in device.fleet.steps]
        )

    tell(tmp_path, story)


def test_withdrawn_during_the_trial(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        await to(device, 1)
        device.want(device.publish(release(2)), 2, config=LONG)
        await device.until(lambda: device.updater.state.phase is Phase.TRIAL)
        device.updater.heard(b"")
        attempt = await device.ended(2)
        assert (attempt.outcome, attempt.reason) == (
            Outcome.ROLLED_BACK, Reason.CANCELLED,
        )  # fmt: skip
        await device.until(lambda: device.updater.running.counter == 1)
        assert await device.ask() == 1

    tell(tmp_path, story)


def test_power_cuts_during_the_trial(tmp_path: Path) -> None:
    """The candidate starts so often, and no more; then the old one is back."""

    async def first(device: Device) -> None:
        await to(device, 1)
        device.want(device.publish(release(2)), 2, config=LONG)
        await device.until(lambda: device.updater.running.counter == 2)

    async def again(device: Device) -> None:
        assert await device.ask() == 1  # before the candidate is there again
        await device.until(lambda: device.updater.running.counter == 2)

    async def last(device: Device) -> None:
        attempt = await device.ended(2)
        assert (attempt.outcome, attempt.reason) == (
            Outcome.ROLLED_BACK, Reason.CRASH_LOOP,
        )  # fmt: skip
        assert await device.ask() == 1
        assert device.updater.state.b is None

    stories = (first, *[again] * (LIMITS.max_starts - 1), last)
    tell(tmp_path, *stories, orderly=False)


def test_orderly_stops_during_the_trial(tmp_path: Path) -> None:
    async def first(device: Device) -> None:
        await to(device, 1)
        device.want(device.publish(release(2)), 2, config=LONG)
        await device.until(lambda: device.updater.running.counter == 2)

    async def again(device: Device) -> None:
        await device.until(lambda: device.updater.running.counter == 2)
        assert device.updater.state.job.starts == 1

    tell(tmp_path, first, again, again, again, again)


def test_a_floor_that_a_cut_forestalled_is_raised_before_the_next_word(
    tmp_path: Path,
) -> None:
    async def story(device: Device) -> None:
        await to(device, 1)
        await to(device, 2)

    async def after(device: Device) -> None:
        device.library.floors.clear()  # as if the cut had come right after the commit
        device.library.refusal = UpdateError(Reason.TARGET_UNKNOWN, "not here")
        device.want(device.publish(release(3)), 3)
        attempt = await device.ended(3)
        assert attempt.reason is Reason.TARGET_UNKNOWN
        assert device.library.floors == {"linear": 2}

    tell(tmp_path, story, after)


def test_a_slot_that_rots_gives_way_to_the_one_before(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        await to(device, 1)
        await to(device, 2)
        path = device.updater.path("b")
        raw = bytearray(path.read_bytes())
        raw[-3000] ^= 1
        path.write_bytes(raw)

    async def after(device: Device) -> None:
        assert await device.ask() == 1
        await device.until(lambda: device.updater.state.committed == "a")
        assert device.updater.running.counter == 1
        assert device.updater.state.note.reason is Reason.STORAGE
        device.want(next(reversed(device.library.files)), 3)
        assert (await asking(device, device.ended(3))).outcome is Outcome.COMMITTED
        assert await device.ask() == 2

    tell(tmp_path, story, after)


def test_a_lost_database_is_made_good_from_the_slots(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        await to(device, 1)
        await to(device, 2)

    async def after(device: Device) -> None:
        assert await device.ask() == 2
        assert device.updater.state.committed == "b"
        await to(device, 3)

    tell(tmp_path, story)
    for path in (tmp_path / "state").glob("state.db*"):
        path.write_bytes(b"\xff" * 5000)
    tell(tmp_path, after)


def test_what_a_cut_left_undone_after_a_commit_is_made_good(tmp_path: Path) -> None:
    async def cut(device: Device) -> None:
        await to(device, 1)
        prove = device.updater._slots.prove

        def full(slot: Slot, held: Held) -> None:
            if held.counter == 2:
                raise StorageError(Reason.NO_SPACE, "the disk is full")

        device.updater._slots.prove = full
        second = await to(device, 2)
        device.updater._slots.prove = prove
        assert device.library.floors["linear"] == 1
        device.want(second, 3)
        await device.until(lambda: device.library.floors["linear"] == 2)

    async def after(device: Device) -> None:
        assert await device.ask() == 2

    tell(tmp_path, cut)
    for path in (tmp_path / "state").glob("state.db*"):
        path.write_bytes(b"\xff" * 5000)
    tell(tmp_path, after)


def test_another_model_takes_the_place_of_the_last(tmp_path: Path) -> None:
    async def story(device: Device) -> None:
        await to(device, 1)
        digest = device.publish(linear(2, name="cubic", release_counter=1))
        device.want(digest, 2)
        attempt = await asking(device, device.until(
            lambda: device.updater.running.release.model == "cubic"
        ))  # fmt: skip
        attempt = await device.ended(2)
        assert attempt.outcome is Outcome.COMMITTED
        await device.until(lambda: len(device.repository.served()) == 1)
        assert device.repository.served()[0].name == "cubic"
        assert device.repository.ready

    tell(tmp_path, story)
