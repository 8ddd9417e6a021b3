"""What the updater gives to serve, in terms of the repository.

The rules it keeps:

1. Every bundle is loaded by its digest: a file that was changed since is not.
2. One model is the updater's at a time. A release of another name takes the place of
   the last one when it is committed, not before.
3. The candidate is asked its golden vectors through the same door as everybody, a few
   at a time and seldom, so that others do not wait; those are not counted as traffic.
"""

import asyncio
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .config import AgentConfig
from .contract.codes import Reason
from .contract.golden import Golden, judge
from .contract.machine import memory_bytes
from .errors import (
    InferenceError,
    OverloadError,
    RefusedError,
    UnavailableError,
    UnknownError,
    UpdateError,
)
from .serving import loading
from .serving.repository import Repository
from .serving.served import Served
from .updating.events import Evidence
from .updating.facts import Held
from .updating.ports import Vitals

ASKED: Final = 4
"""Golden vectors of one recheck."""
_RUNS_MIN: Final = 20
"""Fewer runs say nothing about latency."""
_UNDER_LOAD: Final = 2.0
"""Beside others a run may take this many times its limit; the sandbox held it alone."""


@dataclass
class _Candidate:
    """What is on trial, and where it stood when it became active."""

    held: Held
    served: Served
    asked: int = 0
    """Golden vectors so far."""
    runs: int = 0
    ns: int = 0
    """Runs of one row and their time when latency was looked at last."""
    run_ms: float | None = None

    def latest_ms(self) -> float | None:
        """Mean of the latest runs; those of before would hide that it got slow."""
        now = self.served.statistics.batches.get(1)
        if now is not None and now.count - self.runs >= _RUNS_MIN:
            self.run_ms = (now.ns - self.ns) / (now.count - self.runs) / 1e6
            self.runs, self.ns = now.count, now.ns
        return self.run_ms


