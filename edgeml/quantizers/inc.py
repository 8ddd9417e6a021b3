"""Neural Compressor: post-training int8 of a torch module, given out as QDQ ONNX.

Neural Compressor 3 quantizes torch models alone, by torch's own PT2E; what it adds is
the KL calibration and the choice per layer type. The rules kept here:

1. The module that came in is not changed.
2. The result holds int8 weights (the exporter writes float weights and a
   QuantizeLinear, which ONNX Runtime folds) and says in ONNX Runtime what the
   quantized module says in torch, or it is an error.
3. Nothing stays behind in the user's home, where one of its modules opens a log file
   at import; nothing is printed.
"""

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np

from device_agent.contract.tensors import Feeds

from ..errors import BackendError, MachineLacks
from ..model import Model

METHODS = {"minmax": "minmax", "entropy": "kl"}
"""The recipe's word for a calibration method → that of Neural Compressor."""
OPSET = 21
AGREEMENT_DB = 25.0
"""SQNR of ONNX Runtime against torch; a rounding that falls the other way is noise."""
CHECKED = 8
"""How many samples the two are compared on."""


def ways(methods: Sequence[str], per_channel: bool) -> dict[str, dict[str, Any]]:
    """Name → arguments of :func:`quantize_origin`, for all or for these methods."""
    granularity = "per_channel" if per_channel else "per_tensor"
    return {
        theirs: {"act_algo": theirs, "granularity": granularity}
        for ours, theirs in METHODS.items()
        if not methods or ours in methods
    }


def quantize_origin(
    model: Model,
    calibration: Sequence[Feeds],
    *,
    keep: Sequence[str] = (),
    **options: Any,
) -> Any:
    """The quantized ``onnx.ModelProto`` of the module that a graph came from.

    Inputs, outputs and a variable batch are as in the graph.

    Args:
        model: a model at level graph.
        calibration: the samples, batch dimension 1 included.
        keep: must be empty, the module has no nodes.
        options: as :func:`quantize_module` has them.

    Raises:
        BackendError: there is no module, ``keep`` names nodes, or as
            :func:`quantize_module`.
        MachineLacks: neural-compressor is not installed.
    """
    if model.origin is None:
        raise BackendError(
            "Neural Compressor works on torch models; this one came as ONNX"
        )
    if keep:
        raise BackendError(
            "Neural Compressor works before the export and knows no graph nodes to "
            f"keep in float ({', '.join(keep[:3])}); use ort or nncf"
        )
    names = [spec.name for spec in model.inputs]
    return quantize_module(
        model.origin().payload,
        [{name: feeds[name] for name in names} for feeds in calibration],
        output_names=[spec.name for spec in model.outputs],
        dynamic_batch=model.inputs[0].shape[0] == -1,
        **options,
    )


def quantize_module(
    module: Any,
    calibration: Sequence[Feeds],
    *,
    output_names: Sequence[str],
    act_algo: Literal["minmax", "kl"] = "minmax",
    granularity: Literal["per_channel", "per_tensor"] = "per_channel",
    keep_types: Sequence[str] = (),
    dynamic_batch: bool = False,
) -> Any:
    """A quantized ``onnx.ModelProto`` of opset 21 made of a ``torch.nn.Module``.

    Args:
        module: the float module; it takes its inputs in the order of the feeds' keys.
        calibration: the samples, batch dimension 1 included; all of them are used.
        output_names: names for the outputs.
        act_algo: how activation ranges are found.
        granularity: whether each output channel of a weight has its own scale.
        keep_types: classes of ``torch.nn`` that stay in float, such as ``Linear``.
        dynamic_batch: whether dimension 0 of every input stays variable.

    Raises:
        BackendError: torch cannot trace or export the module, a name in
            ``keep_types`` is unknown, or the result computes something else.
        MachineLacks: neural-compressor is not installed.
    """
    if not calibration:
        raise BackendError("Neural Compressor needs calibration samples; it got none")
    with _silence():
        tools = _load()
        config = _config(tools, act_algo, granularity, keep_types)
        try:
            quantized, program = _traced(
                tools, module, calibration, config, dynamic_batch
            )
            exported = _exported(program, list(calibration[0]), list(output_names))
            model = _folded(exported)
        except Exception as error:
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise BackendError(f"Neural Compressor could not: {reason}") from error
        _check(model, quantized, calibration[:CHECKED])
    return model


