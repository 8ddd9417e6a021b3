"""ONNX graph → OpenVINO IR: float32, float16 weights, and int8 by NNCF.

When the recipe names Neural Compressor: also by it, through ONNX. The artifact is
``model.xml`` and ``model.bin``. How the graph is converted, and which rules names keep
on the way, is in ``edgeml/conversion.py``.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from device_agent.contract.tensors import Array, Feeds
from device_agent.runtimes.openvino import DEFAULTS
from targets.profile import Target

from ..candidate import Artifact, LayerError, QuantizeOptions, Spec
from ..errors import BackendError
from ..graphs.conversion import (
    converted,
    core,
    label_of,
    labelled,
    layers_of,
    read,
    stabilize,
    written,
)
from ..graphs.preparation import QDQ_OPSET, at_opset
from ..model import Model
from ..quantizers import inc, nncf
from .base import CEILING_DB, Backend, Base, decibels, unmet

TOOLS = {"nncf": nncf.METHODS, "inc": tuple(inc.METHODS)}
"""Quantizers, and the calibration methods of each."""
UNASKED = ("nncf",)
"""Those of a recipe that names none; Neural Compressor takes long to import."""
MOVING = frozenset(
    ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Split", "VariadicSplit",
     "StridedSlice", "Slice", "Concat", "Pad", "Gather", "Broadcast", "Tile",
     "DepthToSpace", "SpaceToDepth", "ShuffleChannels", "Convert", "MaxPool", "Relu")
)  # fmt: skip
"""Operations that move or select values and compute none."""


class OpenVinoBackend(Backend):
    """Makes OpenVINO IR."""

    name = "openvino"

    def refusals(self, model: Model, target: Target) -> list[str]:
        """Operators that OpenVINO cannot convert, and a device that is not here."""
        reasons = []
        if model.level != "graph":
            reasons.append(f"a model at level graph is needed, this is a {model.level}")
        else:
            try:
                converted(model, ())
            except BackendError as error:
                reasons.append(str(error))
        device = str({**DEFAULTS, **target.runtime_options}["device"])
        here = core().available_devices
        if not any(name.split(".")[0] == device for name in here):
            reasons.append(
                f"{target.name} computes on the {device}, and OpenVINO finds none on "
                f"this machine (found: {', '.join(here)}): an artifact could not be "
                "validated; build where Intel graphics and its OpenCL driver are"
            )
        return reasons

    def specs(
        self, model: Model, target: Target, options: QuantizeOptions
    ) -> list[Spec]:
        """Float candidates and NNCF's, its defaults among them."""
        specs = [Spec("fp32", "fp32"), *unmet(options, target, TOOLS, UNASKED)]
        if _wanted("fp16", target, options):
            specs.append(Spec("fp16", "fp16"))
        if _wanted("int8", target, options):
            tools = options.quantizers or UNASKED
            specs += _nncf_specs(model, target, options) if "nncf" in tools else []
            specs += _inc_specs(target, options) if "inc" in tools else []
        return specs

    def lower(
        self, model: Model, target: Target, spec: Spec, calibration: Sequence[Feeds]
    ) -> Artifact:
        """Convert, quantize when the spec says so, and write."""
        spec.check()
        if spec.quantizer == "inc":
            made = inc.quantize_origin(
                model, calibration, keep=spec.keep, **spec.parameters
            )
            graph = converted(replace(model, payload=made), calibration)
        else:
            graph = converted(model, calibration)
        if spec.quantizer == "nncf":
            keep = _operations(model, graph, spec.keep)
            graph = _quantized(graph, calibration, keep, spec)
        elif spec.quantizer not in (None, "inc"):
            raise BackendError(
                f"openvino quantizes with {', '.join(TOOLS)}, not {spec.quantizer}"
            )
        half = spec.precision == "fp16"
        on_gpu = target.runtime_options.get("device") == "GPU"
        return Artifact(
            runtime=self.name,
            entry="model.xml",
            files=written(graph, half),
            options={"precision_hint": "f16"} if half and on_gpu else {},
        )

    def trainable(
        self,
        model: Model,
        target: Target,
        spec: Spec,
        artifact: Artifact,
        calibration: Sequence[Feeds],
    ) -> Any | None:
        """What the same tool makes of the ONNX graph: OpenVINO fuses its QDQ pairs."""
        if spec.quantizer == "inc":
            return inc.quantize_origin(
                model, calibration, keep=spec.keep, **spec.parameters
            )
        if spec.quantizer != "nncf":
            return None
        settings = dict(spec.parameters)
        if settings.get("fast_bias_correction") is False:
            # biases will be trained; and it breaks on some ONNX graphs
            del settings["fast_bias_correction"]
        given = at_opset(model.payload, QDQ_OPSET)
        return nncf.quantize_onnx(given, calibration, keep=spec.keep, **settings)

    def retrained(
        self, model: Model, target: Target, spec: Spec, base: Base
    ) -> Artifact:
        """The graph, converted."""
        files = written(converted(model, ()), half=False)
        return Artifact(self.name, "model.xml", files)

    def layer_errors(
        self, model: Model, artifact: Artifact, feeds: Sequence[Feeds]
    ) -> list[LayerError]:
        """Compare the tensors around each quantized layer, float against int8."""
        quantized = read(artifact.files, artifact.entry)
        layers = list(_quantized_layers(quantized))
        if not layers:
            return []
        float_graph = converted(model, feeds)
        owners = layers_of(model, float_graph).operations
        points = _points(layers, owners, float_graph, quantized)
        names = sorted({name for around in points.values() for name in around})
        levels = _levels_db(float_graph, quantized, names, feeds)
        kinds = {label_of(node): node.op_type for node in labelled(model)}
        found = [
            LayerError(
                node=label,
                op=kinds[label],
                sqnr_db=levels[output],
                added_db=max(0.0, _worst(inputs, levels) - levels[output]),
            )
            for label, (output, *inputs) in points.items()
        ]
        return sorted(found, key=lambda item: (-item.added_db, item.node))


