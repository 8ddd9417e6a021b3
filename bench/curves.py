"""Accuracy against latency as networks are pruned, with and without distillation.

Run it with ``scripts/bench curves``. How it is measured: docs/compress-curves.md. The
rules:

1. One small network of each kind (``tests/simulators/kinds.py``), trained on MNIST.
2. Each share is cut from the same trained network, then trained for the same epochs in
   two ways: on labels alone (``prune``), and with the unpruned network as the teacher
   (``prune`` without training, then ``distill``). A share of 0 is trained on, too: what
   more training alone gives is no gain of pruning.
3. Artifacts are fp32 ONNX, judged on test images that nobody was trained on, and timed
   together, in turn, with the unpruned one, by the runtime and options of the target.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from compile import timed
from curves_plot import Line, Panel, drawn
from serving.tables import Table, markdown, printed, written

from device_agent.contract import machine
from device_agent.contract.tensors import Array
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Session
from edgeml.intake.modules import load_factory
from edgeml.model import Model
from edgeml.passes import load_pass
from edgeml.passes.base import Context
from edgeml.training.task import Samples, Task, hold_out
from targets.profile import load_target

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ROOT / "tests" / "simulators"
MNIST = ROOT.parent / "shared" / "data" / "mnist"
TARGET = "cpu-x86_64"
KINDS = ("plain", "residual", "depthwise", "transformer")
SHARES = (0.0, 0.3, 0.5, 0.7, 0.8, 0.9)
QUICK_SHARES = (0.0, 0.5, 0.9)
MULTIPLE = 8
"""Of channel counts: with the 16 of the target, layers of 32 have only two sizes."""
RATE = 2e-3
SEED = 0
BATCH = 250
"""Test images at once."""
SECONDS = 6.0
"""For the timing of all artifacts of one kind together."""
COLUMNS = (
    "network", "asked %", "MACs k", "parameters", "KiB", "p50 ms", "of unpruned",
    "cut top1 %", "fine-tuned top1 %", "distilled top1 %",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is trained and judged."""

    train: int
    test: int
    epochs: int
    tuned: int
    """Epochs after pruning."""
    batch: int
    shares: tuple[float, ...] = SHARES


FULL = Size(train=10_000, test=10_000, epochs=6, tuned=3, batch=64)
QUICK = Size(1_000, 1_000, epochs=2, tuned=1, batch=16, shares=QUICK_SHARES)


@dataclass(frozen=True)
class Row:
    """One share of one network; accuracies are from 0 to 1."""

    kind: str
    share: float
    macs: int
    parameters: int
    size_bytes: int
    p50_ms: float
    ratio: float
    """Of its latency to that of the unpruned, the median over the rounds."""
    cut: float
    tuned: float
    distilled: float


class Study:
    """The samples, and how one model is trained, exported and judged."""

    def __init__(self, size: Size, folder: Path) -> None:
        self._size, self._folder = size, folder
        self._target = load_target(TARGET)
        images = Samples(*_images("mnist_train60k.npz", size.train))
        train, holdout = hold_out(images, SEED)
        self._task = Task(
            train, holdout, _top1, folder, SEED,
            channel_multiple=MULTIPLE,
        )  # fmt: skip
        self._inputs, self._labels = _images("mnist_test10k.npz", size.test)

    def rows(self, kind: str) -> Iterator[Row]:
        """Train, prune and measure one network."""
        fresh = load_factory(f"kinds:{kind}", None, NETWORKS, {"x": [1, 1, 28, 28]})
        whole = self._passed(fresh, fresh, "train", self._size.epochs)
        paths = {"whole": self._exported(whole, f"{kind}-whole")}
        told: dict[float, tuple[dict[str, Any], dict[str, float]]] = {}
        for share in self._size.shares:
            cut = self._passed(whole, whole, "prune", 0, ratio=share)
            made = {
                "cut": cut,
                "tuned": self._passed(
                    whole, whole, "prune", self._size.tuned, ratio=share
                ),
                "distilled": self._passed(cut, whole, "distill", self._size.tuned),
            }
            scores = {}
            for how, model in made.items():
                path = self._exported(model, f"{kind}-{share:g}-{how}")
                scores[how] = self._judged(path)
                if how == "tuned":
                    paths[f"{share:g}"] = path
            told[share] = cut.lineage[-1].parameters, scores
            print(f"{kind} {share:.0%}: {scores}", file=sys.stderr, flush=True)
        times = self._timed(paths)
        for share, (facts, scores) in told.items():
            own = times[f"{share:g}"]
            yield Row(
                kind, share, facts["macs_after"], facts["parameters_after"],
                paths[f"{share:g}"].stat().st_size, float(np.median(own)),
                float(np.median(own / times["whole"])), **scores,
            )  # fmt: skip

    def _passed(
        self, model: Model, source: Model, verb: str, epochs: int, **given: Any
    ) -> Model:
        """The model after one pass."""
        parameters = {
            "epochs": epochs, "batch": self._size.batch, "learning_rate": RATE, **given
        }  # fmt: skip
        context = Context(seed=SEED, task=self._task, source=source)
        return load_pass(verb, parameters)(model, context)

    def _exported(self, model: Model, name: str) -> Path:
        graph = load_pass("export")(model, Context(seed=SEED))
        path = self._folder / f"{name}.onnx"
        path.write_bytes(graph.payload.SerializeToString())
        return path

    def _opened(self, path: Path) -> Session:
        target = self._target
        return runtime(target.runtime).load(path, target.runtime_options)

    def _judged(self, path: Path) -> float:
        """The artifact's top1 on the test images."""
        session = self._opened(path)
        right = 0
        for start in range(0, len(self._labels), BATCH):
            part = slice(start, start + BATCH)
            outputs = session.predict({"x": self._inputs["x"][part]})
            answers = next(iter(outputs.values())).argmax(1)
            right += int((answers == self._labels[part]).sum())
        session.close()
        return right / len(self._labels)

    def _timed(self, paths: Mapping[str, Path]) -> dict[str, np.ndarray]:
        """Name → each round's median in ms, of single images."""
        sessions = {name: self._opened(path) for name, path in paths.items()}
        feeds = [{"x": self._inputs["x"][place : place + 1]} for place in range(16)]
        times = timed(sessions, feeds, SECONDS)
        for session in sessions.values():
            session.close()
        return times


