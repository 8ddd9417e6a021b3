"""Our builds beside what the tools make by default, on real models.

Run it with ``scripts/bench compile``. How it is judged: docs/bench.md. The rules:

1. Ours comes out of the real build, from a fresh cache. The peers do not pass through
   it (:mod:`peers`).
2. All are given the same calibration samples, judged on the same validation samples
   by the same code, and timed together, in turn, with the same runtime options.
3. Exit code 1 when ours loses, with the figures; 0 otherwise.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from peers import Peer, Task, one_line, peers

from calibration.sampler import draw
from device_agent.contract import machine
from device_agent.contract.bundle import Bundle, read_bundle, unpack
from device_agent.contract.errors import DeviceError
from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Array, Feeds
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Session
from edgeml.cache import Cache
from edgeml.choice import OUTCLASSED, SLOWER, gate, score
from edgeml.evaluation.evaluate import evaluate
from edgeml.evaluation.measure import MeasurementStore
from edgeml.outcome import BuildOutcome, Candidate, Evaluation
from edgeml.passing import graph_of
from edgeml.pipeline import Build, Place, host_refusals
from edgeml.progress import Plain, Silent
from edgeml.recipes.data import load_splits
from edgeml.recipes.feeds import Preparer
from edgeml.recipes.recipe import Recipe, read_recipe
from edgeml.recipes.sources import source_digests
from edgeml.workbench import Subject
from targets.profile import Target, load_target

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "tests" / "e2e" / "recipes"
SHARED = ROOT.parent / "shared" / "data"
MODELS = {
    "digits": ROOT / "demo" / "digits" / "recipe.toml",
    **{
        name: RECIPES / f"{name}.toml"
        for name in ("mnist", "mlperf_tiny_kws", "occupancy", "silero_vad",
                     "ultraface", "basic_pitch")
    },
}  # fmt: skip
OWN_DATA = {"digits"}
"""Models that need nothing beside the checkout."""
QUICK = ("digits", "mnist", "mlperf_tiny_kws", "occupancy")
ROUNDS = 30
SECONDS = {False: 6.0, True: 2.0}
"""For the timing of all candidates of one model and runtime together."""
SAME_SIZE = 1.10
"""A peer up to a tenth larger than ours still counts as of the same size."""
SURE = 0.8
"""Share of rounds in which a thing is slower before it is called slower."""
COLUMNS = (
    "model", "runtime", "who", "metric", "Δ float", "size KiB", "p50 ms", "to fp32",
    "remark",
)  # fmt: skip


@dataclass(frozen=True)
class Entrant:
    """One artifact to judge: ours or a peer's."""

    peer: Peer
    options: Mapping[str, Option]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    who: str
    size_bytes: int = 0
    evaluation: Evaluation | None = None
    p50_ms: float = 0.0
    ratio: float = 0.0
    """Of its latency to fp32's, the median over the rounds."""
    slower: bool = False
    misses: tuple[str, ...] = ()
    note: str = ""


class Comparison:
    """One model on one target."""

    def __init__(self, contest: "Contest", target: Target, folder: Path) -> None:
        self._contest = contest
        self._target = target
        self._folder = folder

    def rows(self, bundle: Path | None, chosen: str, seconds: float) -> list[Row]:
        """fp32, ours, then the peers."""
        subject = self._contest.subject
        made = list(peers(self._contest.task, self._target.runtime, self._folder))
        options = self._target.runtime_options
        entrants = {one.who: Entrant(one, options) for one in made}
        if bundle is not None:
            ours = self._ours(read_bundle(bundle), chosen)
            entrants = {"fp32": entrants.pop("fp32"), "ours": ours, **entrants}
        rows: dict[str, Row] = {}
        sessions: dict[str, Session] = {}
        for who, entrant in entrants.items():
            row = Row(who, entrant.peer.size_bytes, note=entrant.peer.note)
            if entrant.peer.entry is not None:
                try:
                    session = self._open(entrant)
                    row = replace(row, evaluation=self._contest.judge(session))
                    sessions[who] = session
                except DeviceError as error:
                    row = replace(row, note=f"does not run: {one_line(error)}")
            rows[who] = row
        times = timed(sessions, subject.validation.feeds[:16], seconds)
        for who, own in times.items():
            ratios = own / times["fp32"]
            rows[who] = replace(
                rows[who],
                p50_ms=float(np.median(own)),
                ratio=float(np.median(ratios)),
                slower=bool(np.mean(ratios > SLOWER) >= SURE),
            )
        return [self._gated(row) for row in rows.values()]

    def _ours(self, bundle: Bundle, chosen: str) -> Entrant:
        folder = self._folder / "ours"
        unpack(bundle, folder)
        manifest = bundle.manifest
        entry = folder / manifest.artifact
        return Entrant(Peer("ours", entry, chosen), manifest.runtime.options)

    def _open(self, entrant: Entrant) -> Session:
        assert entrant.peer.entry is not None
        return runtime(self._target.runtime).load(entrant.peer.entry, entrant.options)

    def _gated(self, row: Row) -> Row:
        """With the limits of the recipe's budget on accuracy and flips it misses."""
        if row.evaluation is None:
            return row
        recipe = self._contest.recipe
        limits = replace(
            recipe.budget, max_latency_ms=None, max_size_bytes=None,
            max_memory_bytes=None, max_fallback_share=None,
        )  # fmt: skip
        misses = gate(as_candidate(row), self._contest.oracle, limits, recipe.metric)
        return replace(row, misses=tuple(miss.limit for miss in misses))


