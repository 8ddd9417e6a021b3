"""Compressed requests and answers."""

import gzip
import json
import zlib

import numpy as np
import pytest

from .protocol import HEADER, answered, binary, raw

PACK = {"gzip": gzip.compress, "deflate": zlib.compress}


@pytest.fixture(autouse=True)
def _compression(request, infer, model, ours):
    if ours:
        return
    case = getattr(request.node, "callspec", None)
    encoding = case.params.get("encoding", "gzip") if case else "gzip"
    body = PACK[encoding](json.dumps(model.body()).encode())
    if infer(body, {"Content-Encoding": encoding}).status != 200:
        pytest.skip(f"the server takes no {encoding} requests")


@pytest.fixture
def large(model, identity, ours):
    """A model, and a request whose answer is worth compressing."""
    if not ours:
        return model, model.body(id="large")
    found = identity("FP64")
    rows = np.random.default_rng(0).standard_normal((128, 4))
    return found, found.body({found.inputs[0].name: rows})


@pytest.fixture
def ask(server, large):
    """Ask for the large answer."""

    def post(accepted, **more):
        asked, body = large
        headers = {"Accept-Encoding": accepted}
        return server.post(f"{asked.path}/infer", {**body, **more}, headers)

    return post


def encoded(body):
    return json.dumps(body).encode()


@pytest.mark.parametrize("encoding", PACK)
def test_a_compressed_request(model, infer, encoding):
    plain = answered(infer(model.body()))
    body = PACK[encoding](encoded(model.body()))
    got = answered(infer(body, {"Content-Encoding": encoding}))
    for name, array in plain.outputs.items():
        np.testing.assert_array_equal(got.outputs[name], array)


@pytest.mark.extension("binary_tensor_data")
@pytest.mark.parametrize("encoding", PACK)
def test_the_header_counts_uncompressed_bytes(server, model, encoding):
    request = binary(model, model.samples(), parameters={"binary_data_output": True})
    body = PACK[encoding](request.head + request.tail)
    headers = {HEADER: str(len(request.head)), "Content-Encoding": encoding}
    got = answered(server.post(f"{model.path}/infer", body, headers))
    assert len(got.binary_outputs) == len(model.outputs)


@pytest.mark.extension("binary_tensor_data")
@pytest.mark.parametrize("encoding", PACK)
def test_a_compressed_raw_body(server, identity, encoding):
    model = identity("FP32")
    array = np.array([[1, 2, 3, 4]], np.float32)
    headers = {HEADER: "0", "Content-Encoding": encoding}
    body = PACK[encoding](raw(array))
    got = answered(server.post(f"{model.path}/infer", body, headers))
    np.testing.assert_array_equal(got.outputs[model.outputs[0].name], array)


@pytest.mark.parametrize("encoding", PACK)
def test_a_compressed_answer(ask, ours, encoding):
    plain, answer = ask(None), ask(encoding)
    assert answered(answer).document == answered(plain).document
    if ours:
        assert answer.headers["content-encoding"] == encoding
        assert int(answer.headers["content-length"]) == len(answer.body)
        assert len(answer.body) < len(plain.body)


@pytest.mark.extension("binary_tensor_data")
@pytest.mark.parametrize("encoding", PACK)
def test_a_compressed_binary_answer(ask, ours, encoding):
    more = {"parameters": {"binary_data_output": True}}
    plain, answer = ask(None, **more), ask(encoding, **more)
    assert answered(answer).binary_outputs
    assert answer.decoded == plain.body
    if ours:
        assert answer.headers["content-encoding"] == encoding


@pytest.mark.parametrize("encoding", PACK)
def test_a_small_answer_may_stay_plain(model, infer, encoding):
    answered(infer(model.body(), {"Accept-Encoding": encoding}))


@pytest.mark.parametrize("encoding", PACK)
@pytest.mark.parametrize("accepted", PACK)
def test_both_ways(model, infer, encoding, accepted):
    headers = {"Content-Encoding": encoding, "Accept-Encoding": accepted}
    answered(infer(PACK[encoding](encoded(model.body())), headers))


@pytest.mark.parametrize(
    "accepted",
    [None, "", "identity", "br", "gzip;q=0", "gzip;q=0.0, deflate;q=0", "*;q=0",
     "identity, gzip;q=0", "nonsense;;;q=,"],
)  # fmt: skip
def test_an_answer_that_must_not_be_compressed(ask, ours, accepted):
    answer = ask(accepted)
    assert answer.status in (200, 406)
    if ours:
        assert answer.status == 200 and "content-encoding" not in answer.headers
    elif accepted is None:
        assert answer.headers.get("content-encoding", "identity") == "identity"


