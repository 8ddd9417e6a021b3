"""Evaluation of a session that plays back outputs, and of a real model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from calibration.dataset import DataSource, load
from device_agent.contract.tensors import Feeds, TensorSpec
from device_agent.runtimes import runtime
from device_agent.runtimes.base import Session
from edgeml.errors import InputError
from edgeml.evaluation.evaluate import FLIPS_SHOWN, evaluate
from edgeml.outcome import Evaluation
from edgeml.recipes.feeds import Preparer
from edgeml.recipes.recipe import MetricOptions

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"


class Playback(Session):
    """Gives, for the input n, the n-th row of each recorded output."""

    def __init__(self, **outputs: Any) -> None:
        self._rows = {name: np.asarray(rows) for name, rows in outputs.items()}
        self.inputs = (TensorSpec(name="n", datatype="INT64", shape=(1,)),)
        self.outputs = tuple(
            TensorSpec(name=name, datatype="FP32", shape=(1, *rows.shape[1:]))
            for name, rows in self._rows.items()
        )

    def predict(self, feeds: Feeds) -> dict[str, Any]:
        index = int(feeds["n"][0])
        return {name: rows[index][None] for name, rows in self._rows.items()}


def judged(
    session: Session,
    labels: Sequence[Any] | None = None,
    metric: str = "top1",
    reference: dict[str, Any] | None = None,
    count: int | None = None,
    columns: dict[str, list[str]] | None = None,
    folder: Path = Path(),
    **options: Any,
) -> tuple[Evaluation, dict[str, Any]]:
    count = count or len(labels or ())
    return evaluate(
        session,
        [{"n": np.array([place])} for place in range(count)],
        None if labels is None else np.asarray(labels),
        columns or {},
        MetricOptions(metric, **options),
        reference=reference,
        ids=[f"s{place}" for place in range(count)],
        samples_digest="0" * 64,
        folder=folder,
    )


LOGITS = np.float32([[2, 0, 0], [0, 2, 0], [0, 0, 2], [0, 2, 0]])


def test_classification_record() -> None:
    found, outputs = judged(
        Playback(y=LOGITS), [0, 1, 2, 2], columns={"who": ["a", "b", "a", "b"]}
    )
    assert list(found.metrics) == ["top1", "f1"]
    assert found.metrics["top1"] == 0.75
    assert found.slices == {"who": {"a": 1.0, "b": 0.5}}
    assert found.slice_counts == {"who": {"a": 2, "b": 2}}
    assert found.confusion == ((1, 0, 0), (0, 1, 0), (0, 1, 1))
    assert found.ece is not None and 0 < found.ece < 0.3
    assert found.flip_rate is None and found.flips == ()
    assert outputs["y"].shape == (4, 3)


def test_flips_name_sample_label_and_both_answers() -> None:
    _, before = judged(Playback(y=LOGITS), [0, 1, 2, 2])
    after = LOGITS.copy()
    after[1] = [5, 0, 0]
    found, _ = judged(Playback(y=after), [0, 1, 2, 2], reference=before)
    assert found.flip_rate == 0.25
    flip = found.flips[0]
    assert (flip.sample, flip.label, flip.before, flip.after) == ("s1", 1, 1, 0)


def test_flips_shown_are_bounded() -> None:
    rows = np.tile(np.float32([1, 0]), (100, 1))
    _, before = judged(Playback(y=rows), [0] * 100)
    found, _ = judged(Playback(y=-rows), [0] * 100, reference=before)
    assert found.flip_rate == 1.0 and len(found.flips) == FLIPS_SHOWN


def test_regression_flips_are_changes_beyond_tolerance() -> None:
    truth = np.linspace(0, 1, 20, dtype=np.float32)
    _, before = judged(Playback(y=truth[:, None]), list(truth), "mae")
    after = truth.copy()
    after[3] += 0.2
    after[4] += 0.001
    found, _ = judged(Playback(y=after[:, None]), list(truth), "mae", before)
    assert list(found.metrics) == ["mae", "rmse"]
    assert found.metrics["mae"] == pytest.approx(0.201 / 20, rel=1e-3)
    assert [flip.sample for flip in found.flips] == ["s3"]
    assert found.flips[0].before == pytest.approx(3 / 19)
    assert found.ece is None and found.confusion == ()


def test_agreement_needs_no_labels_and_reads_a_probability() -> None:
    _, before = judged(Playback(p=[[0.2], [0.9]]), metric="agreement", count=2)
    found, _ = judged(
        Playback(p=[[0.4], [0.3]]), metric="agreement", count=2, reference=before
    )
    assert found.metrics == {"agreement": 0.5}
    assert found.flip_rate == 0.5


def test_an_artifact_is_read_as_the_float_model_is() -> None:
    """A softmax that lost a tenth of its sum to quantization stays one."""
    softmax = np.float32([[0.9, 0.1], [0.2, 0.8]])
    _, before = judged(Playback(y=softmax), [0, 1])
    found, _ = judged(Playback(y=softmax * 0.85), [0, 1], reference=before)
    assert found.ece == pytest.approx(((1 - 0.765) + (1 - 0.68)) / 2)


def test_own_metric_on_a_tensor_tells_no_flips(tmp_path: Path) -> None:
    (tmp_path / "own_boxes.py").write_text(
        "def boxes(outputs, labels, reference):\n    return len(outputs['b'])\n"
    )
    boxes = np.zeros((3, 5, 4), np.float32)
    _, before = judged(Playback(b=boxes), None, "own_boxes:boxes", count=3,
                       folder=tmp_path)  # fmt: skip
    found, _ = judged(Playback(b=boxes + 1), None, "own_boxes:boxes", before, 3,
                      folder=tmp_path)  # fmt: skip
    assert found.metrics == {"own_boxes:boxes": 3.0}
    assert found.flip_rate is None


def test_a_slice_where_the_metric_has_no_value_keeps_its_count() -> None:
    found, _ = judged(
        Playback(p=[[0.1], [0.9], [0.8]]), [0, 1, 1], "auc",
        columns={"site": ["x", "x", "y"]},
    )  # fmt: skip
    assert found.slices == {"site": {"x": 1.0}}
    assert found.slice_counts == {"site": {"x": 2, "y": 1}}


def test_state_without_batch_dimension_is_stacked_whole() -> None:
    class Stateful(Playback):
        def predict(self, feeds: Feeds) -> dict[str, Any]:
            return {**super().predict(feeds), "state": np.zeros((2, 1, 3))}

    _, outputs = judged(Stateful(y=LOGITS), [0, 1, 2, 2])
    assert outputs["state"].shape == (4, 2, 1, 3)


def test_progress_counts_every_sample() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        Playback(y=LOGITS), [{"n": np.array([i])} for i in range(4)],
        np.array([0, 1, 2, 1]), {}, MetricOptions("top1"), reference=None,
        ids=list("abcd"), samples_digest="", folder=Path(),
        progress=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


BROKEN = LOGITS.copy()
BROKEN[2, 1] = np.nan


@pytest.mark.parametrize(
    ("rows", "labels", "options", "says"),
    [
        (BROKEN, [0, 1, 2, 1], {}, "output 'y' holds NaN or infinity on sample s2"),
        (LOGITS, None, {}, "needs labels"),
        (LOGITS, [0, 1, 2, 3], {}, "classes are 0 to 2"),
        (LOGITS, [0, 1, 2, 1], {"output": "z"}, "'z' is not an output.*has y"),
        (LOGITS, [0, 1, 2, 1], {"slices": ("age",)}, "'age' is no column"),
        (LOGITS, ["a", "b", "c", "c"], {"metric": "mae"}, "is no number"),
    ],
)
def test_what_cannot_be_judged_is_refused(
    rows: Any, labels: Any, options: dict[str, Any], says: str
) -> None:
    with pytest.raises(InputError, match=says):
        judged(Playback(y=rows), labels, count=4, **options)


def test_no_samples_are_refused() -> None:
    with pytest.raises(InputError, match="no validation samples"):
        judged(Playback(y=LOGITS), [])


def test_mnist_reproduces_the_figure_of_its_readme() -> None:
    if not (DATA / "mnist").is_dir():
        pytest.skip("../shared/data/mnist is absent")
    session = runtime("onnxruntime").load(DATA / "mnist" / "mnist-8.onnx", {})
    steps = [{"cast": "float32"}, {"layout": "HW->1HW"}]
    split = Preparer(steps, None, session.inputs).split(
        load(DataSource("set:mnist/validation"), Path())
    )
    found, _ = evaluate(
        session, split.feeds, split.labels, split.slices, MetricOptions("top1"),
        reference=None, ids=split.ids, samples_digest=split.digest, folder=Path(),
    )  # fmt: skip
    assert found.metrics["top1"] == 0.9891
    assert found.samples == 10_000
