"""The study of a search: which point is tried next, and what became of the others.

The rules it keeps:

1. It is one SQLite file. A process that is killed loses the trial it was at: that
   trial is told as failed, and its place is taken again.
2. What is tried at a place follows from the seed, the place and the finished trials
   alone, so that a search that was killed goes on as it would have gone.
3. No point is tried twice. A search that has tried all points is at its end.
4. One process at a time.
"""

import fcntl
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..cache import part_of
from ..errors import InputError, MachineLacks, UsageError
from ..outcome import SearchTrial
from .front import excess
from .space import AXES, ORDERED, Point, Space

NAME = "search"
DIRECTIONS = ("maximize", "minimize", "minimize")
"""Metric, milliseconds, bytes."""
ATTEMPTS = 12
"""So often the sampler may offer what was tried; then an untried point is drawn."""
STARTUP = 8
"""Trials that are drawn at random before the sampler models anything."""
NOT_MADE = "made"
"""The constraint that a point misses of which nothing could be built."""

_RECORD, _SECONDS = "record", "seconds"
_ADAPTER: TypeAdapter[SearchTrial] = TypeAdapter(SearchTrial)


class Study:
    """The trials of one search: a log in a file, and what a sampler makes of it."""

    def __init__(self, storage: Any, number: int, space: Space, seed: int) -> None:
        self._storage = storage
        self._number = number
        self._space = space
        self._seed = seed

    @property
    def records(self) -> list[SearchTrial]:
        """What finished trials found out, in their order."""
        return list(map(_record, self._finished()))

    @property
    def seconds(self) -> float:
        """What finished trials took together."""
        return float(sum(one.user_attrs[_SECONDS] for one in self._finished()))

    def ask(self) -> tuple[int, Point] | None:
        """The next trial and its point; None when every point was tried."""
        finished = self._finished()
        seen = {Point(**_record(one).point) for one in finished}
        untried = [one for one in self._space.points if one not in seen]
        if not untried:
            return None
        view = _view(finished)
        for attempt in range(ATTEMPTS + 1):
            # A new sampler every time: its state is in no file, its seed is ours.
            seed = self._seed_of(len(finished), attempt)
            view.sampler = _sampler(seed)
            if attempt == 0 and len(finished) < len(self._space.opening):
                view.enqueue_trial(self._planned(self._space.opening[len(finished)]))
            elif attempt == ATTEMPTS:
                drawn = random.Random(seed).choice(untried)  # noqa: S311
                view.enqueue_trial(self._planned(drawn))
            trial = view.ask()
            point = self._suggested(trial)
            if point not in seen:
                return self._begun(trial), point
            view.tell(trial, state=_states().FAIL)
        raise AssertionError("the last attempt asks for an untried point")

    def tell(
        self, trial: int, record: SearchTrial, values: tuple[float, ...] | None,
        seconds: float,
    ) -> None:  # fmt: skip
        """Keep what became of a trial.

        Args:
            trial: what ``ask`` gave.
            record: what was found out.
            values: the objectives; None: not all of them were measured.
            seconds: what it took.
        """
        written = _ADAPTER.dump_json(record).decode()
        self._storage.set_trial_user_attr(trial, _RECORD, written)
        self._storage.set_trial_user_attr(trial, _SECONDS, seconds)
        state = _states().PRUNED if values is None else _states().COMPLETE
        self._storage.set_trial_state_values(trial, state, values)

    def forget_killed(self) -> None:
        """Tell trials that nobody runs any more as failed."""
        for one in self._trials(_states().RUNNING):
            self._storage.set_trial_state_values(one._trial_id, _states().FAIL)

    def _finished(self) -> list[Any]:
        return self._trials(_states().COMPLETE, _states().PRUNED)

    def _trials(self, *states: Any) -> list[Any]:
        found: list[Any] = self._storage.get_all_trials(
            self._number, deepcopy=False, states=states
        )
        return found

    def _begun(self, trial: Any) -> int:
        """Log that a trial is run now."""
        from optuna.trial import create_trial

        template = create_trial(
            state=_states().RUNNING, params=trial.params,
            distributions=trial.distributions,
        )  # fmt: skip
        number: int = self._storage.create_new_trial(self._number, template)
        return number

    def _seed_of(self, place: int, attempt: int) -> int:
        text = f"{self._seed} {place} {attempt}".encode()
        return int.from_bytes(hashlib.sha256(text).digest()[:4], "big")

    def _planned(self, point: Point) -> dict[str, Any]:
        """What the sampler is told to suggest for a point."""
        planned = {}
        for axis in AXES:
            values, wanted = self._space.values(axis), getattr(point, axis)
            place = values.index(wanted) if wanted in values else 0
            planned[axis] = place if axis in ORDERED else _word(values[place])
        return planned

    def _suggested(self, trial: Any) -> Point:
        found = {}
        for axis in AXES:
            values = self._space.values(axis)
            if axis in ORDERED:
                found[axis] = values[trial.suggest_int(axis, 0, len(values) - 1)]
            else:
                words = [_word(one) for one in values]
                chosen = trial.suggest_categorical(axis, words)
                found[axis] = values[words.index(chosen)]
        return self._space.point(found)


