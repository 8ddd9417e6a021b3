"""``edgeml init``: a commented recipe that builds, written after a look at the model.

There is no data yet, so the recipe draws random samples and says so loudly: it asks
for no labels, and it does not let int8 be tried before real data is named, because
nobody could tell whether it is right.
"""

import json
import os
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from calibration.dataset import Dataset, Sample
from device_agent.contract.tensors import Array, TensorSpec

from ..errors import InputError, ModelError, UsageError
from ..model import Model
from .keys import Table
from .schema import RECIPE
from .verbs import CODE

SAMPLES = 100
CHANNELS = (1, 3, 4)
IMAGE_PIXELS = 224
SEQUENCE_LENGTH = 128
WAVEFORM_LENGTH = 4000
"""From this many values on, a row is taken for a sound and not for columns."""

WARNING = (
    "NO REAL DATA YET. These are random numbers: the bundle runs, but nothing is known "
    "of its accuracy, and int8 is not tried (see [quantize]). Name real samples here "
    "before you trust a build."
)


def draft(path: Path, out: Path) -> str:
    """The text of a recipe for the model at ``path``, to be written to ``out``.

    Raises:
        UsageError: ``path`` is a ``module:factory``, whose inputs nobody knows.
        ModelError: the model is refused.
    """
    if re.fullmatch(CODE, str(path)):
        raise UsageError(
            f"{path} is a factory, and its inputs are not known before they are said; "
            "write the recipe after docs/recipe.md, with [model] inputs"
        )
    model, pinned = look(path)
    source = os.path.relpath(path.resolve(), out.resolve().parent)
    values: dict[str, Any] = {
        "model.source": Path(source).as_posix(),
        "model.name": re.sub(r"[^a-z0-9_.-]+", "-", path.stem.lower()).strip("-_.")[:64]
        or "model",
        "model.version": "0.1.0",
        "data.calibration": f"random:{SAMPLES}",
        "data.validation": f"random:{SAMPLES}",
        "data.sampler": "random",
        "data.samples": SAMPLES,
        "metric.name": "agreement",
        "budget.max_accuracy_drop": 0.01,
        "quantize.precisions": ["fp32", "fp16"],
        "build.targets": ["cpu-x86_64", "openvino-cpu"],
        "build.seed": 0,
    }
    if pinned:
        values["model.inputs"] = pinned
    return "\n".join(_lines(path, model, values))


def random_samples(
    specs: Sequence[TensorSpec], count: int, seed: int
) -> list[dict[str, Array]]:
    """``count`` samples for these inputs; the same seed gives the same bytes.

    Floats are standard normal, bytes cover their range, wider integers are 0 or 1
    (they are often indices). A variable first dimension is the batch: 1.

    Raises:
        InputError: another dimension is variable.
    """
    for spec in specs:
        if -1 in spec.shape[1:]:
            raise InputError(
                f"input {spec.name!r} has the variable shape {list(spec.shape)}, so no "
                "random samples can be made; pin it in the recipe: [model] inputs"
            )
    generator = np.random.default_rng(seed)
    return [
        {spec.name: _random_array(generator, spec) for spec in specs}
        for _ in range(count)
    ]


def random_dataset(specs: Sequence[TensorSpec], count: int, seed: int) -> Dataset:
    """:func:`random_samples` as a data set without labels."""
    feeds: list[dict[str, Array]] = random_samples(specs, count, seed)
    return Dataset(
        tuple(Sample(f"random-{place:05}", feed) for place, feed in enumerate(feeds))
    )


def _random_array(generator: np.random.Generator, spec: TensorSpec) -> Array:
    shape = [abs(size) for size in spec.shape]
    if spec.dtype.kind == "f":
        return generator.standard_normal(shape, np.float32).astype(spec.dtype)
    info = np.iinfo(spec.dtype) if spec.dtype.itemsize == 1 < spec.dtype.num else None
    low, high = (int(info.min), int(info.max)) if info else (0, 1)
    return generator.integers(low, high, shape, endpoint=True).astype(spec.dtype)


def look(path: Path) -> tuple[Model, dict[str, list[int]]]:
    """The model, and the shapes it had to be pinned to (-1: the batch).

    Raises:
        ModelError: the model is refused.
    """
    from ..intake.importer import load_model

    try:
        return load_model(path.name, None, path.parent, {}), {}
    except ModelError as error:
        if path.suffix != ".onnx" or "pin it in the recipe" not in str(error):
            raise
    # The importer's subprocess has read this file and found nothing but variable
    # dimensions, so it can be opened here to see which.
    pinned = _pins(path)
    try:
        return load_model(path.name, None, path.parent, pinned), pinned
    except ModelError as error:
        raise ModelError(
            f"its inputs have variable dimensions and the guess {pinned} does not fit "
            f"({error}); write the recipe after docs/recipe.md, with [model] inputs"
        ) from error


def _pins(path: Path) -> dict[str, list[int]]:
    import onnx

    from ..graphs.protos import real_inputs, spec_of

    graph = onnx.load(str(path), load_external_data=False).graph
    shapes: dict[str, list[int]] = {}
    symbols: dict[str, int] = {}
    for value in real_inputs(graph):
        spec, dims = spec_of(value), value.type.tensor_type.shape.dim
        sizes = _guess(list(spec.shape))
        for place, dim in enumerate(dims):
            if dim.dim_param:  # one symbol, one size; the batch elsewhere is 1
                size = symbols.setdefault(dim.dim_param, sizes[place])
                sizes[place] = abs(size) if place else sizes[place]
        if -1 in spec.shape[1:]:
            shapes[value.name] = sizes
    return shapes


