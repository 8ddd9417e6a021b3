"""A session in another Python's process: an artifact that this one cannot run.

The rules it keeps:

1. The process ends with the session, and with its parent.
2. What an artifact does to the process - crash, hang - is an :class:`ArtifactError`.
3. Only tensors come back; what libraries print goes to standard error, unread.

A frame is 8 bytes of
length and an npz (:mod:`..contract.npz`); what was wrong stands beside the tensors.
"""

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from ..contract.errors import ArtifactError, DeviceError
from ..contract.manifest import Option
from ..contract.npz import read_tensors, write_tensors
from ..contract.tensors import Array, Feeds, TensorSpec
from . import runtime as runtime_named
from .base import Session
from .probe import command

WAIT_S = 120.0
"""How long one run may take."""
_LENGTH_BYTES = 8


class Elsewhere(Session):
    """An artifact, loaded by the runtime of another Python.

    Args:
        python: has the runtime, NumPy and pydantic.
        runtime: its name.
        path: the artifact.
        options: as for :meth:`.base.Runtime.load`.

    Raises:
        ArtifactError: the runtime refuses the artifact, or dies of it.
    """

    def __init__(
        self, python: Path, runtime: str, path: Path, options: Mapping[str, Option]
    ) -> None:
        self._name = path.name
        self._process = subprocess.Popen(
            command(python, "elsewhere"),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        request = {
            "runtime": runtime, "artifact": str(path.resolve()),
            "options": dict(options),
        }  # fmt: skip
        try:
            ports = self._asked(json.dumps(request).encode())[1]
        except ArtifactError:
            self.close()
            raise
        self.inputs, self.outputs = (
            tuple(TensorSpec(**spec) for spec in ports[side])
            for side in ("inputs", "outputs")
        )

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        """Run once, there."""
        return self._asked(write_tensors({"runs": [feeds]}))[0]

    def close(self) -> None:
        """End the process."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None, "pipes were asked for"
            try:
                stream.close()
            except BrokenPipeError:
                continue  # what was not read any more was a request

    def _asked(self, raw: bytes) -> tuple[dict[str, Array], Any]:
        process = self._process
        assert process.stdin and process.stdout, "pipes were asked for"
        try:
            _write(process.stdin, raw)
            ready, _, _ = select.select([process.stdout], [], [], WAIT_S)
        except (BrokenPipeError, ValueError):
            ready = [process.stdout]
        if not ready:
            self.close()
            raise ArtifactError(f"{self._name}: no answer within {WAIT_S:g} s")
        answer = b"" if process.stdout.closed else _read(process.stdout)
        if not answer:
            code = process.wait()
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise ArtifactError(f"{self._name}: its process ended with {how}")
        groups, about = read_tensors(answer, "an answer")
        if "error" in about:
            raise ArtifactError(about["error"])
        return (groups["runs"] or [{}])[0], about


def _write(stream: IO[bytes], raw: bytes) -> None:
    stream.write(len(raw).to_bytes(_LENGTH_BYTES, "big") + raw)
    stream.flush()


def _read(stream: IO[bytes]) -> bytes:
    """The next frame; nothing at the end."""
    length = int.from_bytes(stream.read(_LENGTH_BYTES), "big")
    return stream.read(length)


def main() -> int:
    """The process: an artifact first, then feeds, until standard input ends."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    requests = sys.stdin.buffer

    def say(outputs: list[dict[str, Array]], about: object) -> None:
        _write(answers, write_tensors({"runs": outputs}, about))

    try:
        request = json.loads(_read(requests))
        runtime = runtime_named(request["runtime"])
        session = runtime.load(Path(request["artifact"]), request["options"])
    except DeviceError as error:
        say([], {"error": str(error)})
        return 1
    say([], {
        "inputs": [spec.model_dump() for spec in session.inputs],
        "outputs": [spec.model_dump() for spec in session.outputs],
    })  # fmt: skip
    while raw := _read(requests):
        groups, _ = read_tensors(raw, "a request")
        try:
            outputs = session.predict(groups["runs"][0])
        except DeviceError as error:
            say([], {"error": str(error)})
        else:
            say([outputs], {})
    return 0