class Contest:
    """One model: what everybody is given, and by what everybody is judged."""

    def __init__(self, recipe: Recipe, out: Path, folder: Path) -> None:
        self.recipe = recipe
        splits = load_splits(recipe)
        store = Cache(out / ".cache")
        imported = graph_of(recipe, store, source_digests(recipe), splits.digest, False)
        model, splits = imported.model, splits.given(imported.model)
        preparer = Preparer(recipe.preprocess, recipe.preprocess_input, model.inputs)
        pool, data = splits.calibration, recipe.data
        drawn = draw(pool, data.sampler, data.samples, recipe.seed, None)
        self.subject = Subject(
            model=model, model_digest=imported.digest,
            calibration=preparer.split(pool, drawn),
            validation=preparer.split(splits.validation),
            metric=recipe.metric, folder=recipe.folder, data_digest="",
        )  # fmt: skip
        path = folder / "float.onnx"
        path.write_bytes(model.payload.SerializeToString())
        origin = model.origin
        self.task = Task(
            path,
            self.subject.calibration.feeds,
            (lambda: origin().payload) if origin else None,
        )
        reference = load_target("reference")
        session = runtime(reference.runtime).load(path, reference.runtime_options)
        self.oracle, self._outputs = self._run(session, None)

    def judge(self, session: Session) -> Evaluation:
        """Accuracy, slices and flips, as in a build."""
        return self._run(session, self._outputs)[0]

    def _run(
        self, session: Session, reference: Mapping[str, Array] | None
    ) -> tuple[Evaluation, dict[str, Array]]:
        subject, split = self.subject, self.subject.validation
        return evaluate(
            session, split.feeds, split.labels, split.slices, subject.metric,
            reference=reference, ids=split.ids, samples_digest=split.digest,
            folder=subject.folder,
        )  # fmt: skip


def as_candidate(row: Row) -> Candidate:
    """What the rules of the choice look at."""
    return Candidate(
        row.who, "int8", "fits", size_bytes=row.size_bytes, evaluation=row.evaluation
    )


def timed(
    sessions: Mapping[str, Session], feeds: Sequence[Feeds], seconds: float
) -> dict[str, np.ndarray]:
    """Name → each round's median in ms; everybody in every round, in changing order."""
    costs = {}
    for name, session in sessions.items():
        begun = time.perf_counter()
        for feed in feeds[:3]:
            session.predict(feed)
        costs[name] = (time.perf_counter() - begun) / len(feeds[:3])
    runs = int(np.clip(seconds / ROUNDS / sum(costs.values()), 3, 300))
    names = list(sessions)
    medians: dict[str, list[float]] = {name: [] for name in names}
    for number in range(ROUNDS):
        shift = number % len(names)
        order = names[shift:] + names[:shift]
        for name in order if number % 2 == 0 else reversed(order):
            taken = []
            for run in range(runs):
                feed = feeds[(number * runs + run) % len(feeds)]
                begun = time.perf_counter_ns()
                sessions[name].predict(feed)
                taken.append((time.perf_counter_ns() - begun) / 1e6)
            medians[name].append(float(np.median(taken)))
    return {name: np.array(values) for name, values in medians.items()}


