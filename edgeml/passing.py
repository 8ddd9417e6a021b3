"""The recipe's model through its passes to a graph: each pass cached, training apart.

The rules it keeps:

1. What a pass gave is cached by what came in, its parameters and what it trained on.
   A build that was killed goes on after the last finished pass, and inside a training
   pass after its last checkpoint.
2. A recipe that trains runs its passes in a process of their own: a crash of a kernel
   is an error that names the pass, and not the end of the build.
3. What the accuracy is compared with (``reference``) is the model before the first
   pass that makes it smaller.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache as once
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from calibration.dataset import Dataset, check_disjoint
from device_agent.contract.tensors import Array, TensorSpec
from targets.profile import load_target

from .apart import run_apart
from .cache import Cache, digest_of
from .errors import MachineLacks, RecipeError
from .evaluation.evaluate import score_of
from .intake.importer import load_model
from .model import Model, Step
from .passes import load_pass, ordered
from .passes.base import Context, Pass
from .progress import Progress, Silent
from .recipes.data import load_splits
from .recipes.feeds import Preparer
from .recipes.recipe import PassOptions, Recipe
from .recipes.verbs import trains
from .training.task import Samples, Task, hold_out


@dataclass(frozen=True)
class Imported:
    """A graph, its digest, and what is told of it.

    ``reference`` is the graph that its accuracy is compared with: the model itself
    when nothing made it smaller.
    """

    model: Model
    digest: str
    export_error: float
    summary: dict[str, Any]
    reference: Model
    reference_digest: str


def graph_of(
    recipe: Recipe,
    cache: Cache,
    sources: Mapping[str, str],
    data_digest: str,
    trust_model_code: bool,
    progress: Progress | None = None,
) -> Imported:
    """The model after all passes, as an ONNX graph.

    The data's digest is part of the key: a factory may train on it.

    Raises:
        ModelError: the model is refused.
        PassError: a pass failed.
        RecipeError: the passes are in an order that cannot be.
    """
    mistakes = _after_qat(recipe)
    if mistakes:
        raise RecipeError("; ".join(mistakes))
    chain = Chain(
        recipe, cache, dict(sources), data_digest, trust_model_code,
        progress or Silent(),
    )  # fmt: skip
    raw = cache.read(chain.key)
    if raw is None:
        if chain.trains:
            alone = replace(chain, progress=Silent())
            run_apart("edgeml.passing:run_chain", alone, chain.progress)
        else:
            chain.run()
        raw = cache.read(chain.key)
        assert raw is not None, "the chain writes its result or raises"
    found = _unpacked(raw)
    if not any(step.verb == "export" for step in found.model.lineage):
        return found
    return replace(found, model=replace(found.model, origin=once(chain.before_export)))


@dataclass
class Chain:
    """The passes of one recipe, from the model as it came to a graph.

    It can be sent to another process: it holds no model.
    """

    recipe: Recipe
    cache: Cache
    sources: dict[str, str]
    data_digest: str
    trust_model_code: bool
    progress: Progress = field(default_factory=Silent)

    @property
    def trains(self) -> bool:
        """Whether some pass of the chain needs training samples."""
        return any(trains(one.verb, one.parameters) for one in self._passes)

    @property
    def _passes(self) -> list[PassOptions]:
        """Those before the graph is quantized; ``qat`` begins from a target's int8."""
        return [one for one in self.recipe.passes if one.verb != "qat"]

    @cached_property
    def key(self) -> str:
        """Where the cache has the result."""
        return self.cache.key("graph", passes=self._passes, **self._basis)

    @property
    def _basis(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "model": recipe.model,
            "sources": self.sources,
            "data": self.data_digest,
            "seed": recipe.seed,
            "trusted": self.trust_model_code,
            "targets": list(recipe.targets) if self.trains else [],
            "metric": recipe.metric if self.trains else None,
            "steps": list(recipe.preprocess) if self.trains else [],
        }

    def run(self) -> None:
        """Run what is not in the cache, and write the graph there."""
        model, reference = self._passed(whole=True)
        self.cache.write(self.key, _packed(model, reference))

    def before_export(self) -> Model:
        """The module that the graph was exported from, made again."""
        return self._passed(whole=False)[0]

    def _passed(self, whole: bool) -> tuple[Model, Model]:
        """The model after the passes (or those before the export), and the reference.

        The reference is a graph, too, when the model is; None is never given.
        """
        model, passes = self._loaded()
        reference: Model | None = None
        key = self.cache.key("module", **self._basis)
        for step in passes:
            if step.lossy and reference is None:
                reference = model
            if step.gives == "graph" and not whole:
                break
            key = self.cache.key(
                "pass", before=key, verb=step.verb, parameters=step.parameters
            )
            model = self._pass(step, model, reference or model, key)
        if reference is None or not whole:
            return model, model
        if reference.level == "module":
            reference = load_pass("export")(reference, Context(seed=self.recipe.seed))
        return model, reference

    def _pass(self, step: Pass, model: Model, source: Model, key: str) -> Model:
        if step.gives != "module":
            return step(model, Context(seed=self.recipe.seed))
        from .intake.state import packed, unpacked

        raw = self.cache.read(key)
        if raw is not None:
            return unpacked(raw, self._fresh)
        self.progress.stage(f"pass {step.verb}")
        after = step(model, self._context(step, model, source, key))
        self.cache.write(key, packed(after, self._fresh(after)))
        for path in self._work(key).glob("*/checkpoint"):
            path.unlink()  # its log stays
        return after

    def _work(self, key: str) -> Path:
        """Where a pass keeps checkpoints and its log."""
        return self.cache.folder / "training" / key

    def _context(self, step: Pass, model: Model, source: Model, key: str) -> Context:
        task = None
        if trains(step.verb, step.parameters):
            task = task_of(self.recipe, model.inputs, self.progress)
            task = replace(task, work=self._work(key))
        return Context(
            seed=self.recipe.seed, task=task, source=source, factory=self._factory
        )

    def _factory(self, source: str, weights: str) -> Model:
        recipe = self.recipe
        return load_model(
            source, weights or None, recipe.folder, recipe.model.inputs,
            seed=recipe.seed,
        )  # fmt: skip

    def _fresh(self, model: Model) -> Any:
        """A module of the factory that made ``model``, to restore into."""
        for step in reversed(model.lineage):
            if step.parameters.get("student"):
                return self._factory(step.parameters["student"], "").payload
        return self._loaded()[0].payload

    def _loaded(self) -> tuple[Model, list[Pass]]:
        """The model as it came, and the passes that make a graph of it."""
        recipe = self.recipe
        source = recipe.model
        model = load_model(
            source.source, source.weights, recipe.folder, source.inputs,
            self.trust_model_code, recipe.seed,
        )  # fmt: skip
        passes = [load_pass(one.verb, one.parameters) for one in self._passes]
        if model.level == "graph" and any(one.takes == "module" for one in passes):
            from .graphs.torched import module_of

            model = module_of(model)
        if model.level == "module" and not any(one.gives == "graph" for one in passes):
            passes.append(load_pass("export"))
        mistakes = ordered(passes, model.level)
        if mistakes:
            raise RecipeError("; ".join(mistakes))
        return model, passes


