"""How one model changes: swaps, both policies, trials."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bundles
import pytest
from repositories import House, linear, remembering, tell

from device_agent.config import ModelConfig
from device_agent.errors import RefusedError, UnavailableError, UnknownError

FRUGAL = ModelConfig(swap="memory")
POLICIES = pytest.mark.parametrize(
    "model", [ModelConfig(), FRUGAL], ids=["availability", "memory"]
)


def wrong(number: int, **changes: Any) -> bytes:
    """A bundle that the sandbox refuses."""
    return linear(number, golden=bundles.WEIGHT * (number + 1), **changes)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not true():
            await asyncio.sleep(0.005)


class Watch:
    """Asks without a pause while a change goes on, and keeps count."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.answers: list[int] = []
        self.refusals: list[UnavailableError] = []

    async def __aenter__(self) -> "Watch":
        self._task = asyncio.create_task(self._ask())
        await until(lambda: bool(self.answers))
        return self

    async def __aexit__(self, *_: object) -> None:
        seen = len(self.answers)
        await until(lambda: len(self.answers) > seen)
        self._task.cancel()

    async def _ask(self) -> None:
        while True:
            try:
                self.answers.append(await self._house.ask())
            except UnavailableError as error:
                self.refusals.append(error)
            await asyncio.sleep(0.001)


