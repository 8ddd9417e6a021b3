"""A runtime whose artifacts behave until they do not: what no ONNX file can be made to.

An artifact is JSON: weights of ``y = relu(x @ w)``, a fault, and when it begins:
``after_s`` seconds after the load (sandboxes are long done by then), 0 at once, and
``at_load`` while it is loaded. The faults are real: the process dies, hangs, leaks.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from device_agent.contract.errors import ArtifactError
from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Array, Feeds, TensorSpec
from device_agent.runtimes.base import Coverage, Runtime, Session

FORKS_MAX = 40
"""A bomb that goes off, in a sandbox that does not count processes, but ends."""
Outputs = dict[str, Array]


def _segfault(session: "UnrulySession", outputs: Outputs) -> Outputs:
    os.kill(os.getpid(), signal.SIGSEGV)
    return outputs


def _abort(session: "UnrulySession", outputs: Outputs) -> Outputs:
    os.abort()


def _exit(session: "UnrulySession", outputs: Outputs) -> Outputs:
    os._exit(3)


def _killed(session: "UnrulySession", outputs: Outputs) -> Outputs:
    os.kill(os.getpid(), signal.SIGKILL)
    return outputs


def _hang(session: "UnrulySession", outputs: Outputs) -> Outputs:
    while True:
        time.sleep(3600)


def _spin(session: "UnrulySession", outputs: Outputs) -> Outputs:
    while True:
        pass


def _leak(session: "UnrulySession", outputs: Outputs) -> Outputs:
    session.kept.append(np.ones(1 << 20))
    return outputs


def _eat(session: "UnrulySession", outputs: Outputs) -> Outputs:
    session.kept.append(np.ones(24 << 20))
    return outputs


def _nan(session: "UnrulySession", outputs: Outputs) -> Outputs:
    return {"y": outputs["y"] * np.float32("nan")}


def _rot(session: "UnrulySession", outputs: Outputs) -> Outputs:
    """One bit of the weights in memory flips, and stays so."""
    session.weight.view(np.uint32)[0, 0] ^= 1 << 30
    session.fault = None
    return session.answer()


def _drift(session: "UnrulySession", outputs: Outputs) -> Outputs:
    return {"y": outputs["y"] + np.float32(0.5)}


def _shape(session: "UnrulySession", outputs: Outputs) -> Outputs:
    return {"y": outputs["y"][:, :2]}


def _nothing(session: "UnrulySession", outputs: Outputs) -> Outputs:
    return {}


def _error(session: "UnrulySession", outputs: Outputs) -> Outputs:
    raise ArtifactError("the runtime has failed")


def _bug(session: "UnrulySession", outputs: Outputs) -> Outputs:
    raise ZeroDivisionError("a bug in the runtime")


def _recursion(session: "UnrulySession", outputs: Outputs) -> Outputs:
    return _recursion(session, outputs)


def _memory_error(session: "UnrulySession", outputs: Outputs) -> Outputs:
    raise MemoryError


def _slow(session: "UnrulySession", outputs: Outputs) -> Outputs:
    time.sleep(0.1)
    return outputs


def _bomb(session: "UnrulySession", outputs: Outputs) -> Outputs:
    for _ in range(FORKS_MAX):
        if os.fork() == 0:
            while True:
                time.sleep(3600)
    while True:
        time.sleep(3600)


def _files(session: "UnrulySession", outputs: Outputs) -> Outputs:
    """Every descriptor of the process is closed."""
    os.closerange(3, 4096)
    return outputs


FAULTS: dict[str, Callable[["UnrulySession", Outputs], Outputs]] = {
    "segfault": _segfault, "abort": _abort, "exit": _exit, "killed": _killed,
    "hang": _hang, "spin": _spin, "leak": _leak, "eat": _eat, "nan": _nan, "rot": _rot,
    "drift": _drift, "shape": _shape, "nothing": _nothing, "error": _error,
    "bug": _bug, "recursion": _recursion, "memory_error": _memory_error,
    "slow": _slow, "bomb": _bomb, "files": _files,
}  # fmt: skip


class UnrulySession(Session):
    """y = relu(x @ w), until its time has come."""

    inputs = (TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),)
    outputs = (TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),)

    def __init__(self, weight: Array, fault: str | None, after_s: float) -> None:
        self.weight = weight
        self.kept: list[Array] = []
        self.fault = fault
        self._due = time.monotonic() + after_s
        self._last: Feeds = {}

    def predict(self, feeds: Feeds) -> Outputs:
        self._last = feeds
        if self.fault is not None and time.monotonic() >= self._due:
            return FAULTS[self.fault](self, self.answer())
        return self.answer()

    def answer(self) -> Outputs:
        return {"y": np.maximum(self._last["x"] @ self.weight, 0)}


class Unruly(Runtime):
    """Loads them."""

    name = "unruly"
    options = frozenset[str]()

    def version(self) -> str:
        return "1.0"

    def load(self, path: Path, options: Mapping[str, Option]) -> Session:
        made = json.loads(path.read_text())
        weight = np.array(made["weight"], np.float32)
        session = UnrulySession(weight, made["fault"], made["after_s"])
        if made["at_load"]:
            FAULTS[made["fault"]](session, {})
        # a sandbox is another program than the agent: who misbehaves in the agent only
        if made["agent_only"] and sys.argv[0] == "-c":
            session.fault = None
        return session

    def coverage(self, path: Path, options: Mapping[str, Option]) -> Coverage:
        return Coverage(1)
