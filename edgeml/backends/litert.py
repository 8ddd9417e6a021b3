"""ONNX graph → ``model.tflite`` for LiteRT, by way of torch (:mod:`..graphs.lowering`).

Candidates, cheapest to make first:

1. float32, checked against the graph layer by layer; float16 weights.
2. int8 dynamic: weights in int8, activations as they come.
3. int8 static by AI Edge Quantizer: its defaults, then our own calibration methods;
   where operators are in the model that eight bits do not suit (logarithms, softmax)
   also with nothing quantized but what has weights; and with activations in int16,
   where the model is small: LiteRT has only plain kernels for those.

An artifact is the same file on every processor, so it is validated by LiteRT on the
build host, whatever that is; how fast it is there says little of the target. For armv7
see :mod:`..armv7`.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from device_agent.contract import machine
from device_agent.contract.errors import ArtifactError
from device_agent.contract.manifest import Option
from device_agent.contract.tensors import Feeds
from device_agent.runtimes.base import Session
from device_agent.runtimes.litert import LiteRt
from targets.profile import Target

from .. import armv7
from ..candidate import Artifact, LayerError, QuantizeOptions, Spec
from ..errors import BackendError, MachineLacks
from ..graphs.lowering import Lowered, lower, seeded
from ..graphs.mirror import Mirror
from ..graphs.preparation import kept_nodes, macs, prepare
from ..graphs.tflite import Inside, Op
from ..intake.tflite import operator_versions
from ..model import Model
from ..quantizers import aeq
from .base import CEILING_DB, Backend, Base, Host, decibels, unmet

ENTRY = "model.tflite"
TOOLS = {"aeq": aeq.METHODS}
"""Quantizers, and the calibration methods of each."""
UNASKED = ("aeq",)
FRAGILE = frozenset(
    {"DIV", "EXP", "GELU", "HARD_SWISH", "LOG", "LOGISTIC", "LOG_SOFTMAX", "POW",
     "RSQRT", "SOFTMAX", "SQRT", "SQUARED_DIFFERENCE", "SUM", "TANH"}
)  # fmt: skip
MOVING = frozenset(
    {"CONCATENATION", "EXPAND_DIMS", "GATHER", "MAX_POOL_2D", "PACK", "PAD", "PADV2",
     "RELU", "RESHAPE", "SLICE", "SPLIT", "SQUEEZE", "STRIDED_SLICE", "TRANSPOSE",
     "UNPACK", "QUANTIZE", "DEQUANTIZE"}
)  # fmt: skip
"""Operators that move or select values and compute none."""
INT16_MACS = 50_000_000
"""Larger models are not tried with int16 activations: about a nanosecond each, seen on
x86, makes a minute of the validation of a thousand samples."""
COMPARED = 8
"""Samples that an armv7 artifact is run on by its own runtime, and that the graph which
QAT trains is compared with the file on."""


class LiteRtBackend(Backend):
    """Makes ``model.tflite``."""

    name = "litert"

    def __init__(self) -> None:
        self._runtime = LiteRt()
        # What candidates share, so that it is made once.
        self._converted: dict[int, tuple[Any, Lowered]] = {}
        self._ranges: dict[tuple[int, int, str, float], tuple[Any, aeq.Ranges]] = {}
        self._starts: dict[tuple[int, int, str], tuple[Any, _Start]] = {}

    def host(self, target: Target) -> Host:
        """LiteRT runs the artifact here; latency is that of this machine."""
        if target.arch == machine.arch():
            return Host()
        by = f"{machine.arch()} by {self.name} {self._runtime.version()}"
        if target.arch == "armv7l":
            by += f", {armv7.how()}"
        return Host(validated_on=by)

    def host_options(
        self, target: Target, options: Mapping[str, Option]
    ) -> dict[str, Option]:
        """Not more threads than this machine has cores: they would only wait."""
        threads = min(int(options.get("threads", 1)), machine.cores())
        return {**options, "threads": threads}

    def oldest(self, target: Target) -> str | None:
        """For armv7 the release that it was checked for; else what is here."""
        return armv7.COUNTS_AS if target.arch == "armv7l" else None

    def opened(
        self, path: Path, target: Target, options: Mapping[str, Option]
    ) -> Session:
        """For armv7 in the release that it has, where that is here."""
        if target.arch == "armv7l" and armv7.python() is not None:
            return armv7.opened(path, options)
        return super().opened(path, target, options)

    def refusals(self, model: Model, target: Target) -> list[str]:
        """Every reason; the graph is converted to find them."""
        if model.level != "graph":
            return [f"a model at level graph is needed, this is a {model.level}"]
        if target.runtime != self.name:
            return [f"target {target.name} runs {target.runtime}, not litert"]
        try:
            raw = self._lowered(model).raw
        except (BackendError, MachineLacks) as error:
            return [str(error)]
        return _absent(raw, target)

    def specs(
        self, model: Model, target: Target, options: QuantizeOptions
    ) -> list[Spec]:
        """The candidates, as the head of this module lists them."""
        wanted = set(options.precisions or target.precisions) & set(target.precisions)
        specs = [Spec("fp32", "fp32"), *unmet(options, target, TOOLS, UNASKED)]
        if "fp16" in wanted:
            specs.append(Spec("fp16", "fp16", keep=options.keep))
        if "aeq" not in (options.quantizers or UNASKED):
            return specs
        operators = {op.name for op in Inside(self._lowered(model).raw).ops}
        core = set(aeq.CORE) | {"TRANSPOSE_CONV"}
        if not operators & core:
            why = f"the model has none of {', '.join(aeq.CORE)}"
            asked = [one for one in options.precisions if one.startswith("int8")]
            return [*specs, *(Spec(one, one, "aeq", refused=why) for one in asked)]
        if "int8-dynamic" in wanted:
            parameters = {"kind": "dynamic", "per_channel": options.per_channel}
            specs.append(
                Spec("int8 aeq dynamic", "int8-dynamic", "aeq", parameters,
                     options.keep)
            )  # fmt: skip
        if "int8" in wanted:
            specs += _static_specs(
                options,
                fragile=bool(operators & FRAGILE),
                wide=sum(macs(model.payload).values()) <= INT16_MACS,
            )
        return specs

    def lower(
        self, model: Model, target: Target, spec: Spec, calibration: Sequence[Feeds]
    ) -> Artifact:
        """Make one candidate and open it once, for armv7 by that release too.

        Raises:
            BackendError: the tool failed, or LiteRT (or what armv7 has of it) does not
                run what it made.
        """
        spec.check()
        lowered = self._lowered(model, calibration)
        keep = lowered.tensors_of(spec.keep)
        if spec.precision == "fp32":
            raw = lowered.raw
        elif spec.precision == "fp16":
            raw = aeq.half(lowered.raw, keep=keep)
        else:
            raw = self._quantized(lowered, spec, keep, calibration)
        return self._artifact(raw, model, target, spec, calibration)

    def trainable(
        self,
        model: Model,
        target: Target,
        spec: Spec,
        artifact: Artifact,
        calibration: Sequence[Feeds],
    ) -> Any | None:
        """The ONNX graph with the rounding of the file; for activations of int8."""
        plain = spec.parameters.get("activation", "int8") == "int8"
        if spec.quantizer != "aeq" or spec.parameters["kind"] != "static" or not plain:
            return None
        return self._begin(model, spec, calibration).mirror.proto

    def retrained(
        self, model: Model, target: Target, spec: Spec, base: Base
    ) -> Artifact:
        """A new file: the integers and the scales in it are those of the graph.

        Raises:
            BackendError: they are not, or LiteRT does not run it.
        """
        start = self._begin(base.model, base.spec, base.calibration)
        mirror, trained = start.mirror, model.payload
        given = replace(base.model, payload=mirror.floats(trained), origin=None)
        lowered = lower(given, base.calibration[:COMPARED], start.lowered)
        found = aeq.calibrate(lowered.raw, base.calibration, *_calibration(base.spec))
        learned = mirror.spans(trained), mirror.limits(trained, lowered)
        raw = aeq.quantize_static(
            lowered.raw, aeq.replaced(found, *learned), keep=start.keep,
            **_rest(base.spec),
        )  # fmt: skip
        mirror.check(trained, lowered, raw)
        return self._artifact(raw, given, target, spec, base.calibration)

    def layer_errors(
        self, model: Model, artifact: Artifact, feeds: Sequence[Feeds]
    ) -> list[LayerError]:
        """Compare the tensors around each quantized layer, float against int8."""
        quantized = Inside(artifact.files[artifact.entry])
        layers = [op for op in quantized.ops if _is_quantized(quantized, op)]
        if not layers or not feeds:
            return []
        lowered = self._lowered(model, feeds)
        floating = Inside(lowered.raw)
        levels = _levels_db(floating, quantized, feeds)
        found = []
        for op in layers:
            name = quantized.tensors[op.outputs[0]].name
            if name not in levels:
                continue
            before = [
                levels[source]
                for source in (_source(quantized, index) for index in op.inputs)
                if source in levels
            ]
            node, kind = lowered.layers.get(name, (name, op.name))
            added = max(0.0, min(before, default=CEILING_DB) - levels[name])
            found.append(LayerError(node, kind, levels[name], added))
        return sorted(found, key=lambda item: (-item.added_db, item.node))

    def _lowered(self, model: Model, feeds: Sequence[Feeds] = ()) -> Lowered:
        """The float artifact; the payload is held so that its id stays its own."""
        key = id(model.payload)
        if key not in self._converted:
            self._converted[key] = (model.payload, lower(model, feeds[:2]))
        return self._converted[key][1]

    def _quantized(
        self, lowered: Lowered, spec: Spec, keep: Sequence[str],
        calibration: Sequence[Feeds],
    ) -> bytes:  # fmt: skip
        if spec.quantizer != "aeq":
            raise BackendError(
                f"{spec.name}: no quantizer {spec.quantizer!r} for litert; "
                f"known: {', '.join(TOOLS)}"
            )
        if spec.parameters["kind"] == "dynamic":
            return aeq.quantize_dynamic(lowered.raw, keep=keep, **_rest(spec))
        how = _calibration(spec)
        key = (id(lowered), id(calibration), str(how[0]), how[1])
        if key not in self._ranges:
            ranges = aeq.calibrate(lowered.raw, calibration, *how)
            self._ranges[key] = ((lowered, calibration), ranges)
        ranges = self._ranges[key][1]
        return aeq.quantize_static(lowered.raw, ranges, keep=keep, **_rest(spec))

    def _begin(
        self, model: Model, spec: Spec, calibration: Sequence[Feeds]
    ) -> "_Start":
        """A candidate once more, of the prepared graph: what is quantized is in it."""
        key = (id(model.payload), id(calibration), repr(spec))
        if key not in self._starts:
            graph = prepare(model.payload)
            given = replace(model, payload=graph, origin=None)
            lowered = lower(given, calibration[:COMPARED])
            keep = lowered.tensors_of(kept_nodes(model.payload, graph, spec.keep))
            made = self._quantized(lowered, spec, keep, calibration)
            start = _Start(lowered, tuple(keep), Mirror(graph, lowered, made))
            self._starts[key] = ((model.payload, calibration), start)
        return self._starts[key][1]

    def _artifact(
        self, raw: bytes, model: Model, target: Target, spec: Spec,
        calibration: Sequence[Feeds],
    ) -> Artifact:  # fmt: skip
        """The file, once the target's runtime is seen to have what it needs."""
        absent = _absent(raw, target)
        if absent:
            raise BackendError(f"{spec.name}: {'; '.join(absent)}")
        feeds = calibration[:COMPARED] or seeded(model)
        options = self.host_options(
            target, {"threads": target.threads, **target.runtime_options}
        )
        self._tried(raw, target, spec, options, feeds)
        return Artifact(self.name, ENTRY, {ENTRY: raw})

    def _tried(
        self, raw: bytes, target: Target, spec: Spec,
        options: Mapping[str, Option], feeds: Sequence[Feeds],
    ) -> None:  # fmt: skip
        with tempfile.TemporaryDirectory(prefix="edgeml.") as folder:
            path = Path(folder, ENTRY)
            path.write_bytes(raw)
            try:
                session = self.opened(path, target, options)
                try:
                    for feed in feeds:
                        session.predict(feed)
                finally:
                    session.close()
            except ArtifactError as error:
                raise BackendError(
                    f"{spec.name}: LiteRT does not run it: {error}"
                ) from error


