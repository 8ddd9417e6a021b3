"""Names, versions, the index, readiness, and who stands in for whom."""

import asyncio
import time
from functools import partial
from pathlib import Path
from typing import Any

import bundles
import pytest
from repositories import House, linear, remembering, tell

from device_agent.config import ModelConfig
from device_agent.errors import RefusedError, UnavailableError, UnknownError
from device_agent.serving.repository import Repository
from device_agent.serving.served import Served


def fails(served: Served) -> None:
    """Its breaker opens, as after so many failures in a row."""
    for _ in range(served.config.breaker_failures):
        served.breaker.failure(time.monotonic())


def test_one_model(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        repository = house.repository
        assert repository.ready and repository.index() == ()
        served = await repository.install(house.write(linear(1)))
        assert repository.route("linear") is served is repository.find("linear")
        assert repository.route("linear", "1.0.0") is served
        assert repository.served() == (served,)
        assert house.lines() == [("linear", "1.0.0", "READY")]
        assert await house.ask() == 1
        assert house.unpacked() == 1
        assert repository.watch(30.0) is None

    tell(tmp_path, story)


@pytest.mark.parametrize("ask", [Repository.route, Repository.find])
def test_who_is_not_there(tmp_path: Path, ask: Any) -> None:
    async def story(house: House) -> None:
        with pytest.raises(UnknownError, match="no model 'linear'; known: none"):
            ask(house.repository, "linear")
        await house.repository.install(house.write(linear(1)))
        with pytest.raises(UnknownError, match="no model 'other'; known: linear"):
            ask(house.repository, "other", "1.0.0")
        with pytest.raises(UnknownError, match=r"no version '2'; it has 1\.0\.0"):
            ask(house.repository, "linear", "2")
        for change in ("load", "unload", "commit", "rollback"):
            with pytest.raises(UnknownError):
                await getattr(house.repository, change)("other")

    remembering(tmp_path, story)


def test_models_are_spread_over_the_lanes(tmp_path: Path) -> None:
    async def story(house: House) -> None:
        for name in ("a", "b", "c"):
            await house.repository.install(house.write(linear(1, name=name), name))
        await house.repository.install(house.write(linear(2, name="a"), "a"))
        lanes = {one.name: one._lane for one in house.repository.served()}
        assert lanes["a"] is lanes["c"] is not lanes["b"]
        assert await house.ask("a") == 2
        assert await house.ask("b") == 1

    remembering(tmp_path, story, lanes=2)


class TestVersions:
    """Several files of one model are served together."""

    def test_the_newest_release_is_active(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            for number, counter in ((1, 5), (2, 7), (3, 6)):
                raw = linear(number, release_counter=counter)
                await house.repository.install(house.write(raw, f"v{number}"))
            assert [one[1] for one in house.lines()] == ["1.0.0", "2.0.0", "3.0.0"]
            assert await house.ask() == 2
            assert await house.ask(version="1.0.0") == 1
            assert await house.ask(version="3.0.0") == 3
            await house.repository.unload("linear")
            assert await house.repository.load("linear") is house.repository.find(
                "linear"
            )
            assert await house.ask() == 2
            assert len(house.repository.served()) == 3

        remembering(tmp_path, story)

    def test_of_equal_releases_the_last_given(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            for number in (2, 3, 1):
                await house.repository.install(house.write(linear(number), str(number)))
            assert await house.ask() == 1

        remembering(tmp_path, story)

    def test_the_same_version_from_another_file(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            await house.repository.install(house.write(linear(1), "a"))
            await house.repository.install(house.write(linear(2, version="1.0.0"), "b"))
            assert await house.ask() == 2
            assert len(house.repository.served()) == 1

        remembering(tmp_path, story)

    def test_another_version_in_the_same_file(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            await house.repository.install(house.write(linear(2, release_counter=9)))
            await house.repository.install(house.write(linear(1)))
            assert await house.ask() == 1, "what is in the file now"
            assert len(house.repository.served()) == 1

        remembering(tmp_path, story)


class TestLoad:
    def test_a_changed_file_is_a_swap(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            first = await house.repository.install(house.write(linear(1)))
            assert await house.repository.load("linear") is first, "nothing changed"
            house.write(linear(2))
            assert await house.repository.load("linear") is not first
            assert await house.ask() == 2

        remembering(tmp_path, story)

    def test_an_unchanged_file_whose_breaker_is_open(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            first = await house.repository.install(house.write(linear(1)))
            fails(first)
            assert await house.repository.load("linear") is not first
            assert await house.ask() == 1

        remembering(tmp_path, story)

    def test_the_file_holds_another_model(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            await house.repository.install(house.write(linear(1)))
            house.write(linear(2, name="other"))
            with pytest.raises(RefusedError, match=r"of model 'other', not 'linear'"):
                await house.repository.load("linear")
            assert await house.ask() == 1
            assert "'other'" in house.reason("1.0.0")
            assert house.repository.ready

        remembering(tmp_path, story)

    def test_after_an_unload(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            await house.repository.install(house.write(linear(1)))
            await house.repository.unload("linear")
            assert house.unpacked() == 0
            assert house.lines() == [("linear", "", "UNAVAILABLE")]
            assert not house.repository.ready
            for version in (None, "1.0.0"):
                with pytest.raises(UnavailableError, match="unloaded") as caught:
                    house.repository.route("linear", version)
                assert caught.value.retry_after_s is None
            await house.repository.unload("linear")
            await house.repository.load("linear")
            assert house.repository.ready
            assert await house.ask() == 1

        remembering(tmp_path, story)


class TestReady:
    def test_all_that_is_configured(self, tmp_path: Path) -> None:
        names = ("a", "b")
        paths = tuple(tmp_path / f"{name}.edgeml" for name in names)

        async def story(house: House) -> None:
            for name, path in zip(names, paths, strict=True):
                assert not house.repository.ready
                house.write(linear(1, name=f"model-{name}"), name)
                await house.repository.install(path)
            assert house.repository.ready

        remembering(tmp_path, story, bundles=paths)

    def test_a_bundle_that_cannot_be_read(self, tmp_path: Path) -> None:
        paths = (tmp_path / "good.edgeml", tmp_path / "bad.edgeml")

        async def story(house: House) -> None:
            repository = house.repository
            house.write(linear(1), "good")
            house.write(b"what is this?", "bad")
            await repository.install(paths[0])
            with pytest.raises(RefusedError, match=r"^bundle: "):
                await repository.install(paths[1])
            assert not repository.ready
            assert house.lines() == [
                ("bad", "", "UNAVAILABLE"), ("linear", "1.0.0", "READY"),
            ]  # fmt: skip
            assert house.reason("").startswith("bundle: ")
            with pytest.raises(UnavailableError, match="bundle: "):
                repository.route("bad")
            with pytest.raises(RefusedError):
                await repository.load("bad")
            house.write(linear(1, name="other"), "bad")
            await repository.load("bad")  # the file turns out to be of another name
            assert repository.ready
            assert [line[0] for line in house.lines()] == ["linear", "other"]

        remembering(tmp_path, story, bundles=paths)

    def test_a_bundle_that_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "linear.edgeml"

        async def story(house: House) -> None:
            house.write(linear(1, golden=bundles.WEIGHT * 2))
            with pytest.raises(RefusedError, match=r"^golden: "):
                await house.repository.install(path)
            assert not house.repository.ready
            assert house.lines() == [("linear", "1.0.0", "UNAVAILABLE")]
            with pytest.raises(UnavailableError, match="golden"):
                house.repository.find("linear")
            house.write(linear(1))
            await house.repository.load("linear")
            assert house.repository.ready
            assert house.lines() == [("linear", "1.0.0", "READY")]

        remembering(tmp_path, story, bundles=(path,))


class TestBreaker:
    """While it is open somebody else answers, if there is somebody."""

    def test_nobody_else(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            served = await house.repository.install(house.write(linear(1)))
            fails(served)
            for version in (None, "1.0.0"):
                with pytest.raises(
                    UnavailableError, match="failed too often"
                ) as caught:
                    house.repository.route("linear", version)
                assert caught.value.retry_after_s == 10
            assert served.statistics.refused["breaker"] == 2
            assert house.repository.find("linear") is served
            assert "breaker is open" in house.reason("1.0.0")

        remembering(tmp_path, story)

    def test_the_configured_fallback(self, tmp_path: Path) -> None:
        models = {"linear": ModelConfig(fallback="spare", breaker_open_s=0.1)}

        async def story(house: House) -> None:
            repository = house.repository
            served = await repository.install(house.write(linear(1)))
            fails(served)
            with pytest.raises(UnavailableError):  # it is not there
                repository.route("linear")
            spare = await repository.install(
                house.write(linear(2, name="spare"), "spare")
            )
            fails(served)
            served.breaker._clock = time.monotonic()
            assert repository.route("linear") is spare
            with pytest.raises(UnavailableError):
                repository.route("linear", "1.0.0")
            time.sleep(0.11)
            assert repository.route("linear") is served, "one is let through"
            assert repository.route("linear") is spare, "and no second"
            served.breaker.success()
            assert repository.route("linear") is served
            fails(served)
            fails(spare)
            with pytest.raises(UnavailableError):
                repository.route("linear")

        remembering(tmp_path, story, models=models)

    def test_the_previous_version_during_a_trial(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            await repository.install(house.write(linear(1), "a"))
            trial = await repository.install(
                house.write(linear(2), "b"), keep_previous=True
            )
            fails(trial)
            assert await house.ask() == 1
            with pytest.raises(UnavailableError):
                repository.route("linear", "2.0.0")
            await repository.commit("linear")
            with pytest.raises(UnavailableError):
                repository.route("linear")

        remembering(tmp_path, story)


class TestEnd:
    def test_a_caller_who_goes_away(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            caller = asyncio.create_task(
                house.repository.install(house.write(linear(1)))
            )
            await asyncio.sleep(0.01)
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            while not house.repository.served():
                await asyncio.sleep(0.01)
            assert await house.ask() == 1

        tell(tmp_path, story)

    def test_close_drains(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            repository = house.repository
            served = await repository.install(house.write(linear(1)))
            answers = [
                served.infer({"x": bundles.vectors(1)[0]["x"]}) for _ in range(9)
            ]
            asked = asyncio.gather(*answers)
            await asyncio.sleep(0)
            await repository.close()
            assert len(await asked) == 9
            assert house.unpacked() == 0
            assert not repository.ready
            with pytest.raises(UnavailableError, match="stopping"):
                repository.route("linear")
            for change in (
                partial(repository.install, tmp_path / "linear.edgeml"),
                partial(repository.load, "linear"),
            ):
                with pytest.raises(UnavailableError, match="stopping"):
                    await change()

        remembering(tmp_path, story, model=ModelConfig(inline_us=0.0))

    def test_close_does_not_wait_for_ever(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            served = await house.repository.install(house.write(linear(1)))
            with served.held():
                await house.repository.close()
                assert served.loaded.session.predict(bundles.vectors(1)[0])
            while house.unpacked():  # in time, it is
                await asyncio.sleep(0.01)

        remembering(tmp_path, story, drain_s=0.1)

    def test_close_during_a_load(self, tmp_path: Path) -> None:
        async def story(house: House) -> None:
            await house.repository.install(house.write(linear(1)))
            loading = asyncio.create_task(
                house.repository.install(house.write(linear(2)))
            )
            await asyncio.sleep(0.05)
            await house.repository.close()
            with pytest.raises(UnavailableError, match="stopping"):
                await loading

        tell(tmp_path, story)

    def test_what_a_dead_agent_left_is_removed(self, tmp_path: Path) -> None:
        left = tmp_path / "state" / "run" / "1234-dead" / "bundle"
        left.mkdir(parents=True)

        async def story(house: House) -> None:
            assert house.unpacked() == 0

        tell(tmp_path, story)
