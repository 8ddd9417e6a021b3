"""QAT of a target's int8 candidate: the recipe's pass ``qat``, cached, in a child.

The rules it keeps:

1. What was learned is cached by the quantized graph, the pass's parameters and all that
   it trains on. A build that was killed goes on at the last checkpoint.
2. It runs in a process of its own (:mod:`edgeml.apart`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .apart import run_apart
from .cache import Cache, digest_of
from .model import Model, Step
from .passes import load_pass
from .passes.base import Context
from .passing import task_of
from .progress import Progress
from .recipes.recipe import Recipe

SCHEMES = {"u8s8": "UINT8", "s8s8": "INT8"}
"""Word of the recipe → the type of all quantized activations."""


@dataclass(frozen=True)
class Tuner:
    """Fine-tunes quantized graphs as one recipe says."""

    recipe: Recipe
    parameters: Mapping[str, Any]
    cache: Cache
    sources: Mapping[str, str]
    """Digests of the recipe's code: a loss of its own may be in it."""
    data_digest: str

    def takes(self, model: Model) -> bool:
        """Whether a quantized graph has the wanted scheme."""
        wanted = SCHEMES.get(self.parameters["scheme"])
        return wanted is None or activations(model.payload) == {wanted}

    def tuned(self, model: Model, progress: Progress) -> Model:
        """The graph after the pass.

        Args:
            model: a quantized graph (QDQ).
            progress: is told how it goes.

        Raises:
            PassError: the training failed; says why.
            MachineLacks: torch is not installed.
        """
        written = model.payload.SerializeToString(deterministic=True)
        recipe = self.recipe
        key = self.cache.key(
            "qat", graph=digest_of(written), parameters=dict(self.parameters),
            data=self.data_digest, sources=dict(self.sources), seed=recipe.seed,
            metric=recipe.metric, steps=list(recipe.preprocess),
            step_input=recipe.preprocess_input,
        )  # fmt: skip
        raw = self.cache.read(key)
        if raw is None:
            blank = replace(model, payload=None, origin=None)
            run_apart("edgeml.tuning:run_job", Job(self, blank, written, key), progress)
            raw = self.cache.read(key)
            assert raw is not None, "the job writes its result or raises"
        return _unpacked(raw, model)


def tuner_of(
    recipe: Recipe, cache: Cache, sources: Mapping[str, str], data_digest: str
) -> Tuner | None:
    """What the recipe's pass ``qat`` does; None without one that trains."""
    for one in recipe.passes:
        if one.verb == "qat":
            parameters = load_pass(one.verb, one.parameters).parameters
            if parameters["epochs"]:
                return Tuner(recipe, parameters, cache, sources, data_digest)
    return None


def activations(proto: Any) -> set[str]:
    """The types of what is quantized as it is computed, in the protocol's words."""
    from .graphs.protos import DATATYPES

    types = {one.name: one.data_type for one in proto.graph.initializer}
    return {
        str(DATATYPES.get(types[node.input[2]], types[node.input[2]]))
        for node in proto.graph.node
        if node.op_type == "QuantizeLinear"
        and len(node.input) > 2
        and node.input[2] in types
        and node.input[0] not in types
    }


@dataclass(frozen=True)
class Job:
    """What a child is sent: whose pass, the graph, and where the result goes."""

    tuner: Tuner
    model: Model
    written: bytes = field(repr=False)
    key: str


def run_job(job: Job, progress: Progress) -> None:
    """Run the pass; its result is in the cache afterwards."""
    import onnx

    tuner = job.tuner
    model = replace(job.model, payload=onnx.load_model_from_string(job.written))
    task = replace(
        task_of(tuner.recipe, model.inputs, progress),
        work=tuner.cache.folder / "training" / job.key,
    )
    step = load_pass("qat", tuner.parameters)
    after = step(model, Context(seed=tuner.recipe.seed, task=task))
    head = json.dumps(after.lineage[-1].parameters).encode()
    payload = after.payload.SerializeToString(deterministic=True)
    tuner.cache.write(job.key, head + b"\n" + payload)


def _unpacked(raw: bytes, before: Model) -> Model:
    import onnx

    head, _, payload = raw.partition(b"\n")
    step = Step("qat", json.loads(head))
    proto = onnx.load_model_from_string(payload)
    return before.after(step, payload=proto, origin=None)