@dataclass(frozen=True)
class _Start:
    """What QAT begins from: the float file, what stays float in it, and the graph."""

    lowered: Lowered
    keep: tuple[str, ...]
    mirror: Mirror


def _calibration(spec: Spec) -> tuple[Any, float]:
    """Method and percentile of a static candidate."""
    return spec.parameters.get("method"), spec.parameters.get("percentile", 99.99)


def _rest(spec: Spec) -> dict[str, Any]:
    """A candidate's parameters besides those of the calibration."""
    apart = ("kind", "method", "percentile")
    return {key: one for key, one in spec.parameters.items() if key not in apart}


def _static_specs(options: QuantizeOptions, fragile: bool, wide: bool) -> list[Spec]:
    """The tool's defaults, where the recipe asks for nothing else, and variants.

    ``fragile``: there are operators that eight bits do not suit; ``wide``: activations
    of int16 are worth a try.
    """
    specs = []
    if options.per_channel and not options.methods:
        specs.append(
            Spec("int8 aeq default", "int8", "aeq", {"kind": "static"}, options.keep)
        )

    def add(method: str, label: str = "", **more: Any) -> None:
        parameters = {
            "kind": "static", "method": method, "activation": "int8",
            "per_channel": options.per_channel, **more,
        }  # fmt: skip
        if method == "percentile":
            parameters["percentile"] = options.percentile
        specs.append(
            Spec(f"int8 aeq {method}{label}", "int8", "aeq", parameters, options.keep)
        )

    methods = [one for one in aeq.METHODS if one in (options.methods or aeq.METHODS)]
    for method in methods:
        add(method)
        if fragile:
            add(method, " core", operators=list(aeq.CORE))
    if wide and methods:
        add(methods[0], " int16", activation="int16")
    return specs


