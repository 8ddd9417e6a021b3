"""ONNX Runtime: ``.onnx`` artifacts on CPU, CUDA or TensorRT.

The rules it keeps:

1. A provider that is asked for and absent is an error; nothing falls back in silence.
2. What ONNX Runtime says is passed on in one line, without the paths of its sources.
3. Telemetry is off before the package is imported; this is the one place for it.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from ..contract.errors import ArtifactError, MachineError
from ..contract.manifest import Option
from ..contract.tensors import Array, Datatype, Feeds, TensorSpec, datatype_of, fits
from .base import Coverage, Runtime, Session

# ONNX Runtime's errors have no root of their own; these are all that it raises.
_ERRORS: tuple[type[Exception], ...] = (
    *(
        getattr(_state, name)
        for name in (
            "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph",
            "InvalidProtobuf", "ModelLoadCanceled", "ModelRequiresCompilation",
            "NoModel", "NoSuchFile", "NotFound", "NotImplemented", "RuntimeException",
        )
        if hasattr(_state, name)
    ),
    RuntimeError,
    ValueError,
)  # fmt: skip

_DATATYPES: dict[str, Datatype] = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
}

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}

_LEVELS = {
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "disabled": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}

_RECORD = "session.record_ep_graph_assignment_info"

_DEFAULTS: dict[str, Option] = {
    "threads": 1,
    "inter_threads": 1,
    "spinning": False,
    "arena": True,
    "x64quantprecision": False,
    "graph_optimization": "all",
    "provider": "cpu",
}


class OnnxRuntime(Runtime):
    """Runs ``.onnx`` files.

    Options: ``threads``, ``inter_threads`` (counts from 1), ``spinning`` (threads burn
    their core while they wait), ``arena`` (memory is kept between runs),
    ``x64quantprecision`` (u8×s8 products never saturate on x86 without VNNI),
    ``graph_optimization`` and ``provider``.
    """

    name = "onnxruntime"
    options = frozenset(_DEFAULTS)

    def version(self) -> str:
        """Version of the installed runtime package."""
        return str(ort.__version__)

    def load(self, path: Path, options: Mapping[str, Option]) -> Session:
        """Open the ``.onnx`` file at ``path``.

        Raises:
            ArtifactError: the file is not a model that ONNX Runtime can run (operator
                and reason are in the text), or an option is unknown or of no sense.
            MachineError: the provider asked for is not in this installation.
        """
        return OrtSession(_open(path, options, record=False), path.name)

    def coverage(self, path: Path, options: Mapping[str, Option]) -> Coverage:
        """Which nodes of the optimised graph the provider asked for runs itself."""
        session = _open(path, options, record=True)
        wanted = session.get_providers()[0]
        fallback: list[str] = []
        nodes = 0
        for part in session.get_provider_graph_assignment_info():
            found = part.get_nodes()
            nodes += len(found)
            if part.ep_name != wanted:
                fallback += [f"{node.op_type} {node.name}".strip() for node in found]
        return Coverage(nodes, tuple(fallback), tuple(session.get_providers()))


class OrtSession(Session):
    """A model loaded by ONNX Runtime; ``artifact`` is what messages call it."""

    def __init__(self, session: ort.InferenceSession, artifact: str) -> None:
        self.inputs = tuple(map(_spec, session.get_inputs()))
        self.outputs = tuple(map(_spec, session.get_outputs()))
        self._artifact = artifact
        self._names = [spec.name for spec in self.outputs]
        self._specs = {spec.name: spec for spec in self.inputs}
        # what every run is checked against, taken apart once: it is asked for each time
        self._wanted = [(spec.name, spec.dtype, spec.shape) for spec in self.inputs]
        self._session: ort.InferenceSession | None = session

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        """Run once; raises :class:`ArtifactError` as the base class says."""
        if self._session is None:
            raise ArtifactError(f"{self._artifact}: the session is closed")
        self._check(feeds)
        try:
            outputs = self._session.run(self._names, feeds)
        except _ERRORS as error:
            raise ArtifactError(f"{self._artifact}: {reason(error)}") from error
        return dict(zip(self._names, outputs, strict=True))

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees its memory with it."""
        self._session = None

    def _check(self, feeds: Feeds) -> None:
        for name, dtype, shape in self._wanted:
            array = feeds.get(name)
            if array is None or array.dtype != dtype or not fits(shape, array.shape):
                self._refuse(feeds)
        if len(feeds) != len(self._wanted):
            self._refuse(feeds)

    def _refuse(self, feeds: Feeds) -> None:
        if feeds.keys() != self._specs.keys():
            raise ArtifactError(
                f"{self._artifact}: inputs are {sorted(self._specs)}, "
                f"got {sorted(feeds)}"
            )
        for name, array in feeds.items():
            spec = self._specs[name]
            if array.dtype != spec.dtype or not spec.accepts(array.shape):
                raise ArtifactError(
                    f"{self._artifact}: input {name!r} takes {spec.datatype} of shape "
                    f"{list(spec.shape)}, got {_word(array)} of {list(array.shape)}"
                )


