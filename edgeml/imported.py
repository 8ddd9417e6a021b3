"""The recipe's model at graph level: read safely, passed through, exported, cached."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache as once
from typing import Any

from device_agent.contract.tensors import TensorSpec

from .cache import Cache, digest_of
from .errors import MachineLacks, RecipeError
from .model import Model, Step
from .passes import load_pass, ordered
from .passes.base import Context, Pass
from .recipes.recipe import Recipe


@dataclass(frozen=True)
class Imported:
    """A graph, its digest, and what is told of it."""

    model: Model
    digest: str
    export_error: float
    summary: dict[str, Any]


def graph_of(
    recipe: Recipe,
    cache: Cache,
    sources: Mapping[str, str],
    data_digest: str,
    trust_model_code: bool,
) -> Imported:
    """The model after all passes, as an ONNX graph.

    The data's digest is part of the key: a factory may train on it.

    Raises:
        ModelError: the model is refused.
        PassError: a pass failed.
    """
    key = cache.key(
        "graph",
        model=recipe.model,
        passes=list(recipe.passes),
        sources=dict(sources),
        data=data_digest,
        seed=recipe.seed,
        trusted=trust_model_code,
    )
    found = _unpacked(
        cache.bytes(key, lambda: _packed(_made(recipe, trust_model_code)))
    )
    if not any(step.verb == "export" for step in found.model.lineage):
        return found

    @once
    def origin() -> Model:
        return _before_export(recipe, trust_model_code)

    return replace(found, model=replace(found.model, origin=origin))


def _loaded(recipe: Recipe, trust_model_code: bool) -> tuple[Model, list[Pass]]:
    """The model as it came, and the passes that make a graph of it."""
    from .intake.importer import load_model

    source = recipe.model
    model = load_model(
        source.source, source.weights, recipe.folder, source.inputs, trust_model_code
    )
    passes = [load_pass(one.verb, one.parameters) for one in recipe.passes]
    if model.level == "module" and not any(one.gives == "graph" for one in passes):
        passes.append(load_pass("export"))
    mistakes = ordered(passes, model.level)
    if mistakes:
        raise RecipeError("; ".join(mistakes))
    return model, passes


def _made(recipe: Recipe, trust_model_code: bool) -> Model:
    model, passes = _loaded(recipe, trust_model_code)
    for step in passes:
        model = step(model, Context(seed=recipe.seed))
    return model


def _before_export(recipe: Recipe, trust_model_code: bool) -> Model:
    """The module that the graph was exported from, made again."""
    model, passes = _loaded(recipe, trust_model_code)
    for step in passes:
        if step.gives == "graph":
            break
        model = step(model, Context(seed=recipe.seed))
    return model


def _packed(model: Model) -> bytes:
    head = {
        "inputs": [spec.model_dump() for spec in model.inputs],
        "outputs": [spec.model_dump() for spec in model.outputs],
        "lineage": [[step.verb, step.parameters] for step in model.lineage],
    }
    payload: bytes = model.payload.SerializeToString(deterministic=True)
    return json.dumps(head).encode() + b"\n" + payload


def _unpacked(raw: bytes) -> Imported:
    try:
        import onnx
    except ImportError as error:
        raise MachineLacks(
            "onnx is not installed; install it with: pip install 'edgeml[build]'"
        ) from error
    from .graphs.graph import summary

    line, _, payload = raw.partition(b"\n")
    head = json.loads(line)
    model = Model(
        level="graph",
        payload=onnx.load_from_string(payload),
        inputs=tuple(TensorSpec(**spec) for spec in head["inputs"]),
        outputs=tuple(TensorSpec(**spec) for spec in head["outputs"]),
        lineage=tuple(Step(verb, parameters) for verb, parameters in head["lineage"]),
    )
    errors = [
        step.parameters["export_error"]
        for step in model.lineage
        if "export_error" in step.parameters
    ]
    return Imported(
        model, digest_of(payload), errors[-1] if errors else 0.0, summary(model)
    )