def _absent(raw: bytes, target: Target) -> list[str]:
    """Operators of a file that the target's runtime does not have, as reasons."""
    if target.arch != "armv7l":
        return []
    return [
        f"{armv7.RELEASE}, the last for 32-bit ARM, has no operator {one}"
        for one in armv7.missing(operator_versions(raw))
    ]


def _is_quantized(inside: Inside, op: Op) -> bool:
    """Whether an operator computes with int8: its output, or its weights."""
    return op.name not in MOVING and any(
        index >= 0 and inside.tensors[index].scales.size > 0
        for index in (*op.inputs, op.outputs[0])
        if index in inside.tensors
    )


def _source(inside: Inside, index: int) -> str | None:
    """The tensor of the float model that an input was, before it was moved or cast."""
    while index in inside.made and inside.made[index].name in MOVING:
        index = inside.made[index].inputs[0]
    if index < 0 or index not in inside.tensors or inside.is_constant(index):
        return None
    return inside.tensors[index].name


def _levels_db(
    floating: Inside, quantized: Inside, feeds: Sequence[Feeds]
) -> dict[str, float]:
    """SQNR in dB of each tensor that both files compute, over all feeds."""
    ours = {floating.tensors[index].name: index for index in floating.made}
    theirs = {
        quantized.tensors[index].name: index
        for index, op in quantized.made.items()
        if op.name not in ("QUANTIZE", "DEQUANTIZE")
    }
    names = [
        name
        for name in theirs
        if name in ours and floating.tensors[ours[name]].dtype is np.float32
    ]
    signal = dict.fromkeys(names, 0.0)
    noise = dict.fromkeys(names, 0.0)
    for feed in feeds:
        exact, rounded = floating.run(feed), quantized.run(feed)
        for name in names:
            wanted = exact(ours[name]).astype(np.float64)
            index = theirs[name]
            found = quantized.tensors[index].values(rounded(index))
            signal[name] += float(np.square(wanted).sum())
            noise[name] += float(np.square(wanted - found).sum())
    return {name: decibels(signal[name], noise[name]) for name in names}
