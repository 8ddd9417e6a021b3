"""Whole searches: what ships, what the report says, what a kill costs."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from benches import Heard
from commands import ROOT, edgeml
from timings import Timings

from edgeml.outcome import BuildOutcome, SearchOutcome, TargetOutcome
from edgeml.pipeline import Build, failure
from edgeml.progress import Silent
from edgeml.recipes.recipe import Recipe
from edgeml.report import read_report
from edgeml.search import search as searching
from edgeml.search.search import Limits, Search
from edgeml.search.space import Point

from .grounds import place, written

SMALL = "[search]\ntrials = 6\nsamples = [24, 32]\nkeep = [0, 1]\n"


def searched(path: Path, timings: Timings | None = None, **limits: Any) -> BuildOutcome:
    where = place(path.parent, timings)
    return Search(path, where, Silent(), limits=Limits(**limits)).run()


def target_of(outcome: BuildOutcome) -> tuple[TargetOutcome, SearchOutcome]:
    (target,) = outcome.targets
    assert target.search is not None
    return target, target.search


@dataclass(frozen=True)
class Done:
    """A search that found something, and what lay in its folder then."""

    path: Path
    outcome: BuildOutcome
    report: bytes
    page: str
    files: frozenset[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """float32 takes 1 ms and everything else 0.5; 0.6 are allowed."""
    home = tmp_path_factory.mktemp("done")
    limits = "[budget]\nmax_accuracy_drop = 0.2\nmax_latency_ms = 0.6\n"
    path = written(home, limits + SMALL)
    outcome = searched(path)
    folder = home / "build" / "digits-1.0.0"
    return Done(
        path, outcome, (folder / "report.json").read_bytes(),
        (folder / "report.html").read_text(),
        frozenset(one.name for one in folder.iterdir()),
    )  # fmt: skip


def test_the_fastest_point_that_holds_the_budget_is_built_on_all_samples(
    done: Done,
) -> None:
    target, search = target_of(done.outcome)
    assert failure(done.outcome) is None
    assert search.chosen is not None
    best = search.trials[search.chosen]
    assert best.status == "chosen"
    assert best.point["precision"] != "fp32"
    assert target.choice_reason.startswith(best.name)
    chosen = next(one for one in target.candidates if one.status == "chosen")
    assert chosen.evaluation is not None
    assert chosen.evaluation.samples == 400 != search.samples == 200
    assert done.files == {"cpu-x86_64.edgeml", "report.json", "report.html"}
    assert done.outcome.reproduce == ("edgeml build recipe.toml",)


def test_the_report_has_every_trial_its_front_and_the_budget(done: Done) -> None:
    _, search = target_of(done.outcome)
    found = read_report(done.report)["targets"][0]["search"]
    assert [one["name"] for one in found["trials"]] == [
        one.name for one in search.trials
    ]
    assert any(one["front"] for one in found["trials"])
    assert {"fp32", "fp16", "int8"} <= set(found["space"]["precision"])
    assert "<h3>Search</h3>" in done.page
    assert f"6 of {search.points} points were tried" in done.page
    assert done.page.count("limit 0.6 ms") >= 2, "among candidates and among trials"
    for trial in search.trials:
        assert trial.name in done.page


@pytest.mark.long
def test_a_search_that_is_done_does_nothing_again_and_a_longer_one_goes_on(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[str] = []
    plain = searching.Judge.judged
    monkeypatch.setattr(
        searching.Judge, "judged",
        lambda self, number, point, **more: (
            judged.append(point.text), plain(self, number, point, **more))[1],
    )  # fmt: skip
    assert searched(done.path) == done.outcome
    assert judged == []
    longer = searched(done.path, trials=7)
    assert len(judged) == 1
    _, search = target_of(longer)
    assert [one.name for one in search.trials][:6] == [
        one.name for one in target_of(done.outcome)[1].trials
    ]
    assert longer.reproduce == ("edgeml search recipe.toml --trials 7",)
    assert searched(done.path) == done.outcome, "and changes no shorter one"


def test_when_nothing_fits_the_nearest_is_told_with_what_it_misses(
    tmp_path: Path,
) -> None:
    limits = "[budget]\nmax_size_bytes = 2000\nmax_latency_ms = 0.4\n"
    outcome = searched(written(tmp_path, limits + SMALL))
    target, search = target_of(outcome)
    assert failure(outcome) is not None
    assert (target.bundle_file, target.chosen, search.chosen) == (None, None, None)
    why = target.choice_reason
    assert why.startswith("no point of the search holds the budget; nearest is ")
    assert "max_size_bytes 2,000, measured" in why and "% over" in why
    assert target.candidates, "the nearest point is built for the report"
    assert not list(tmp_path.rglob("*.edgeml"))


def test_a_point_that_misses_on_all_samples_gives_way_to_the_next(
    done: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first choice is refuted by a real build, under a limit that is made tight."""
    first = target_of(done.outcome)[1].chosen
    assert first is not None
    best = Point(**target_of(done.outcome)[1].trials[first].point)
    plain = searching.varied

    def tight(recipe: Recipe, point: Point, keep: Any = ()) -> Recipe:
        made = plain(recipe, point, keep)
        budget = replace(recipe.budget, max_size_bytes=10)
        return replace(made, budget=budget) if point == best else made

    monkeypatch.setattr(searching, "varied", tight)
    target, search = target_of(searched(done.path))
    refuted = search.trials[first]
    assert refuted.status == "refuted"
    assert "on all samples: no candidate holds the budget" in refuted.reason
    assert search.chosen not in (None, first)
    assert target.bundle_file is not None