def _quantized(
    graph: Any, calibration: Sequence[Feeds], keep: Sequence[str], spec: Spec
) -> Any:
    try:
        made = nncf.quantize_openvino(graph, calibration, keep=keep, **spec.parameters)
    except BackendError as error:
        branches = any(op.get_type_name() == "If" for op in graph.get_ops())
        if "Calibration dataset" not in str(error) or not branches:
            raise
        raise BackendError(
            f"{error}; the model has an If, and NNCF calibrates each of its branches "
            "on the samples that take it"
        ) from error
    stabilize(made, "int8")
    return made


def _wanted(precision: str, target: Target, options: QuantizeOptions) -> bool:
    asked = options.precisions or target.precisions
    return precision in asked and precision in target.precisions


def _nncf_specs(model: Model, target: Target, options: QuantizeOptions) -> list[Spec]:
    """Its defaults, where the recipe does not ask for anything else, and variants.

    The defaults halve the range of the first convolutions' weights only.
    """
    base = nncf.base(target.saturates_u8s8, options.per_channel)
    safe = not target.saturates_u8s8
    ways: dict[str, dict[str, Any]] = {
        "fast bias": {},
        "exact bias": {"fast_bias_correction": False},
        "plain": {"fast_bias_correction": None},
        "asymmetric": {"fast_bias_correction": False, "preset": "mixed"},
    }
    if _has_attention(model):
        ways["transformer"] = {"model_type": "transformer"}
        ways["transformer unsmoothed"] = {
            "model_type": "transformer", "smooth_quant": False,
        }  # fmt: skip
    specs = []
    calibrations = nncf.ranges(options.methods, options.percentile)
    if not options.methods and options.percentile != QuantizeOptions.percentile:
        calibrations += nncf.ranges(("percentile",), options.percentile)
    if options.per_channel and not options.methods:
        name, keep = "int8 nncf default", options.keep
        specs.append(Spec(name, "int8", "nncf", {}, keep, ships=safe))
    keep = (*options.keep, *_recurrent(model))
    return specs + [
        Spec(
            " ".join(filter(None, ("int8 nncf", way, ranges.get("method")))),
            "int8", "nncf", {**base, **ranges, **parameters}, keep,
        )
        for ranges in calibrations
        for way, parameters in ways.items()
    ]  # fmt: skip


def _inc_specs(target: Target, options: QuantizeOptions) -> list[Spec]:
    """Neural Compressor's weights have the whole range of 8 bits."""
    safe = not target.saturates_u8s8
    ways = inc.ways(options.methods, options.per_channel)
    return [
        Spec(f"int8 inc {label}", "int8", "inc", parameters, options.keep, ships=safe)
        for label, parameters in ways.items()
    ]


