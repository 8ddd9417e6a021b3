"""Metrics against scikit-learn, and what they refuse."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from edgeml.errors import InputError
from edgeml.evaluation.metrics import METRICS, Undefined, confusion, custom, ece
from edgeml.evaluation.scores import kind_of, numbered, probabilities, same_answers
from edgeml.recipes import schema

SEEDS = st.integers(0, 10_000)


def scored(seed: int, classes: int = 7, count: int = 60) -> tuple:
    """Logits rounded so that ties occur, and labels of all classes."""
    generator = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), generator.integers(0, classes, count)])
    logits = generator.normal(0, 2, (len(labels), classes)).round(1)
    return logits.astype(np.float32), labels


def value(name: str, output: np.ndarray, truth: np.ndarray) -> float:
    return METRICS[name].score(output, truth, kind_of(output))


def test_table_is_what_recipes_may_name() -> None:
    assert set(METRICS) == set(schema.METRICS)
    assert {n for n, m in METRICS.items() if m.needs_labels} == set(schema.LABELLED)
    assert {n for n, m in METRICS.items() if m.better == "lower"} == set(schema.ERRORS)


@given(SEEDS)
def test_classification_as_sklearn_has_it(seed: int) -> None:
    logits, labels = scored(seed)
    answers = logits.argmax(1)
    assert value("top1", logits, labels) == pytest.approx(
        oracle.accuracy_score(labels, answers)
    )
    assert value("f1", logits, labels) == pytest.approx(
        oracle.f1_score(labels, answers, average="macro")
    )
    np.testing.assert_array_equal(
        confusion(logits, labels, "logits"),
        oracle.confusion_matrix(labels, answers, labels=range(7)),
    )


@given(SEEDS)
def test_top5_as_sklearn_has_it_without_ties(seed: int) -> None:
    logits, labels = scored(seed)
    logits = logits + np.arange(7, dtype=np.float32) * -1e-3
    assert value("top5", logits, labels) == pytest.approx(
        oracle.top_k_accuracy_score(labels, logits, k=5)
    )


@given(SEEDS)
def test_auc_as_sklearn_has_it_with_ties(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = np.concatenate([[0, 1], generator.integers(0, 2, 40)])
    scores = generator.integers(0, 6, 42).astype(np.float64)
    expected = oracle.roc_auc_score(labels, scores)
    assert value("auc", scores[:, None], labels) == pytest.approx(expected)
    two = np.stack([-scores, scores], axis=1)
    assert value("auc", two, labels) == pytest.approx(expected)


@given(SEEDS)
def test_auc_of_several_classes_is_one_against_the_rest(seed: int) -> None:
    logits, labels = scored(seed, classes=4)
    chances = probabilities(logits, "logits")
    assert value("auc", logits, labels) == pytest.approx(
        oracle.roc_auc_score(labels, chances, multi_class="ovr", average="macro")
    )


@given(SEEDS)
def test_errors_as_sklearn_has_them(seed: int) -> None:
    generator = np.random.default_rng(seed)
    output, truth = generator.normal(size=(2, 30))
    assert value("mae", output[:, None], truth) == pytest.approx(
        oracle.mean_absolute_error(truth, output)
    )
    assert value("rmse", output, truth) == pytest.approx(
        oracle.root_mean_squared_error(truth, output)
    )


def test_auc_of_one_class_is_undefined() -> None:
    with pytest.raises(Undefined, match="0 positive of 3"):
        value("auc", np.arange(3.0), np.zeros(3, int))


def test_kinds_of_outputs() -> None:
    logits, _ = scored(1)
    chances = probabilities(logits, "logits")
    assert kind_of(logits) == "logits"
    assert kind_of(chances) == "probabilities"
    assert kind_of((chances * 256).round() / 256) == "probabilities"
    assert kind_of(logits[:, :, None, None]) == "logits"
    assert kind_of(np.array([[0.1], [0.9]])) == "probability"
    assert kind_of(np.array([-3.0, 9.0])) == "values"
    assert kind_of(np.array([[1], [2]])) == "classes"
    assert kind_of(np.zeros((2, 4, 5))) == "tensor"


@given(SEEDS)
def test_ece_is_zero_for_honest_and_large_for_boastful_models(seed: int) -> None:
    generator = np.random.default_rng(seed)
    chance = generator.uniform(0.5, 1, 20_000)
    right = generator.random(20_000) < chance
    output = np.stack([chance, 1 - chance], axis=1)
    labels = np.where(right, 0, 1)
    assert ece(output, labels, "probabilities") < 0.02
    boast = np.tile([1.0, 0.0], (20_000, 1))
    expected = 1 - float(right.mean())
    assert ece(boast, labels, "probabilities") == pytest.approx(expected)


def test_ece_by_hand() -> None:
    output = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.4, 0.6]])
    labels = np.array([0, 1, 1, 1])
    by_bin = [abs(1 - 1.8), abs(1 - 0.7), abs(1 - 0.6)]
    assert ece(output, labels, "probabilities") == pytest.approx(sum(by_bin) / 4)


def test_agreement_compares_answers_and_tolerates_small_errors() -> None:
    logits, _ = scored(2)
    assert value("agreement", logits, logits) == 1.0
    other = logits.copy()
    other[0] = -other[0]
    assert value("agreement", other, logits) == pytest.approx(1 - 1 / len(logits))
    maps = np.random.default_rng(0).normal(size=(5, 4, 6))
    noisy = maps + 0.03 * maps.std()
    noisy[3] += 0.2
    assert same_answers(noisy, maps, "tensor").tolist() == [True] * 3 + [False, True]


@given(st.lists(st.sampled_from("abc"), min_size=1))
def test_text_labels_are_numbered_by_name(labels: list[str]) -> None:
    assume(len(set(labels)) == 3)
    assert numbered(np.array(labels), 3).tolist() == ["abc".index(x) for x in labels]


def test_labels_that_are_no_classes_are_refused() -> None:
    for labels, says in (
        (np.array([0, 3]), "sample 1 .* is 3; the classes are 0 to 2"),
        (np.array([0.5, 1.0]), "is 0.5"),
        (np.array(["a", "b"]), "2 different texts"),
        (np.zeros((2, 2), int), "no classes"),
    ):
        with pytest.raises(InputError, match=says):
            numbered(labels, 3)


def test_detector_output_needs_a_metric_of_its_own() -> None:
    with pytest.raises(InputError, match="module:function"):
        value("top1", np.zeros((2, 4, 4)), np.zeros(2, int))


OWN = """
def share(outputs, labels, reference):
    return (outputs["y"] == reference["y"]).mean()
def broken(outputs, labels, reference): return 1 / 0
def word(outputs, labels, reference): return "good"
def nan(outputs, labels, reference): return float("nan")
"""


def test_custom_metric_is_the_recipes_own(tmp_path: Path) -> None:
    (tmp_path / "own_metric.py").write_text(OWN)
    y = {"y": np.arange(4)}
    assert custom("own_metric:share", tmp_path, y, None, {"y": np.zeros(4)}) == 0.25
    for name in ("broken", "word", "nan", "absent"):
        with pytest.raises(InputError, match=f"own_metric:{name}"):
            custom(f"own_metric:{name}", tmp_path, y, None, y)
