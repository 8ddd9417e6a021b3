"""The load client: compiled here, told when to begin, its figures read.

The client is C, because one in Python costs more than the servers it would measure.
"""

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .wire import Address

SOURCE = Path(__file__).with_name("load.c")
GRACE_S = 60.0
"""Beyond the seconds asked for; the client itself gives up after 30 s of silence."""


class LoadError(Exception):
    """The client could not be made, or gave up; the text is what it said."""


@dataclass(frozen=True)
class Figures:
    """One round of one scenario: times in µs, each figure over its requests."""

    requests: int
    errors: int
    duration_s: float
    cpu_us: float
    """CPU time of all processes of the server, per request."""
    p50_us: float
    p90_us: float
    p99_us: float
    max_us: float
    client_cpu_us: float = 0.0
    note: str = ""

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.duration_s if self.duration_s else 0.0

    def wait_ratio(self, clients: int) -> float:
        """p99 as a multiple of the mean wait in a closed loop, clients / rate.

        >>> Figures(1000, 0, 2.0, 0, 0, 0, 96_000, 0).wait_ratio(32)
        1.5
        """
        return self.p99_us * self.rate / (clients * 1e6)


def compiled(folder: Path) -> Path:
    """The client's program; compiled when it is not newer than its source.

    Raises:
        LoadError: there is no C compiler, or it refuses.
    """
    program = folder / "load"
    if program.exists() and program.stat().st_mtime >= SOURCE.stat().st_mtime:
        return program
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise LoadError("there is no C compiler (cc, gcc or clang) to make the client")
    folder.mkdir(parents=True, exist_ok=True)
    command: list[str | Path] = [
        compiler,
        "-O2",
        "-Wall",
        "-Wextra",
        "-o",
        program,
        SOURCE,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LoadError(f"{compiler}: {done.stderr.strip()}")
    return program


@dataclass(frozen=True)
class Load:
    """What to ask, and the answer that is right."""

    program: Path
    request: Path
    expected: Path

    def fire(
        self,
        address: Address,
        clients: int,
        seconds: float,
        cpu_s: Callable[[], float],
    ) -> Figures:
        """Ask for ``seconds`` on ``clients`` connections, after one request on each.

        Args:
            address: where the server listens.
            clients: connections, each with one request under way.
            seconds: after which nothing new is asked.
            cpu_s: CPU time of the server up to now; read before and after.

        Raises:
            LoadError: the client gave up.
        """
        where = ["--unix", address.path] if address.path else ["--tcp", address.port]
        given = [
            *where, "--request", self.request, "--expect", self.expected,
            "--connections", clients, "--seconds", seconds,
        ]  # fmt: skip
        with subprocess.Popen(
            [self.program, *map(str, given)], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as client:  # fmt: skip
            assert client.stdin and client.stdout and client.stderr
            if client.stdout.readline() != "ready\n":
                raise LoadError(client.stderr.read().strip() or "it said nothing")
            before = cpu_s()
            try:
                told, words = client.communicate("go\n", timeout=seconds + GRACE_S)
            except subprocess.TimeoutExpired as error:
                client.kill()
                raise LoadError(f"it did not end within {GRACE_S:.0f} s") from error
            spent = cpu_s() - before
        if client.returncode:
            raise LoadError(words.strip() or f"it ended with {client.returncode}")
        return figures(json.loads(told), spent)


def figures(told: dict[str, Any], cpu_s: float) -> Figures:
    """What the client printed, with the server's CPU time during it."""
    kinds = ("wrong_status", "wrong_body", "closed")
    note = ", ".join(f"{told[kind]} {kind}" for kind in kinds if told[kind])
    requests = told["requests"]
    return Figures(
        requests=requests,
        errors=told["errors"],
        duration_s=told["duration_s"],
        cpu_us=cpu_s * 1e6 / requests if requests else 0.0,
        p50_us=told["p50_us"],
        p90_us=told["p90_us"],
        p99_us=told["p99_us"],
        max_us=told["max_us"],
        client_cpu_us=told["client_cpu_us"],
        note=f"{note}: {told['first_wrong']}".strip(": ") if note else "",
    )
