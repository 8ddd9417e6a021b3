"""A Debian archive on this machine, and packages made member by member."""

import hashlib
import io
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from edgeml.emulator.lock import Package


def file(name: str, data: bytes = b"x", mode: int = 0o644) -> tuple[Any, bytes]:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    return member, data


def link(name: str, to: str, *, hard: bool = False) -> tuple[Any, bytes]:
    member = tarfile.TarInfo(name)
    member.type = tarfile.LNKTYPE if hard else tarfile.SYMTYPE
    member.linkname = to
    return member, b""


def folder(name: str) -> tuple[Any, bytes]:
    member = tarfile.TarInfo(name)
    member.type = tarfile.DIRTYPE
    return member, b""


def deb(*members: tuple[Any, bytes], suffix: str = "xz") -> bytes:
    """A package: an ar archive of a version, control data and a tar of files."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:xz") as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    parts = {
        "debian-binary": b"2.0\n", "control.tar.xz": b"odd",
        f"data.tar.{suffix}": data.getvalue(),
    }  # fmt: skip
    made = b"!<arch>\n"
    for name, content in parts.items():
        made += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
        )
        made += content + b"\n" * (len(content) % 2)
    return made


def package(path: str, data: bytes) -> Package:
    digest = hashlib.sha256(data).hexdigest()
    return Package(path.rpartition("/")[2], "1.0", path, len(data), digest)


@contextmanager
def archive(files: Mapping[str, bytes]) -> Iterator[str]:
    """Serves files by path; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            data = files.get(self.path.lstrip("/"))
            self.send_response(404 if data is None else 200)
            self.send_header("Content-Length", str(len(data or b"")))
            self.end_headers()
            self.wfile.write(data or b"")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
