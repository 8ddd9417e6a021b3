"""The study: places, kills, repeats, one process at a time."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

optuna = pytest.importorskip("optuna")

from edgeml.errors import InputError, UsageError  # noqa: E402
from edgeml.outcome import Miss, SearchTrial  # noqa: E402
from edgeml.search.space import Point, Space  # noqa: E402
from edgeml.search.study import Study, opened  # noqa: E402

SPACE = Space(
    prune=(0.0, 0.3, 0.5, 0.7), distill=(False, True),
    precision=("fp32", "fp16", "int8"), method=("minmax", "entropy"),
    samples=(50, 200), keep=(0, 2, 4),
)  # fmt: skip
SMALL = replace(SPACE, prune=(0.0, 0.5), distill=(False,), samples=(50,), keep=(0,))

COUNT = 14

Values = tuple[float, float, float] | None


def worth(point: Point) -> Values:
    """A made-up problem: smaller is faster and worse; what is too bad is pruned."""
    size = (1 - (point.prune or 0)) * {"fp32": 4, "fp16": 2}.get(point.precision, 1)
    value = 1 - 0.1 * (point.prune or 0) - 0.02 * (point.precision == "int8")
    value += 0.01 * point.keep * (point.precision == "int8")
    return None if size > 3 else (value, size * 0.5, size * 1000)


def tell(study: Study, asked: tuple[object, Point], seconds: float = 0.5) -> None:
    trial, point = asked
    values = worth(point)
    record = SearchTrial(
        len(study.records), point.text, point.values, "fits" if values else "pruned",
        misses=() if values else (Miss("max_size_bytes", 3, 4),),
    )  # fmt: skip
    study.tell(trial, record, values, seconds)


def walked(
    path: Path, count: int, space: Space = SPACE, seed: int = 0,
    killed: Callable[[int], bool] = lambda place: False,
) -> list[str]:  # fmt: skip
    """Names of so many trials; at some places the process is killed after the ask."""
    place, hit = 0, set()
    while True:
        with opened(path, space, seed) as study:
            place = len(study.records)
            while place < count:
                asked = study.ask()
                if asked is None:
                    return [one.name for one in study.records]
                if killed(place) and place not in hit:
                    hit.add(place)
                    break  # what was asked is never told
                tell(study, asked)
                place = len(study.records)
            else:
                return [one.name for one in study.records]


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder where it costs nothing to have something on disk for sure."""
    fast = Path("/dev/shm")
    with TemporaryDirectory(dir=fast if fast.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def whole(memory: Path) -> list[str]:
    """A search that nothing disturbed."""
    return walked(memory / "whole.sqlite", COUNT)


def test_it_opens_with_what_is_least_done_and_tries_nothing_twice(
    whole: list[str],
) -> None:
    assert whole[:2] == ["prune 0, fp32", "prune 0, int8 minmax, 200 samples"]
    assert len(whole) == len(set(whole)) == COUNT


def test_the_seed_decides(whole: list[str], memory: Path) -> None:
    other = walked(memory / "seed.sqlite", 8, seed=5)
    assert other[:2] == whole[:2], "the opening is no matter of chance"
    assert other != whole[:8]


def test_a_killed_trial_is_repeated_and_the_search_goes_on_as_it_would_have(
    whole: list[str], memory: Path
) -> None:
    path = memory / "torn.sqlite"
    assert walked(path, COUNT, killed=lambda place: place % 3 < 2) == whole
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{path}")
    states = [one.state.name for one in study.trials]
    assert states.count("FAIL") == sum(place % 3 < 2 for place in range(COUNT))
    assert len(states) == states.count("FAIL") + COUNT


def test_a_longer_search_goes_on_with_a_shorter_one(
    whole: list[str], memory: Path
) -> None:
    path = memory / "longer.sqlite"
    assert walked(path, 5) == whole[:5]
    assert walked(path, COUNT) == whole


def test_every_point_is_tried_and_then_it_ends(memory: Path) -> None:
    names = walked(memory / "small.sqlite", 1000, SMALL)
    assert sorted(names) == sorted(one.text for one in SMALL.points)


@pytest.mark.long
def test_it_finds_what_is_good_sooner_than_chance_would(memory: Path) -> None:
    """Of 104 points 24 hold; a sampler that learned tries them more often."""

    def holds(text: str) -> bool:
        return "prune 0.7" in text and ("int8" in text)

    share = sum(holds(one.text) for one in SPACE.points) / len(SPACE.points)
    with opened(memory / "good.sqlite", SPACE, 1) as study:
        for _ in range(40):
            trial, point = study.ask()
            good = holds(point.text)
            miss = () if good else (Miss("max_size_bytes", 1, 1 + worth_size(point)),)
            record = SearchTrial(0, point.text, point.values, "fits", misses=miss)
            study.tell(trial, record, (0.9, worth_size(point), 1.0), 0.1)
        late = [holds(one.name) for one in study.records[12:]]
    assert sum(late) / len(late) > 1.5 * share


def worth_size(point: Point) -> float:
    size = 1 - (point.prune or 0)
    return size * {"fp32": 4, "fp16": 2}.get(point.precision, 1)


def test_records_and_time_come_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.sqlite"
    with opened(path, SPACE, 0) as study:
        for _ in range(3):
            tell(study, study.ask(), seconds=2.0)
        before = study.records
    with opened(path, SPACE, 0) as study:
        assert study.records == before
        assert study.seconds == 6.0


def test_one_process_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    with (
        opened(path, SPACE, 0),
        pytest.raises(UsageError, match="another process is at this search"),
        opened(path, SPACE, 0),
    ):
        pass
    with opened(path, SPACE, 0) as study:
        assert study.records == []


@pytest.mark.parametrize("content", [b"no database at all" * 99, b""])
def test_a_damaged_study_is_refused_with_the_way_out(
    tmp_path: Path, content: bytes
) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(content)
    with pytest.raises(InputError, match="remove it"), opened(path, SPACE, 0):
        pass


def test_an_error_of_a_trial_is_not_taken_for_a_damaged_study(tmp_path: Path) -> None:
    with pytest.raises(KeyError), opened(tmp_path / "a.sqlite", SPACE, 0):
        raise KeyError("a bug")


def test_a_study_appears_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    def dies(*_: object, **__: object) -> None:
        raise SystemExit  # as good as a kill: nothing after it runs

    monkeypatch.setattr(optuna, "create_study", dies)
    path = tmp_path / "a.sqlite"
    with pytest.raises(SystemExit), opened(path, SPACE, 0):
        pass
    assert not path.exists()
    monkeypatch.undo()
    assert len(walked(path, 2)) == 2