@pytest.mark.ours
@pytest.mark.parametrize(
    ("accepted", "encoding"),
    [("gzip, deflate", "gzip"), ("deflate, gzip;q=0", "deflate"), ("GZIP", "gzip"),
     ("br, gzip;q=0.5", "gzip"), ("gzip;q=1.0", "gzip"), ("deflate;q=0.1", "deflate")],
)  # fmt: skip
def test_the_encoding_is_chosen(ask, accepted, encoding):
    answer = ask(accepted)
    answered(answer)
    assert answer.headers["content-encoding"] == encoding


@pytest.mark.ours
def test_caches_are_told(ask):
    assert "accept-encoding" in ask("gzip").headers["vary"].lower()


@pytest.mark.ours
def test_errors_are_plain_or_asked_for(infer, refuses):
    answer = infer(b"{")
    assert "content-encoding" not in answer.headers
    refuses(answer, 400)
    assert infer(b"{", {"Accept-Encoding": "gzip"}).json["error"]


def test_identity_is_no_encoding(model, infer):
    answered(infer(model.body(), {"Content-Encoding": "identity"}))


@pytest.mark.ours
def test_the_encoding_in_other_letters(model, infer):
    body = gzip.compress(encoded(model.body()))
    answered(infer(body, {"Content-Encoding": "GZip"}))


def test_several_gzip_members(model, infer, refuses):
    """One body to RFC 1952, one and something else to many a server: all or nothing."""
    text = encoded(model.body())
    body = gzip.compress(text[:20]) + gzip.compress(text[20:])
    answer = infer(body, {"Content-Encoding": "gzip"})
    if answer.status == 200:
        answered(answer)
    else:
        refuses(answer, 400)


@pytest.mark.ours
def test_deflate_without_its_wrapper(model, infer):
    """Some clients send bare deflate; it is told from zlib's by its first byte."""
    packer = zlib.compressobj(wbits=-15)
    body = packer.compress(encoded(model.body())) + packer.flush()
    answer = infer(body, {"Content-Encoding": "deflate"})
    assert answer.status in (200, 400)


BAD = {
    "not_gzip": lambda good: b"not gzip",
    "plain": lambda good: json.dumps({"inputs": []}).encode(),
    "truncated": lambda good: good[:-9],
    "without_its_end": lambda good: good[:-1],
    "half": lambda good: good[: len(good) // 2],
    "head_only": lambda good: good[:10],
    "empty": lambda good: b"",
    "wrong_sum": lambda good: good[:-8] + bytes(4) + good[-4:],
    "wrong_size": lambda good: good[:-4] + bytes(4),
    "flipped": lambda good: good[:20] + bytes([good[20] ^ 255]) + good[21:],
    "trailing": lambda good: good + b"trailing bytes",
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_gzip_is_refused(model, infer, refuses, ours, name):
    body = BAD[name](gzip.compress(encoded(model.body())))
    answer = infer(body, {"Content-Encoding": "gzip"})
    if not ours and answer.status == 200:
        pytest.skip("the server takes what it can read of it")
    refuses(answer, 400)


@pytest.mark.parametrize("name", ["not_gzip", "truncated", "half", "empty", "trailing"])
def test_a_damaged_deflate_is_refused(model, infer, refuses, ours, name):
    body = BAD[name](zlib.compress(encoded(model.body())))
    answer = infer(body, {"Content-Encoding": "deflate"})
    if not ours and answer.status == 200:
        pytest.skip("the server takes what it can read of it")
    refuses(answer, 400)


@pytest.mark.ours
@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x", "gzip;q=1"])
def test_an_encoding_that_we_do_not_know(model, infer, refuses, encoding):
    body = gzip.compress(encoded(model.body()))
    refuses(infer(body, {"Content-Encoding": encoding}), 415, 400)


@pytest.mark.ours
@pytest.mark.parametrize("encoding", PACK)
def test_what_becomes_too_large_is_refused(infer, refuses, encoding):
    bomb = PACK[encoding](b" " * (17 << 20))
    assert len(bomb) < 100_000
    refuses(infer(bomb, {"Content-Encoding": encoding}), 413)
