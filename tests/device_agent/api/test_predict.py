"""predict: what people send becomes what the model takes, or one clear refusal."""

import asyncio
import base64
import gzip
import io
import json
import struct
import wave
import zlib
from pathlib import Path

import bundles
import httpx
import numpy as np
import pytest
import sites
import zoo
from PIL import Image

from device_agent.api import predict
from device_agent.api.samples import JSON_BYTES_MAX, kind_of
from device_agent.api.table import CSV_BYTES_MAX, array_of, read_csv
from device_agent.config import LimitsConfig, ModelConfig
from device_agent.errors import OverloadError, RequestError, TooLargeError

EYE = ({"decode_image": "L"}, {"resize": [2, 2]}, {"reshape": [4]},
       {"scale": 1 / 255})  # fmt: skip
EAR = ({"decode_wav": 8000}, {"fit_length": 4})
LEVELS = np.array([[0, 51], [102, 255]], np.uint8)
ROW = [1.0, -2.0, 0.5, 3.0]
ROWS_MAX = 8


def png(levels: np.ndarray = LEVELS, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(levels).save(file, kind)
    return file.getvalue()


def wav(samples: list[float]) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes((np.array(samples) * 32768).astype("<i2").tobytes())
    return file.getvalue()


def huge_png(side: int) -> bytes:
    """A picture of side x side pixels, in its header at least."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(side + 1))
    chunks = [
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one))
        for one in (head, data, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def linear(row: list[float]) -> list[float]:
    x = np.array([row], np.float32)
    return np.maximum(x @ bundles.WEIGHT, 0)[0].tolist()


def write(folder: Path, name: str, **changes: object) -> Path:
    path = folder / f"{name}.edgeml"
    weight = changes.pop("weight", bundles.WEIGHT)
    path.write_bytes(bundles.bundle(weight, name=name, **changes))
    return path


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("predict")
    top = ({"top_k": 2},)
    paths = [
        *zoo.write(folder, "linear", "pair", "fixed", "identity_bool"),
        write(folder, "eye", preprocess=EYE, postprocess=top),
        write(folder, "ear", preprocess=EAR),
        write(folder, "scaled", preprocess=({"scale": 2.0},), postprocess=top),
        write(folder, "steep", weight=np.full((4, 3), 1e37, np.float32)),
        write(folder, "wrong", postprocess=({"select_output": "nothing"},)),
    ]
    with sites.site(folder, paths, model=ModelConfig(max_rows=ROWS_MAX)) as made:
        yield made


@pytest.fixture
def ask(here):
    def asked(name: str, body: object, kind: str = "", **options) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"content-type": kind} if kind else {}
        return here.ask(
            "POST", f"/v1/models/{name}/predict", content=content,
            headers=headers | options.pop("headers", {}), **options,
        )  # fmt: skip

    yield asked
    assert here.budget.used_bytes == 0


def outputs(answer: httpx.Response) -> list[float]:
    assert answer.status_code == 200, answer.text
    return answer.json()["outputs"]["y"][0]


def refusal(answer: httpx.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert answer.json().keys() == {"error"}
    return answer.json()["error"]


class TestImages:
    @pytest.fixture
    def seen(self):
        scores = linear((LEVELS.reshape(-1) / 255).tolist())
        best = sorted(range(3), key=lambda at: -scores[at])[:2]
        return [("abc"[at], at, pytest.approx(scores[at], 1e-6)) for at in best]

    @pytest.mark.parametrize(
        "kind",
        ["", "image/png", "application/octet-stream",
         "application/x-www-form-urlencoded"],
    )  # fmt: skip
    def test_a_file_however_it_is_called(self, ask, seen, kind):
        answer = ask("eye", png(), kind).json()
        found = [(one["label"], one["index"], one["score"])
                 for one in answer["predictions"]]  # fmt: skip
        assert found == seen
        assert answer["model_name"] == "eye"
        assert answer["model_version"] == "1.0.0"
        assert answer["timing_ms"].keys() == {"preprocess", "infer", "postprocess"}

    @pytest.mark.parametrize("kind", ["BMP", "WEBP", "PPM"])
    def test_other_lossless_kinds(self, ask, kind):
        options = {"lossless": True} if kind == "WEBP" else {}
        file = io.BytesIO()
        Image.fromarray(LEVELS).convert("RGB").save(file, kind, **options)
        found = ask("eye", file.getvalue()).json()["predictions"]
        assert found == ask("eye", png()).json()["predictions"]

    def test_jpeg(self, ask):
        flat = np.full((16, 16), 200, np.uint8)
        found = ask("eye", png(flat, "JPEG")).json()["predictions"]
        assert found == ask("eye", png(flat)).json()["predictions"]

    def test_a_form(self, here, ask):
        answer = here.ask(
            "POST", "/v1/models/eye/predict", files={"file": ("a.png", png())}
        )
        assert answer.json()["predictions"] == ask("eye", png()).json()["predictions"]

    def test_put(self, here, ask):
        answer = here.ask("PUT", "/v1/models/eye/predict", content=png())
        assert answer.json()["predictions"] == ask("eye", png()).json()["predictions"]

    @pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"inputs": {"x": it}}])
    def test_levels_as_json(self, ask, wrap):
        found = ask("eye", wrap(LEVELS.tolist())).json()["predictions"]
        assert found == ask("eye", png()).json()["predictions"]

    def test_base64(self, ask):
        file = {"b64": base64.b64encode(png()).decode()}
        wanted = ask("eye", png()).json()["predictions"]
        assert ask("eye", file).json()["predictions"] == wanted
        found = ask("eye", {"instances": [file, {"x": file}]}).json()["predictions"]
        assert found == [{"predictions": wanted}] * 2

    def test_levels_as_csv_are_one_picture(self, ask):
        found = ask("eye", b"0,51\n102,255\n", "text/csv")
        assert "expected image bytes or uint8" in refusal(found)

    def test_gzip(self, ask):
        packed = ask("eye", gzip.compress(png()), headers={"content-encoding": "gzip"})
        assert packed.json()["predictions"] == ask("eye", png()).json()["predictions"]

    @pytest.mark.parametrize("kind", ["", "image/png"])
    def test_a_damaged_file(self, ask, kind):
        noise = np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8)
        assert "cannot be opened" in refusal(ask("eye", png()[:30], kind))
        assert "cannot be decoded" in refusal(ask("eye", png(noise)[:2000], kind))

    def test_no_image_at_all(self, ask):
        assert "expected an image" in refusal(ask("eye", b"hello", "image/png"))
        assert "expected an image" in refusal(ask("eye", wav([0.5])))

    def test_more_pixels_than_are_decoded(self, ask):
        text = refusal(ask("eye", huge_png(5000)), 413)
        assert text == "the image has 25000000 pixels; at most 16000000 are decoded"

    def test_more_pixels_than_pillow_opens(self, ask):
        assert "decompression bomb" in refusal(ask("eye", huge_png(30_000)), 413)

    def test_large_ones_are_decoded_alone(self, ask):
        photo = np.zeros((1500, 1500), np.uint8)
        assert ask("eye", png(photo)).status_code == 200


class TestSounds:
    def test_a_wav_file(self, ask):
        samples = [0.5, -0.25, 0.125, 0.75]
        found = outputs(ask("ear", wav(samples)))
        assert found == pytest.approx(linear(samples), 1e-6)

    def test_as_json(self, ask):
        assert outputs(ask("ear", [0.5, -0.25, 0.125, 0.75])) == outputs(
            ask("ear", wav([0.5, -0.25, 0.125, 0.75]), "audio/wav")
        )

    def test_an_image(self, ask):
        assert "expected a wav file" in refusal(ask("ear", png()))


class TestJson:
    def test_a_sample(self, ask):
        assert outputs(ask("linear", ROW)) == pytest.approx(linear(ROW), 1e-5)

    def test_a_sample_with_its_batch_dimension(self, ask):
        assert outputs(ask("linear", [ROW])) == outputs(ask("linear", ROW))

    def test_a_batch_gives_rows(self, ask):
        rows = ask("linear", [ROW, [4.0, 3.0, 2.0, 1.0]]).json()["rows"]
        assert rows[0]["outputs"]["y"][0] == pytest.approx(linear(ROW), 1e-5)
        assert rows[1]["outputs"]["y"][0] == pytest.approx(linear([4, 3, 2, 1]), 1e-5)

    def test_steps_come_before(self, ask):
        found = ask("scaled", ROW).json()["predictions"]
        wanted = sorted(linear([2 * one for one in ROW]), reverse=True)[:2]
        assert [one["score"] for one in found] == pytest.approx(wanted, 1e-5)

    def test_instances_give_predictions(self, ask):
        found = ask("scaled", {"instances": [ROW, {"x": ROW}]}).json()["predictions"]
        assert found == [{"predictions": ask("scaled", ROW).json()["predictions"]}] * 2

    def test_many_instances_are_one_run(self, here, ask):
        before = here.repository.find("linear").statistics.executions
        found = ask("linear", {"instances": [ROW] * ROWS_MAX}).json()["predictions"]
        assert len(found) == ROWS_MAX
        assert here.repository.find("linear").statistics.executions == before + 1

    def test_several_inputs(self, ask):
        wanted = {"doubled": [[2, 4, 6]], "negated": [[-1, -2]]}
        one = {"a": [1, 2, 3], "b": [1, 2]}
        assert ask("pair", {"inputs": one}).json()["outputs"] == wanted
        found = ask("pair", {"instances": [one, one]}).json()["predictions"]
        assert found == [{"outputs": wanted}] * 2

    def test_a_batch_of_several_inputs(self, ask):
        both = {"a": [[1, 2, 3], [4, 5, 6]], "b": [[1, 2], [3, 4]]}
        rows = ask("pair", {"inputs": both}).json()["rows"]
        assert rows[1] == {"outputs": {"doubled": [[8, 10, 12]], "negated": [[-3, -4]]}}

    def test_a_model_without_a_variable_batch(self, ask):
        image = np.ones((3, 8, 8))
        assert ask("fixed", image.tolist()).json()["outputs"] == {"mean": [[1, 1, 1]]}
        two = ask("fixed", {"instances": [image.tolist(), (2 * image).tolist()]})
        assert two.json()["predictions"][1] == {"outputs": {"mean": [[2, 2, 2]]}}

    def test_rows_that_do_not_fit_together(self, ask):
        body = {"inputs": {"a": [[1, 2, 3], [4, 5, 6]], "b": [1, 2]}}
        assert "expected as many for each" in refusal(ask("pair", body))

    def test_a_file_where_numbers_are_expected(self, ask):
        file = {"b64": base64.b64encode(png()).decode()}
        assert "no files" in refusal(ask("pair", {"inputs": {"a": [1], "b": file}}))

    def test_bool(self, ask):
        values = [True, False, True, True]
        assert outputs(ask("identity_bool", values)) == values
        assert "expected bool" in refusal(ask("identity_bool", [1, 0, 1, 1]))

    def test_bytes_that_look_like_json(self, ask):
        assert outputs(ask("linear", b"\n  [1, -2, 0.5, 3]")) == outputs(
            ask("linear", ROW, "application/json; charset=utf-8")
        )

    @pytest.mark.parametrize(
        ("name", "body", "text"),
        [
            ("linear", [1, 2, 3], "expected shape [-1, 4] (-1: any), found [1, 3]"),
            ("linear", [[1, 2, 3, 4], [1]], "the lists of one level are not equally"),
            ("linear", [], "an empty list"),
            ("linear", [[]], "an empty list"),
            ("linear", ["1", 2, 3, 4], "expected numbers, found '1'"),
            ("linear", [None, 2, 3, 4], "expected numbers, found None"),
            ("linear", ["a" * 100_000] + [1] * 100_000, "expected numbers"),
            ("linear", [1e300, 0, 0, 0], "values that it cannot hold"),
            ("linear", {"data": ROW}, "found an object with ['data']"),
            ("linear", {"inputs": ROW}, "requests of the inference protocol go to"),
            ("linear", {"inputs": {"z": ROW}}, "expected the inputs x; found 'z'"),
            ("linear", {"instances": ROW[0]}, "expected a list of samples, found 1.0"),
            ("linear", {"instances": []}, "expected a list of samples"),
            ("linear", {"b64": "!"}, "b64 is not base64"),
            ("linear", {"b64": "AAAA"}, "linear takes numbers and no files"),
            ("pair", [1, 2, 3], "expected the inputs a, b; found 'a'"),
            ("eye", [[300, 1], [1, 1]], "expected image bytes or uint8"),
            ("linear", b"[1, 2", "the body is not JSON"),
            ("linear", b"[NaN, 1, 2, 3]", "NaN has no place in JSON"),
            ("linear", b"[" * 100_000, "the body is not JSON"),
        ],
    )
    def test_what_is_refused(self, ask, name, body, text):
        assert text in refusal(ask(name, body))

    def test_a_bare_word(self, ask):
        found = ask("linear", "text", "application/json")
        assert "expected numbers, found 'text'" in refusal(found)

    def test_whole_numbers_beyond_64_bits(self):
        assert array_of([2**70, 1], "it").tolist() == [2.0**70, 1.0]
        with pytest.raises(RequestError, match="beyond 64 bits"):
            array_of([10**400], "it")

    def test_a_list_deeper_than_any_array(self):
        value: object = 1
        for _ in range(40):
            value = [value]
        with pytest.raises(RequestError, match="over 16 deep"):
            array_of(value, "it")

    @pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"instances": it}])
    def test_too_many_rows(self, ask, wrap):
        text = refusal(ask("linear", wrap([ROW] * (ROWS_MAX + 1))), 413)
        assert text == "9 rows; at most 8 in one request (max_rows)"

    def test_more_text_than_is_read(self, ask):
        body = b"[" + b"0," * (JSON_BYTES_MAX // 2) + b"0]"
        assert "bytes of JSON; at most" in refusal(ask("linear", body), 413)


class TestCsv:
    def test_a_line_is_a_sample(self, ask):
        found = ask("linear", b"1,-2,0.5,3\n", "text/csv")
        assert outputs(found) == outputs(ask("linear", ROW))

    def test_lines_are_rows(self, ask):
        found = ask("linear", b"a,b,c,d\n1,-2,0.5,3\r\n\r\n4,3,2,1").json()["rows"]
        assert found == ask("linear", [ROW, [4, 3, 2, 1]]).json()["rows"]

    def test_steps_come_before(self, ask):
        found = ask("scaled", b"1,-2,0.5,3\n1,-2,0.5,3\n").json()["rows"]
        assert found == [{"predictions": ask("scaled", ROW).json()["predictions"]}] * 2

    def test_a_line_as_long_as_the_sample(self, ask):
        line = ",".join(["1"] * 192).encode()
        assert ask("fixed", line).json()["outputs"] == {"mean": [[1, 1, 1]]}

    @pytest.mark.parametrize(
        "text",
        ["1;-2;0,5;3", "1\t-2\t0.5\t3", "\ufeff1,-2,.5,3", '"1","-2","0.5","3"',
         " 1, -2, 5e-1, 3 "],
    )  # fmt: skip
    def test_dialects(self, text):
        assert read_csv(text.encode(), 9).tolist() == [ROW]

    def test_whole_numbers_stay_whole(self):
        assert read_csv(b"1,2\n3,-9007199254740991\n", 9).dtype == np.int64
        assert read_csv(b"1,18446744073709551615\n", 9).dtype == np.float64
        assert read_csv(b"1,2.0\n", 9).dtype == np.float64

    @pytest.mark.parametrize(
        ("body", "text"),
        [
            (b"1,2,3,4\n1,2,3", "line 2 has 3 columns; expected 4"),
            (b"1,2,3,4\n1,2,x,4", "line 2, column 3: expected a number, found 'x'"),
            (b"a,b\n", "no line of numbers"),
            (b"\n\n", "no line of numbers"),
            (b"1,\xff", "not UTF-8"),
            (b'1,"' + b"2" * 200_000, "is not CSV"),
        ],
    )
    def test_what_is_refused(self, body, text):
        with pytest.raises(RequestError, match=text):
            read_csv(body, 9)

    def test_too_many_lines(self, ask):
        body = b"1,2,3,4\n" * (ROWS_MAX + 1)
        assert "more than 8 lines of CSV" in refusal(ask("linear", body), 413)

    def test_more_text_than_is_read(self):
        with pytest.raises(TooLargeError, match="bytes of CSV; at most"):
            read_csv(b"1," * CSV_BYTES_MAX, 9)

    def test_several_inputs(self, ask):
        assert "CSV is for models with one input" in refusal(ask("pair", b"1,2,3"))

    def test_nan(self, ask):
        assert "NaN or infinite" in refusal(ask("linear", b"nan,1,2,3", "text/csv"))


class TestForms:
    def test_an_input_a_part(self, here):
        fields = {"a": (None, b"[1,2,3]"), "b": (None, b"[1, 2]", "application/json")}
        answer = here.ask("POST", "/v1/models/pair/predict", files=fields)
        assert answer.json()["outputs"]["negated"] == [[-1, -2]]

    def test_one_part_is_a_body_of_its_own(self, here, ask):
        fields = {"rows": ("rows.csv", b"1,-2,0.5,3\n4,3,2,1\n", "text/csv")}
        answer = here.ask("POST", "/v1/models/linear/predict", files=fields)
        assert (
            answer.json()["rows"] == ask("linear", [ROW, [4, 3, 2, 1]]).json()["rows"]
        )

    @pytest.mark.parametrize(
        ("fields", "text"),
        [
            ({"a": "[1,2,3]", "q": "[1,2]"}, "would be input 'a' a second time"),
            ({"a": "[1,2,3]", "b": "x"}, "not JSON"),
            ({f"p{at}": "1" for at in range(20)}, "over 16 parts"),
        ],
    )
    def test_what_is_refused(self, here, fields, text):
        files = {name: (None, value) for name, value in fields.items()}
        answer = here.ask("POST", "/v1/models/pair/predict", files=files)
        assert text in refusal(answer)

    @pytest.mark.parametrize(
        ("kind", "body", "text"),
        [
            ("multipart/form-data", b"", "without a boundary"),
            ("multipart/form-data; boundary=x", b"", "cut off or empty"),
            ("multipart/form-data; boundary=x", b"nothing like it", "damaged"),
            (
                "multipart/form-data; boundary=x",
                b'--x\r\nContent-Disposition: form-data; name="f"\r\n\r\n[1,2',
                "cut off",
            ),
            (
                "multipart/form-data; boundary=x",
                b"--x\r\nContent-Type: multipart/form-data; boundary=x\r\n\r\n[1]\r\n"
                b"--x--\r\n",
                "found [1, 1]",
            ),
        ],
    )
    def test_damaged_ones(self, ask, kind, body, text):
        assert text in refusal(ask("linear", body, kind))


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

    def test_kinds(self):
        assert kind_of(b"RIFF\0\0\0\0WAVE", "") == "file"
        assert kind_of(b"RIFF\0\0\0\0AVI ", "audio/x") == "file"
        with pytest.raises(RequestError):
            kind_of(b"RIFF\0\0\0\0AVI ", "")


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
            asked = predict.Predict(moving.repository)
            with asked._alone:
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
