"""ONNX graph → ``model.onnx`` for ONNX Runtime.

Which candidates there are says :mod:`.candidates`; how one is made, this module.

For a GPU the graph has batch 1 (:mod:`edgeml.graphs.gpu`). Where the GPU is not, the
CPU runs an artifact for its numbers; the options that the bundle ships with are those
of the GPU, and no device runs it on its CPU instead.

A candidate that ONNX Runtime does not load is no candidate: ``lower`` opens what it
made, with the options of the target.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_agent.contract import machine
from device_agent.contract.errors import ArtifactError, MachineError
from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Feeds
from device_agent.runtimes.base import Session
from device_agent.runtimes.onnxruntime import GPU_OPTIONS, PROVIDERS, OnnxRuntime
from targets.profile import Target

from ..candidate import Artifact, LayerError, QuantizeOptions, Spec
from ..errors import BackendError
from ..graphs import gpu, half, layers, preparation
from ..graphs.protos import describe, is_quantized, nodes
from ..model import Model
from ..quantizers import inc, nbits, nncf, ort
from . import candidates
from .base import Backend, Base, Host

ENTRY = "model.onnx"
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator domains that the onnxruntime wheels have kernels for."""
WHEELS = frozenset({"x86_64", "aarch64"})
"""Architectures that onnxruntime has wheels for."""
DYNAMIC_SHARE = 0.25
"""Share of the weights in matrix products and LSTMs that makes dynamic worth a try."""
PEAK_SAMPLES = 16
"""On so many is looked for values that float16 cannot hold."""


