"""A large teacher and the small student that takes its place, on real data.

Run it with ``scripts/bench compress``. How it is judged: docs/bench-compress.md. The
rules:

1. Everybody comes out of the real build of a recipe in ``bench/compress``, from a fresh
   cache: trained, exported, quantized, validated and packed.
2. Teacher and students are judged on the same held-out samples, that nobody was trained
   or calibrated on, and their artifacts are timed together, in turn.
3. The student's network trained without the teacher, as long and on the same labels, is
   told beside it: what distillation adds is the difference.
4. Exit code 1 when a promise is missed, with the figure; 0 otherwise.
"""

import argparse
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from compile import timed
from serving.tables import Table, markdown, printed, written
from serving.verdicts import Verdict

from device_agent.contract import machine
from device_agent.contract.bundle import read_bundle, unpack
from device_agent.contract.tensors import Feeds
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Session
from edgeml.cache import Cache
from edgeml.evaluation.measure import MeasurementStore
from edgeml.outcome import BuildOutcome, Candidate, Evaluation
from edgeml.passing import Chain
from edgeml.pipeline import Build, Place
from edgeml.progress import Plain, Silent
from edgeml.recipes.data import load_splits
from edgeml.recipes.feeds import Preparer
from edgeml.recipes.recipe import Recipe
from edgeml.recipes.sources import source_digests
from targets.profile import load_target

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "bench" / "compress"
SHARED = ROOT.parent / "shared" / "data"
TARGET = "cpu-x86_64"
TEACHER, PLAIN, STUDENT, PRUNED = ROLES = ("teacher", "plain", "student", "pruned")
DISTILLED = (STUDENT, PRUNED)
"""Who takes the teacher's place, and has to keep what is promised."""
WEIGHTS = "teacher.safetensors"
TEACHER_TOP1 = {"mnist": 0.993, "fsdd": 0.97}
"""What a teacher must know before its student counts for anything."""
TEACHER_PARAMETERS = 1_000_000
SMALLER, FASTER, DROP_POINTS = 20.0, 5.0, 1.0
MINUTES = 30.0
QUICK_SHARE = 4
"""``--quick`` trains for this part of the epochs."""
SECONDS = 6.0
"""For the timing of all artifacts of one data set together."""
TIMED_SAMPLES = 16
COLUMNS = (
    "data", "who", "parameters", "KiB", "smaller", "p50 ms", "faster", "top1 %",
    "drop points", "worst slice", "ships", "made in s",
)  # fmt: skip
_EPOCHS = re.compile(r"(?m)^epochs = (\d+)$")


@dataclass(frozen=True)
class Entrant:
    """What one recipe came to; ``candidate`` None: it ships nothing, see ``why``."""

    role: str
    recipe: Recipe
    parameters: int
    bundle: Path | None
    candidate: Candidate | None
    why: str
    made_s: float

    @property
    def evaluation(self) -> Evaluation:
        """Of the artifact on the held-out samples."""
        assert self.candidate is not None and self.candidate.evaluation is not None
        return self.candidate.evaluation

    @property
    def top1(self) -> float:
        """Share of held-out samples that the artifact answers rightly."""
        return self.evaluation.metrics["top1"]


@dataclass(frozen=True)
class Row:
    """One line of the table; ratios are to the teacher's fp32 artifact."""

    data: str
    entrant: Entrant
    p50_ms: float
    faster: float
    smaller: float
    drop_points: float