def _guess(shape: list[int]) -> list[int]:
    """``shape`` with its variable dimensions guessed, but for the batch."""
    recurrent = len(shape) == 3 and shape[0] != -1 != shape[2]  # layers, batch, width
    fill = IMAGE_PIXELS if layout(shape) else 1 if recurrent else SEQUENCE_LENGTH
    return [
        size if size != -1 or place == 0 else fill for place, size in enumerate(shape)
    ]


def layout(shape: Sequence[int]) -> str | None:
    """``CHW`` or ``HWC`` when a shape (with batch) looks like an image's."""
    if len(shape) != 4:
        return None
    _, first, middle, last = shape
    if first in CHANNELS and _wide(middle) and _wide(last):
        return "CHW"
    return "HWC" if last in CHANNELS and _wide(first) and _wide(middle) else None


def _wide(size: int) -> bool:
    return size == -1 or size >= 8


def _lines(path: Path, model: Model, values: Mapping[str, Any]) -> Iterator[str]:
    yield f"# Recipe for {path.name}, written by edgeml init."
    yield "# docs/recipe.md explains every key; what starts with # is not in use."
    yield from map(_told("input"), model.inputs)
    yield from map(_told("output"), model.outputs)
    remarks = {
        "data": [WARNING],
        "quantize": ["With real data, delete the line precisions: int8 is tried then."],
        "build": ["Other targets: edgeml targets"],
    }
    for section in RECIPE.keys:
        if not isinstance(section.check, Table):
            continue
        yield from ("", *_comment(section.meaning))
        for remark in remarks.get(section.name, []):
            yield from _comment(remark)
        yield f"[{section.name}]"
        if section.name == "preprocess":
            yield from suggestion(model.inputs[0])
        yield from _keys(section.name, section.check, values)
    yield ""


def _told(what: str) -> Any:
    return lambda spec: f"# {what} {spec.name}: {spec.datatype} {list(spec.shape)}"


def _keys(section: str, table: Table, values: Mapping[str, Any]) -> Iterator[str]:
    for key in table.keys:
        full = f"{section}.{key.name}"
        if full in values:
            yield from _comment(key.meaning)
            yield f"{key.name} = {toml(values[full])}"
        elif full in EXAMPLES:
            yield from _comment(key.meaning)
            yield f"# {key.name} = {EXAMPLES[full]}"


EXAMPLES = {
    "data.inputs": '"x"',
    "data.label": '"y"',
    "postprocess.steps": "[{softmax = true}, {top_k = 3}]",
    "postprocess.labels": '["cat", "dog"]',
    "metric.slices": '["site"]',
    "budget.max_slice_drop": "0.02",
    "budget.max_flip_rate": "0.02",
    "budget.max_latency_ms": "10",
    "budget.max_size_bytes": "1_000_000",
    "budget.max_memory_bytes": "200_000_000",
    "budget.max_fallback_share": "0",
    "quantize.keep": '["/head/Gemm"]',
}
"""Keys that the draft shows without using them."""


def suggestion(spec: TensorSpec) -> Iterator[str]:
    """Steps, commented out, that often go before an input of this shape."""
    order = layout(spec.shape)
    size = [abs(size) for size in spec.shape[1:]]
    if order is not None:
        sides, channels = (size[1:], size[0]) if order == "CHW" else (size[:2], size[2])
        mode = "L" if channels == 1 else "RGB"
        steps = [f'{{decode_image = "{mode}"}}', f"{{resize = {sides}}}",
                 "{scale = 0.00392156862745098}"]  # fmt: skip
        steps += ['{layout = "HWC->CHW"}'] if order == "CHW" else []
        yield f"# {spec.name} looks like an image ({order}); for image files:"
    elif len(spec.shape) == 2 and size[0] >= WAVEFORM_LENGTH:
        steps = ["{decode_wav = 16000}", f"{{fit_length = {size[0]}}}"]
        yield f"# {spec.name} looks like a sound; for wav files (set its rate):"
    elif len(spec.shape) == 2 and spec.dtype.kind == "f":
        yield f"# {spec.name} looks like {size[0]} columns; samples may be .csv, .npz"
        yield "# or .parquet. If the model was trained on standardized columns:"
        zeros, ones = ", ".join(["0.0"] * size[0]), ", ".join(["1.0"] * size[0])
        steps = [f"{{standardize = {{mean = [{zeros}], std = [{ones}]}}}}"]
        if size[0] > 8:
            return
    else:
        yield f"# {spec.name} of shape {list(spec.shape)}: samples may be .npz, as they"
        yield "# go into the model; then no steps are needed."
        return
    yield f"# steps = [{', '.join(steps)}]"


def toml(value: Any) -> str:
    """A value as TOML writes it; tables inline."""
    if isinstance(value, dict):
        pairs = [f"{json.dumps(key)} = {toml(item)}" for key, item in value.items()]
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> Iterator[str]:
    for line in textwrap.wrap(text, 84, break_on_hyphens=False):
        yield f"# {line}"
