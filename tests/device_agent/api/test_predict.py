"""predict: one answer for all samples, who waits, and swaps meanwhile."""

import asyncio
import gzip
import json
from pathlib import Path

import bundles
import numpy as np
import pytest
import sites
import zoo

from device_agent.api import predict
from device_agent.config import LimitsConfig
from device_agent.errors import OverloadError

from .conftest import ROW, png, refusal


class TestRefusals:
    def test_a_file_for_a_model_of_numbers(self, ask):
        text = refusal(ask("linear", png()))
        assert text == "linear takes numbers and no files; send CSV or JSON for 'x'"

    def test_nothing(self, ask):
        assert "the body is empty" in refusal(ask("linear", b""))

    def test_unknown_bytes(self, ask):
        assert "found bytes that begin b'GIF89a" in refusal(ask("eye", b"GIF89a\0\1\2"))

    def test_unknown_model(self, ask):
        assert "there is no model 'none'" in refusal(ask("none", ROW), 404)

    def test_unknown_version(self, here):
        path = "/v1/models/linear/versions/9/predict"
        assert "9" in refusal(here.ask("POST", path, json=ROW), 404)

    def test_nan_in_an_output(self, ask):
        assert "infinite" in refusal(ask("steep", [1e3] * 4), 422)

    def test_a_bundle_whose_steps_do_not_fit(self, ask):
        assert "select_output" in refusal(ask("wrong", ROW), 500)

    def test_a_body_over_the_limit(self, tmp_path):
        limits = LimitsConfig(body_bytes=1000, buffered_bytes=1500)
        paths = zoo.write(tmp_path, "linear")
        with sites.site(tmp_path, paths, limits=limits) as small:
            path = "/v1/models/linear/predict"
            said = small.ask("POST", path, content=b"1" * 1001)

            async def unsaid():
                for _ in range(2000):
                    yield b"1"

            unannounced = small.ask("POST", path, content=unsaid())
            bomb = small.ask(
                "POST", path, content=gzip.compress(bytes(10_000_000))[:900],
                headers={"content-encoding": "gzip"},
            )  # fmt: skip
            for answer in (said, unannounced, bomb):
                assert "more than the 1000 bytes" in refusal(answer, 413)
            assert small.budget.used_bytes == 0
            small.budget.take(1490)
            full = small.ask("POST", path, json=ROW)
            assert "buffered_bytes" in refusal(full, 429)
            assert int(full.headers["retry-after"]) >= 1


def test_more_numbers_than_are_written(here, ask, monkeypatch):
    monkeypatch.setattr(predict, "VALUES_MAX", 5)
    text = refusal(ask("linear", [ROW, ROW]), 422)
    assert "linear gives 6 numbers; at most 5 are written here" in text
    assert ask("scaled", {"instances": [ROW, ROW]}).status_code == 200