class Candidates:
    """The updater's models; implements :class:`~.updating.ports.Models`."""

    def __init__(self, repository: Repository, config: AgentConfig) -> None:
        self._repository = repository
        self._config = config
        self._kept: Held | None = None
        """Committed, and served."""
        self._activating: asyncio.Task[Served] | None = None
        self._candidate: _Candidate | None = None
        self._path: Path | None = None
        """Where the candidate came from."""

    @property
    def running(self) -> Held | None:
        """What answers."""
        return self._kept if self._candidate is None else self._candidate.held

    def probe(self, held: Held, path: Path, stop: threading.Event) -> Evidence:
        """Try the bundle in the sandbox; blocks.

        Raises:
            UpdateError: it is not taken.
        """
        config = self._config
        try:
            report = loading.rehearse(
                loading.read(path, held.digest), path, config.state, config.sandbox,
                config.update.gate_latency,
            )  # fmt: skip
        except RefusedError as error:
            raise _update_error(error) from error
        figures = {
            "load_ms": report.load_ms, "p50_ms": report.latency_p50_ms,
            "p99_ms": report.latency_p99_ms, "golden_vectors": report.golden_vectors,
            "peak_memory_bytes": report.peak_memory_bytes,
        }  # fmt: skip
        return {name: value for name, value in figures.items() if value is not None}

    async def serve(self, held: Held, path: Path) -> None:
        """Serve what is committed.

        Raises:
            UpdateError: ``STORAGE`` where the file is not that bundle any more.
        """
        if self._kept == held:
            return
        self._repository.expect(path)
        try:
            await self._repository.install(path, sha256=held.digest)
        except RefusedError as error:
            raise _later(error) from error
        self._kept = held

    async def activate(self, held: Held, path: Path) -> None:
        """Serve the candidate, keep what was served.

        Raises:
            UpdateError: it is not taken; what was served is.
        """
        install = self._repository.install(path, keep_previous=True, sha256=held.digest)
        task = self._activating = asyncio.create_task(install)
        self._path = path.absolute()
        try:
            served = await asyncio.shield(task)
        except RefusedError as error:
            raise _later(error) from error
        self._candidate = _Candidate(held, served)

    async def commit(self) -> None:
        """The candidate stays, what was kept leaves; again is harmless."""
        candidate = self._candidate
        if candidate is None:
            return
        name, kept = candidate.held.release.model, self._kept
        with suppress(UnknownError):  # nothing of that name was served before
            await self._repository.commit(name)
        if kept is not None and kept.release.model != name:
            await self._repository.remove(kept.release.model)
        candidate.served.allow_inline(True)
        self._kept, self._candidate = candidate.held, None
        self._activating = None

    async def rollback(self) -> None:
        """The candidate leaves, what was kept is served; again is harmless.

        Raises:
            UpdateError: what was kept cannot be opened again.
        """
        served, path = await self._activated(), self._path
        self._candidate = None
        if served is None:
            return
        try:
            await self._repository.rollback(served.name)
        except UnknownError:
            if served.loaded.source == path:  # nothing of that name was served before
                await self._repository.remove(served.name)
        except RefusedError as error:
            raise _update_error(error) from error

    async def recheck(self) -> bool:
        """Ask the candidate some of its golden vectors; whether it could be asked.

        Raises:
            UpdateError: it is wrong, or has failed.
        """
        candidate = self._candidate
        if candidate is None:
            return False
        served, golden = candidate.served, candidate.served.loaded.golden
        first = candidate.asked % len(golden)
        chosen = [(first + n) % len(golden) for n in range(min(ASKED, len(golden)))]
        outputs = []
        for number in chosen:
            try:
                found = await served.infer(golden.inputs[number])
            except (OverloadError, UnavailableError):
                return False
            except InferenceError as error:
                reason = Reason.HUNG if served.hung else Reason.GOLDEN_MISMATCH
                text = f"golden vector {number}: {error}"
                raise UpdateError(reason, text) from error
            candidate.asked += 1
            outputs.append(found)
        wanted = Golden(
            tuple(golden.inputs[number] for number in chosen),
            tuple(golden.outputs[number] for number in chosen),
            golden.tolerances,
        )
        judged = await asyncio.to_thread(judge, wanted, outputs)
        if not judged.ok:
            wrong = [chosen[number] for number in judged.wrong_vectors]
            raise UpdateError(
                Reason.GOLDEN_MISMATCH,
                f"golden vectors {wrong} are wrong now; they were right when it was "
                "loaded",
                {"max_abs_diff": str(judged.max_abs_diff)},
            )
        return True

    def vitals(self) -> Vitals | None:
        """How the candidate is; None: it is not served."""
        candidate = self._candidate
        if candidate is None or candidate.served.state != "ready":
            return None
        served = candidate.served
        counts = served.statistics
        limit_ms = served.manifest.limits.latency_ms
        gated = self._config.update.gate_latency and limit_ms
        return Vitals(
            inferences=max(0, counts.success.count - candidate.asked),
            failures=counts.fail.count,
            hung=served.hung,
            breaker_open=not served.breaker.closed,
            rss_bytes=memory_bytes("VmRSS"),
            run_ms=candidate.latest_ms(),
            run_limit_ms=_UNDER_LOAD * limit_ms if gated else None,
        )

    async def _activated(self) -> Served | None:
        """The candidate, once it is known whether it was taken."""
        task, self._activating = self._activating, None
        if task is None:
            return None
        try:
            return await asyncio.shield(task)
        except RefusedError:
            return None


def _update_error(error: RefusedError) -> UpdateError:
    return UpdateError(error.code, str(error), {"step": error.step})


def _later(error: RefusedError) -> UpdateError:
    """Of a bundle that was whole when it was installed: the disk has changed it."""
    found = _update_error(error)
    if found.reason is Reason.BUNDLE_INVALID:
        found.reason = Reason.STORAGE
    return found
