"""ONNX graph → ``model.onnx`` for ONNX Runtime.

Candidates, cheapest to make first:

1. float32: the graph as it is, normalized; float16 where the target lists it.
2. int8 dynamic, where matrix products or LSTMs hold a good part of the weights.
3. int8 static by ONNX Runtime: its defaults, then every calibration method with u8 and
   s8 activations, the target's faster one first; where u8×s8 products may saturate,
   weights in 7 bits too. Where operators are in the graph that eight bits do not suit
   (Log, Softmax …) also with nothing quantized but convolutions and matrix products.
4. int8 static by NNCF: its defaults, without and with the slow bias correction, the
   transformer preset.
5. int8 static by Neural Compressor, when the recipe names it: it quantizes the torch
   module that the graph was exported from.

A candidate that ONNX Runtime does not load is no candidate: ``lower`` opens what it
made, with the options of the target.
"""

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from device_agent.contract.errors import ArtifactError, MachineError
from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Feeds
from device_agent.runtimes.base import Session
from device_agent.runtimes.onnxruntime import PROVIDERS, OnnxRuntime
from targets.profile import Target

from ..candidate import Artifact, LayerError, QuantizeOptions, Spec
from ..errors import BackendError
from ..graphs import layers, preparation
from ..graphs.protos import describe, nodes
from ..model import Model
from ..quantizers import inc, nncf, ort
from .base import Backend, unmet

ENTRY = "model.onnx"
DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml", "com.microsoft"})
"""Operator domains that the onnxruntime wheels have kernels for."""
WHEELS = frozenset({"x86_64", "aarch64"})
"""Architectures that onnxruntime has wheels for."""
TOOLS = {"ort": ort.METHODS, "nncf": nncf.METHODS, "inc": tuple(inc.METHODS)}
"""Quantizers, and the calibration methods of each."""
UNASKED = ("ort", "nncf")
"""Those of a recipe that names none; Neural Compressor takes long to import."""
CORE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FRAGILE = frozenset(
    {"Div", "Exp", "Log", "LogSoftmax", "LayerNormalization", "Pow", "Reciprocal",
     "ReduceSum", "Sigmoid", "Softmax", "Sqrt", "Tanh", "HardSwish", "HardSigmoid"}
)  # fmt: skip
DYNAMIC_SHARE = 0.25
"""Share of the weights in matrix products and LSTMs that makes dynamic worth a try."""


