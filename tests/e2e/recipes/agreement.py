"""Metrics for models whose answer is not one class: agreement with the float model."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_agent.contract.preprocess import Postprocess, parse_steps

Outputs = Mapping[str, NDArray[np.float32]]

_RECIPE = tomllib.loads(Path(__file__).with_name("ultraface.toml").read_text())
DETECT = Postprocess(parse_steps(_RECIPE["postprocess"]["steps"], "postprocess"))


def speech(outputs: Outputs, labels: object, reference: Outputs) -> float:
    """Share of frames with the float model's speech decision (probability > 0.5)."""
    now, before = outputs["output"] > 0.5, reference["output"] > 0.5
    return float((now == before).mean())


def notes(outputs: Outputs, labels: object, reference: Outputs) -> float:
    """Mean F1 of active cells (> 0.3) over the three posteriorgrams."""
    scores = []
    for name, before in reference.items():
        now, then = outputs[name] > 0.3, before > 0.3
        both = np.logical_and(now, then).sum()
        total = now.sum() + then.sum()
        scores.append(2 * both / total if total else 1.0)
    return float(np.mean(scores))


def faces(outputs: Outputs, labels: object, reference: Outputs) -> float:
    """F1 of faces found in both, matched at IoU ≥ 0.5 after suppression."""
    matched = found = expected = 0
    for index in range(len(reference["scores"])):
        now, then = _boxes(outputs, index), _boxes(reference, index)
        found, expected = found + len(now), expected + len(then)
        free = list(range(len(then)))
        for box in now:
            overlaps = [_iou(box, then[place]) for place in free]
            if overlaps and max(overlaps) >= 0.5:
                matched += 1
                free.pop(int(np.argmax(overlaps)))
    return 2 * matched / (found + expected) if found + expected else 1.0


def _boxes(outputs: Outputs, index: int) -> NDArray[np.float64]:
    """Corners [N, 4] of the faces in one picture, as the device would answer."""
    one = {name: array[index].reshape(1, 4420, -1) for name, array in outputs.items()}
    found = DETECT(one)["boxes"]
    return np.array([face["box"] for face in found], np.float64).reshape(-1, 4)


def _iou(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    corner = np.maximum(one[:2], other[:2]), np.minimum(one[2:], other[2:])
    both = float(np.prod(np.clip(corner[1] - corner[0], 0, None)))
    areas = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]))
    return both / (areas - both) if areas > both else 0.0