def reason(error: Exception) -> str:
    """What ONNX Runtime complains about, in one line, without its source paths."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error).strip())
    text = re.sub(r"^(Load model from .*? failed: ?)+", "", text, flags=re.DOTALL)
    # "/src/core/graph/model.cc:182 onnxruntime::Model::Model(...) " and the like
    text = re.sub(r"(\S*/)?\w+\.(cc|h|cpp)[:(]\d+\)?:? *", "", text)
    text = re.sub(r"(\S+ )*onnxruntime::[^\n]*?\)( const)?( \[[^\]]*\])? ", "", text)
    text = re.sub(r"^Exception during initialization: ", "", text)
    line = " ".join(text.split())
    return line or type(error).__name__


def _open(
    path: Path, options: Mapping[str, Option], *, record: bool
) -> ort.InferenceSession:
    chosen = _checked(options)
    provider = PROVIDERS[str(chosen["provider"])]
    if provider not in ort.get_available_providers():
        raise MachineError(
            f"{provider} is not in this onnxruntime {ort.__version__} "
            f"(it has {', '.join(ort.get_available_providers())}); "
            "install onnxruntime-gpu in place of onnxruntime, on a machine with the GPU"
        )
    if not path.is_file():
        raise ArtifactError(f"{path.name}: there is no such file")
    settings = _settings(chosen)
    if record:
        settings.add_session_config_entry(
            "session.record_ep_graph_assignment_info", "1"
        )
    providers = [provider] if provider == PROVIDERS["cpu"] else [
        provider, PROVIDERS["cpu"],
    ]  # fmt: skip
    try:
        session = ort.InferenceSession(str(path), settings, providers=providers)
    except _ERRORS as error:
        raise ArtifactError(f"{path.name}: {reason(error)}") from error
    if session.get_providers()[0] != provider:
        raise MachineError(
            f"{provider} is installed but does not start here, ONNX Runtime would run "
            f"on {session.get_providers()[0]}; check the GPU, its driver and libraries"
        )
    return session


def _checked(options: Mapping[str, Option]) -> dict[str, Option]:
    for name, value in options.items():
        if name not in _DEFAULTS:
            raise ArtifactError(
                f"onnxruntime has no option {name!r}; it has {', '.join(_DEFAULTS)}"
            )
        if type(value) is not type(_DEFAULTS[name]):
            raise ArtifactError(
                f"option {name} takes a {type(_DEFAULTS[name]).__name__}, got {value!r}"
            )
    chosen = {**_DEFAULTS, **options}
    for name in ("threads", "inter_threads"):
        if int(chosen[name]) < 1:
            raise ArtifactError(f"option {name} counts from 1, got {chosen[name]}")
    choices: dict[str, Mapping[str, Any]] = {
        "provider": PROVIDERS,
        "graph_optimization": _LEVELS,
    }
    for name, known in choices.items():
        if chosen[name] not in known:
            raise ArtifactError(
                f"option {name} is one of {', '.join(known)}; got {chosen[name]!r}"
            )
    return chosen


def _settings(chosen: Mapping[str, Option]) -> ort.SessionOptions:
    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # its warnings go to stderr; errors are raised
    settings.intra_op_num_threads = int(chosen["threads"])
    settings.inter_op_num_threads = int(chosen["inter_threads"])
    settings.enable_cpu_mem_arena = bool(chosen["arena"])
    settings.graph_optimization_level = _LEVELS[str(chosen["graph_optimization"])]
    entries = {
        "session.intra_op.allow_spinning": chosen["spinning"],
        "session.inter_op.allow_spinning": chosen["spinning"],
        "session.x64quantprecision": chosen["x64quantprecision"],
    }
    for key, value in entries.items():
        settings.add_session_config_entry(key, "1" if value else "0")
    return settings


def _spec(node: Any) -> TensorSpec:
    if node.type not in _DATATYPES:
        raise ArtifactError(
            f"{node.name!r} is a {node.type}; only tensors of numbers can be served"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in node.shape)
    return TensorSpec(name=node.name, datatype=_DATATYPES[node.type], shape=shape)


def _word(array: Array) -> str:
    try:
        return datatype_of(array.dtype)
    except ValueError:
        return str(array.dtype)
