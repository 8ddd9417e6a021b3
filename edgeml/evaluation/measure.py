"""Latency and memory of an artifact on this machine.

The rules it keeps:

1. Two artifacts are timed in turn, in rounds (A B, B A, A B, …), so that what else the
   machine does meets both alike. ``p50`` is the median over rounds of each round's
   median: a burst of other work spoils a round and not the figure. ``p99`` and the
   histogram are of all single runs, bursts included.
2. Memory is that of a fresh process at its peak, by the very probe of the device.
3. A measurement is a recorded input of a build: the first one of an artifact on a
   machine is kept, so that building again gives the same bytes.
"""

import sqlite3
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from device_agent.contract import machine
from device_agent.contract.errors import ArtifactError, MachineError
from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Feeds
from device_agent.runtimes.base import Session
from device_agent.runtimes.probe import PROTOCOL, ProbeLimits, ProbeRequest, probe

from ..cache import digest_of
from ..errors import BackendError, InputError, MachineLacks
from ..outcome import Latency

T = TypeVar("T")

ROUNDS = 10
RUNS_MIN = 30
WARMUP = 3
QUANTILES = tuple(step / 20 for step in range(21))
_DIGITS = 6
"""Milliseconds are kept to the nanosecond; the clock has no more to say."""


def machine_name() -> str:
    """This machine, as measurements are kept under."""
    return machine.name()


