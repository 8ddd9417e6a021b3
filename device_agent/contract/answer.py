"""Steps on a model's outputs: from scores to labels that people read.

The rules it keeps:

1. An answer is about one sample: the batch dimension is 1.
2. A step acts on the output that ``select_output`` chose, or on the only one.
3. Score steps (softmax, …) change arrays; the one result step that may end the list
   (argmax, top_k, threshold, nms) makes the JSON.
4. Equal scores are ordered by index, so that every machine gives the same list.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from pydantic import Field

from .errors import StepError
from .steps import LIST_LENGTH_MAX, Finite, Step, as_float, check_rank
from .tensors import Array


@dataclass(frozen=True)
class Answer:
    """What the steps have made of the outputs so far."""

    outputs: Mapping[str, Array]
    labels: tuple[str, ...] = ()
    result: Mapping[str, Any] = field(default_factory=dict)

    def only(self) -> str:
        """The name of the one output.

        Raises:
            StepError: there are several.
        """
        if len(self.outputs) != 1:
            raise StepError(
                f"the outputs are {', '.join(self.outputs) or 'none'}; "
                "say which one with select_output before"
            )
        return next(iter(self.outputs))

    def find(self, name: str) -> Array:
        """The output called ``name``.

        Raises:
            StepError: there is none.
        """
        if name not in self.outputs:
            raise StepError(
                f"expected an output {name!r}, found {', '.join(self.outputs)}"
            )
        return self.outputs[name]

    def scores(self) -> Array:
        """The one output as a vector, batch and unit dimensions taken off.

        Raises:
            StepError: it is not one vector.
        """
        array = self.outputs[self.only()]
        if array.size == 0 or array.size != max(array.shape, default=1):
            raise StepError(
                f"expected one vector of scores, found shape {list(array.shape)}"
            )
        vector = array.reshape(-1)
        if self.labels and len(vector) > 1 and len(vector) != len(self.labels):
            raise StepError(
                f"there are {len(self.labels)} labels and {len(vector)} scores"
            )
        return vector

    def entry(self, index: int, score: float) -> dict[str, Any]:
        """One labelled score; without labels the index is its label."""
        if self.labels and index >= len(self.labels):
            raise StepError(f"class {index} is beyond the {len(self.labels)} labels")
        label = self.labels[index] if self.labels else str(index)
        return {"label": label, "index": index, "score": score}


class AnswerStep(Step):
    """Outputs in, outputs or a result out."""

    final: ClassVar[bool] = False
    """Whether it makes the result, so that nothing may follow."""

    @abstractmethod
    def __call__(self, answer: Answer) -> Answer:
        """Run the step.

        Raises:
            StepError: the outputs are not those that the step takes.
        """


class ScoreStep(AnswerStep):
    """One output in, the same output changed."""

    def __call__(self, answer: Answer) -> Answer:
        """Run the step on the one output."""
        name = answer.only()
        return replace(answer, outputs={name: self.change(answer.outputs[name])})

    @abstractmethod
    def change(self, array: Array) -> Array:
        """The changed output.

        Raises:
            StepError: the array is not one the step takes.
        """


class SelectOutput(AnswerStep):
    """Keeps one output."""

    word: ClassVar = "select_output"
    shorthand: ClassVar = "name"
    usage: ClassVar = "the name of an output"
    name: Annotated[str, Field(min_length=1, max_length=512)]

    def __call__(self, answer: Answer) -> Answer:
        """The answer with that output alone."""
        return replace(answer, outputs={self.name: answer.find(self.name)})


class Softmax(ScoreStep):
    """``exp(x) / sum(exp(x))`` along an axis."""

    word: ClassVar = "softmax"
    shorthand: ClassVar = "axis"
    usage: ClassVar = "true or an axis"
    axis: int = -1

    def change(self, array: Array) -> Array:
        """Floats of the same shape that sum to 1."""
        check_axis(array, self.axis)
        floats = as_float(array)
        powers = np.exp(floats - floats.max(axis=self.axis, keepdims=True))
        return np.asarray(powers / powers.sum(axis=self.axis, keepdims=True))


class Sigmoid(ScoreStep):
    """``1 / (1 + exp(-x))``."""

    word: ClassVar = "sigmoid"
    usage: ClassVar = "true"

    def change(self, array: Array) -> Array:
        """Floats of the same shape."""
        floats = as_float(array)
        # exp of what is never positive, so that nothing overflows
        small = np.exp(-np.abs(floats))
        return np.where(floats >= 0, 1.0, small) / (1.0 + small)


class Squeeze(ScoreStep):
    """Takes off every dimension of length 1."""

    word: ClassVar = "squeeze"
    usage: ClassVar = "true"

    def change(self, array: Array) -> Array:
        """The same elements."""
        return np.squeeze(array)


class Argmax(AnswerStep):
    """The class with the highest score; over a map, the class at each place."""

    word: ClassVar = "argmax"
    shorthand: ClassVar = "axis"
    usage: ClassVar = "true or an axis"
    final: ClassVar = True
    axis: int = -1

    def __call__(self, answer: Answer) -> Answer:
        """``{label, index, score}`` of a vector, else ``{indexes}``."""
        name = answer.only()
        array = answer.outputs[name]
        check_axis(array, self.axis)
        best = np.asarray(np.argmax(array, axis=self.axis))
        if best.size > 1:
            result: dict[str, Any] = {"indexes": np.squeeze(best).tolist()}
        else:
            scores = answer.scores()
            index = int(np.argmax(scores))
            result = answer.entry(index, float(scores[index]))
        return replace(answer, outputs={name: best}, result=result)


class TopK(AnswerStep):
    """The ``k`` classes with the highest scores, best first."""

    word: ClassVar = "top_k"
    shorthand: ClassVar = "k"
    usage: ClassVar = "a count"
    final: ClassVar = True
    k: Annotated[int, Field(ge=1, le=LIST_LENGTH_MAX)] = 5

    def __call__(self, answer: Answer) -> Answer:
        """``{predictions: [{label, index, score}, …]}``."""
        scores = answer.scores()
        best = ranked(scores)[: self.k]
        found = [answer.entry(int(i), float(scores[i])) for i in best]
        return replace(answer, result={"predictions": found})


class Threshold(AnswerStep):
    """The classes whose score reaches ``value``, best first.

    One score alone is a yes or no: index 1 when it reaches ``value``, else 0.
    """

    word: ClassVar = "threshold"
    shorthand: ClassVar = "value"
    usage: ClassVar = "a number"
    final: ClassVar = True
    value: Finite = 0.5

    def __call__(self, answer: Answer) -> Answer:
        """``{predictions: […]}``, or ``{label, index, score}`` of one score."""
        scores = answer.scores()
        if len(scores) == 1:
            index = int(scores[0] >= self.value)
            return replace(answer, result=answer.entry(index, float(scores[0])))
        best = [int(i) for i in ranked(scores) if scores[i] >= self.value]
        found = [answer.entry(i, float(scores[i])) for i in best]
        return replace(answer, result={"predictions": found})


def ranked(scores: Array) -> Array:
    """Indexes from the highest score down; ties by index."""
    check_rank(scores, (1,), "a vector of scores")
    return np.argsort(-as_float(scores), kind="stable")


def check_axis(array: Array, axis: int) -> None:
    """Refuse an axis that is not there or empty.

    Raises:
        StepError: so.
    """
    if not -array.ndim <= axis < array.ndim or array.shape[axis] == 0:
        raise StepError(f"expected values on axis {axis} of {list(array.shape)}")


STEPS = (SelectOutput, Softmax, Sigmoid, Squeeze, Argmax, TopK, Threshold)
