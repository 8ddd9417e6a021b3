"""Steps on outputs, against scipy, a brute force and a real detector."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import special

from device_agent.contract.errors import StepError
from device_agent.contract.preprocess import Postprocess, StepsError, parse_steps

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
LABELS = ("cat", "dog", "owl")
SCORES = arrays.arrays(
    np.float32, st.tuples(st.just(1), st.integers(1, 9)),
    elements=st.floats(-1e4, 1e4, width=32),
)  # fmt: skip


def post(*raw, labels=()):
    return Postprocess(parse_steps(raw, "postprocess"), labels)


@given(SCORES)
def test_softmax_and_sigmoid_are_scipys(scores):
    soft = post({"softmax": True}).answer({"y": scores}).outputs["y"]
    assert soft.dtype == np.float32
    assert np.allclose(soft, special.softmax(scores.astype(float), -1), atol=1e-5)
    sigmoid = post({"sigmoid": True}).answer({"y": scores}).outputs["y"]
    assert sigmoid.dtype == np.float32
    assert np.allclose(sigmoid, special.expit(scores.astype(float)), atol=1e-6)


@given(SCORES, st.integers(1, 12))
def test_top_k_is_a_stable_sort_and_json(scores, k):
    done = post({"top_k": k})({"y": scores})
    values = scores[0].tolist()
    order = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert [p["index"] for p in done["predictions"]] == order
    assert [p["score"] for p in done["predictions"]] == [values[i] for i in order]
    assert json.loads(json.dumps(done, allow_nan=False)) == done
    best = post({"argmax": True})({"y": scores})
    assert best == done["predictions"][0]


def test_labels_name_the_classes():
    scores = {"y": np.array([[0.1, 0.7, 0.2]])}
    assert post({"argmax": True}, labels=LABELS)(scores) == {
        "label": "dog", "index": 1, "score": 0.7,
    }  # fmt: skip
    found = post({"threshold": 0.15}, labels=LABELS)(scores)["predictions"]
    assert [entry["label"] for entry in found] == ["dog", "owl"]
    with pytest.raises(StepError, match="there are 2 labels and 3 scores"):
        post({"argmax": True}, labels=("a", "b"))(scores)


@pytest.mark.parametrize(("score", "label"), [(0.5, "speech"), (0.49, "silence")])
def test_one_score_is_a_yes_or_no(score, label):
    done = post({"threshold": 0.5}, labels=("silence", "speech"))(
        {"y": np.array([[score]])}
    )
    assert done["label"] == label
    assert done["score"] == score


def test_argmax_of_a_map_gives_the_class_at_each_place():
    scores = np.array([[[[1, 5], [2, 0]], [[3, 4], [9, 1]]]])
    assert post({"argmax": 1})({"y": scores}) == {"indexes": [[1, 0], [1, 1]]}


def test_several_outputs_need_a_choice():
    outputs = {"a": np.array([[1.0, 2.0]]), "b": np.array([[4.0, 3.0]])}
    with pytest.raises(StepError, match=r"step 1 \(argmax\): the outputs are a, b"):
        post({"argmax": True})(outputs)
    assert post({"select_output": "b"}, {"argmax": True})(outputs)["index"] == 0
    with pytest.raises(StepError, match="expected an output 'c', found a, b"):
        post({"select_output": "c"})(outputs)


def test_squeeze_takes_unit_dimensions_off():
    done = post({"squeeze": True})({"y": np.ones((1, 2, 1))})
    assert done == {"outputs": {"y": [1.0, 1.0]}}


@pytest.mark.parametrize("step", [{"top_k": 2}, {"threshold": 0.5}])
def test_scores_that_are_no_vector_are_refused(step):
    for wrong in (np.ones((2, 2)), np.ones((1, 0))):
        with pytest.raises(StepError, match="expected one vector"):
            post(step)({"y": wrong})


def brute_iou(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    union = sum(areas) - shared
    return shared / union if union > 0 else 0.0


def brute_nms(scores, boxes, iou, score, limit, background):
    found = []
    for kind in range(scores.shape[1]):
        if kind == background:
            continue
        kept = []
        for at in sorted(range(len(scores)), key=lambda i: (-scores[i, kind], i)):
            if scores[at, kind] < score:
                continue
            if all(brute_iou(boxes[at], boxes[k]) <= iou for k in kept):
                kept.append(at)
        found += [(-scores[at, kind], kind, at) for at in kept]
    return [(kind, boxes[at].tolist()) for _, kind, at in sorted(found)[:limit]]


@settings(max_examples=80)
@given(st.integers(0, 12), st.integers(0, 10**6), st.integers(1, 8), st.booleans())
def test_nms_is_the_brute_force(count, seed, limit, has_background):
    rng = np.random.default_rng(seed)
    # a coarse grid, so that equal scores and touching boxes occur
    corner, side = rng.integers(0, 6, (2, count, 2))
    boxes = np.concatenate([corner, corner + side], axis=1) / 16
    scores = rng.integers(0, 5, (count, 2)) / 4
    background = 0 if has_background else -1
    options = {"iou": 0.25, "score": 0.5, "max": limit, "background": background}
    outputs = {"scores": scores[np.newaxis], "boxes": boxes[np.newaxis]}
    done = post({"nms": options})(outputs)["boxes"]
    oracle = brute_nms(scores, boxes, 0.25, 0.5, limit, background)
    assert [(entry["index"], entry["box"]) for entry in done] == oracle


def test_nms_refuses_shapes_that_do_not_belong_together():
    outputs = {"scores": np.ones((1, 3, 2)), "boxes": np.ones((1, 2, 4))}
    with pytest.raises(StepError, match=r"found \[1, 3, 2\] and \[1, 2, 4\]"):
        post({"nms": {}})(outputs)


def test_centre_boxes_become_corners_inside_the_image():
    boxes = np.array([[[0.5, 0.5, 0.2, 0.4], [0.0, 1.0, 0.5, 0.5]]])
    done = post({"box_decode": "center"}).answer({"boxes": boxes}).outputs["boxes"]
    assert np.allclose(done, [[[0.4, 0.3, 0.6, 0.7], [0.0, 0.75, 0.25, 1.0]]])
    again = post({"box_decode": "corners"}).answer({"boxes": done}).outputs["boxes"]
    assert np.array_equal(again, done)


ULTRAFACE = {
    "image": [240, 320], "strides": [8, 16, 32, 64],
    "sizes": [[10, 16, 24], [32, 48], [64, 96], [128, 192, 256]],
}  # fmt: skip


def test_priors_must_fit_the_boxes_and_each_other():
    with pytest.raises(StepsError, match="priors are given with format 'priors'"):
        post({"box_decode": "priors"})
    with pytest.raises(StepsError, match="4 strides and 1 lists"):
        post({"box_decode": {"priors": {**ULTRAFACE, "sizes": [[1]]}}})
    with pytest.raises(StepsError, match="priors; at most"):
        wide = {"image": [8192, 8192], "strides": [1], "sizes": [[1]]}
        post({"box_decode": {"priors": wide}})
    with pytest.raises(StepError, match="expected 4420 boxes, found 1"):
        post({"box_decode": {"priors": ULTRAFACE}})({"boxes": np.zeros((1, 1, 4))})


def test_priors_decode_a_real_detectors_deltas_as_its_own_graph_does(monkeypatch):
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "1")
    ort = pytest.importorskip("onnxruntime")
    quiet = ort.SessionOptions()
    quiet.log_severity_level = 3
    folder = DATA / "ultraface"
    if not folder.is_dir():
        pytest.skip("../shared/data/ultraface is absent")
    image = np.random.default_rng(0).normal(size=(1, 3, 240, 320)).astype(np.float32)
    raw, decoded = (
        dict(zip(("scores", "boxes"), session.run(None, {"input": image}), strict=True))
        for session in (
            ort.InferenceSession(folder / f"version-RFB-320{suffix}.onnx", quiet)
            for suffix in ("_without_postprocessing", "")
        )
    )
    done = post({"box_decode": {"priors": ULTRAFACE}}).answer(raw).outputs["boxes"]
    assert np.allclose(done, np.clip(decoded["boxes"], 0, 1), atol=1e-5)