class OnnxRuntimeBackend(Backend):
    """Makes ``model.onnx`` and says which session options it wants."""

    name = "onnxruntime"

    def __init__(self) -> None:
        self._runtime = OnnxRuntime()
        # What candidates share, so that it is made once: graph and tensor ranges.
        self._prepared: dict[int, tuple[Any, Any]] = {}
        self._ranges: dict[tuple[int, int, str, float], tuple[Any, bytes]] = {}

    def refusals(self, model: Model, target: Target) -> list[str]:
        """Every reason; the graph is opened by ONNX Runtime on CPU to find them."""
        if model.level != "graph":
            return [f"a model at level graph is needed, this is a {model.level}"]
        reasons = _unfit(target)
        foreign = [n for n in nodes(model.payload) if n.domain not in DOMAINS]
        local = {(f.domain, f.name) for f in model.payload.functions}
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
        """The candidates, as the head of this module lists them."""
        wanted = set(options.precisions or target.precisions) & set(target.precisions)
        specs = [Spec("fp32", "fp32"), *unmet(options, target, TOOLS, UNASKED)]
        if "fp16" in wanted:
            specs.append(Spec("fp16", "fp16", keep=options.keep))
        tools = options.quantizers or UNASKED
        named = "int8-dynamic" in options.precisions
        if "int8-dynamic" in wanted and (named or self._has_matrices(model)):
            specs += _dynamic_specs(options, "ort" in tools, named)
        if "int8" in wanted and _has_core(model):
            specs += _ort_specs(model, target, options) if "ort" in tools else []
            specs += _nncf_specs(model, target, options) if "nncf" in tools else []
            specs += _inc_specs(options) if "inc" in tools else []
        elif "int8" in options.precisions and "int8" in wanted:
            why = f"the model has none of {', '.join(CORE)} outside If and Loop"
            specs.append(Spec("int8", "int8", refused=why))
        return specs

    def lower(
        self, model: Model, target: Target, spec: Spec, calibration: Sequence[Feeds]
    ) -> Artifact:
        """Make one candidate and open it once.

        Raises:
            BackendError: the tool failed, or ONNX Runtime does not load what it made.
        """
        spec.check()
        if spec.precision == "fp32":
            proto = model.payload
        elif spec.precision == "fp16":
            proto = _half(model.payload, spec.keep)
        else:
            proto = self._quantized(model, spec, calibration)
        written = preparation.to_bytes(proto)
        options = _session_options(target, spec)
        try:
            self._open(written, {**target.runtime_options, **options}).close()
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
        started = max(self._prepare(model), self._given(model), key=shared)
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
        if spec.quantizer != "ort":
            raise BackendError(
                f"{spec.name}: no quantizer {spec.quantizer!r} for onnxruntime; "
                f"known: {', '.join(TOOLS)}"
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

    def _has_matrices(self, model: Model) -> bool:
        """Whether dynamic int8 would make a good part of the weights smaller."""
        try:
            graph = self._prepare(model)
        except BackendError:  # every int8 candidate will fail with this reason
            graph = model.payload
        sizes = preparation.weight_bytes(graph)
        dynamic = sum(sizes.get(kind, 0) for kind in ort.DYNAMIC_OPERATORS)
        return dynamic > 0 and dynamic >= DYNAMIC_SHARE * sum(sizes.values())

    def _unoptimised(self, proto: Any) -> Session:
        written = preparation.to_bytes(proto)
        return self._open(written, {"graph_optimization": "disabled"})

    def _open(self, written: bytes, options: Mapping[str, Option]) -> Session:
        with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
            path = Path(folder, ENTRY)
            path.write_bytes(written)
            return self._runtime.load(path, options)


def _unfit(target: Target) -> list[str]:
    """What is wrong between this backend and the target, whatever the model."""
    reasons = []
    if target.runtime != OnnxRuntimeBackend.name:
        reasons.append(f"target {target.name} runs {target.runtime}, not onnxruntime")
    if target.arch not in WHEELS:
        reasons.append(
            f"onnxruntime has no package for {target.arch}; it has {sorted(WHEELS)}"
        )
    provider = str(target.runtime_options.get("provider", "cpu"))
    if provider != "cpu" and provider in PROVIDERS:
        import onnxruntime

        if PROVIDERS[provider] not in onnxruntime.get_available_providers():
            reasons.append(
                f"{PROVIDERS[provider]} is missing on this build host: what is made "
                f"for {target.name} could not be run and validated; build on a machine "
                "with the GPU and onnxruntime-gpu in place of onnxruntime"
            )
    return reasons


def _spec(
    name: str,
    parameters: dict[str, Any],
    options: QuantizeOptions,
    precision: str = "int8",
    quantizer: str = "ort",
) -> Spec:
    return Spec(name, precision, quantizer, parameters, tuple(options.keep))


def _dynamic_specs(options: QuantizeOptions, ours: bool, named: bool) -> list[Spec]:
    if ours:
        parameters = {"kind": "dynamic", "per_channel": options.per_channel}
        return [_spec("int8 ort dynamic", parameters, options, "int8-dynamic")]
    why = "it is made with ort, which is not among the quantizers"
    return [Spec("int8-dynamic", "int8-dynamic", refused=why)] if named else []


def _ort_specs(model: Model, target: Target, options: QuantizeOptions) -> list[Spec]:
    methods = [m for m in ort.METHODS if m in (options.methods or ort.METHODS)]
    words = ("s8", "u8") if target.arch == "aarch64" else ("u8", "s8")
    specs = []
    if not options.methods or "minmax" in options.methods:
        specs.append(_spec("int8 ort default", {"kind": "default"}, options))

    def add(method: str, word: str, label: str = "", **more: Any) -> None:
        parameters = {
            "method": method, "activation": word, "weight": "s8",
            "per_channel": options.per_channel, **more,
        }  # fmt: skip
        if method == "percentile":
            parameters["percentile"] = options.percentile
        specs.append(_spec(f"int8 ort {method} {word}s8{label}", parameters, options))

    for method in methods:
        for word in words:
            add(method, word)
        if target.saturates_u8s8:
            add(method, "u8", " 7 bit", reduce_range=True)
    if FRAGILE.intersection(preparation.op_counts(model.payload)):
        for method in methods:
            add(method, words[0], " core", operators=list(CORE))
            if target.saturates_u8s8:
                add(method, "u8", " core 7 bit", operators=list(CORE),
                    reduce_range=True)  # fmt: skip
    return specs


def _nncf_specs(model: Model, target: Target, options: QuantizeOptions) -> list[Spec]:
    """Its defaults, where the recipe does not ask for anything else, and variants."""
    base = nncf.base(target.saturates_u8s8, options.per_channel)
    kinds: dict[str, dict[str, Any]] = {
        "no bias correction": {"fast_bias_correction": None, "preset": "mixed"},
        "bias correction": {"fast_bias_correction": False, "preset": "mixed"},
    }
    if _is_transformer(model):
        kinds["transformer"] = {"model_type": "transformer"}
    specs = []
    if options.per_channel and not options.methods:
        specs.append(_spec("int8 nncf default", {}, options, quantizer="nncf"))
    return specs + [
        _spec(
            " ".join(filter(None, ("int8 nncf", label, ranges.get("method")))),
            {**base, **ranges, **parameters}, options, quantizer="nncf",
        )
        for ranges in nncf.ranges(options.methods, options.percentile)
        for label, parameters in kinds.items()
    ]  # fmt: skip


def _inc_specs(options: QuantizeOptions) -> list[Spec]:
    return [
        _spec(f"int8 inc {label}", parameters, options, quantizer="inc")
        for label, parameters in inc.ways(options.methods, options.per_channel).items()
    ]


def _has_core(model: Model) -> bool:
    """Static int8 works on the outer graph only; what is inside If is not reached."""
    return any(node.op_type in CORE for node in model.payload.graph.node)


def _is_transformer(model: Model) -> bool:
    counts = preparation.op_counts(model.payload)
    return (
        counts.get("MatMul", 0) >= 4
        and "Softmax" in counts
        and ("LayerNormalization" in counts or "ReduceMean" in counts)
    )


def _session_options(target: Target, spec: Spec) -> dict[str, Option]:
    """Whether u8×s8 products must be kept from saturating.

    ONNX Runtime then multiplies u8×u8: the same numbers, at about half the speed, on
    hosts with VNNI as well. Weights of 7 bits cannot saturate and it leaves them be.
    """
    safe = target.saturates_u8s8 and spec.quantizer is not None
    return {"x64quantprecision": True} if safe else {}


def _half(proto: Any, keep: Sequence[str]) -> Any:
    """The graph in float16, float32 at its inputs and outputs.

    Raises:
        BackendError: the converter failed on it.
    """
    from onnxconverter_common.float16 import convert_float_to_float16

    given = preparation.normalized(proto)
    blocked = list(preparation.kept_nodes(proto, given, keep))
    try:
        with warnings.catch_warnings():
            # It warns of each constant too small for float16; the proxy sees those.
            warnings.simplefilter("ignore")
            made = convert_float_to_float16(
                given, keep_io_types=True, node_block_list=blocked
            )
    except Exception as error:
        text = " ".join(str(error).split())
        raise BackendError(f"onnxconverter-common cannot make fp16: {text}") from error
    return made
