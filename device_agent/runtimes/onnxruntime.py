"""ONNX Runtime: ``.onnx`` artifacts on CPU, CUDA or TensorRT.

The rules it keeps:

1. A provider that is asked for and absent is an error; nothing falls back in silence:
   ONNX Runtime's own retry on the CPU is off, the session's providers are compared
   with those asked for, and a node that the GPU does not take is an error, unless the
   option ``cpu_fallback`` allows it. (Off, and asked for by name, the CPU's provider
   is a contradiction to ONNX Runtime; so it is not named beside a GPU's.)
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
from .base import ENGINE_CACHE, ON_DEVICE, Coverage, Runtime, Session

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
_CHAINS = {"cpu": ("cpu",), "cuda": ("cuda",), "tensorrt": ("tensorrt", "cuda")}
"""Who may run nodes, in this order. CUDA runs what TensorRT leaves, on the GPU."""

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
    "cpu_fallback": False,
    "device_id": 0,
    "memory_limit_bytes": 0,
    "tf32": False,
    "convolutions": "heuristic",
    "fp16": False,
    "int8": False,
    "workspace_bytes": 0,
    ENGINE_CACHE: "",
}
_SEARCHES = {"exhaustive": "EXHAUSTIVE", "heuristic": "HEURISTIC", "default": "DEFAULT"}
GPU_OPTIONS: dict[str, tuple[str, ...]] = {
    "cpu_fallback": ("cuda", "tensorrt"),
    "device_id": ("cuda", "tensorrt"),
    "memory_limit_bytes": ("cuda", "tensorrt"),
    "tf32": ("cuda", "tensorrt"),
    "convolutions": ("cuda", "tensorrt"),
    "fp16": ("tensorrt",),
    "int8": ("tensorrt",),
    "workspace_bytes": ("tensorrt",),
    ENGINE_CACHE: ("tensorrt",),
}
"""Options that say something to these providers only."""


class OnnxRuntime(Runtime):
    """Runs ``.onnx`` files.

    Options: ``threads``, ``inter_threads`` (counts from 1), ``spinning`` (threads burn
    their core while they wait), ``arena`` (memory is kept between runs),
    ``x64quantprecision`` (u8×s8 products never saturate on x86 without VNNI),
    ``graph_optimization`` and ``provider``.

    On a GPU: ``cpu_fallback`` (nodes that it does not take may run on the CPU),
    ``device_id``, ``memory_limit_bytes`` (of CUDA's arena; 0: none), ``tf32`` (products
    of float32 in 19 bits), ``convolutions`` (how CUDA chooses an algorithm;
    ``exhaustive`` may choose another one at every start).
    By TensorRT: ``fp16`` and ``int8`` (which types its engine may compute in),
    ``workspace_bytes`` (0: its default) and ``engine_cache`` (see
    :data:`..base.ENGINE_CACHE`).
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
        """Which nodes of the optimised graph the provider asked for runs itself.

        What TensorRT leaves to CUDA counts as run: it is the same GPU.
        """
        provider = str(_checked(options)["provider"])
        lenient = {} if provider == "cpu" else {"cpu_fallback": True}
        session = _open(path, {**options, **lenient}, record=True)
        wanted = {PROVIDERS[one] for one in _CHAINS[provider]}
        fallback: list[str] = []
        nodes = 0
        for part in session.get_provider_graph_assignment_info():
            found = part.get_nodes()
            nodes += len(found)
            if part.ep_name not in wanted:
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
    chain = _CHAINS[str(chosen["provider"])]
    wanted = [PROVIDERS[one] for one in chain]
    for provider in wanted:
        if provider not in ort.get_available_providers():
            raise MachineError(
                f"{provider} is not in this onnxruntime {ort.__version__} "
                f"(it has {', '.join(ort.get_available_providers())}); install "
                "onnxruntime-gpu in place of onnxruntime, on a machine with the GPU"
            )
    if not path.is_file():
        raise ArtifactError(f"{path.name}: there is no such file")
    settings = _settings(chosen)
    if record:
        settings.add_session_config_entry(
            "session.record_ep_graph_assignment_info", "1"
        )
    try:
        session = ort.InferenceSession(
            str(path), settings, providers=wanted,
            provider_options=[_provider_options(one, chosen) for one in chain],
            enable_fallback=0,
        )  # fmt: skip
    except _ERRORS as error:
        raise ArtifactError(f"{path.name}: {_why(error, wanted[0])}") from error
    if session.get_providers()[: len(wanted)] != wanted:
        raise MachineError(
            f"{', '.join(wanted)} are installed but do not start here, ONNX Runtime "
            f"would run on {', '.join(session.get_providers())}; check the GPU, its "
            "driver and libraries"
        )
    return session