def verdict(rows: Sequence[Row], recipe: Recipe) -> tuple[bool, str]:
    """Whether ours holds the promise, and the figures that say so."""
    ours = next((row for row in rows if row.who == "ours"), None)
    if ours is None or ours.evaluation is None:
        return False, "we ship nothing"
    mine = score(as_candidate(ours), recipe.metric)
    faults = []
    if ours.slower:
        faults.append(f"slower than fp32: {ours.ratio:.3f} of its time")
    rivals = [
        row for row in rows
        if row.who not in ("ours", "fp32") and row.evaluation and not row.misses
        and not row.slower and row.size_bytes <= ours.size_bytes * SAME_SIZE
    ]  # fmt: skip
    best = max(
        rivals, key=lambda row: score(as_candidate(row), recipe.metric), default=None
    )
    if best is None:
        told = "no peer is as small, as accurate as the budget and as fast as fp32"
    else:
        ahead = mine - score(as_candidate(best), recipe.metric)
        told = f"{100 * ahead:+.2f} points to {best.who}"
        if ahead < -OUTCLASSED * max(1.0, abs(mine)) - 1e-12:
            faults.append(
                f"less accurate than {best.who} ({told}; "
                f"{best.size_bytes} bytes, ours {ours.size_bytes})"
            )
    return not faults, "; ".join(faults) or f"{told}, {ours.ratio:.2f} of fp32's time"


def cells(model: str, target: Target, row: Row, oracle: Evaluation, recipe: Recipe
          ) -> list[str]:  # fmt: skip
    """One row as texts."""
    remark = [row.note] if row.note else []
    remark += [f"misses {name}" for name in row.misses]
    remark += ["slower than fp32"] if row.slower else []
    head = [model, target.name, row.who]
    if row.evaluation is None:
        return [*head, "", "", "", "", "", "; ".join(remark)]
    name = recipe.metric.name
    value, exact = row.evaluation.metrics[name], oracle.metrics[name]
    return [
        *head, f"{value:.4f}", f"{value - exact:+.4f}", f"{row.size_bytes / 1024:.1f}",
        f"{row.p50_ms:.4f}", f"{row.ratio:.2f}", "; ".join(remark),
    ]  # fmt: skip


def table(lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table with straight columns."""
    widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
    rule = ["-" * width for width in widths]
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |"
        for line in (lines[0], rule, *lines[1:])
    )


@cache
def target_names() -> tuple[str, ...]:
    """VNNI's where the host has it, and OpenVINO's."""
    vnni = load_target("cpu-x86_64-vnni")
    plain = bool(host_refusals(vnni))
    return ("cpu-x86_64" if plain else vnni.name, "openvino-cpu")


def compared(
    name: str, out: Path, quick: bool, verbose: bool
) -> Iterator[tuple[list[list[str]], bool, str]]:
    """Per runtime: the rows as texts, whether ours holds, and the verdict."""
    recipe = read_recipe(MODELS[name])
    place = Place(out, Cache(out / ".cache"), MeasurementStore(out / "measured.sqlite"))
    build = Build(
        MODELS[name], place, Plain() if verbose else Silent(), targets=target_names()
    )
    outcome: BuildOutcome = build.run()
    with tempfile.TemporaryDirectory(prefix="edgeml.") as scratch:
        contest = Contest(recipe, out, Path(scratch))
        same = outcome.calibration["digest"] == contest.subject.calibration.digest
        assert same, "the peers see the calibration samples that ours saw"
        for target in map(load_target, target_names()):
            folder = Path(scratch, target.name)
            folder.mkdir()
            shipped = next(one for one in outcome.targets if one.target == target.name)
            file = shipped.bundle_file and build.folder / shipped.bundle_file
            rows = Comparison(contest, target, folder).rows(
                file or None, shipped.chosen or shipped.choice_reason, SECONDS[quick]
            )
            holds, told = verdict(rows, recipe)
            lines = [cells(name, target, one, contest.oracle, recipe) for one in rows]
            yield lines, holds, f"{name} {target.name}: {told}"


def here(name: str) -> bool:
    """Whether the model's data are on this machine."""
    return name in OWN_DATA or (SHARED / name).is_dir()


def main() -> int:
    """Compare; print the table and the verdicts; 1 when ours loses somewhere."""
    parser = argparse.ArgumentParser(prog="scripts/bench compile")
    parser.add_argument("--model", action="append", choices=list(MODELS))
    parser.add_argument(
        "--quick", action="store_true", help="small models, less timing"
    )
    parser.add_argument("--verbose", action="store_true", help="show the builds")
    given = parser.parse_args()
    wanted = given.model or (QUICK if given.quick else list(MODELS))
    lines, verdicts, lost = [list(COLUMNS)], [], 0
    with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
        os.environ["XDG_CACHE_HOME"] = folder
        for name in wanted:
            if not here(name):
                verdicts.append(f"-     {name}: ../shared/data/{name} is absent")
                continue
            begun = time.monotonic()
            results = compared(name, Path(folder, name), given.quick, given.verbose)
            for rows, holds, told in results:
                lines += rows
                verdicts.append(f"{'holds' if holds else 'LOSES'} {told}")
                print(verdicts[-1], file=sys.stderr, flush=True)
                lost += not holds
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(table(lines), "", *verdicts, f"\n{machine.name()}", sep="\n")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