class Contest:
    """One data set: its recipes built, judged and timed."""

    def __init__(self, name: str, folder: Path, quick: bool, verbose: bool) -> None:
        self._name, self._folder, self._verbose = name, folder, verbose
        self._place = Place(
            folder / "out",
            Cache(folder / "cache"),
            MeasurementStore(folder / "measured.sqlite"),
        )
        folder.mkdir(parents=True, exist_ok=True)
        for path in [*RECIPES.glob("*.py"), *RECIPES.glob(f"{name}-*.toml")]:
            text = path.read_text()
            (folder / path.name).write_text(hurried(text) if quick else text)

    def rows(self) -> Iterator[Row]:
        """In the order of the roles; the teacher is first."""
        entrants = [self._made(role) for role in ROLES]
        times = self._timed([one for one in entrants if one.bundle is not None])
        teacher = entrants[0]
        for one in entrants:
            if teacher.candidate is None or one.candidate is None:
                yield Row(self._name, one, 0, 0, 0, 0)
                continue
            own = times[one.role]
            yield Row(
                self._name,
                one,
                p50_ms=float(np.median(own)),
                faster=float(np.median(times[TEACHER] / own)),
                smaller=teacher.candidate.size_bytes / one.candidate.size_bytes,
                drop_points=lost(teacher.top1, one.top1),
            )

    def _made(self, role: str) -> Entrant:
        begun = time.monotonic()
        build = Build(
            self._folder / f"{self._name}-{role}.toml", self._place,
            Plain() if self._verbose else Silent(), targets=[TARGET],
        )  # fmt: skip
        outcome = build.run()
        module = self._module(build.recipe)
        if role == TEACHER:
            from safetensors.torch import save_file

            save_file(module.state_dict(), self._folder / WEIGHTS)
        shipped = outcome.targets[0]
        entrant = Entrant(
            role,
            build.recipe,
            sum(one.numel() for one in module.parameters()),
            build.folder / shipped.bundle_file if shipped.bundle_file else None,
            chosen(outcome),
            "; ".join(shipped.refusals) or shipped.choice_reason,
            time.monotonic() - begun,
        )
        print(
            f"{self._name} {role}: {entrant.made_s:.0f} s", file=sys.stderr, flush=True
        )
        return entrant

    def _module(self, recipe: Recipe) -> "torch.nn.Module":  # noqa: F821
        """The trained module, made again from the build's cache."""
        chain = Chain(
            recipe, self._place.cache, source_digests(recipe),
            load_splits(recipe).digest, False,
        )  # fmt: skip
        return chain.before_export().payload

    def _timed(self, entrants: Sequence[Entrant]) -> Mapping[str, np.ndarray]:
        """Role → each round's median in ms."""
        with ExitStack() as stack:
            scratch = stack.enter_context(tempfile.TemporaryDirectory())
            sessions: dict[str, Session] = {}
            for one in entrants:
                assert one.bundle is not None, "only what ships is timed"
                bundle, folder = read_bundle(one.bundle), Path(scratch, one.role)
                unpack(bundle, folder)
                manifest = bundle.manifest
                session = runtime(manifest.runtime.name).load(
                    folder / manifest.artifact, manifest.runtime.options
                )
                sessions[one.role] = session
                stack.callback(session.close)
            return timed(sessions, self._feeds(entrants[0].recipe, sessions), SECONDS)

    def _feeds(self, recipe: Recipe, sessions: Mapping[str, Session]) -> list[Feeds]:
        """Held-out samples as all the artifacts take them."""
        inputs = next(iter(sessions.values())).inputs
        preparer = Preparer(recipe.preprocess, recipe.preprocess_input, inputs)
        samples = load_splits(recipe).validation
        return [preparer.feeds(samples[place]) for place in range(TIMED_SAMPLES)]


def lost(before: float, after: float) -> float:
    """Points; rounded, so that three samples of 300 are one point and not a bit more.

    >>> lost(0.995, 0.985)
    1.0
    """
    return round(100 * (before - after), 6)


def hurried(recipe: str) -> str:
    """The recipe's text with a part of its epochs."""
    return _EPOCHS.sub(
        lambda found: f"epochs = {max(1, int(found[1]) // QUICK_SHARE)}", recipe
    )


def chosen(outcome: BuildOutcome) -> Candidate | None:
    """The candidate that ships for the one target, if one does."""
    target = outcome.targets[0]
    return next((one for one in target.candidates if one.name == target.chosen), None)


def worst_slice(evaluation: Evaluation) -> tuple[str, float]:
    """The group with the lowest top1: of the recipe's slices, else of the classes."""
    groups = {
        f"{column} {value}": top1
        for column, values in evaluation.slices.items()
        for value, top1 in values.items()
    }
    if not groups:
        groups = {
            f"class {label}": row[label] / sum(row)
            for label, row in enumerate(evaluation.confusion)
            if sum(row)
        }
    name = min(groups, key=lambda one: groups[one])
    return name, groups[name]