def test_nobody_is_turned_away(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        await house.repository.install(house.write(linear(1)))
        async with Watch(house) as watch:
            await house.repository.install(house.write(linear(2)))
        assert not watch.refusals
        assert watch.answers == sorted(watch.answers), "never back to the old one"
        assert set(watch.answers) == {1, 2}
        await until(lambda: house.lines() == [("linear", "2.0.0", "READY")])
        assert house.unpacked() == 1

    tell(tmp_path, story)


def test_the_old_one_is_drained(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        old = await house.repository.install(house.write(linear(1)))
        with old.held():
            await house.repository.install(house.write(linear(2)))
            await asyncio.sleep(0.05)
            assert old.state == "draining"
            assert ("linear", "1.0.0", "UNLOADING") in house.lines()
            assert old.loaded.session.predict(bundles.vectors(1)[0])
            assert await house.ask() == 2
        await until(lambda: house.unpacked() == 1)
        assert old.state == "closed"

    remembering(tmp_path, story)


def test_it_takes_longer_than_it_may(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def story(house: House) -> None:
        old = await house.repository.install(house.write(linear(1)))
        with old.held():
            await house.repository.install(house.write(linear(2)))
            await until(lambda: "still draining" in caplog.text)
            assert old.loaded.session.predict(bundles.vectors(1)[0])
            await house.repository.install(house.write(linear(3)))
            assert await house.ask() == 3
        await until(lambda: house.unpacked() == 1)

    remembering(tmp_path, story, drain_s=0.1)


@POLICIES
def test_what_is_refused_changes_nothing(tmp_path: Path, model: ModelConfig) -> None:
    async def story(house: House) -> None:
        await house.repository.install(house.write(linear(1)))
        for _ in range(3):
            await house.ask()
        async with Watch(house) as watch:
            with pytest.raises(RefusedError, match=r"^golden: "):
                await house.repository.install(house.write(wrong(2)))
        assert set(watch.answers) == {1}
        assert bool(watch.refusals) == (model.swap == "memory")
        assert all(one.retry_after_s == 1 for one in watch.refusals)
        assert house.lines() == [
            ("linear", "1.0.0", "READY"), ("linear", "2.0.0", "UNAVAILABLE"),
        ]  # fmt: skip
        assert house.reason("2.0.0").startswith("golden: ")
        assert house.repository.ready
        served = house.repository.find("linear")
        assert served.statistics.inferences >= 3 + len(watch.answers), "they go on"
        assert house.unpacked() == 1
        await house.repository.install(house.write(linear(2)))
        await until(lambda: house.lines() == [("linear", "2.0.0", "READY")])

    remembering(tmp_path, story, model=model)


class TestMemoryPolicy:
    def test_the_old_one_leaves_first(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            old = await house.repository.install(house.write(linear(1)))
            async with Watch(house) as watch:
                await house.repository.install(house.write(linear(2)))
            assert set(watch.answers) == {1, 2}
            assert watch.refusals
            assert {one.retry_after_s for one in watch.refusals} == {1}
            assert old.state == "closed"
            await until(lambda: house.unpacked() == 1)

        tell(tmp_path, story, model=FRUGAL)

    def test_meanwhile_it_says_so(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            await house.repository.install(house.write(linear(1)))
            change = asyncio.create_task(
                house.repository.install(house.write(linear(2)))
            )
            await until(lambda: not house.repository.served())
            assert house.lines() == [
                ("linear", "1.0.0", "UNLOADING"), ("linear", "2.0.0", "LOADING"),
            ]  # fmt: skip
            for version in (None, "1.0.0", "2.0.0"):
                with pytest.raises(UnavailableError, match="being loaded") as caught:
                    house.repository.find("linear", version)
                assert caught.value.retry_after_s == 1
            assert not house.repository.ready
            await change

        tell(tmp_path, story, model=FRUGAL)

    def test_a_glance_at_the_file_costs_nothing(self, tmp_path: Path) -> None:
        """What can be told without running it is told before anything leaves."""

        async def story(house: House) -> None:
            await house.repository.install(house.write(linear(1)))
            async with Watch(house) as watch:
                for raw in (b"?", linear(2, preprocess=({"warp": 1},))):
                    with pytest.raises(RefusedError):
                        await house.repository.install(house.write(raw))
            assert not watch.refusals

        remembering(tmp_path, story, model=FRUGAL)

    def test_the_old_one_cannot_come_back(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            old = await house.repository.install(house.write(linear(1)))
            (old.loaded.folder / "artifact" / "model.onnx").write_bytes(b"damaged")
            with pytest.raises(RefusedError, match=r"^golden: "):
                await house.repository.install(house.write(wrong(2)))
            assert house.unpacked() == 0
            with pytest.raises(UnavailableError, match="golden"):
                house.repository.route("linear")
            assert not house.repository.ready
            house.write(linear(2))
            await house.repository.load("linear")
            assert await house.ask() == 2

        tell(tmp_path, story, model=FRUGAL)

    def test_one_that_hangs_is_not_waited_for(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            old = await house.repository.install(house.write(linear(1)))
            with old.held():
                old.hung = 1  # as the lane says when a call does not come back
                await house.repository.install(house.write(linear(2)))
                assert await house.ask() == 2
                assert old.loaded.session.predict(bundles.vectors(1)[0])
            await until(lambda: house.unpacked() == 1)

        remembering(tmp_path, story, model=FRUGAL, drain_s=0.1)


def test_changes_come_one_after_another(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        paths = [house.write(linear(number), str(number)) for number in (1, 2, 3)]
        await asyncio.gather(*map(house.repository.install, paths))
        assert await house.ask() == 3
        assert len(house.repository.served()) == 3
        changes = [
            house.repository.install(house.write(linear(4), "1")),
            house.repository.unload("linear"),
            house.repository.install(house.write(linear(5), "2")),
        ]
        await asyncio.gather(*changes)
        assert {await house.ask()} <= {4, 5}
        await until(lambda: house.unpacked() == len(house.repository.served()))

    remembering(tmp_path, story)


class TestTrial:
    @POLICIES
    def test_commit(self, tmp_path: Path, model: ModelConfig) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            await repository.install(house.write(linear(2, release_counter=2), "a"))
            old = await repository.install(
                house.write(linear(1, release_counter=1), "b"), keep_previous=True
            )
            assert await house.ask() == 1, "on trial it is active, whatever it is"
            if model.swap == "availability":
                assert await house.ask(version="2.0.0") == 2
            assert house.unpacked() == 2
            await repository.commit("linear")
            await until(lambda: house.unpacked() == 1)
            assert repository.served() == (old,)
            for change in (repository.commit, repository.rollback):
                with pytest.raises(UnknownError, match="no version of linear is on tr"):
                    await change("linear")

        remembering(tmp_path, story, model=model)

    @POLICIES
    def test_rollback(self, tmp_path: Path, model: ModelConfig) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            path = house.write(linear(1))
            await repository.install(path)
            await repository.install(house.write(linear(2)), keep_previous=True)
            path.unlink()
            async with Watch(house) as watch:
                assert (await repository.rollback("linear")).version == "1.0.0"
            assert set(watch.answers) == {1, 2}
            assert not watch.refusals or model.swap == "memory"
            await until(lambda: house.lines() == [("linear", "1.0.0", "READY")])
            assert house.unpacked() == 1

        remembering(tmp_path, story, model=model)

    @POLICIES
    def test_a_second_trial(self, tmp_path: Path, model: ModelConfig) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            for number in (1, 2, 3):
                await repository.install(
                    house.write(linear(number), str(number)), keep_previous=True
                )
            assert await house.ask() == 3
            await until(lambda: house.unpacked() == 2)
            await repository.rollback("linear")
            assert await house.ask() == 1, "the last that was committed"

        remembering(tmp_path, story, model=model)

    @POLICIES
    def test_a_trial_that_is_refused(self, tmp_path: Path, model: ModelConfig) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            await repository.install(house.write(linear(1)))
            with pytest.raises(RefusedError):
                await repository.install(house.write(wrong(2)), keep_previous=True)
            assert await house.ask() == 1
            with pytest.raises(UnknownError):
                await repository.rollback("linear")
            await repository.install(house.write(linear(2)), keep_previous=True)
            with pytest.raises(RefusedError):
                await repository.install(house.write(wrong(3)), keep_previous=True)
            assert await house.ask() == 2
            await repository.rollback("linear")
            assert await house.ask() == 1

        remembering(tmp_path, story, model=model)

    def test_the_previous_one_cannot_be_opened(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            old = await repository.install(house.write(linear(1)))
            await repository.install(house.write(linear(2)), keep_previous=True)
            (old.loaded.folder / "artifact" / "model.onnx").write_bytes(b"damaged")
            with pytest.raises(RefusedError, match=r"^load: "):
                await repository.rollback("linear")
            assert await house.ask() == 2
            await repository.commit("linear")
            assert await house.ask() == 2

        remembering(tmp_path, story, model=FRUGAL)

    def test_corrected_while_it_is_on_trial(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            await repository.install(house.write(linear(1), "a"))
            await repository.install(house.write(linear(2), "b"), keep_previous=True)
            await repository.install(house.write(linear(3), "b"))
            assert await house.ask() == 3
            await repository.rollback("linear")
            assert await house.ask() == 1

        remembering(tmp_path, story)

    @POLICIES
    def test_an_unload_ends_it(self, tmp_path: Path, model: ModelConfig) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            await repository.install(house.write(linear(1), "a"))
            await repository.install(house.write(linear(2), "b"), keep_previous=True)
            await repository.unload("linear")
            assert house.unpacked() == 0
            with pytest.raises(UnknownError, match="on trial"):
                await repository.commit("linear")

        remembering(tmp_path, story, model=model)