class OnnxRuntimeBackend(Backend):
    """Makes ``model.onnx`` and says which session options it wants."""

    name = "onnxruntime"

    def __init__(self) -> None:
        self._runtime = OnnxRuntime()
        # What candidates share, so that it is made once: graph and tensor ranges.
        self._prepared: dict[int, tuple[Any, Any]] = {}
        self._ranges: dict[tuple[int, int, str, float], tuple[Any, bytes]] = {}
        self._pinned: dict[int, tuple[Any, Model]] = {}
        self._starts: dict[str, bool] = {}

    def host(self, target: Target) -> Host:
        """A CPU in place of a GPU that is not here; or the GPU of another machine."""
        wanted, here = candidates.provider_of(target), machine.arch()
        found = self._stand_in(wanted)
        if wanted == "cpu" or (found == wanted and here == target.arch):
            return Host()
        return Host(f"{PROVIDERS[found]} of this {here} machine", timed=False)

    def host_options(
        self, target: Target, options: Mapping[str, Option]
    ) -> dict[str, Option]:
        """For what stands in for a GPU those that it has; a CPU is to be exact."""
        wanted = str(options.get("provider", "cpu"))
        found = self._stand_in(wanted)
        if found == wanted:
            return dict(options)
        exact = {"x64quantprecision": True} if found == "cpu" else {}
        rest = {
            key: value
            for key, value in options.items()
            if found in GPU_OPTIONS.get(key, (found,))
        }
        return {**rest, "provider": found, **exact}

    def refusals(self, model: Model, target: Target) -> list[str]:
        """Every reason; the graph is opened by ONNX Runtime on CPU to find them."""
        if model.level != "graph":
            return [f"a model at level graph is needed, this is a {model.level}"]
        reasons = _unfit(target)
        foreign = [n for n in nodes(model.payload) if n.domain not in DOMAINS]
        local = {(f.domain, f.name) for f in model.payload.functions}
        if candidates.provider_of(target) != "cpu":
            reasons += [
                f"input {one} is variable: a GPU's engine is built for fixed shapes; "
                "pin them in the recipe ([model] inputs)"
                for one in gpu.variable(model.payload)
            ]
        reasons += [
            f"{describe(node)}: onnxruntime has no operators of domain {node.domain}; "
            "export the model without custom operators"
            for node in foreign
            if (node.domain, node.op_type) not in local
        ]
        if not reasons:
            try:
                self._open(preparation.to_bytes(model.payload), {}).close()
            except (ArtifactError, BackendError) as error:
                reasons.append(f"onnxruntime cannot run the graph: {error}")
        return reasons

    def specs(
        self, model: Model, target: Target, options: QuantizeOptions
    ) -> list[Spec]:
        """The candidates, as the head of :mod:`.candidates` lists them."""
        return candidates.offered(model, target, options, self._are_many)

    def lower(
        self, model: Model, target: Target, spec: Spec, calibration: Sequence[Feeds]
    ) -> Artifact:
        """Make one candidate and open it once.

        Raises:
            BackendError: the tool failed, or ONNX Runtime does not load what it made.
        """
        spec.check()
        on_gpu = candidates.provider_of(target) != "cpu"
        model = self._for_gpu(model) if on_gpu else model
        if spec.precision == "fp32":
            proto = model.payload
        elif spec.precision == "fp16":
            if on_gpu:
                self._check_half(model.payload, spec, calibration[:PEAK_SAMPLES])
            proto = half.half(model.payload, spec.keep)
        else:
            proto = self._quantized(model, spec, calibration)
        return self._artifact(proto, target, spec)

    def trainable(
        self,
        model: Model,
        target: Target,
        spec: Spec,
        artifact: Artifact,
        calibration: Sequence[Feeds],
    ) -> Any | None:
        """The artifact itself, when it is a QDQ graph."""
        proto = preparation.from_bytes(artifact.files[artifact.entry])
        return proto if is_quantized(proto) else None

    def retrained(
        self, model: Model, target: Target, spec: Spec, base: Base
    ) -> Artifact:
        """The graph as it is."""
        return self._artifact(model.payload, target, spec)

    def _artifact(self, proto: Any, target: Target, spec: Spec) -> Artifact:
        options = _session_options(target, spec)
        on_gpu = candidates.provider_of(target) != "cpu"
        faults = gpu.tensorrt_faults(proto) if on_gpu else []
        if faults:
            text = "; ".join(faults[:3])
            raise BackendError(f"{spec.name}: not for TensorRT: {text}")
        if "x64quantprecision" in options:
            proto = layers.own_weights(proto)
        written = preparation.to_bytes(proto)
        every = self.host_options(target, {**target.runtime_options, **options})
        try:
            self._open(written, every).close()
        except (ArtifactError, MachineError) as error:
            raise BackendError(
                f"{spec.name}: onnxruntime does not load it: {error}"
            ) from error
        return Artifact(self.name, ENTRY, {ENTRY: written}, options)

    def layer_errors(
        self, model: Model, artifact: Artifact, feeds: Sequence[Feeds]
    ) -> list[LayerError]:
        """Error of each quantized layer over ``feeds``, worst ``added_db`` first.

        Empty for artifacts without QDQ pairs: float and dynamic ones.
        """
        quantized = preparation.from_bytes(artifact.files[artifact.entry])
        if not any(n.op_type == "QuantizeLinear" for n in quantized.graph.node):
            return []
        there = {name for node in nodes(quantized) for name in node.output}

        def shared(graph: Any) -> int:
            return sum(name in there for node in nodes(graph) for name in node.output)

        # The graph that the quantizer was given is the one with more of the names.
        graphs = [self._prepare(model), self._given(model)]
        if id(model.payload) in self._pinned:
            graphs.append(self._prepare(self._pinned[id(model.payload)][1]))
        started = max(graphs, key=shared)
        return layers.layer_errors(started, quantized, feeds, self._unoptimised)

    def _quantized(self, model: Model, spec: Spec, calibration: Sequence[Feeds]) -> Any:
        parameters = dict(spec.parameters)
        kind = parameters.pop("kind", "static")
        if spec.quantizer == "nncf":
            # Not the prepared graph: NNCF's slow bias correction cuts it wrongly.
            given = self._given(model)
            keep = preparation.kept_nodes(model.payload, given, spec.keep)
            return nncf.quantize_onnx(given, calibration, keep=keep, **parameters)
        if spec.quantizer == "inc":
            return inc.quantize_origin(model, calibration, keep=spec.keep, **parameters)
        if spec.quantizer == "nbits":
            prepared = self._prepare(model)
            keep = preparation.kept_nodes(model.payload, prepared, spec.keep)
            return nbits.quantize_weights(prepared, keep=keep, **parameters)
        if spec.quantizer != "ort":
            raise BackendError(
                f"{spec.name}: no quantizer {spec.quantizer!r} for onnxruntime; "
                f"known: {', '.join(candidates.TOOLS)}"
            )
        if kind == "default":
            keep = preparation.kept_nodes(model.payload, model.payload, spec.keep)
            return ort.quantize_default(model.payload, calibration, keep)
        prepared = self._prepare(model)
        keep = preparation.kept_nodes(model.payload, prepared, spec.keep)
        if kind == "dynamic":
            return ort.quantize_dynamic(prepared, keep=keep, **parameters)
        ranges = self._calibrated(
            prepared, calibration, parameters.pop("method"),
            parameters.pop("percentile", 99.99),
        )  # fmt: skip
        made = ort.quantize_static(prepared, ranges, keep=keep, **parameters)
        return layers.float_readers(made, keep) if keep else made

    def _for_gpu(self, model: Model) -> Model:
        """The model with batch 1 and no shapes to compute."""
        key = id(model.payload)
        if key not in self._pinned:
            made = replace(model, payload=gpu.pinned(model.payload))
            self._pinned[key] = (model.payload, made)
        return self._pinned[key][1]

    def _check_half(self, proto: Any, spec: Spec, feeds: Sequence[Feeds]) -> None:
        """Refuse float16 for values that it does not have; a CPU would not tell."""
        peaks = half.beyond_half(proto, feeds, self._unoptimised)
        found = {name: one for name, one in peaks.items() if name not in spec.keep}
        if found:
            shown = [f"{name} reaches {one:.3g}" for name, one in found.items()][:3]
            raise BackendError(
                f"{spec.name}: float16 ends at {half.HALF_MAX:g}; {', '.join(shown)}: "
                "name them in [quantize] keep"
            )

    def _stand_in(self, wanted: str) -> str:
        """The provider itself, CUDA for TensorRT, else the CPU: what starts here."""
        chain = {"tensorrt": ("tensorrt", "cuda"), "cuda": ("cuda",)}.get(wanted, ())
        return next(filter(self._has, chain), "cpu")

    def _has(self, provider: str) -> bool:
        """Whether sessions of a GPU's provider start on this machine."""
        if provider not in self._starts:
            try:
                self._open(_smallest(), {"provider": provider}).close()
                self._starts[provider] = True
            except (ArtifactError, MachineError):
                self._starts[provider] = False
        return self._starts[provider]

    def _given(self, model: Model) -> Any:
        """The payload with every node named, in an opset that knows channels."""
        return preparation.at_opset(model.payload, preparation.QDQ_OPSET)

    def _prepare(self, model: Model) -> Any:
        """The prepared graph; the payload is held so that its id stays its own."""
        key = id(model.payload)
        if key not in self._prepared:
            made = preparation.prepare(model.payload)
            self._prepared[key] = (model.payload, made)
        return self._prepared[key][1]

    def _calibrated(
        self, prepared: Any, calibration: Sequence[Feeds], method: str, share: float
    ) -> bytes:
        key = (id(prepared), id(calibration), method, share)
        if key not in self._ranges:
            ranges = ort.calibrate(prepared, calibration, method, share)
            self._ranges[key] = (calibration, ranges)
        return self._ranges[key][1]

    def _are_many(self, model: Model, kinds: Sequence[str]) -> bool:
        """Whether operators of these kinds hold a good part of the weights."""
        try:
            graph = self._prepare(model)
        except BackendError:  # every int8 candidate will fail with this reason
            graph = model.payload
        sizes = preparation.weight_bytes(graph)
        held = sum(sizes.get(kind, 0) for kind in kinds)
        return held > 0 and held >= DYNAMIC_SHARE * sum(sizes.values())

    def _unoptimised(self, proto: Any) -> Session:
        written = preparation.to_bytes(proto)
        return self._open(written, {"graph_optimization": "disabled"})

    def _open(self, written: bytes, options: Mapping[str, Option]) -> Session:
        with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
            path = Path(folder, ENTRY)
            path.write_bytes(written)
            return self._runtime.load(path, options)