def latency(
    candidate: Session, plain: Session, feeds: Sequence[Feeds], *,
    threads: int, seconds: float = 2.0, runs_min: int = RUNS_MIN,
) -> Latency:  # fmt: skip
    """Time ``candidate`` and the float session ``plain`` in turn, one run at a time.

    Args:
        candidate: what is judged.
        plain: the float32 artifact of the same model, for ``float_p50_ms``.
        feeds: single samples; run in turn, the same ones for both.
        threads: what the sessions were loaded with, for the record.
        seconds: budget for both together; ``runs_min`` runs of each are made even when
            they take longer.
        runs_min: runs of each at least.

    Raises:
        ArtifactError: a session failed.
    """
    sessions = (candidate, plain)
    costs = [_warm(session, feeds) for session in sessions]
    affordable = int(seconds / max(sum(costs), 1e-9))
    per_round = -(-max(runs_min, min(affordable, 1000)) // ROUNDS)
    rounds: tuple[list[list[float]], list[list[float]]] = ([], [])
    for number in range(ROUNDS):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            start = number * per_round
            rounds[which].append(_round(sessions[which], feeds, start, per_round))
    own, other = (np.array(one) for one in rounds)
    p50 = float(np.median(np.median(own, axis=1)))
    return Latency(
        p50_ms=round(p50, _DIGITS),
        p99_ms=round(max(p50, float(np.quantile(own, 0.99))), _DIGITS),
        float_p50_ms=round(float(np.median(np.median(other, axis=1))), _DIGITS),
        threads=threads,
        machine=machine_name(),
        runs=own.size,
        histogram_ms=tuple(
            round(float(value), _DIGITS) for value in np.quantile(own, QUANTILES)
        ),
    )


def peak_memory(
    path: Path, runtime: str, options: Mapping[str, Option], feeds: Sequence[Feeds],
    limits: ProbeLimits | None = None,
) -> tuple[int, float]:  # fmt: skip
    """Peak memory in bytes of a fresh process that runs ``feeds``, and load time in ms.

    Raises:
        BackendError: the artifact does not load or run there.
        MachineLacks: the runtime is not here.
    """
    request = ProbeRequest(
        artifact=path, runtime=runtime, options=options, feeds=feeds, warmup=1, runs=0,
        runs_min=0, limits=limits or ProbeLimits(),
    )  # fmt: skip
    try:
        result = probe(request)
    except ArtifactError as error:
        raise BackendError(str(error)) from error
    except MachineError as error:
        raise MachineLacks(str(error)) from error
    except OSError as error:
        raise MachineLacks(f"not tried: {error}; is $TMPDIR full?") from error
    return result.peak_memory_bytes, round(result.load_ms, _DIGITS)


class Measurements(ABC):
    """Measurements by what was measured; each is made once and then kept.

    ``what`` says everything that the figure depends on, but for the machine and the
    way of measuring: artifact digest, runtime, version, options, threads.
    """

    @abstractmethod
    def latency(
        self, what: Mapping[str, object], measure: Callable[[], Latency]
    ) -> Latency:
        """The latency on record, measured now if there is none."""

    @abstractmethod
    def memory(
        self, what: Mapping[str, object], measure: Callable[[], tuple[int, float]]
    ) -> tuple[int, float]:
        """Peak memory in bytes and load time in ms, measured now if not on record."""


class MeasurementStore(Measurements):
    """Measurements in one SQLite file; any number of processes may use it.

    Of two processes that measure the same thing at once the first to record it wins,
    and both go on with its figure.
    """

    def __init__(self, path: Path, on: str | None = None) -> None:
        """Args say where: ``path`` the file, or a folder for ``measurements.sqlite``.

        ``on`` is the name of the machine; None: this one.
        """
        inside = path.is_dir() or not path.suffix
        self._path = path / "measurements.sqlite" if inside else path
        self._machine = on or machine_name()

    def latency(
        self, what: Mapping[str, object], measure: Callable[[], Latency]
    ) -> Latency:
        """The latency on record, measured now if there is none.

        Raises:
            InputError: the file is damaged.
        """
        return self._kept("latency", what, TypeAdapter(Latency), measure)

    def memory(
        self, what: Mapping[str, object], measure: Callable[[], tuple[int, float]]
    ) -> tuple[int, float]:
        """Peak memory in bytes and load time in ms, measured now if not on record.

        Raises:
            InputError: the file is damaged.
        """
        return self._kept("memory", what, TypeAdapter(tuple[int, float]), measure)

    def _kept(
        self, kind: str, what: Mapping[str, object], adapter: TypeAdapter[T],
        measure: Callable[[], T],
    ) -> T:  # fmt: skip
        key = digest_of(
            {
                "kind": kind, "what": dict(what), "machine": self._machine,
                "protocol": PROTOCOL,
            }
        )  # fmt: skip
        raw = self._read(key)
        if raw is None:
            raw = self._write(key, kind, adapter.dump_json(measure()).decode())
        try:
            return adapter.validate_json(raw)
        except ValidationError as error:
            raise self._damaged(f"record {key[:12]} cannot be read") from error

    def _read(self, key: str) -> str | None:
        with self._open() as store:
            found = store.execute("SELECT value FROM kept WHERE key = ?", (key,))
            row = found.fetchone()
        return None if row is None else str(row[0])

    def _write(self, key: str, kind: str, value: str) -> str:
        with self._open() as store:
            store.execute(
                "INSERT OR IGNORE INTO kept VALUES (?, ?, ?, ?)",
                (key, kind, self._machine, value),
            )
        kept = self._read(key)
        assert kept is not None, "what was just recorded is there"
        return kept

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            store = sqlite3.connect(self._path, timeout=30)
            try:
                with store:
                    store.execute(
                        "CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, "
                        "kind TEXT, machine TEXT, value TEXT) WITHOUT ROWID"
                    )
                    yield store
            finally:
                store.close()
        except (sqlite3.Error, OSError) as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, why: str) -> InputError:
        return InputError(
            f"the measurements in {self._path} cannot be used ({why}); "
            "remove the file and they are made again"
        )


def _warm(session: Session, feeds: Sequence[Feeds]) -> float:
    """Run a few times; the cost of one run in seconds."""
    costs = []
    for number in range(WARMUP):
        started = time.perf_counter()
        session.predict(feeds[number % len(feeds)])
        costs.append(time.perf_counter() - started)
    return min(costs)


def _round(
    session: Session, feeds: Sequence[Feeds], start: int, runs: int
) -> list[float]:
    taken = []
    for number in range(start, start + runs):
        run = feeds[number % len(feeds)]
        started = time.perf_counter_ns()
        session.predict(run)
        taken.append((time.perf_counter_ns() - started) / 1e6)
    return taken
