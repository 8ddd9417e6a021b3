"""Which candidates the onnxruntime backend offers for a model, a target and a recipe.

Candidates, cheapest to make first:

1. float32: the graph as it is, normalized; float16 where the target lists it.
2. int8 dynamic, where matrix products or LSTMs hold a good part of the weights; int4
   weights in blocks, where matrix products do.
3. int8 static by ONNX Runtime: its defaults, then every calibration method with u8 and
   s8 activations, the target's faster one first; where u8×s8 products may saturate,
   weights in 7 bits too. Where operators are in the graph that eight bits do not suit
   (Log, Softmax …) also with nothing quantized but convolutions and matrix products,
   and where attention is, those without the products of two activations.
4. int8 static by NNCF: its defaults, without and with the slow bias correction, the
   transformer preset.
5. int8 static by Neural Compressor, when the recipe names it: it quantizes the torch
   module that the graph was exported from.

For a GPU: float32, float16 and static int8 by TensorRT's rules; CUDA runs that too.
"""

from collections.abc import Callable, Sequence
from typing import Any

from targets.profile import Target

from ..candidate import QuantizeOptions, Spec
from ..graphs import preparation
from ..model import Model
from ..quantizers import inc, nbits, nncf, ort
from .base import unmet

TOOLS = {
    "ort": ort.METHODS, "nncf": nncf.METHODS, "inc": tuple(inc.METHODS),
    "nbits": nbits.METHODS,
}  # fmt: skip
"""Quantizers, and the calibration methods of each."""
GPU_TOOLS = {"ort": ort.METHODS}
UNASKED = ("ort", "nncf", "nbits")
"""Those of a recipe that names none; Neural Compressor takes long to import."""
MATRICES = ("Gemm", "MatMul")
CORE = ("Conv", "ConvTranspose", "Gemm", "MatMul")
FRAGILE = frozenset(
    {"Div", "Exp", "Log", "LogSoftmax", "LayerNormalization", "Pow", "Reciprocal",
     "ReduceSum", "Sigmoid", "Softmax", "Sqrt", "Tanh", "HardSwish", "HardSigmoid"}
)  # fmt: skip
Many = Callable[[Model, Sequence[str]], bool]
"""Whether operators of these kinds hold a good part of a model's weights."""


def provider_of(target: Target) -> str:
    """Who runs nodes there: ``cpu``, ``cuda`` or ``tensorrt``."""
    return str(target.runtime_options.get("provider", "cpu"))


def offered(
    model: Model, target: Target, options: QuantizeOptions, many: Many
) -> list[Spec]:
    """The candidates, float32 first."""
    if provider_of(target) != "cpu":
        return _gpu_specs(model, target, options)
    wanted = set(options.precisions or target.precisions) & set(target.precisions)
    specs = [Spec("fp32", "fp32"), *unmet(options, target, TOOLS, UNASKED)]
    if "fp16" in wanted:
        specs.append(Spec("fp16", "fp16", keep=options.keep))
    tools = options.quantizers or UNASKED
    named = "int8-dynamic" in options.precisions
    dynamic = ort.DYNAMIC_OPERATORS
    if "int8-dynamic" in wanted and (named or many(model, dynamic)):
        specs += _dynamic_specs(target, options, "ort" in tools, named)
    named = "int4" in options.precisions
    if "int4" in wanted and (named or many(model, MATRICES)):
        specs += _nbits_specs(options, "nbits" in tools, named)
    if "int8" in wanted and _has_core(model):
        specs += _ort_specs(model, target, options) if "ort" in tools else []
        specs += _nncf_specs(model, target, options) if "nncf" in tools else []
        specs += _inc_specs(options) if "inc" in tools else []
    elif "int8" in options.precisions and "int8" in wanted:
        why = f"the model has none of {', '.join(CORE)} outside If and Loop"
        specs.append(Spec("int8", "int8", refused=why))
    return specs


def _spec(
    name: str,
    parameters: dict[str, Any],
    options: QuantizeOptions,
    precision: str = "int8",
    quantizer: str = "ort",
) -> Spec:
    return Spec(name, precision, quantizer, parameters, tuple(options.keep))


def _dynamic_specs(
    target: Target, options: QuantizeOptions, ours: bool, named: bool
) -> list[Spec]:
    if not ours:
        why = "it is made with ort, which is not among the quantizers"
        unmade = Spec("int8-dynamic", "int8-dynamic", refused=why)
        return [unmade] if named else []
    parameters = {"kind": "dynamic", "per_channel": options.per_channel}
    specs = [_spec("int8 ort dynamic", parameters, options, "int8-dynamic")]
    if target.saturates_u8s8:
        narrow = {**parameters, "reduce_range": True}
        specs.append(_spec("int8 ort dynamic 7 bit", narrow, options, "int8-dynamic"))
    return specs


def _nbits_specs(options: QuantizeOptions, ours: bool, named: bool) -> list[Spec]:
    if not ours:
        why = "it is made with nbits, which is not among the quantizers"
        return [Spec("int4", "int4", refused=why)] if named else []
    return [
        _spec(f"int4 nbits {label}", parameters, options, "int4", "nbits")
        for label, parameters in nbits.ways().items()
    ]


def _gpu_specs(model: Model, target: Target, options: QuantizeOptions) -> list[Spec]:
    """What TensorRT takes; CUDA's provider runs it too."""
    wanted = set(options.precisions or target.precisions) & set(target.precisions)
    specs = [Spec("fp32", "fp32"), *unmet(options, target, GPU_TOOLS, ("ort",))]
    if "fp16" in wanted:
        specs.append(Spec("fp16", "fp16", keep=options.keep))
    ours = "ort" in (options.quantizers or GPU_TOOLS)
    if "int8" not in wanted or not ours or not _has_core(model):
        return specs
    parameters = {
        "activation": "s8", "weight": "s8", "per_channel": options.per_channel,
        "operators": list(CORE), "tensorrt": True,
    }  # fmt: skip
    for method in ort.METHODS:
        if options.methods and method not in options.methods:
            continue
        found = {"method": method, **parameters}
        if method == "percentile":
            found["percentile"] = options.percentile
        specs.append(_spec(f"int8 ort {method} s8s8", found, options))
        if _attends(model):
            dense = {**found, "constant_only": True}
            specs.append(_spec(f"int8 ort {method} s8s8 dense", dense, options))
    return specs


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

    def add_core(label: str, **more: Any) -> None:
        for method in methods:
            add(method, words[0], label, operators=list(CORE), **more)
            if target.saturates_u8s8:
                add(method, "u8", f"{label} 7 bit", operators=list(CORE),
                    reduce_range=True, **more)  # fmt: skip

    for method in methods:
        for word in words:
            add(method, word)
        if target.saturates_u8s8:
            add(method, "u8", " 7 bit", reduce_range=True)
    if FRAGILE.intersection(preparation.op_counts(model.payload)):
        add_core(" core")
    if _attends(model):
        add_core(" dense", constant_only=True)
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


def _attends(model: Model) -> bool:
    """Whether two activations are multiplied as matrices somewhere."""
    graph = model.payload.graph
    fixed = {one.name for one in graph.initializer}
    fixed.update(
        name
        for node in graph.node
        if node.op_type == "Constant"
        for name in node.output
    )
    return any(
        node.op_type == "MatMul" and not fixed.intersection(node.input)
        for node in graph.node
    )


def _is_transformer(model: Model) -> bool:
    counts = preparation.op_counts(model.payload)
    return (
        counts.get("MatMul", 0) >= 4
        and "Softmax" in counts
        and ("LayerNormalization" in counts or "ReduceMean" in counts)
    )