def _images(file: str, count: int) -> tuple[dict[str, Array], Array]:
    """So many images, drawn by the seed, as the networks take them; their digits."""
    with np.load(MNIST / file) as data:
        places = np.random.default_rng(SEED).permutation(len(data["y"]))[:count]
        x, y = data["x"][places], data["y"][places]
    return {"x": x[:, None].astype(np.float32) / np.float32(255)}, y.astype(np.int64)


def _top1(outputs: Mapping[str, Array], labels: Array | None) -> float:
    return float((next(iter(outputs.values())).argmax(1) == labels).mean())


def cells(row: Row) -> tuple[str, ...]:
    """One row as texts."""
    return (
        row.kind, f"{100 * row.share:.0f}", f"{row.macs / 1e3:,.0f}",
        f"{row.parameters:,}", f"{row.size_bytes / 1024:.1f}", f"{row.p50_ms:.4f}",
        f"{row.ratio:.3f}",
        *(f"{100 * one:.2f}" for one in (row.cut, row.tuned, row.distilled)),
    )  # fmt: skip


def panels(rows: Sequence[Row]) -> list[Panel]:
    """One per network: both ways as lines over the latency."""
    found = []
    for kind in dict.fromkeys(row.kind for row in rows):
        own = [row for row in rows if row.kind == kind]
        lines = [
            Line(
                name,
                tuple((row.p50_ms, 100 * getattr(row, field)) for row in own),
                tuple(f"{100 * row.share:.0f}" for row in own),
            )
            for name, field in (("fine-tuned", "tuned"), ("distilled", "distilled"))
        ]
        found.append(Panel(kind, tuple(lines)))
    return found


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(prog="scripts/bench curves")
    parser.add_argument("--kind", action="append", choices=KINDS)
    parser.add_argument(
        "--quick", action="store_true", help="few images, one epoch, three shares"
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE",
        help="write the table as Markdown, after the mark in FILE if it has one, and "
        "the plot beside it (.svg)",
    )  # fmt: skip
    return parser.parse_args()


def main() -> int:
    """Train, prune, measure; print the table; 0."""
    given = arguments()
    if not MNIST.is_dir():
        print("nothing measured: ../shared/data/mnist is absent", file=sys.stderr)
        return 0
    size = QUICK if given.quick else FULL
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
        study = Study(size, Path(folder))
        rows = [row for kind in given.kind or KINDS for row in study.rows(kind)]
    minutes = (time.monotonic() - begun) / 60
    table = Table("Shares pruned", (COLUMNS, *map(cells, rows)))
    remarks = [
        f"{size.train:,} training images, {size.epochs} epochs, {size.tuned} more "
        f"after pruning; {size.test:,} test images",
        f"{machine.name()}; {TARGET}; {minutes:.1f} minutes",
    ]
    printed([table])
    print(*remarks, sep="\n")
    if given.out:
        plot = given.out.with_suffix(".svg")
        plot.write_text(drawn(panels(rows)))
        text = markdown([replace(table, title="Result")], [], remarks)
        text = text.replace("```\n\n```\n\n", "")
        written(f"![accuracy over latency]({plot.name})\n\n{text}", given.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