def _why(error: Exception, provider: str) -> str:
    text = reason(error)
    if "fallback to CPU EP has been explicitly disabled" not in text:
        return text
    return (
        f"{provider} does not take every node, and what is left would run on the CPU; "
        "the option cpu_fallback allows that"
    )


def _provider_options(provider: str, chosen: Mapping[str, Option]) -> dict[str, str]:
    """What ONNX Runtime's provider is told, in its own words."""
    if provider == "cpu":
        return {}
    told = {"device_id": str(chosen["device_id"])}
    if provider == "cuda":
        grown = "kNextPowerOfTwo" if chosen["arena"] else "kSameAsRequested"
        told |= {
            "arena_extend_strategy": grown,
            "cudnn_conv_algo_search": _SEARCHES[str(chosen["convolutions"])],
            "use_tf32": "1" if chosen["tf32"] else "0",
        }
        if chosen["memory_limit_bytes"]:
            told["gpu_mem_limit"] = str(chosen["memory_limit_bytes"])
        return told
    told["trt_fp16_enable"] = str(chosen["fp16"])  # "True" or "False", its own words
    told["trt_int8_enable"] = str(chosen["int8"])
    if chosen["workspace_bytes"]:
        told["trt_max_workspace_size"] = str(chosen["workspace_bytes"])
    return {**told, **_engine_options(str(chosen[ENGINE_CACHE]))}


def _engine_options(folder: str) -> dict[str, str]:
    """Engines and timings kept in ``folder``; nowhere, when nobody has named one."""
    if folder in ("", ON_DEVICE):
        return {"trt_engine_cache_enable": "False"}
    if not Path(folder).is_absolute() or not Path(folder).is_dir():
        raise ArtifactError(
            f"option {ENGINE_CACHE} is {ON_DEVICE!r} or the absolute path of a folder "
            f"that is there; got {folder!r}"
        )
    return {
        "trt_engine_cache_enable": "True",
        "trt_engine_cache_path": folder,
        "trt_timing_cache_enable": "True",
        "trt_timing_cache_path": folder,
    }


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
    for name in ("device_id", "memory_limit_bytes", "workspace_bytes"):
        if int(chosen[name]) < 0:
            raise ArtifactError(f"option {name} is 0 or more, got {chosen[name]}")
    choices: dict[str, Mapping[str, Any]] = {
        "provider": PROVIDERS,
        "graph_optimization": _LEVELS,
        "convolutions": _SEARCHES,
    }
    for name, known in choices.items():
        if chosen[name] not in known:
            raise ArtifactError(
                f"option {name} is one of {', '.join(known)}; got {chosen[name]!r}"
            )
    for name, providers in GPU_OPTIONS.items():
        if chosen["provider"] not in providers and chosen[name] != _DEFAULTS[name]:
            raise ArtifactError(
                f"option {name} belongs to provider {' and '.join(providers)}; "
                f"the provider is {chosen['provider']}"
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
        "session.disable_cpu_ep_fallback": chosen["provider"] != "cpu"
        and not chosen["cpu_fallback"],
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