def verdicts(rows: Sequence[Row], quick: bool) -> Iterator[Verdict]:
    """Every promise on one data set; the teacher's row is the first."""
    absent = [row.entrant for row in rows if row.entrant.candidate is None]
    for one in absent:
        yield _at_least(f"{rows[0].data}: the {one.role} ships ({one.why})", 0, 1, "")
    if absent:
        return
    yield from _teachers(rows[0], quick)
    for row in rows:
        if row.entrant.role in DISTILLED:
            yield from _students(row)


def _teachers(row: Row, quick: bool) -> Iterator[Verdict]:
    yield _at_least(
        f"{row.data}: parameters of the teacher", row.entrant.parameters / 1e6,
        TEACHER_PARAMETERS / 1e6, "M",
    )  # fmt: skip
    yield _at_least(
        f"{row.data}: top1 of the teacher",
        None if quick else 100 * row.entrant.top1, 100 * TEACHER_TOP1[row.data], "%",
        "--quick trains it too shortly" if quick else "",
    )  # fmt: skip


def _students(row: Row) -> Iterator[Verdict]:
    who = f"{row.data}: the {row.entrant.role},"
    yield _at_least(f"{who} smaller than the teacher", row.smaller, SMALLER, "x")
    yield _at_least(f"{who} faster than the teacher", row.faster, FASTER, "x")
    yield Verdict(f"{who} top1 lost", row.drop_points, DROP_POINTS, "points")


def _at_least(
    promise: str, found: float | None, limit: float, unit: str, note: str = ""
) -> Verdict:
    return Verdict(promise, found, limit, unit, at_least=True, note=note)


def cells(row: Row) -> tuple[str, ...]:
    """One row as texts."""
    entrant = row.entrant
    head = (row.data, entrant.role, f"{entrant.parameters:,}")
    if entrant.candidate is None:
        return (*head, *[""] * 7, "nothing", f"{entrant.made_s:.0f}")
    worst, value = worst_slice(entrant.evaluation)
    return (
        *head, f"{entrant.candidate.size_bytes / 1024:.1f}", f"{row.smaller:.1f}x",
        f"{row.p50_ms:.4f}", f"{row.faster:.1f}x", f"{100 * entrant.top1:.2f}",
        f"{row.drop_points:+.2f}", f"{worst}: {100 * value:.1f}",
        entrant.candidate.name, f"{entrant.made_s:.0f}",
    )  # fmt: skip


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/bench compress")
    parser.add_argument("--data", action="append", choices=list(TEACHER_TOP1))
    parser.add_argument(
        "--quick", action="store_true", help=f"1/{QUICK_SHARE} of the epochs"
    )
    parser.add_argument("--verbose", action="store_true", help="show the builds")
    parser.add_argument(
        "--work", type=Path, metavar="FOLDER",
        help="keep builds and caches there: what was cut off goes on",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write the result as Markdown, after the mark in FILE if it has one",
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Build, compare; print the table and the verdicts; 1 when a promise is missed."""
    given = arguments()
    begun, lines, judged, told = time.monotonic(), [COLUMNS], [], []
    assert load_target(TARGET).threads == 1, "as docs/bench-compress.md says"
    with tempfile.TemporaryDirectory(prefix="edgeml.") as scratch:
        work = given.work or Path(scratch)
        for name in given.data or TEACHER_TOP1:
            if not (SHARED / name).is_dir():
                told.append(f"{name}: ../shared/data/{name} is absent")
                continue
            contest = Contest(name, work / name, given.quick, given.verbose)
            rows = list(contest.rows())
            lines += map(cells, rows)
            judged += verdicts(rows, given.quick)
    minutes = (time.monotonic() - begun) / 60
    judged.append(Verdict("the whole run", minutes, MINUTES, "minutes"))
    table = Table("Teacher and students", tuple(lines))
    told.append(f"{machine.name()}; {minutes:.1f} minutes")
    printed([table])
    print(*told, "", *judged, "", sep="\n")
    if given.out:
        written(markdown([table], judged, told), given.out)
    return 1 if any(one.missed for one in judged) else 0


if __name__ == "__main__":
    sys.exit(main())
