"""OpenVINO: runs ``model.xml`` (its ``.bin`` beside it), ``.onnx`` and ``.tflite``.

The rules it keeps, over those of ``base``:

1. The arithmetic is float32 unless the options say otherwise: left alone, OpenVINO
   computes in bfloat16 wherever the CPU can, and numbers differ between machines.
2. Nothing is converted on the way in: an array of another type is an error.
3. A model with state of its own starts afresh at every call.
4. Nothing is cached on disk and nothing is sent: OpenVINO takes the absence of the
   ``openvino_telemetry`` package as "no telemetry", so it is made absent here.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree

from ..contract.errors import ArtifactError, MachineError
from ..contract.manifest import Option
from ..contract.tensors import Array, Feeds, TensorSpec, datatype_of, fits
from .base import Coverage, Runtime, Session

sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]

import openvino as ov  # noqa: E402 - after telemetry is out of the way

DEVICES = ("CPU", "GPU")
PRECISIONS = ("f32", "f16", "bf16")
HINTS = ("LATENCY", "THROUGHPUT")
DEFAULTS: dict[str, Option] = {
    "device": "CPU",
    "threads": 1,
    "precision_hint": "f32",
    "streams": 1,
    "performance": "LATENCY",
}
T = TypeVar("T")


class OpenVinoSession(Session):
    """A compiled model with one infer request."""

    def __init__(self, compiled: Any):
        self.inputs = tuple(_spec(port) for port in compiled.inputs)
        self.outputs = tuple(_spec(port) for port in compiled.outputs)
        self._wanted = [(spec.name, spec.dtype, spec.shape) for spec in self.inputs]
        self._request = compiled.create_infer_request()
        self._states = self._request.query_state()

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        """Run once; the arrays returned are the caller's own."""
        _check_feeds(self._wanted, feeds)
        if self._request is None:
            raise ArtifactError("the session is closed; load the artifact again")
        if self._states:
            self._request.reset_state()
        values = {index: feeds[spec.name] for index, spec in enumerate(self.inputs)}
        _guarded("run the model", lambda: self._request.infer(values))
        return {
            spec.name: self._request.get_output_tensor(index).data.copy()
            for index, spec in enumerate(self.outputs)
        }

    def close(self) -> None:
        """Give the compiled model back."""
        self._request = None
        self._states = []


class OpenVino(Runtime):
    """Loads OpenVINO IR and ONNX for the CPU or the GPU."""

    name = "openvino"
    options = frozenset(DEFAULTS)

    def __init__(self) -> None:
        self._core = ov.Core()

    def version(self) -> str:
        """Version of the openvino package, without the build."""
        return str(ov.__version__).split("-")[0]

    def load(self, path: Path, options: Mapping[str, Option]) -> Session:
        """Open ``path`` and compile it for the device named in ``options``."""
        chosen = _checked(options)
        device = self._device(chosen)
        model = self._read(path)
        compiled = _guarded(
            f"compile {path.name} for {device}",
            lambda: self._core.compile_model(model, device, _properties(chosen)),
        )
        used = str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())
        if used != chosen["precision_hint"]:
            raise MachineError(
                f"precision_hint {chosen['precision_hint']!r} is not to be had on "
                f"this {device}: it would compute in {used}"
            )
        return OpenVinoSession(compiled)

    def coverage(self, path: Path, options: Mapping[str, Option]) -> Coverage:
        """What ``query_model`` says the device runs itself."""
        device = self._device(_checked(options))
        model = self._read(path)
        taken = _guarded(
            f"ask {device} about {path.name}",
            lambda: self._core.query_model(model, device),
        )
        nodes = [
            (op.get_type_name(), op.get_friendly_name())
            for op in model.get_ordered_ops()
            if op.get_type_name() not in ("Parameter", "Constant", "Result")
        ]
        left = tuple(f"{kind} {name}" for kind, name in nodes if name not in taken)
        return Coverage(len(nodes), left, (device,))

    def _device(self, options: Mapping[str, Option]) -> str:
        """The device asked for, if this machine has it."""
        device = str(options["device"])
        here = self._core.available_devices
        if not any(name.split(".")[0] == device for name in here):
            raise MachineError(
                f"OpenVINO finds no {device} here (found: {', '.join(here) or 'none'})"
                + "; a GPU needs Intel graphics and its OpenCL driver"
                * (device == "GPU")
            )
        return device

    def _read(self, path: Path) -> Any:
        if path.suffix not in (".xml", ".onnx", ".tflite"):
            raise ArtifactError(
                f"{path.name}: openvino opens .xml, .onnx and .tflite, "
                f"not {path.suffix!r}"
            )
        if not path.is_file():
            raise ArtifactError(f"{path.name}: no such file")
        if path.suffix == ".xml":
            _check_xml(path)
        return _guarded(f"read {path.name}", lambda: self._core.read_model(str(path)))