def _after_qat(recipe: Recipe) -> list[str]:
    """What is wrong with the order: ``qat`` trains what is already quantized."""
    verbs = [one.verb for one in recipe.passes]
    after = verbs[verbs.index("qat") + 1 :] if "qat" in verbs else []
    return [
        f"pass {verb!r} comes after 'qat', which has to be the last but export"
        for verb in after
        if verb != "export"
    ]


def task_of(recipe: Recipe, inputs: Sequence[TensorSpec], progress: Progress) -> Task:
    """What a recipe trains on: its samples, prepared for a model with these inputs.

    Raises:
        DataError: a training sample is a validation sample.
    """
    splits = load_splits(recipe)
    assert splits.train is not None, "the recipe was checked for it"
    check_disjoint(splits.train, splits.validation)
    preparer = Preparer(recipe.preprocess, recipe.preprocess_input, inputs)
    train, holdout = hold_out(stacked(splits.train, preparer), recipe.seed)

    def score(outputs: Mapping[str, Array], labels: Array | None) -> float:
        return score_of(outputs, labels, recipe.metric, recipe.folder)

    return Task(
        train, holdout, score, recipe.folder, recipe.seed,
        channel_multiple=channel_multiple(recipe), output=recipe.metric.output or "",
        progress=progress,
    )  # fmt: skip


def channel_multiple(recipe: Recipe) -> int:
    """What channel counts are rounded to, so that all targets' kernels like them."""
    targets = [load_target(name, recipe.folder) for name in recipe.targets]
    return int(np.lcm.reduce([one.channel_multiple for one in targets]))


def run_chain(chain: Chain, progress: Progress) -> None:
    """Run a chain that was sent here; the result is in its cache afterwards."""
    replace(chain, progress=progress).run()


def stacked(dataset: Dataset, preparer: Preparer) -> Samples:
    """A split as batches are cut from it."""
    split = preparer.split(dataset)
    return Samples(
        {
            name: np.concatenate([feed[name] for feed in split.feeds])
            for name in split.feeds[0]
        },
        split.labels,
    )


def _packed(model: Model, reference: Model) -> bytes:
    same = reference is model
    parts = [model] if same else [model, reference]
    payloads = [one.payload.SerializeToString(deterministic=True) for one in parts]
    head = [
        {
            "inputs": [spec.model_dump() for spec in one.inputs],
            "outputs": [spec.model_dump() for spec in one.outputs],
            "lineage": [[step.verb, step.parameters] for step in one.lineage],
            "bytes": len(payload),
        }
        for one, payload in zip(parts, payloads, strict=True)
    ]
    return json.dumps(head).encode() + b"\n" + b"".join(payloads)


def _unpacked(raw: bytes) -> Imported:
    try:
        import onnx
    except ImportError as error:
        raise MachineLacks(
            "onnx is not installed; install it with: pip install 'edgeml[build]'"
        ) from error
    from .graphs.graph import summary

    line, _, payloads = raw.partition(b"\n")
    models, digests, at = [], [], 0
    for head in json.loads(line):
        payload = payloads[at : at + head["bytes"]]
        at += head["bytes"]
        digests.append(digest_of(payload))
        models.append(
            Model(
                level="graph",
                payload=onnx.load_from_string(payload),
                inputs=tuple(TensorSpec(**spec) for spec in head["inputs"]),
                outputs=tuple(TensorSpec(**spec) for spec in head["outputs"]),
                lineage=tuple(Step(verb, given) for verb, given in head["lineage"]),
            )
        )
    model = models[0]
    errors = [
        step.parameters["export_error"]
        for step in model.lineage
        if "export_error" in step.parameters
    ]
    return Imported(
        model, digests[0], errors[-1] if errors else 0.0, summary(model),
        models[-1], digests[-1],
    )  # fmt: skip