@contextmanager
def _silence() -> Iterator[None]:
    """Without log lines and warnings of torch and Neural Compressor."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _load() -> Any:
    """``neural_compressor.torch.quantization``; takes seconds.

    Raises:
        MachineLacks: it is not installed.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    before = os.environ.get("HABANA_LOGS")
    try:
        with TemporaryDirectory() as folder:
            os.environ["HABANA_LOGS"] = folder
            import neural_compressor.torch.export
            import neural_compressor.torch.quantization
    except ImportError as error:
        raise MachineLacks(
            f"the quantizer inc cannot be imported ({error}); "
            "install it with: pip install 'edgeml[torch]'"
        ) from error
    finally:
        if before is None:
            os.environ.pop("HABANA_LOGS", None)
        else:
            os.environ["HABANA_LOGS"] = before
    return neural_compressor.torch


def _config(
    tools: Any, act_algo: str, granularity: str, keep_types: Sequence[str]
) -> Any:
    import torch

    static = tools.quantization.INT8StaticQuantConfig
    config = static(act_algo=act_algo, w_granularity=granularity)
    for name in keep_types:
        kind = getattr(torch.nn, name, None)
        if not isinstance(kind, type):
            raise BackendError(f"torch.nn has no layer type {name!r} to keep in float")
        config.set_local(kind, static(w_dtype="fp32", act_dtype="fp32"))
    return config


def _traced(
    tools: Any, module: Any, calibration: Sequence[Feeds], config: Any, dynamic: bool
) -> tuple[Any, Any]:
    """The quantized module, and the program that torch exports of it."""
    import torch

    example = _tensors(calibration[0])
    shapes = None
    if dynamic:
        example = tuple(torch.cat([value, value]) for value in example)
        batch = torch.export.Dim("batch", min=1, max=1024)
        shapes = tuple({0: batch} for _ in example)
    still = copy.deepcopy(module).eval()
    with torch.no_grad():
        traced = tools.export.export(still, example, shapes)
        if traced is None:
            raise BackendError("torch.export cannot trace the module")
        prepared = tools.quantization.prepare(traced, config, example_inputs=example)
        for feeds in calibration:
            prepared(*_tensors(feeds))
        quantized = tools.quantization.convert(prepared)
        program = torch.export.export(quantized, example, dynamic_shapes=shapes)
    return quantized, program


def _tensors(feeds: Feeds) -> tuple[Any, ...]:
    import torch

    return tuple(torch.from_numpy(np.array(value)) for value in feeds.values())


def _exported(program: Any, inputs: list[str], outputs: list[str]) -> Any:
    import torch

    made = torch.onnx.export(
        program,
        dynamo=True,
        opset_version=OPSET,
        input_names=inputs,
        output_names=outputs,
        verbose=False,
    )
    assert made is not None, "dynamo=True gives a program"
    return made.model_proto


def _folded(model: Any) -> Any:
    """The model with its constants computed; domains that nothing uses taken out."""
    import onnx
    import onnxruntime as ort

    with TemporaryDirectory() as folder:
        path = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        folded = onnx.load(str(path))
    used = {node.domain for node in folded.graph.node}
    domains = [item for item in folded.opset_import if item.domain in used]
    del folded.opset_import[:]
    folded.opset_import.extend(domains)
    return folded


def _check(model: Any, quantized: Any, samples: Sequence[Feeds]) -> None:
    """Refuse an export that computes something else than the quantized module."""
    import onnxruntime as ort
    import torch

    session = ort.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    signal = noise = 0.0
    for feeds in samples:
        with torch.no_grad():
            wanted = quantized(*_tensors(feeds))
        wanted = wanted if isinstance(wanted, (tuple, list)) else (wanted,)
        got = session.run(None, dict(feeds))
        for one, other in zip(wanted, got, strict=True):
            exact = one.numpy().astype(np.float64)
            signal += float(np.square(exact).sum())
            noise += float(np.square(exact - other).sum())
    if noise * 10 ** (AGREEMENT_DB / 10) > signal:
        raise BackendError(
            "the ONNX export of Neural Compressor's model computes something else: "
            f"noise {noise:.3g} beside signal {signal:.3g}"
        )