def _states() -> Any:
    from optuna.trial import TrialState

    return TrialState


def _sampler(seed: int) -> Any:
    from optuna.samplers import TPESampler

    return TPESampler(
        multivariate=True, n_startup_trials=STARTUP, constant_liar=False, seed=seed
    )


def _view(finished: Sequence[Any]) -> Any:
    """The finished trials as a sampler is shown them, with the limits they miss."""
    import optuna

    view = optuna.create_study(directions=list(DIRECTIONS))
    for one in finished:
        record = _record(one)
        shown = optuna.trial.create_trial(
            state=one.state, values=one.values, params=one.params,
            distributions=one.distributions,
        )  # fmt: skip
        for miss in record.misses:
            shown.set_constraint(miss.limit, excess(miss))
        if record.status == "failed":
            shown.set_constraint(NOT_MADE, 1.0)
        view.add_trial(shown)
    return view


def _record(trial: Any) -> SearchTrial:
    return _ADAPTER.validate_json(trial.user_attrs[_RECORD])


def _word(value: Any) -> str:
    """A value as the study's file has it."""
    return value if isinstance(value, str) else json.dumps(value)


@contextmanager
def opened(path: Path, space: Space, seed: int) -> Iterator[Study]:
    """The study in the file at ``path``, made when it is missing.

    Raises:
        UsageError: another process is at it.
        InputError: the file is damaged.
        MachineLacks: Optuna is not installed.
    """
    optuna = optuna_here()
    from sqlalchemy.exc import SQLAlchemyError

    damaged = f"the study in {path} cannot be used; remove it and all begins again"
    with _alone(path):
        try:
            if not path.exists():
                _create(optuna, path)
            storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
            try:
                kept = Study(storage, _number(storage, damaged), space, seed)
                kept.forget_killed()
                yield kept
            finally:
                storage.engine.dispose()
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise InputError(f"{damaged} ({type(error).__name__})") from error


def _number(storage: Any, damaged: str) -> int:
    """The number of the search in its file."""
    try:
        found: int = storage.get_study_id_from_name(NAME)
    except KeyError as error:
        raise InputError(f"{damaged} (it holds no search)") from error
    return found


def optuna_here() -> Any:
    """Optuna, quiet.

    Raises:
        MachineLacks: it is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MachineLacks(
            "a search needs Optuna; install it with: pip install 'edgeml[search]'"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


def _create(optuna: Any, path: Path) -> None:
    """A file with an empty study, whole or not at all."""
    part = part_of(path)
    part.unlink(missing_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{part}")
    optuna.create_study(study_name=NAME, storage=storage, directions=list(DIRECTIONS))
    storage.engine.dispose()
    part.replace(path)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another process is at this search ({path}); wait for its end"
            ) from error
        yield
