"""A device gets new models: real broker, web server, registry, bundles and agent.

Callers ask it the whole time; none of them may notice but by the answers.
"""

from pathlib import Path

import faulty
import pytest
from callers import Callers, calling
from fields import DEVICE, Field, check, digest, fielded, release
from webserver import Fault

from device_agent.contract.codes import Outcome, Reason

BALLAST = 160_000


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory):
    with fielded(tmp_path_factory.mktemp("field")) as made:
        yield made


@pytest.fixture(scope="module")
def device(site: Field):
    """The first release is got before anybody asks."""
    one = release(1)
    site.publish(one)
    site.want(one, 1)
    with site.agent() as started:
        attempt = site.ended(1)
        assert attempt.outcome is Outcome.COMMITTED, attempt
        yield started


@pytest.fixture(scope="module")
def callers(device):
    with calling(device.url, check, count=4) as asking:
        asking.more(20)
        yield asking
    assert asking.failures == []


class TestStory:
    def test_a_first_release(self, site: Field, callers: Callers) -> None:
        running = site.reported()[-1].running
        assert running is not None and running.committed
        assert running.digest == digest(release(1))
        assert {one.version for one in callers.more(20)} == {"1.0.0"}

    def test_a_second_one_without_a_gap(self, site: Field, callers: Callers) -> None:
        two = release(2)
        site.publish(two)
        site.want(two, 2)
        attempt = site.ended(2)
        assert attempt.outcome is Outcome.COMMITTED, attempt
        assert attempt.evidence["inferences"] >= 50
        assert {one.version for one in callers.more(20)} == {"2.0.0"}
        assert callers.failures == []
        steps = site.until(
            lambda: [one for one in [site.steps()] if len(one) >= 12], "steps"
        )
        assert [phase for phase, _ in steps[0][-6:]] == [
            "downloading", "verifying", "installing", "probing", "trial", "idle",
        ]  # fmt: skip

    def test_a_bad_one_is_never_served(self, site: Field, callers: Callers) -> None:
        bad = faulty.bundle(
            faulty.model(
                faulty._nodes(
                    ("MatMul", "x w", "h"), ("Sub", "h h", "z"), ("Div", "z z", "n"),
                    ("Add", "h n", "y"),
                ),
                {"w": faulty.WEIGHT},
            ),
            version="3.0.0", release_counter=3,
        )  # fmt: skip
        site.publish(bad)
        site.want(bad, 3)
        attempt = site.ended(3)
        assert attempt.outcome is Outcome.FAILED
        assert attempt.reason is Reason.GOLDEN_MISMATCH
        assert {one.version for one in callers.more(20)} == {"2.0.0"}
        assert callers.failures == []

    def test_what_was_never_published_is_rejected(
        self, site: Field, callers: Callers
    ) -> None:
        site.want(release(9), 4)
        attempt = site.ended(4)
        assert attempt.outcome is Outcome.REJECTED
        assert attempt.reason is Reason.TARGET_UNKNOWN
        assert {one.version for one in callers.more(20)} == {"2.0.0"}

    def test_the_broker_forgets_all(self, site: Field, callers: Callers) -> None:
        """What runs is said again to one that was wiped."""
        site.broker.restart(wipe=True)
        with site.broker.peer("late") as late:
            late.subscribe("edgeml/1/#")
            topic = f"edgeml/1/acme/d/{DEVICE}/up/reported"
            late.until(lambda: late.on(topic), wait_s=60.0)
        assert callers.failures == []


def test_what_waited_for_the_registry_goes_on_at_the_next_start(tmp_path: Path) -> None:
    published, away = tmp_path / "registry", tmp_path / "away"
    with fielded(tmp_path) as site:
        site.publish(release(1))
        published.rename(away)
        site.want(release(1), 1)
        with site.agent() as device:
            site.until(lambda: "not followed" in device.log(), "failed verification")
        away.rename(published)
        with site.agent() as device:
            assert site.ended(1).outcome is Outcome.COMMITTED
        assert "not followed" not in device.log()


@pytest.mark.long
def test_over_a_thin_link_that_breaks_twenty_times(tmp_path: Path) -> None:
    one, two = release(1), release(2, ballast=BALLAST)
    piece = len(two) // 21
    with fielded(tmp_path, rate_bits_s=256_000.0, only=".edgeml") as site:
        site.publish(one)
        site.want(one, 1)
        with site.agent() as device:
            assert site.ended(1).outcome is Outcome.COMMITTED
            with calling(device.url, check, count=4) as callers:
                asked = len(site.server.requests)
                site.server.faults.extend([Fault(cut_after=piece)] * 20)
                site.server.sent_bytes = 0
                site.publish(two)
                site.want(two, 2)
                attempt = site.ended(2, within_s=120.0)
                assert attempt.outcome is Outcome.COMMITTED, attempt
                assert {one.version for one in callers.more(20)} == {"2.0.0"}
            assert callers.failures == []
            ranges = [
                one.range
                for one in site.server.requests[asked:]
                if one.path.endswith(".edgeml")
            ]
    assert len(ranges) == 21
    starts = [int(one.removeprefix("bytes=").rstrip("-")) for one in ranges[1:]]
    assert starts == sorted(set(starts)), "it began again"
    assert site.server.sent_bytes < len(two) * 1.25


@pytest.mark.long
def test_a_power_cut_during_the_trial(tmp_path: Path) -> None:
    """Killed while the candidate serves: after the start the old one answers first,
    and the trial goes on."""
    one, two = release(1), release(2)
    with fielded(tmp_path) as site:
        site.publish(one, two)
        site.want(one, 1)
        with site.agent() as device:
            assert site.ended(1).outcome is Outcome.COMMITTED
            site.want(two, 2, config={"trial_inferences": 200})
            site.until(lambda: site.runs(2), "second release on trial")
            device.process.kill()
            device.process.wait()
        with site.agent() as device, calling(device.url, check, count=4) as callers:
            assert site.ended(2).outcome is Outcome.COMMITTED
            assert {one.version for one in callers.more(20)} == {"2.0.0"}
        assert callers.failures == []
        by_the_old = [one for one in callers.answers if one.version == "1.0.0"]
        by_the_new = [one for one in callers.answers if one.version == "2.0.0"]
        assert max(one.asked_s for one in by_the_old) < min(
            one.answered_s for one in by_the_new
        ), "from the old one to the new one, once"
