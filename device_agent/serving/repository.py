"""The models that are served, by name and version.

The rules it keeps:

1. A request is routed by one look into a dict. A swap (:mod:`.model`) changes that
   dict between two requests, so that no request finds nothing.
2. A change that was begun is ended, even when the caller who wanted it goes away.
3. One bundle is loaded at a time, in a thread of its own: never on the event loop and
   never in an inference lane.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

from ..config import AgentConfig
from ..errors import RefusedError, StorageError, UnavailableError, UnknownError
from ..log import event
from . import loading
from .folders import sweep
from .lane import Lane, beyond_help
from .model import Entry, Model
from .served import Served

__all__ = ["Entry", "Repository"]

_LOG = logging.getLogger("edgeml.models")
T = TypeVar("T")


class Repository:
    """All models of this agent; asked and changed on the event loop only."""

    def __init__(self, config: AgentConfig, lanes: tuple[Lane, ...]) -> None:
        self._config = config
        self._lanes = lanes
        self._next_lane = cycle(lanes)
        self._loader = Lane("load")
        self._models: dict[str, Model] = {}
        self._active: dict[str, Served] = {}
        self._exact: dict[tuple[str, str], Served] = {}
        self._taken: dict[Path, str] = {}
        """File → the model that was served from it."""
        self._expected = {path.absolute() for path in config.bundles}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self.starting = False
        """Whether it is not yet known what there is to serve."""
        try:
            sweep(config.state)
        except StorageError as error:  # serving does not depend on it
            event(_LOG, logging.WARNING, "left over", reason=str(error))

    @property
    def ready(self) -> bool:
        """Whether every expected bundle was taken, and every model is served."""
        return (
            not (self._stopping or self.starting)
            and all(path in self._taken for path in self._expected)
            and all(name in self._active for name in self._taken.values())
        )

    def route(self, name: str, version: str | None = None) -> Served:
        """Who answers a request now: the version asked for, else the active one.

        While its breaker is open, the fallback model's active version; without one the
        previous version while it is kept. A version that was asked for has no
        substitute. No awaiting may happen between this and ``Served.infer``.

        Raises:
            UnknownError: no such model or version.
            UnavailableError: it is known but not loaded, or its breaker is open.
        """
        served = (
            self._active.get(name)
            if version is None
            else self._exact.get((name, version))
        )
        if served is not None and served.breaker.closed:
            return served
        return self._detour(name, version)

    def find(self, name: str, version: str | None = None) -> Served:
        """Like ``route``, whatever its breaker says (metadata, statistics).

        Raises:
            UnknownError: no such model or version.
            UnavailableError: it is known but not loaded.
        """
        served = (
            self._active.get(name)
            if version is None
            else self._exact.get((name, version))
        )
        if served is None:
            raise self._model(name).absence(version)
        return served

    def served(self) -> tuple[Served, ...]:
        """Every version that is loaded, by name and version."""
        return tuple(self._exact[key] for key in sorted(self._exact))

    def index(self) -> tuple[Entry, ...]:
        """Every model that is known, loaded or not."""
        found = [entry for model in self._models.values() for entry in model.entries()]
        return tuple(sorted(found, key=lambda one: (one.name, one.version)))

    def expect(self, path: Path) -> None:
        """Do not be ready before this bundle was taken, too."""
        self._expected.add(path.absolute())

    async def name_of(self, path: Path) -> str:
        """Which model a bundle's file holds.

        Raises:
            RefusedError: it is no bundle.
        """
        bundle = await self._loader.run(partial(loading.read, path.absolute()))
        return bundle.manifest.name

    def pass_over(self, path: Path, name: str) -> None:
        """A bundle is not needed: its model is served already from another file."""
        self._taken[path.absolute()] = name

    async def install(
        self, path: Path, *, keep_previous: bool = False, sha256: str | None = None
    ) -> Served:
        """Load a bundle beside what is served, then switch to it and drain the old.

        It takes the place of what came from the same file, and of an equal version;
        else it is served beside the model's other versions. A bundle that is served
        already, byte by byte, is left as it is.

        Args:
            path: the bundle's file.
            keep_previous: put it on trial: it is active whatever its release counter
                says, and what was active is kept until ``commit`` or ``rollback``.
            sha256: which bundle it must be; None: any.

        Raises:
            RefusedError: it is not taken; what was served goes on being served.
            UnavailableError: the agent is stopping.
        """
        return await self._whole(
            self._install(path.absolute(), keep_previous, sha256=sha256)
        )

    async def load(self, name: str) -> Served:
        """Load (again) the bundle that the model came from: a changed file is a swap.

        Raises:
            UnknownError: no such model.
            RefusedError: as for ``install``.
            UnavailableError: the agent is stopping.
        """
        return await self._whole(self._load(self._model(name)))

    async def unload(self, name: str) -> None:
        """Drain every version of a model and give its memory back.

        What has not drained after ``drain_s`` goes on doing so in the background.

        Raises:
            UnknownError: no such model.
        """
        await self._whole(self._model(name).unload())

    async def remove(self, name: str) -> None:
        """Like ``unload``, and forget the model: it is not expected any more.

        Raises:
            UnknownError: no such model.
        """
        model = self._model(name)
        gone = {path for path, taken in self._taken.items() if taken == name}
        for path in gone:
            del self._taken[path]
        self._expected -= gone
        await self._whole(model.unload())
        if not model.versions:
            self._models.pop(name, None)

    async def commit(self, name: str) -> None:
        """End the trial of a model: the previous version leaves.

        Raises:
            UnknownError: no such model, or it is not on trial.
        """
        await self._whole(self._model(name).commit())

    async def rollback(self, name: str) -> Served:
        """End the trial of a model: the previous version is active, the newer leaves.

        Raises:
            UnknownError: no such model, or it is not on trial.
            RefusedError: the previous one cannot be opened again; the trial goes on.
            UnavailableError: the agent is stopping.
        """
        return await self._whole(self._model(name).rollback())

    def watch(self, hang_s: float) -> str | None:
        """Give up inferences that hang; to be called every second or so.

        Returns:
            Why this process should be replaced; None: it need not.
        """
        for lane in self._lanes:
            given_up = lane.watch(hang_s)
            if given_up is not None:
                event(_LOG, logging.ERROR, "inference hangs", reason=given_up)
        return beyond_help(self._lanes, hang_s)

    async def close(self) -> None:
        """Drain and unload everything; what does not drain in time is left open."""
        self._stopping = True
        drain_s = self._config.drain_s
        models = self._models.values()
        await asyncio.gather(*(model.stop(drain_s) for model in models))
        self._loader.close()

    def _detour(self, name: str, version: str | None) -> Served:
        """The rare case of ``route``: nobody there, or a breaker that is open."""
        served = self.find(name, version)
        now = time.monotonic()
        if served.breaker.allow(now):
            return served
        if version is None:
            fallback = served.config.fallback
            other = (
                self._active.get(fallback)
                if fallback is not None
                else self._models[name].substitute
            )
            if other is not None and (other.breaker.closed or other.breaker.allow(now)):
                return other
        served.statistics.refuse("breaker")
        raise UnavailableError(
            f"{name} {served.version} failed too often; it is asked again later",
            served.breaker.retry_after_s(now),
        )

    def _model(self, name: str) -> Model:
        if name not in self._models:
            known = ", ".join(sorted(self._models)) or "none"
            raise UnknownError(f"there is no model {name!r}; known: {known}")
        return self._models[name]

    async def _install(
        self, path: Path, keep: bool, name: str | None = None,
        sha256: str | None = None,
    ) -> Served:  # fmt: skip
        if self._stopping:
            raise UnavailableError("the agent is stopping")
        try:
            bundle = await self._loader.run(partial(loading.read, path, sha256))
            found = bundle.manifest.name
            if name not in (None, found):
                raise RefusedError("bundle", f"it is of model {found!r}, not {name!r}")
        except RefusedError as error:
            self._owner(path).refuse("", path, error)
            raise
        served = await self._known(found).install(bundle, path, keep)
        self._taken[path] = found
        self._forget_guess(path)
        return served

    async def _load(self, model: Model) -> Served:
        if self._stopping:
            raise UnavailableError("the agent is stopping")
        refused: RefusedError | None = None
        served: Served | None = None
        for path in tuple(model.sources):
            # a name that was guessed says nothing about what the file should hold
            name = model.name if path in self._taken else None
            try:
                served = await self._install(path, False, name)
            except RefusedError as error:
                refused = refused or error
        if refused is not None:
            raise refused
        assert served is not None, "every model has a source"
        return self._active.get(served.name, served)

    async def _whole(self, work: Coroutine[Any, Any, T]) -> T:
        """Do it to its end, even if who waits for it is cancelled."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # heard, though nobody may be waiting any more

    def _known(self, name: str) -> Model:
        if name not in self._models:
            self._models[name] = Model(
                name, self._config, next(self._next_lane), self._loader, self._publish
            )
        return self._models[name]

    def _owner(self, path: Path) -> Model:
        """Whose file it is; of an unknown one, the name is guessed from the file's."""
        for model in self._models.values():
            if path in model.sources:
                return model
        return self._known(path.stem)

    def _forget_guess(self, path: Path) -> None:
        """A file that was taken at last may have another name than was guessed."""
        guess = self._models.get(path.stem)
        if guess is None or path.stem in self._taken.values():
            return
        if guess.sources == [path]:
            del self._models[path.stem]

    def _publish(self, model: Model) -> None:
        """Route by what the model has now."""
        for key in [key for key in self._exact if key[0] == model.name]:
            del self._exact[key]
        for one in model.versions:
            self._exact[model.name, one.version] = one
        active = model.active
        if active is None:
            self._active.pop(model.name, None)
        else:
            self._active[model.name] = active
