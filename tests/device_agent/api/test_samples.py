"""What people send becomes samples: files, JSON, or one clear refusal."""

import base64
import gzip
import io
import struct
import wave
import zlib

import numpy as np
import pytest
from PIL import Image

from device_agent.api.samples import JSON_BYTES_MAX, kind_of
from device_agent.errors import RequestError

from .conftest import LEVELS, ROW, ROWS_MAX, linear, outputs, png, refusal


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

    @pytest.mark.parametrize("wrap", [lambda it: it, lambda it: {"instances": it}])
    def test_too_many_rows(self, ask, wrap):
        text = refusal(ask("linear", wrap([ROW] * (ROWS_MAX + 1))), 413)
        assert text == "9 rows; at most 8 in one request (max_rows)"

    def test_more_text_than_is_read(self, ask):
        body = b"[" + b"0," * (JSON_BYTES_MAX // 2) + b"0]"
        assert "bytes of JSON; at most" in refusal(ask("linear", body), 413)


def test_kinds() -> None:
    assert kind_of(b"RIFF\0\0\0\0WAVE", "") == "file"
    assert kind_of(b"RIFF\0\0\0\0AVI ", "audio/x") == "file"
    with pytest.raises(RequestError):
        kind_of(b"RIFF\0\0\0\0AVI ", "")
