"""Steps on a detector's outputs: boxes from deltas, and one box per thing.

The rules it keeps:

1. Boxes leave as corners ``[left, top, right, bottom]`` in shares of the image's width
   and height, limited to [0, 1].
2. Priors are laid out as SSD does: level by level, row by row, then by size.
3. Suppression is per class and greedy; equal scores are ordered by index.

References:
    Liu et al., "SSD: Single Shot MultiBox Detector", 2016.
"""

from dataclasses import replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from .answer import Answer, AnswerStep, ranked
from .errors import StepError
from .steps import Positive, Side, Size, as_float
from .tensors import Array

PRIORS_MAX = 1 << 20
"""Prior boxes of one detector."""
BOXES_MAX = 10_000
"""Boxes in one answer."""

Name = Annotated[str, Field(min_length=1, max_length=512)]
Share = Annotated[float, Field(ge=0, le=1)]


class Priors(BaseModel):
    """SSD priors: per stride, square boxes of these sizes at every cell.

    ``centers``: ``cells`` spreads the cells evenly over the image, as the paper does;
    ``stride`` sets them one stride apart. They differ where a stride does not divide
    the image.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    image: Size
    strides: Annotated[tuple[Side, ...], Field(min_length=1, max_length=16)]
    sizes: Annotated[
        tuple[Annotated[tuple[Positive, ...], Field(min_length=1, max_length=64)], ...],
        Field(min_length=1, max_length=16),
    ]
    """Per stride, the sides in pixels."""
    centers: Literal["cells", "stride"] = "cells"
    variances: tuple[Positive, Positive] = (0.1, 0.2)
    """What the deltas of centre and of size are multiplied by."""

    @model_validator(mode="after")
    def _counted(self) -> Self:
        if len(self.strides) != len(self.sizes):
            raise ValueError(
                f"{len(self.strides)} strides and {len(self.sizes)} lists of sizes"
            )
        if self.count > PRIORS_MAX:
            raise ValueError(f"{self.count} priors; at most {PRIORS_MAX} allowed")
        return self

    @property
    def count(self) -> int:
        """How many boxes there are."""
        return sum(
            -(-self.image[0] // stride) * -(-self.image[1] // stride) * len(sizes)
            for stride, sizes in zip(self.strides, self.sizes, strict=True)
        )

    @cached_property
    def boxes(self) -> NDArray[np.float64]:
        """``[count, 4]``: centre x, centre y, width, height, limited to [0, 1]."""
        height, width = self.image
        levels = []
        for stride, sizes in zip(self.strides, self.sizes, strict=True):
            rows, columns = -(-height // stride), -(-width // stride)
            cells = self.centers == "cells"
            y, x, side = np.meshgrid(
                (np.arange(rows) + 0.5) / (rows if cells else height / stride),
                (np.arange(columns) + 0.5) / (columns if cells else width / stride),
                np.asarray(sizes, np.float64),
                indexing="ij",
            )
            level = np.stack([x, y, side / width, side / height], axis=-1)
            levels.append(level.reshape(-1, 4))
        return np.asarray(np.clip(np.concatenate(levels), 0.0, 1.0))

    def decoded(self, deltas: NDArray[np.float64]) -> NDArray[np.float64]:
        """Centre boxes from deltas ``[count, 4]``.

        Raises:
            StepError: another number of boxes.
        """
        if len(deltas) != self.count:
            raise StepError(f"expected {self.count} boxes, found {len(deltas)}")
        prior = self.boxes
        centre = prior[:, :2] + deltas[:, :2] * self.variances[0] * prior[:, 2:]
        # limited, so that a wild delta is a large box and not an infinite one
        growth = np.exp(np.minimum(deltas[:, 2:] * self.variances[1], 50.0))
        return np.asarray(np.concatenate([centre, growth * prior[:, 2:]], axis=1))


class BoxDecode(AnswerStep):
    """Boxes to corners.

    ``format`` is what the model gives: ``priors`` (deltas from SSD priors), ``center``
    (centre x, centre y, width, height as shares) or ``corners`` (as shares).
    """

    word: ClassVar = "box_decode"
    shorthand: ClassVar = "format"
    usage: ClassVar = (
        "'corners', 'center' or {format = priors, priors = {image = [height, width], "
        "strides = […], sizes = [[…], …], variances = [0.1, 0.2]}, boxes = output name}"
    )
    format: Literal["priors", "center", "corners"] = "priors"
    priors: Priors | None = None
    boxes: Name = "boxes"

    @model_validator(mode="after")
    def _has_priors(self) -> Self:
        if (self.format == "priors") != (self.priors is not None):
            raise ValueError("priors are given with format 'priors' and only then")
        return self

    def __call__(self, answer: Answer) -> Answer:
        """The output ``boxes`` as ``[1, N, 4]`` corners, float32."""
        found = answer.find(self.boxes)
        if found.ndim != 3 or found.shape[0] != 1 or found.shape[2] != 4:
            raise StepError(f"expected boxes [1, N, 4], found {list(found.shape)}")
        boxes = found[0].astype(np.float64)
        if self.priors is not None:
            boxes = self.priors.decoded(boxes)
        if self.format != "corners":
            half = boxes[:, 2:] / 2.0
            boxes = np.concatenate([boxes[:, :2] - half, boxes[:, :2] + half], axis=1)
        corners = np.clip(boxes, 0.0, 1.0).astype(np.float32)[np.newaxis]
        return replace(answer, outputs={**answer.outputs, self.boxes: corners})


class Nms(AnswerStep):
    """Non-maximum suppression: of boxes that overlap, the best scored one.

    Takes scores ``[1, N, classes]`` and corners ``[1, N, 4]``. A box is kept when its
    score reaches ``score`` and its IoU with every better kept box of its class is at
    most ``iou``. ``background`` is a class that is no thing; -1: there is none.
    """

    word: ClassVar = "nms"
    usage: ClassVar = (
        "{iou = 0.3, score = 0.5, max = 200, background = class or -1, "
        "scores = output name, boxes = output name}"
    )
    final: ClassVar = True
    iou: Share = 0.5
    score: Share = 0.5
    max: Annotated[int, Field(ge=1, le=BOXES_MAX)] = 200
    background: Annotated[int, Field(ge=-1)] = -1
    scores: Name = "scores"
    boxes: Name = "boxes"

    def __call__(self, answer: Answer) -> Answer:
        """``{boxes: [{box, label, index, score}, …]}``, best first, at most ``max``."""
        scores, boxes = answer.find(self.scores), answer.find(self.boxes)
        if (
            scores.ndim != 3
            or scores.shape[0] != 1
            or boxes.shape != (1, scores.shape[1], 4)
        ):
            raise StepError(
                "expected scores [1, N, classes] and boxes [1, N, 4], "
                f"found {list(scores.shape)} and {list(boxes.shape)}"
            )
        found = [
            (-float(scores[0, at, kind]), kind, int(at))
            for kind in range(scores.shape[2])
            if kind != self.background
            for at in self._kept(as_float(scores[0, :, kind]), boxes[0])
        ]
        entries: list[dict[str, Any]] = [
            {"box": boxes[0, at].tolist(), **answer.entry(kind, -score)}
            for score, kind, at in sorted(found)[: self.max]
        ]
        return replace(answer, result={"boxes": entries})

    def _kept(self, scores: Array, boxes: Array) -> list[int]:
        order = ranked(scores)
        left = order[scores[order] >= self.score]
        kept: list[int] = []
        while len(left) and len(kept) < self.max:
            best, left = int(left[0]), left[1:]
            kept.append(best)
            left = left[overlap(boxes[best], boxes[left]) <= self.iou]
        return kept


def overlap(box: Array, boxes: Array) -> NDArray[np.float64]:
    """IoU of one box ``[4]`` with each of ``[N, 4]``, corners; empty ones give 0."""
    one, many = box.astype(np.float64), boxes.astype(np.float64)
    low = np.maximum(one[:2], many[:, :2])
    high = np.minimum(one[2:], many[:, 2:])
    shared = np.prod(np.maximum(high - low, 0.0), axis=1)
    area = np.prod(np.maximum(one[2:] - one[:2], 0.0))
    areas = np.prod(np.maximum(many[:, 2:] - many[:, :2], 0.0), axis=1)
    union = area + areas - shared
    return np.asarray(shared / np.where(union > 0, union, 1.0))


STEPS = (BoxDecode, Nms)