def _smallest() -> bytes:
    """A graph that every provider runs: ``y = max(x, 0)``."""
    from onnx import helper

    x, y = (helper.make_tensor_value_info(name, 1, [1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "it", [x], [y])
    opsets = [helper.make_opsetid("", preparation.QDQ_OPSET)]
    return preparation.to_bytes(helper.make_model(graph, opset_imports=opsets))


def _unfit(target: Target) -> list[str]:
    """What is wrong between this backend and the target, whatever the model."""
    reasons = []
    if target.runtime != OnnxRuntimeBackend.name:
        reasons.append(f"target {target.name} runs {target.runtime}, not onnxruntime")
    if target.arch not in WHEELS:
        reasons.append(
            f"onnxruntime has no package for {target.arch}; it has {sorted(WHEELS)}"
        )
    return reasons


def _session_options(target: Target, spec: Spec) -> dict[str, Option]:
    """What the runtime must know of this very artifact.

    On a CPU, whether u8×s8 products must be kept from saturating. ONNX Runtime then
    multiplies u8×u8: the same numbers, at about half the speed, on hosts with VNNI as
    well. Weights of 7 bits cannot saturate and it leaves them be. By TensorRT, which
    types besides float32 it may compute in.
    """
    provider = candidates.provider_of(target)
    if provider == "tensorrt" and spec.precision in ("fp16", "int8"):
        return {spec.precision: True}
    quantized = spec.quantizer is not None and spec.quantizer != "nbits"
    safe = provider == "cpu" and target.saturates_u8s8 and quantized
    return {"x64quantprecision": True} if safe else {}