class TestTurns:
    def test_few_at_once_few_wait_the_rest_is_refused(self):
        async def story() -> tuple[int, int, int]:
            turns = predict.Turns(2, 3)
            gate = asyncio.Event()
            inside = most = refused = 0

            async def one() -> None:
                nonlocal inside, most, refused
                try:
                    async with turns.turn():
                        inside += 1
                        most = max(most, inside)
                        await gate.wait()
                        inside -= 1
                except OverloadError:
                    refused += 1

            tasks = [asyncio.create_task(one()) for _ in range(9)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            gate.set()
            await asyncio.gather(*tasks)
            async with turns.turn():
                pass
            return most, refused, inside

        assert asyncio.run(story()) == (2, 4, 0)

    def test_a_crowd_is_answered_or_refused(self, here):
        async def story() -> list[int]:
            one = [
                here.asked("POST", "/v1/models/eye/predict", content=png())
                for _ in range(60)
            ]
            return [answer.status_code for answer in await asyncio.gather(*one)]

        found = here.run(story())
        assert set(found) == {200, 429}
        assert found.count(200) >= predict.DECODINGS + predict.DECODINGS_WAITING
        assert here.budget.used_bytes == 0


class TestSwaps:
    LARGE = json.dumps(ROW).encode() + b" " * predict.LARGE_BYTES
    """A body that waits for its turn to be decoded."""

    @staticmethod
    async def _swap(moving, path: Path, raw: bytes) -> None:
        path.write_bytes(raw)
        before = moving.repository.find("linear")
        load = asyncio.create_task(moving.repository.load("linear"))
        while moving.repository.find("linear") is before:
            await asyncio.sleep(0.01)
        await asyncio.wait([load], timeout=0.1)

    def test_a_sample_is_decoded_again_for_the_successor(self, tmp_path):
        (path,) = zoo.write(tmp_path, "linear")

        async def story(moving) -> dict:
            asked = predict.Predict(moving.repository, 1 << 24)
            with asked._room._alone:
                task = asyncio.create_task(asked(self.LARGE, "", "linear", None))
                await asyncio.sleep(0.05)
                await self._swap(moving, path, zoo.linear2())
            return json.loads(await task)

        with sites.site(tmp_path, [path]) as moving:
            answer = moving.run(story(moving))
        assert answer["model_version"] == "2.0.0"
        wanted = np.maximum(np.array(ROW, np.float32) @ -bundles.WEIGHT, 0)
        assert answer["outputs"]["y"][0] == pytest.approx(wanted, 1e-5)

    def test_a_version_that_leaves_between_samples_is_left(self, tmp_path, monkeypatch):
        (path,) = zoo.write(tmp_path, "linear")
        ask = predict._ask
        asked = []

        async def swapped_first(served, decoded):
            asked.append(served.version)
            if len(asked) == 1:
                await self._swap(moving, path, zoo.linear2())
            return await ask(served, decoded)

        monkeypatch.setattr(predict, "_ask", swapped_first)
        with sites.site(tmp_path, [path]) as moving:
            answer = moving.ask("POST", "/v1/models/linear/predict", json=ROW)
        assert answer.json()["model_version"] == "2.0.0"
        assert asked == ["1.0.0", "2.0.0"]

    def test_a_model_that_never_rests(self, tmp_path, monkeypatch):
        (path,) = zoo.write(tmp_path, "linear")

        async def never(served, decoded):
            return None

        monkeypatch.setattr(predict, "_ask", never)
        with sites.site(tmp_path, [path]) as moving:
            answer = moving.ask("POST", "/v1/models/linear/predict", json=ROW)
        assert "swapped again and again" in refusal(answer, 503)
        assert answer.headers["retry-after"] == "1"

    def test_nothing_is_lost_while_a_model_is_swapped(self, tmp_path):
        one, two = zoo.write(tmp_path, "linear", "linear2")
        with sites.site(tmp_path, [one]) as moving:
            answers = moving.run(self._storm(moving, one, two))
        assert {answer.status_code for answer in answers} == {200}
        versions = set()
        for answer in answers:
            found = answer.json()
            versions.add(found["model_version"])
            sign = 1 if found["model_version"] == "1.0.0" else -1
            x = np.array([ROW], np.float32)
            for row in found["rows"]:
                wanted = np.maximum(x @ bundles.WEIGHT * sign, 0)[0]
                assert row["outputs"]["y"][0] == pytest.approx(wanted, 1e-5)
        assert versions == {"1.0.0", "2.0.0"}

    async def _storm(self, moving, one: Path, two: Path):
        done = False
        answers = []

        async def caller() -> None:
            while not done:
                path = "/v1/models/linear/predict"
                answers.append(await moving.asked("POST", path, json=[ROW] * 3))

        callers = [asyncio.create_task(caller()) for _ in range(4)]
        bodies = {1: one.read_bytes(), 2: two.read_bytes()}
        for number in (2, 1, 2, 1, 2, 1):
            one.write_bytes(bodies[number])
            await moving.repository.load("linear")
        done = True
        await asyncio.gather(*callers)
        return answers


def test_the_answer_is_written_for_a_terminal(ask):
    text = ask("eye", png()).text
    assert text.endswith("}\n")
    lines = text.splitlines()
    assert lines[0] == "{"
    assert lines[1] == '  "model_name": "eye",'
    assert lines[4].startswith('    {"label": ')