def _has_attention(model: Model) -> bool:
    """Whether two computed tensors are multiplied as matrices somewhere."""
    graph = model.payload.graph
    fixed = {item.name for item in graph.initializer}
    fixed.update(
        name
        for node in graph.node
        if node.op_type == "Constant"
        for name in node.output
    )
    kinds = {node.op_type for node in graph.node}
    return "Attention" in kinds or (
        "Softmax" in kinds
        and any(
            node.op_type == "MatMul" and not fixed.intersection(node.input)
            for node in graph.node
        )
    )


def _recurrent(model: Model) -> tuple[str, ...]:
    """Recurrent layers: in int8 the LSTM of silero_vad was at -1 dB, noise."""
    return tuple(
        label_of(node)
        for node in labelled(model)
        if node.op_type in ("LSTM", "GRU", "RNN")
    )


def _operations(model: Model, graph: Any, keep: Sequence[str]) -> list[str]:
    """Friendly names of all that became of the layers in ``keep``.

    Raises:
        BackendError: the graph has no node of that name.
    """
    if not keep:
        return []
    layers = layers_of(model, graph)
    unknown = [name for name in keep if name not in layers.names]
    if unknown:
        raise BackendError(f"no node named {', '.join(unknown[:5])} in the ONNX graph")
    wanted = {layers.names[name] for name in keep}
    return [op for op, layer in layers.operations.items() if layer in wanted]


def _quantized_layers(graph: Any) -> Iterator[tuple[str, list[str]]]:
    """Operations that take quantized values, and where those were taken from."""
    for op in graph.get_ordered_ops():
        kind = op.get_type_name()
        if kind in MOVING or kind in ("FakeQuantize", "Constant", "Result"):
            continue
        sources = [name for name in map(_source, op.input_values()) if name is not None]
        if sources:
            yield op.get_friendly_name(), sources


def _source(value: Any) -> str | None:
    """The operation whose output was quantized on its way into ``value``."""
    op = value.get_node()
    while op.get_type_name() in MOVING and op.get_input_size():
        op = op.input_value(0).get_node()
    if op.get_type_name() != "FakeQuantize":
        return None
    return str(op.input_value(0).get_node().get_friendly_name())


def _points(
    layers: list[tuple[str, list[str]]],
    owners: dict[str, str],
    float_graph: Any,
    quantized: Any,
) -> dict[str, list[str]]:
    """Label → the operations to look at: the layer's last one, then its inputs'."""
    last: dict[str, str] = {}
    for op in float_graph.get_ordered_ops():
        label = owners.get(op.get_friendly_name())
        if label is not None:
            last[label] = op.get_friendly_name()
    both = {op.get_friendly_name() for op in float_graph.get_ops()}
    both &= {op.get_friendly_name() for op in quantized.get_ops()}
    points: dict[str, list[str]] = {}
    for name, sources in layers:
        label = owners.get(name)
        if label is None or last[label] not in both:
            continue
        around = points.setdefault(label, [last[label]])
        around += [one for one in sources if one in both and owners.get(one) != label]
    return points


def _levels_db(
    float_graph: Any, quantized: Any, names: list[str], feeds: Sequence[Feeds]
) -> dict[str, float]:
    """SQNR in dB at each named operation's first output, over all feeds."""
    signal = dict.fromkeys(names, 0.0)
    noise = dict.fromkeys(names, 0.0)
    runs = zip(
        _outputs(float_graph, names, feeds),
        _outputs(quantized, names, feeds),
        strict=True,
    )
    for exact, rounded in runs:
        for name, one, other in zip(names, exact, rounded, strict=True):
            wide = one.astype(np.float64)
            signal[name] += float(np.square(wide).sum())
            noise[name] += float(np.square(wide - other).sum())
    return {name: decibels(signal[name], noise[name]) for name in names}


def _worst(inputs: list[str], levels: dict[str, float]) -> float:
    return min((levels[name] for name in inputs), default=CEILING_DB)


def _outputs(
    graph: Any, names: list[str], feeds: Sequence[Feeds]
) -> Iterator[list[Array]]:
    """The named operations' first outputs, feed by feed, computed on the CPU."""
    import openvino as ov

    seen = graph.clone()
    ops = {op.get_friendly_name(): op for op in seen.get_ops()}
    inputs = [next(iter(sorted(port.get_names()))) for port in seen.inputs]
    tapped = ov.Model([ops[name].output(0) for name in names], seen.get_parameters())
    compiled = core().compile_model(
        tapped, "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    request = compiled.create_infer_request()
    for feed in feeds:
        request.infer({place: feed[name] for place, name in enumerate(inputs)})
        yield [request.get_output_tensor(place).data for place in range(len(names))]
