"""Attacks in well-formed HTTP: what the body, the path and the headers say."""

import gzip
import io
import json
import struct
import threading
import zlib
from typing import Any
from urllib.parse import quote

from PIL import Image

from .attack_tools import Target, infer, refused, request, statuses, together

INFER = "/v2/models/linear/infer"
ROWS = [1.0, 2.0, 3.0, 4.0]
SMALL_BYTES = 256 << 10


def deep_json(target: Target) -> str:
    """Brackets that are never closed, or are: 20,000 deep, and 8 million."""
    deep, deepest = 20_000, 8_000_000
    bodies = [
        b"[" * deep,
        b'{"a":' * deep,
        b"[" * deep + b"]" * deep,
        infer([1, 4], "[" * deep + "1" + "]" * deep),
        b'{"inputs":' * 2000 + b"1" + b"}" * 2000,
    ]
    seen = [_refused(target, INFER, body) for body in bodies]
    for body in (b"[" * deepest, b"[" * (deepest // 2) + b"]" * (deepest // 2)):
        seen.append(_refused(target, "/v2/models/broad/infer", body))
    return str(seen)


def nan_json(target: Target) -> str:
    """Numbers that JSON does not have."""
    seen = []
    for value in (
        "NaN",
        "Infinity",
        "-Infinity",
        "1e999",
        "-1e999",
        "nan",
        "0x10",
        "1" * 5000,
        "1e" + "9" * 400,
        "01",
        "+1",
        '"1"',
        "null",
        "true",
    ):
        body = infer([1, 4], f"[{value}, 2, 3, 4]")  # fmt: skip
        seen.append(_refused(target, INFER, body))
    return str(seen)


def odd_json(target: Target) -> str:
    """JSON of another shape than the protocol's."""
    many = [{"name": f"x{n}", "shape": [1], "datatype": "FP32", "data": [1]}
            for n in range(2000)]  # fmt: skip
    bodies = [
        b"", b" ", b"null", b"[]", b"1", b'""', b"{}", b'{"inputs":null}',
        b'{"inputs":{}}', b'{"inputs":[null]}', b'{"inputs":[{}]}', b"\xff\xfe{}",
        b'{"inputs":"' + b"\\u0000" * 100 + b'"}', b'\xef\xbb\xbf{"inputs":[]}',
        b'{"inputs":[' + b'{"name":"x"},' * 2000 + b"{}]}", b'{"a":1,' * 10,
        json.dumps({"inputs": many}).encode(),
    ]  # fmt: skip
    return str({_refused(target, INFER, body or b" ") for body in bodies})


def huge_shapes(target: Target) -> str:
    """Shapes whose product is negative, enormous or wraps round."""
    shapes = [
        [-1, 4], [0, 4], [1, -4], [2**31, 4], [2**62, 4], [2**63, 4], [2**64, 4],
        [2**32, 2**32], [10**100, 4], [1.5, 4], ["1", 4], [True, 4], [None, 4], [],
        [4], [1, 1, 4], [1] * 10_000, "14", None, 4, [[1, 4]], [129, 4],
    ]  # fmt: skip
    seen = {_refused(target, INFER, infer(one, ROWS)) for one in shapes}
    for shape in ([2**40, 4], [-1, 4], [2**62, 4]):
        body = infer(shape, None, parameters={"binary_data_size": 16})
        header = f"Inference-Header-Content-Length: {len(body)}"
        seen.add(_refused(target, INFER, body + bytes(16), header))
    return str(seen)


def binary_lengths(target: Target) -> str:
    """Lengths of the binary extension that are not those of the body."""
    seen = []
    for size in (-1, 0, 15, 17, 2**31, 2**63, 2**64, 10**30, 1.5, "16", None, [16]):
        body = infer([1, 4], None, parameters={"binary_data_size": size})
        header = f"Inference-Header-Content-Length: {len(body)}"
        seen.append(_refused(target, INFER, body + bytes(16), header))
    body = infer([1, 4], None, parameters={"binary_data_size": 16})
    good = len(body)
    for length in (
        -1,
        1,
        good - 1,
        good + 1,
        good + 16,
        good + 17,
        2**31,
        2**63,
        10**30,
        "abc",
        "1e3",
        "",
        "0x10",
        f"{good} ",
        f"+{good}",
        "٣",
    ):
        header = f"Inference-Header-Content-Length: {length}"
        raw = target.exchange(
            request(INFER, body + bytes(16), "Connection: close", header)
        )  # fmt: skip
        seen.append(refused(raw, 400, 413, 200))
        assert statuses(raw)[0] != 200 or str(length).strip() == str(good)
    twice = (f"Inference-Header-Content-Length: {good}",
             "Inference-Header-Content-Length: 3")  # fmt: skip
    seen.append(_refused(target, INFER, body + bytes(16), *twice))
    return str(set(seen))


def compression_bombs(target: Target) -> str:
    """1 GB of zeros in 1 MB; gzip in gzip; cut off; not what the header says."""
    zeros = _zeros(1 << 30)
    bombs = [
        ("gzip", zeros), ("x-gzip", zeros), ("deflate", zlib.compress(bytes(64 << 20))),
        ("gzip", gzip.compress(zeros)), ("gzip", zeros[:-10]), ("gzip", b"\x1f\x8b"),
        ("gzip", b"{}"), ("deflate", b"\xff" * 1000), ("br", b"{}"),
        ("gzip, gzip", gzip.compress(gzip.compress(b"{}"))), ("gzip" * 100, b"{}"),
        ("gzip", gzip.compress(b"{}") * 1000),
    ]  # fmt: skip
    seen = [
        _refused(target, INFER, body, f"Content-Encoding: {name}")
        for name, body in bombs
    ]
    path = "/v2/models/broad/infer"
    seen.append(_refused(target, path, zeros, "Content-Encoding: gzip"))
    path = "/v1/models/eye/predict"
    seen.append(_refused(target, path, zeros, "Content-Encoding: gzip"))
    return str(seen)


def image_bombs(target: Target) -> str:
    """Pictures that are small as files and enormous as pixels."""
    path = "/v1/models/eye/predict"
    pixels = _zeros(300 << 20, zlib_head=True)
    bombs = [
        _png(50_000, 50_000, pixels), _png(2**31 - 1, 2**31 - 1, pixels),
        _png(1, 2**31 - 1, pixels), _png(0, 0, b""), _png(16_000, 16_000, pixels),
        _png(5000, 4000, b"cut off"), b"\x89PNG\r\n\x1a\n" * 1000,
        b"BM" + struct.pack("<IHHIIiiHH", 99, 0, 0, 54, 40, 65000, 65000, 1, 24),
        b"P6 60000 60000 255\n" + bytes(1000), b"\xff\xd8\xff" + bytes(9999),
        b"GIF89a" + b"\xff" * 1000, b"RIFF\xff\xff\xff\xffWEBPVP8L" + b"\xff" * 1000,
    ]  # fmt: skip
    return str([_refused(target, path, one) for one in bombs])


def sound_and_table_bombs(target: Target) -> str:
    """Wav headers that lie; CSV and forms without end."""
    wav = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0" + struct.pack(
        "<HHIIHH", 1, 65535, 2**32 - 1, 2**32 - 1, 65535, 16
    )
    form = "Content-Type: multipart/form-data; boundary=a"
    parts = b'--a\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 20_000
    bodies: list[tuple[bytes, str]] = [
        (wav + b"data\xff\xff\xff\xff" + bytes(1000), "X: y"),
        (b"1," * 1_000_000, "Content-Type: text/csv"),
        (b"1\n" * 1_000_000, "Content-Type: text/csv"),
        (b"9" * 1_000_000, "Content-Type: text/csv"),
        (parts + b"--a--\r\n", form),
        (b"--a\r\n" + b"X: y\r\n" * 100_000, form),
        (b"--a\r\n" + b"X" * 1_000_000, form),
        (b"{}", "Content-Type: multipart/form-data"),
        (b"{}", "Content-Type: " + "a" * 5000),
    ]
    return str(
        [
            _refused(target, f"/v1/models/{name}/predict", body, header)
            for name in ("ear", "linear")
            for body, header in bodies
        ]
    )


def paths(target: Target) -> str:
    """Null bytes, ways out of the tree, and paths that are no text."""
    raw = [b"/a\0b", b"/\xff\xfe", b"/a b", b"/a\tb", b"*", b"a", b"//", b"\\..\\"]
    seen = []
    for path in raw:
        asked = request("/PATH", b"", "Connection: close").replace(b"/PATH", path)
        seen.append(refused(target.exchange(asked), 400, 404, 200, 307))
    names = ["%00", "a%00b", "../../etc/passwd", "..%2f..%2fetc%2fpasswd", "%ff%fe",
             "%", "%zz", "a" * 2000, "linear%0d%0aX-Injected:%20y", quote("é" * 100),
             "%2e%2e", "linear/versions/99999999999999999999", "-1",
             "{name}"]  # fmt: skip
    for name in names:
        for path in (f"/v2/models/{name}/infer", f"/v1/models/{name}/predict",
                     f"/v2/repository/models/{name}/load"):  # fmt: skip
            seen.append(_refused(target, path, b"{}"))
        status, body = target.ask(f"/v2/models/{name}")
        assert status in (400, 404), (name, status, body)
    return str(set(seen))


def many_paths(target: Target) -> str:
    """20,000 different paths, hosts and models, which nobody may remember."""
    for part in range(20):
        asked = [
            request(f"/v2/models/m{part}-{n}/infer", b"{}", f"X-{n}: {n}")
            for n in range(1000)
        ]
        last = request("/v2/health/live", b"", "Connection: close")
        seen = statuses(target.exchange(*asked, last))
        assert set(seen[:-1]) == {404} and len(seen) == 1001, seen[-5:]
    return "20000 times 404"


def foreign_pages(target: Target) -> str:
    """A web page in the device's browser: DNS rebinding, cross-site POST."""
    body = infer([1, 4], ROWS)
    rebound = request(INFER, body, "Connection: close")
    rebound = rebound.replace(b"localhost", b"evil.example:80")
    refused(target.exchange(rebound), 403)
    origins = ("http://evil.example", "null", "https://localhost.evil.example")
    seen = [_refused(target, INFER, body, f"Origin: {one}") for one in origins]
    assert set(seen) == {403}
    return "403"


def wide_json(target: Target) -> str:
    """16 MB of the smallest JSON values, to a model whose inputs may be as large."""
    path = "/v2/models/broad/infer"
    bodies = [
        b'{"inputs":[' + b"[]," * 5_500_000 + b"1]}",
        b'{"inputs":[' + b'"",' * 5_500_000 + b"1]}",
        infer([1, 8192], "[" + "1," * 8_000_000 + "1]"),
        infer([1, 8192], "[" + "0.5," * 4_000_000 + "1]"),
    ]
    return str([_refused(target, path, body) for body in bodies])


def large_photos(target: Target) -> str:
    """Pictures that take as much as is allowed, or more, by six callers at once."""
    grey = Image.effect_noise((4000, 3000), 60)
    phone = Image.merge("RGB", [grey] * 3)
    square = phone.resize((2000, 2000))
    photos = [
        ("look", 200, _file(phone, "JPEG")),
        ("look", 200, _file(Image.new("RGB", (4000, 3000), "navy"), "JPEG")),
        ("look", 413, _file(phone, "JPEG", progressive=True)),
        ("look", 413, _file(square, "PNG", compress_level=1)),
        ("look", 200, _file(Image.new("RGB", (2000, 1570), "navy"), "PNG")),
        ("look", 413, _file(phone.convert("RGBA").reduce(2), "WEBP", quality=1)),
        ("look", 200, _file(square.crop((0, 0, 1070, 1070)), "WEBP", quality=1)),
        ("look", 200, _png(8, 16_000, zlib.compress(bytes(2 * 16_000)))),
        ("look", 400, _png(8, 250_000, zlib.compress(bytes(2 * 250_000)))),
        ("eye", 200, _png(3300, 3300, zlib.compress(bytes(414 * 3300), 9))),
        ("eye", 413, _png(3990, 3990, zlib.compress(bytes(500 * 3990), 9))),
    ]
    for name, status, photo in photos:
        assert _sent(target, name, photo) == status, (name, status, photo[:20])
    # large bodies of many callers are another attack: crowd_of_bodies
    callers = iter([one for one in photos if len(one[2]) < SMALL_BYTES] * 4)
    lock = threading.Lock()
    seen: list[int] = []

    def send() -> None:
        while True:
            with lock:
                name, status, photo = next(callers, ("", 0, b""))
            if not name:
                return
            found = _sent(target, name, photo)
            assert found in (status, 429, 503), (name, status, found)
            seen.append(found)

    together(send, 6)
    return str({status: seen.count(status) for status in set(seen)})


def _sent(target: Target, name: str, photo: bytes) -> int:
    asked = request(f"/v1/models/{name}/predict", photo, "Connection: close")
    return statuses(target.exchange(asked, timeout_s=20.0))[0]


def _file(image: Image.Image, form: str, **options: Any) -> bytes:
    body = io.BytesIO()
    image.save(body, form, **options)
    return body.getvalue()


def _refused(target: Target, path: str, body: bytes, *headers: str) -> int:
    raw = target.exchange(request(path, body, "Connection: close", *headers))
    return refused(raw, 400, 403, 404, 413, 422, 429)


def _zeros(size_bytes: int, *, zlib_head: bool = False) -> bytes:
    """Zeros, compressed a thousandfold; without the check sum at the end."""
    machine = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = machine.compress(bytes(1 << 20)) + machine.flush(zlib.Z_FULL_FLUSH)
    head = b"\x78\xda" if zlib_head else b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
    return head + block * (size_bytes >> 20) + machine.flush()


def _png(width: int, height: int, data: bytes) -> bytes:
    chunks = [b"IHDR" + struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0),
              b"IDAT" + data, b"IEND"]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(one) - 4) + one + struct.pack(">I", zlib.crc32(one))
        for one in chunks
    )