def _check_xml(path: Path) -> None:
    """Refuse what is not OpenVINO's XML before every frontend tries to guess it."""
    try:
        with path.open("rb") as file:
            _, root = next(ElementTree.iterparse(file, events=("start",)))  # noqa: S314
    except (ElementTree.ParseError, StopIteration) as error:
        raise ArtifactError(f"{path.name} is not XML: {error}") from error
    if root.tag != "net":
        raise ArtifactError(f"{path.name} is not an OpenVINO model: root <{root.tag}>")
    if not path.with_suffix(".bin").is_file():
        raise ArtifactError(f"{path.name}: {path.stem}.bin is not beside it")


def _checked(options: Mapping[str, Option]) -> dict[str, Option]:
    """The options over the defaults.

    Raises:
        ArtifactError: a name is unknown or a value is out of range.
    """
    unknown = sorted(set(options) - set(DEFAULTS))
    if unknown:
        raise ArtifactError(
            f"openvino has no option {', '.join(unknown)}; "
            f"known: {', '.join(sorted(DEFAULTS))}"
        )
    chosen = {**DEFAULTS, **options}
    for name, allowed in (
        ("device", DEVICES), ("precision_hint", PRECISIONS), ("performance", HINTS),
    ):  # fmt: skip
        if chosen[name] not in allowed:
            raise ArtifactError(
                f"openvino option {name} = {chosen[name]!r}; "
                f"expected one of {', '.join(allowed)}"
            )
    for name in ("threads", "streams"):
        value = chosen[name]
        if type(value) is not int or not 1 <= value <= 1024:
            raise ArtifactError(
                f"openvino option {name} = {value!r}; expected a number from 1 to 1024"
            )
    return chosen


def _properties(options: Mapping[str, Option]) -> dict[str, Option]:
    """OpenVINO's own names for the options."""
    properties = {
        "INFERENCE_PRECISION_HINT": options["precision_hint"],
        "PERFORMANCE_HINT": options["performance"],
        "NUM_STREAMS": options["streams"],
    }
    if options["device"] == "CPU":
        properties["INFERENCE_NUM_THREADS"] = options["threads"]
    return properties


def _spec(port: Any) -> TensorSpec:
    """Name, type and shape of one input or output.

    A tensor may carry several names: the one its node is named after is taken, else
    the first in alphabetical order.
    """
    names = sorted(port.get_names())
    node = port.get_node().get_friendly_name()
    stem = node.split("/sink_port_")[0]
    name = next((item for item in (node, stem) if item in names), None)
    name = name or (names[0] if names else stem)
    shape = port.get_partial_shape()
    try:
        datatype = datatype_of(port.get_element_type().to_dtype())
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(
            f"tensor {name!r} has type {port.get_element_type()}: {error}"
        ) from error
    if shape.rank.is_dynamic:
        raise ArtifactError(f"tensor {name!r} has no fixed number of dimensions")
    return TensorSpec(
        name=name,
        datatype=datatype,
        shape=tuple(-1 if one.is_dynamic else one.get_length() for one in shape),
    )


def _check_feeds(
    wanted: Sequence[tuple[str, Any, tuple[int, ...]]], feeds: Feeds
) -> None:
    """Compare feeds with (name, dtype, shape) of every input."""
    names = [name for name, _, _ in wanted]
    if len(feeds) != len(wanted) or not all(name in feeds for name in names):
        raise ArtifactError(
            f"inputs {', '.join(sorted(feeds)) or 'none'} given; "
            f"the model takes {', '.join(sorted(names))}"
        )
    for name, dtype, shape in wanted:
        array = feeds[name]
        if array.dtype != dtype or not fits(shape, array.shape):
            raise ArtifactError(
                f"input {name!r} is {array.dtype.name} {list(array.shape)}; "
                f"the model takes {dtype.name} {list(shape)}"
            )


def _guarded(what: str, action: Callable[[], T]) -> T:
    """Run a call of OpenVINO; its errors leave as ours, in one line."""
    try:
        return action()
    except Exception as error:
        raise ArtifactError(f"OpenVINO cannot {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    """The last thing OpenVINO says, without the places in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line
        for line in lines
        if not line.startswith(("Exception from ", "Check '", "FrontEnd API failed"))
    ]
    text = " ".join(telling or lines) or type(error).__name__
    return text if len(text) <= 300 else text[:299] + "…"
