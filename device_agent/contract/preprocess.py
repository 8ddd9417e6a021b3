"""Pre- and post-processing: declared steps, ONE numpy implementation.

Calibration, evaluation and serving all come through here, so that a model is never fed
otherwise than it was measured.

The rules it keeps:

1. Every mistake in a list of steps is reported at once, by position.
2. Bytes enter by a decode step, which is the first; arrays hold finite numbers.
3. What a model is given has exactly the declared shape and type: ``batched`` casts
   only where no value can be lost but to rounding.
4. The same input gives the same bytes, in every process.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from . import answer, arithmetic, audio, detection, image, spectrum
from .answer import Answer, AnswerStep
from .errors import StepError
from .steps import ArrayStep, DecodeStep, Step, check_elements, check_finite
from .tensors import Array, Feeds, TensorSpec

__all__ = [
    "POSTPROCESS", "PREPROCESS", "Answer", "Postprocess", "Preprocess", "Step",
    "StepsError", "batched", "parse_steps",
]  # fmt: skip

STEPS_MAX = 64
"""Steps in one list."""

Kind = Literal["preprocess", "postprocess"]

PREPROCESS: Mapping[str, type[Step]] = MappingProxyType(
    {
        step.word: step
        for module in (image, audio, spectrum, arithmetic)
        for step in module.STEPS
    }
)
POSTPROCESS: Mapping[str, type[Step]] = MappingProxyType(
    {step.word: step for module in (answer, detection) for step in module.STEPS}
)
_TABLES = {"preprocess": PREPROCESS, "postprocess": POSTPROCESS}


class StepsError(StepError):
    """A list of steps has mistakes; ``mistakes`` pairs each position with its text."""

    def __init__(self, kind: Kind, mistakes: list[tuple[int, str]]) -> None:
        self.mistakes = mistakes
        super().__init__(
            "; ".join(f"{kind} step {index + 1}: {text}" for index, text in mistakes)
        )


def parse_steps(raw: Sequence[Mapping[str, Any]], kind: Kind) -> tuple[Step, ...]:
    """The steps of a recipe or manifest, checked.

    Raises:
        StepsError: holds every mistake: an unknown step, a wrong parameter, a step in
            the wrong place.
    """
    if not isinstance(raw, list | tuple):
        raise StepsError(kind, [(0, f"expected a list, found {type(raw).__name__}")])
    if len(raw) > STEPS_MAX:
        raise StepsError(
            kind, [(STEPS_MAX, f"{len(raw)} steps; at most {STEPS_MAX} allowed")]
        )
    steps: list[Step] = []
    mistakes: list[tuple[int, str]] = []
    ended = False
    for index, item in enumerate(raw):
        try:
            step = _parse_step(item, kind)
            _check_place(step, index, ended)
        except StepError as error:
            mistakes.append((index, str(error)))
            continue
        ended = ended or (isinstance(step, AnswerStep) and step.final)
        steps.append(step)
    if mistakes:
        raise StepsError(kind, mistakes)
    return tuple(steps)


def _parse_step(item: object, kind: Kind) -> Step:
    if not isinstance(item, Mapping) or len(item) != 1:
        raise StepError(
            "expected a mapping with one key, the step's name, such as "
            '{"scale": 0.5}, found ' + repr(item)[:80]
        )
    (word, value), = item.items()  # fmt: skip
    table = _TABLES[kind]
    if word in table:
        return table[word].read(value)
    other: Kind = "postprocess" if kind == "preprocess" else "preprocess"
    if word in _TABLES[other]:
        raise StepError(f"{word} is a {other} step; expected it there")
    close = difflib.get_close_matches(str(word), table, 1)
    hint = f" (did you mean {close[0]!r}?)" if close else ""
    raise StepError(
        f"unknown step {str(word)[:64]!r}{hint}; known: {', '.join(sorted(table))}"
    )


def _check_place(step: Step, index: int, ended: bool) -> None:
    if isinstance(step, DecodeStep) and index:
        raise StepError(f"{step.word} takes bytes; expected as the first step")
    if ended:
        raise StepError(f"{step.word} comes after the step that makes the result")


@dataclass(frozen=True)
class Preprocess:
    """Raw sample in, model input (without batch dimension) out.

    ``steps`` come from ``parse_steps(…, "preprocess")``.
    """

    steps: tuple[Step, ...] = ()

    def __call__(self, raw: Array | bytes) -> Array:
        """Run the steps in order.

        Raises:
            StepError: names the step; or the raw sample is not numbers, holds NaN or
                infinities, or is over a limit.
        """
        value = raw
        if not isinstance(value, bytes):
            _check_numbers(value)
        for index, step in enumerate(self.steps):
            try:
                value = _run(step, value, self.after(index))
            except StepError as error:
                raise StepError(
                    f"preprocess step {index + 1} ({step.word}): {error}"
                ) from error
        if isinstance(value, bytes):
            raise StepError(
                "found bytes and no step that decodes them; "
                "declare decode_image or decode_wav"
            )
        return value

    def after(self, index: int) -> Step | None:
        """The step that takes what this one makes; a decoder may go by it."""
        return self.steps[index + 1] if index + 1 < len(self.steps) else None


def _run(step: Step, value: Array | bytes, then: Step | None) -> Array:
    if isinstance(step, image.DecodeImage) and isinstance(value, bytes):
        return step.decode(value, then)
    if isinstance(step, DecodeStep):
        if isinstance(value, bytes):
            return step.decode(value)
        return step.admit(value)
    if isinstance(value, bytes):
        raise StepError("expected an array, found bytes; decode them first")
    if not isinstance(step, ArrayStep):
        raise StepError("expected a preprocess step")
    with np.errstate(all="ignore"):  # what overflows is refused just below
        result = step(value)
    check_finite(result, "the result")
    return result


def _check_numbers(value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise StepError(f"expected an array or bytes, found {type(value).__name__}")
    if value.dtype.kind not in "biuf":
        raise StepError(f"expected numbers, found an array of {value.dtype}")
    check_elements(value.size)
    check_finite(value, "the input")


@dataclass(frozen=True)
class Postprocess:
    """Model outputs in, an answer for people out.

    ``steps`` come from ``parse_steps(…, "postprocess")``; ``labels[i]`` names class i.
    """

    steps: tuple[Step, ...] = ()
    labels: tuple[str, ...] = ()

    def __call__(self, outputs: Feeds) -> dict[str, Any]:
        """The answer as JSON values.

        ``{label, index, score}`` (argmax, threshold of one score), ``{predictions:
        […]}`` (top_k, threshold), ``{indexes}`` (argmax of a map), ``{boxes: […]}``
        (nms), or ``{outputs: {name: nested lists}}`` where no step makes a result.

        Raises:
            StepError: names the step; or an output holds NaN or infinities.
        """
        done = self.answer(outputs)
        if done.result:
            return dict(done.result)
        return {"outputs": {name: a.tolist() for name, a in done.outputs.items()}}

    def answer(self, outputs: Feeds) -> Answer:
        """The arrays after the score steps, and the result (for metrics).

        Raises:
            StepError: as in a call.
        """
        for name, array in outputs.items():
            check_finite(array, f"output {name!r}")
        state = Answer(dict(outputs), self.labels)
        for index, step in enumerate(self.steps):
            if not isinstance(step, AnswerStep):
                raise StepError(f"expected a postprocess step, found {step.word}")
            try:
                state = step(state)
            except StepError as error:
                raise StepError(
                    f"postprocess step {index + 1} ({step.word}): {error}"
                ) from error
        return state


def batched(array: Array, spec: TensorSpec) -> Array:
    """One sample as the model declares its input, batch dimension included.

    A rank one below the declared gets a leading 1. Casts: bool to any number, integer
    to an integer type that holds every value, integer to float, float to float; floats
    are rounded to the width but never become infinite.

    Raises:
        StepError: not numbers, NaN or infinite values, another shape, or a cast that
            would lose values; the text says what was expected and found.
    """
    where = f"input {spec.name!r}"
    try:
        _check_numbers(array)
    except StepError as error:
        raise StepError(f"{where}: {error}") from error
    if array.ndim == len(spec.shape) - 1:
        array = array[np.newaxis]
    if not spec.accepts(array.shape):
        raise StepError(
            f"{where}: expected shape {list(spec.shape)} (-1: any), "
            f"found {list(array.shape)}"
        )
    given = _narrowed(array, spec.dtype, where)
    # ascontiguousarray alone makes a scalar a vector of one.
    return np.ascontiguousarray(given).reshape(array.shape)


def _narrowed(array: Array, wanted: np.dtype[Any], where: str) -> Array:
    have = array.dtype
    if have == wanted:
        return array
    refusal = StepError(
        f"{where}: expected {wanted}, found {have} with values that it cannot hold "
        f"exactly; declare a cast step if that is meant"
    )
    if wanted.kind == "b" or (have.kind == "f" and wanted.kind in "iu"):
        raise refusal
    if wanted.kind in "iu" and have.kind in "iu" and array.size:
        info = np.iinfo(wanted)
        if int(array.min()) < info.min or int(array.max()) > info.max:
            raise refusal
    if wanted.kind == "f":
        with np.errstate(over="ignore"):
            result = array.astype(wanted)
        if not np.isfinite(result).all():
            raise refusal
        return result
    return array.astype(wanted)
