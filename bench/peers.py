"""What the tools make when a person follows their documentation and adds nothing.

1. Nothing of edgeml makes a peer: each is a call of the tool, with its defaults.
2. A peer is a file that the runtime opens, or the reason why there is none.
3. What the documentation says to do before (ONNX Runtime: ``quant_pre_process``) is
   done; where that fails, the peer is made without it and says so.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from device_agent.contract.tensors import Feeds

# The two places that switch the runtimes' telemetry off, before their first import.
from device_agent.runtimes import onnxruntime as _onnxruntime  # noqa: F401
from device_agent.runtimes import openvino as _openvino  # noqa: F401


@dataclass(frozen=True)
class Task:
    """What every tool is given: the same model and the same calibration samples."""

    model: Path
    """The float ONNX file."""
    calibration: Sequence[Feeds]
    module: Callable[[], Any] | None
    """Makes the torch module that the ONNX file was exported from, if there is one."""


@dataclass(frozen=True)
class Peer:
    """What one tool made for one runtime."""

    who: str
    entry: Path | None
    note: str = ""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files that the runtime reads."""
        if self.entry is None:
            return 0
        files = {self.entry, self.entry.with_suffix(".bin")}
        return sum(file.stat().st_size for file in files if file.exists())


LINE = 90
"""Letters of an error in the table."""
NNCF_OPSET = 13
"""Below it NNCF warns and quantizes per tensor, or refuses."""

Maker = Callable[[Task, Path], str]
"""Writes the file; gives a remark."""


def peers(task: Task, runtime: str, folder: Path) -> Iterator[Peer]:
    """The float model and every tool's default for ``runtime``, made in ``folder``."""
    suffix = "xml" if runtime == "openvino" else "onnx"
    for who, make in MAKERS[runtime].items():
        if make in (_inc, _inc_openvino) and task.module is None:
            continue
        path = folder / f"{who.replace(' ', '-')}.{suffix}"
        try:
            with _quiet():
                note = make(task, path)
        except Exception as error:  # noqa: BLE001
            # A peer tool may raise anything, and its failure is a row of the table.
            yield Peer(who, None, f"failed: {one_line(error)}")
        else:
            yield Peer(who, path, note)


def _float_onnx(task: Task, path: Path) -> str:
    path.write_bytes(task.model.read_bytes())
    return ""


def _ort(task: Task, path: Path) -> str:
    """onnxruntime.ai/docs/performance/model-optimizations/quantization.html"""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(task.calibration)

        def get_next(self) -> dict[str, Any] | None:
            feeds = next(self._left, None)
            return None if feeds is None else dict(feeds)

    given, note = path.with_name("pre-processed.onnx"), ""
    try:
        quant_pre_process(task.model, given)
    except Exception as error:  # noqa: BLE001
        # It raises anything, plain Exception too; then without it, as the row says.
        given, note = task.model, f"quant_pre_process failed: {one_line(error)}"
    quantize_static(given, path, Reader())
    return note


def _nncf_onnx(task: Task, path: Path) -> str:
    """docs.openvino.ai: basic quantization flow, the ONNX tab."""
    import nncf
    import onnx

    samples = nncf.Dataset([dict(feeds) for feeds in task.calibration])
    model, note = onnx.load(task.model), ""
    opset = max(one.version for one in model.opset_import if not one.domain)
    if opset < NNCF_OPSET:
        model = onnx.version_converter.convert_version(model, NNCF_OPSET)
        note = f"opset {opset} raised to {NNCF_OPSET}, as NNCF asks"
    onnx.save(nncf.quantize(model, samples), path)
    return note


def _converted(task: Task) -> Any:
    """At the shapes that are served, so that the peer is as fast as it can be."""
    import openvino as ov

    shapes = {name: list(array.shape) for name, array in task.calibration[0].items()}
    return ov.convert_model(task.model, input=list(shapes.items()))


def _float_openvino(task: Task, path: Path) -> str:
    import openvino as ov

    ov.save_model(_converted(task), path, compress_to_fp16=False)
    return ""


def _nncf_openvino(task: Task, path: Path) -> str:
    """docs.openvino.ai: basic quantization flow, the OpenVINO tab."""
    import nncf
    import openvino as ov

    samples = nncf.Dataset([dict(feeds) for feeds in task.calibration])
    ov.save_model(nncf.quantize(_converted(task), samples), path)
    return ""


def _inc(task: Task, path: Path) -> str:
    """Neural Compressor's static quantization of a torch module, exported to ONNX.

    ONNX Runtime folds the weights that the exporter left in float beside their
    quantizer; without that the file would be as large as the float one.
    """
    import onnxruntime as ort
    import torch
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import (
        convert,
        get_default_static_config,
        prepare,
    )

    assert task.module is not None
    inputs = [
        tuple(torch.from_numpy(array.copy()) for array in feeds.values())
        for feeds in task.calibration
    ]
    module = task.module()  # a factory may train, so with gradients
    with torch.no_grad():
        traced = export(module, inputs[0])
        config = get_default_static_config()
        prepared = prepare(traced, config, example_inputs=inputs[0])
        for one in inputs:
            prepared(*one)
        program = torch.export.export(convert(prepared), inputs[0])
    raw = path.with_name("unfolded.onnx")
    torch.onnx.export(
        program, f=raw, dynamo=True, opset_version=21, external_data=False,
        input_names=list(task.calibration[0]), output_names=_outputs(task.model),
        verbose=False,
    )  # fmt: skip
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    ort.InferenceSession(raw, options, providers=["CPUExecutionProvider"])
    return ""


def _inc_openvino(task: Task, path: Path) -> str:
    import openvino as ov

    between = path.with_suffix(".onnx")
    _inc(task, between)
    ov.save_model(ov.convert_model(between), path)
    return "through ONNX"


def _outputs(model: Path) -> list[str]:
    import onnx

    return [value.name for value in onnx.load(model).graph.output]


MAKERS: dict[str, dict[str, Maker]] = {
    "onnxruntime": {
        "fp32": _float_onnx, "ORT quantize_static": _ort, "NNCF quantize": _nncf_onnx,
        "Neural Compressor": _inc,
    },
    "openvino": {
        "fp32": _float_openvino, "NNCF quantize": _nncf_openvino,
        "Neural Compressor": _inc_openvino,
    },
}  # fmt: skip


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The tools print, warn and log; errors come as exceptions anyway."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def one_line(error: Exception) -> str:
    """What an error says, short enough for a table."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= LINE else text[: LINE - 1] + "…"