@pytest.mark.long
def test_time_is_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 50))  # every trial takes 50 seconds
    monkeypatch.setattr(searching.time, "monotonic", lambda: next(clock))
    path = written(tmp_path, SMALL)
    heard = Heard()
    limits = Limits(trials=6, minutes=1.5)
    outcome = Search(path, place(tmp_path), heard, limits=limits).run()
    assert len(target_of(outcome)[1].trials) == 2
    assert "cpu-x86_64: 1.5 minutes are up" in heard.said
    again = Search(path, place(tmp_path), Silent(), limits=limits).run()
    assert again == outcome, "time that was used is not had again"


def test_each_target_has_its_own_search_and_one_that_is_refused_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Build.bench
    monkeypatch.setattr(
        Build, "bench",
        lambda self, target, subject: (None, ["it has no wheels"])
        if target.name == "openvino-cpu"
        else plain(self, target, subject),
    )  # fmt: skip
    path = written(tmp_path, SMALL, "openvino-cpu", "cpu-x86_64")
    outcome = searched(path, trials=2)
    refused, made = outcome.targets
    assert refused.refusals == ("it has no wheels",) and refused.search is None
    assert made.bundle_file == "cpu-x86_64.edgeml"
    assert made.search is not None


def test_nothing_can_be_built_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgeml.errors import BackendError
    from edgeml.search import judge

    path = written(tmp_path, SMALL)

    def fail(*_: object) -> None:
        raise BackendError("the tool fell over")

    monkeypatch.setattr(judge, "_made", fail)
    with pytest.raises(
        BackendError, match=r"no point .* the first: the tool fell over"
    ):
        searched(path)


def trials(folder: Path) -> list[dict[str, Any]]:
    """What a report says of a search."""
    report = json.loads((folder / "digits-1.0.0" / "report.json").read_text())
    found: list[dict[str, Any]] = report["targets"][0]["search"]["trials"]
    return found


@pytest.mark.long
@pytest.mark.parametrize("when", ["trial 2 of", "trial 5 of", "on all samples"])
def test_a_search_killed_anywhere_goes_on_and_ends_as_it_would_have(
    when: str, tmp_path: Path
) -> None:
    """``kill -9`` of the real command; measurements on record make runs comparable."""
    path = written(tmp_path, SMALL)
    cache = tmp_path / "user"
    done = edgeml("search", path, "--out", tmp_path / "whole", cache=cache)
    assert done.code == 0, done.err
    command = [sys.executable, "-m", "edgeml", "search", str(path),
               "--out", str(tmp_path / "torn")]  # fmt: skip
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}
    running = subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert running.stderr is not None
    for line in running.stderr:
        if when in line:
            time.sleep(0.02)
            running.send_signal(signal.SIGKILL)
            break
    assert running.wait() == -signal.SIGKILL
    running.stderr.close()
    again = edgeml(*command[3:], cache=cache)
    assert again.code == 0, again.err
    first = "trial 3 of" if when == "trial 5 of" else "trial 1 of"
    assert first not in again.err, "what was finished is not done again"
    assert trials(tmp_path / "torn") == trials(tmp_path / "whole")
    bundle = Path("digits-1.0.0", "cpu-x86_64.edgeml")
    whole, torn = (
        (tmp_path / name / bundle).read_bytes() for name in ("whole", "torn")
    )
    assert whole == torn
