"""LiteRT: runs ``.tflite`` files, by ai-edge-litert or by the older tflite-runtime.

The rules it keeps:

1. tflite-runtime, LiteRT's name before 1.0, is used where it alone is installed (there
   is nothing newer for 32-bit ARM). Its version counts as ``0.2.14.0``: older than all
   that is called LiteRT.
2. A file is verified (:mod:`.tflite`) before an interpreter sees it: tflite-runtime
   follows whatever offsets it finds.
3. Names are those of the file's signature, or of its tensors where it has none; types
   are as declared, nothing is quantized or converted on the way in or out.
4. A session is used by one thread at a time; state of the model's own starts afresh at
   every call.
5. Nothing is printed. What LiteRT says to the first model of a process is let out of
   hearing while this module is imported, before there are threads with logs to lose.
"""

import contextlib
import mmap
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

from ..contract.errors import ArtifactError
from ..contract.manifest import Option
from ..contract.tensors import Array, Feeds, TensorSpec, datatype_of, fits
from . import tflite
from .base import Coverage, Runtime, Session

_DEFAULTS: dict[str, Option] = {"threads": 1, "delegate": "xnnpack"}
_DELEGATES = ("xnnpack", "none")
_DELEGATE = "DELEGATE"
"""What LiteRT calls the node that stands for those a delegate has taken."""
_THREADS_MAX = 256
_STATELY = frozenset(
    {"VAR_HANDLE", "CALL_ONCE", "HASHTABLE", "READ_VARIABLE", "ASSIGN_VARIABLE"}
)
"""Operators over resources, which no call of the interpreter sets back."""


_FIRST = bytes.fromhex(
    "1800000054464c3300000e00140010000c000800000004000e000000100000001c000000b4000000"
    "030000000100000008000000040004000400000001000000100000000c00140010000c0008000400"
    "0c000000100000003c0000004000000044000000010000001000000000000a000c00000008000400"
    "0a000000080000000c00000001000000010000000100000000000000010000000100000001000000"
    "00000000020000002000000004000000eeffffff0400000001000000010000000000060008000400"
    "0600000004000000010000000100000001000000100000000c000c000b000000000004000c000000"
    "1300000000000013"
)
"""A model of one Relu, over one number."""


def _greeted(litert: Any) -> None:
    """Have LiteRT say what it says once; the Python package has no switch for it."""
    with (
        contextlib.suppress(ValueError, RuntimeError),  # a real model's errors count
        Path(os.devnull).open("wb") as nowhere,
    ):
        before = os.dup(2)
        os.dup2(nowhere.fileno(), 2)
        try:
            litert.Interpreter(model_content=_FIRST).allocate_tensors()
        finally:
            os.dup2(before, 2)
            os.close(before)


def _installed() -> tuple[Any, str]:
    """The interpreter's module, and the version it counts as.

    Raises:
        ImportError: neither package is installed.
    """
    try:
        found = import_module("ai_edge_litert.interpreter")
    except ModuleNotFoundError:
        found = import_module("tflite_runtime.interpreter")
        return found, f"0.{version_of('tflite-runtime')}"
    return found, version_of("ai-edge-litert")


_litert, _VERSION = _installed()
_greeted(_litert)


class LiteRt(Runtime):
    """Runs ``.tflite`` files.

    Options: ``threads`` (counts from 1) and ``delegate``: ``xnnpack``, or ``none`` for
    LiteRT's own kernels.
    """

    name = "litert"
    options = frozenset(_DEFAULTS)

    def version(self) -> str:
        """Version of ai-edge-litert; that of tflite-runtime behind a ``0.``."""
        return _VERSION

    def load(self, path: Path, options: Mapping[str, Option]) -> Session:
        """Open the ``.tflite`` file at ``path``.

        Raises:
            ArtifactError: the file is damaged or LiteRT cannot run it (operator and
                reason are in the text), or an option is unknown or of no sense.
        """
        return LiteRtSession(_open(path, options), path.name)

    def coverage(self, path: Path, options: Mapping[str, Option]) -> Coverage:
        """Which operators XNNPACK runs, when it is asked for; else all are LiteRT's.

        Those it leaves are named by operator and output: LiteRT's own kernels run them
        on the same processor, most of them on one thread.
        """
        delegate = str(_checked(options)["delegate"])
        interpreter = _open(path, options)
        ops = interpreter._get_ops_details()
        plain = [op for op in ops if op["op_name"] != _DELEGATE]
        if delegate == "none":
            return Coverage(len(plain), (), ("litert",))
        names = {one["index"]: one["name"] for one in interpreter.get_tensor_details()}
        taken = _taken(plain, [op for op in ops if op["op_name"] == _DELEGATE])
        left = tuple(
            f"{op['op_name']} {names.get(int(op['outputs'][0]), '')}".strip()
            for op in plain
            if op["index"] not in taken
        )
        return Coverage(len(plain), left, ("xnnpack", "litert"))


@dataclass(frozen=True)
class _Port:
    """An input or output: what callers see of it, and where the interpreter has it."""

    spec: TensorSpec
    index: int


class LiteRtSession(Session):
    """A model loaded by LiteRT; ``artifact`` is what messages call it."""

    def __init__(self, interpreter: Any, artifact: str) -> None:
        self._artifact = artifact
        self._lock = threading.Lock()
        self._interpreter: Any = interpreter
        inputs, outputs = _ports(interpreter)
        self.inputs = tuple(port.spec for port in inputs)
        self.outputs = tuple(port.spec for port in outputs)
        self._inputs = {port.spec.name: port for port in inputs}
        self._outputs = outputs
        self._shapes = {
            port.index: tuple(
                int(size)
                for size in interpreter._get_tensor_details(port.index, 0)["shape"]
            )
            for port in inputs
        }

    def predict(self, feeds: Feeds) -> dict[str, Array]:
        """Run once; raises :class:`ArtifactError` as the base class says."""
        with self._lock:
            if self._interpreter is None:
                raise ArtifactError(f"{self._artifact}: the session is closed")
            self._check(feeds)
            try:
                return self._run(feeds)
            except (ValueError, RuntimeError) as error:
                raise ArtifactError(f"{self._artifact}: {reason(error)}") from error

    def close(self) -> None:
        """Drop the interpreter, and its memory with it."""
        with self._lock:
            self._interpreter = None

    def _run(self, feeds: Feeds) -> dict[str, Array]:
        interpreter = self._interpreter
        self._fit(feeds)
        interpreter.reset_all_variables()
        for name, port in self._inputs.items():
            interpreter.set_tensor(port.index, feeds[name])
        interpreter.invoke()
        return {
            port.spec.name: interpreter.get_tensor(port.index) for port in self._outputs
        }

    def _fit(self, feeds: Feeds) -> None:
        """Give inputs of variable size the sizes of these feeds."""
        changed = False
        for name, port in self._inputs.items():
            shape = feeds[name].shape
            if shape != self._shapes[port.index]:
                self._interpreter.resize_tensor_input(port.index, shape)
                self._shapes[port.index] = shape
                changed = True
        if changed:
            self._interpreter.allocate_tensors()

    def _check(self, feeds: Feeds) -> None:
        if feeds.keys() != self._inputs.keys():
            raise ArtifactError(
                f"{self._artifact}: inputs are {sorted(self._inputs)}, "
                f"got {sorted(feeds)}"
            )
        for name, port in self._inputs.items():
            spec, array = port.spec, feeds[name]
            if array.dtype != spec.dtype or not fits(spec.shape, array.shape):
                raise ArtifactError(
                    f"{self._artifact}: input {name!r} takes {spec.datatype} of shape "
                    f"{list(spec.shape)}, got {array.dtype.name} of {list(array.shape)}"
                )


def reason(error: Exception) -> str:
    """What LiteRT complains about, in one line, without its source paths."""
    words = [
        word
        for word in str(error).split()
        if not word.split(":")[0].endswith((".cc", ".h"))
    ]
    return " ".join(words) or type(error).__name__


def _open(path: Path, options: Mapping[str, Option]) -> Any:
    chosen = _checked(options)
    _verify(path)
    kinds = _litert.OpResolverType
    wanted = {
        "xnnpack": kinds.AUTO,
        "none": kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
    }
    try:
        interpreter = _litert.Interpreter(
            model_path=str(path),
            num_threads=int(chosen["threads"]),
            experimental_op_resolver_type=wanted[str(chosen["delegate"])],
        )
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise ArtifactError(f"{path.name}: {reason(error)}") from error
    stately = sorted(
        {op["op_name"] for op in interpreter._get_ops_details()} & _STATELY
    )
    if stately:
        raise ArtifactError(
            f"{path.name}: {', '.join(stately)} keep state from call to call; a model "
            "that is served gives the same answer to the same input: make the state an "
            "input and an output"
        )
    return interpreter


def _verify(path: Path) -> None:
    if path.suffix != ".tflite":
        raise ArtifactError(f"{path.name}: litert opens .tflite, not {path.suffix!r}")
    if not path.is_file():
        raise ArtifactError(f"{path.name}: there is no such file")
    if not path.stat().st_size:
        raise ArtifactError(f"{path.name} is not a sound .tflite file: it is empty")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        tflite.verify(data, path.name)


def _checked(options: Mapping[str, Option]) -> dict[str, Option]:
    """The options over the defaults.

    Raises:
        ArtifactError: a name is unknown or a value is out of range.
    """
    unknown = sorted(set(options) - set(_DEFAULTS))
    if unknown:
        raise ArtifactError(
            f"litert has no option {', '.join(unknown)}; it has {', '.join(_DEFAULTS)}"
        )
    chosen = {**_DEFAULTS, **options}
    threads = chosen["threads"]
    if type(threads) is not int or not 1 <= threads <= _THREADS_MAX:
        raise ArtifactError(
            f"option threads takes a number from 1 to {_THREADS_MAX}, got {threads!r}"
        )
    if chosen["delegate"] not in _DELEGATES:
        raise ArtifactError(
            f"option delegate is one of {', '.join(_DELEGATES)}; "
            f"got {chosen['delegate']!r}"
        )
    return chosen


def _ports(interpreter: Any) -> tuple[list[_Port], list[_Port]]:
    """Inputs and outputs: of the first signature, or of the main graph without one."""
    inputs = {item["name"]: item for item in interpreter.get_input_details()}
    outputs = {item["name"]: item for item in interpreter.get_output_details()}
    signatures = interpreter.get_signature_list()
    if signatures:
        runner = interpreter.get_signature_runner(min(signatures))
        named = _in_order(runner.get_input_details(), interpreter.get_input_details())
        made = _in_order(runner.get_output_details(), interpreter.get_output_details())
        if len(named) == len(inputs) and len(made) == len(outputs):
            inputs, outputs = named, made
    return (
        [_Port(_spec(name, item), item["index"]) for name, item in inputs.items()],
        [_Port(_spec(name, item), item["index"]) for name, item in outputs.items()],
    )


def _in_order(
    named: Mapping[str, Mapping[str, Any]], items: list[dict[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Signature name → tensor, in the graph's own order; a signature is sorted."""
    by_index = {item["index"]: name for name, item in named.items()}
    return {
        by_index[item["index"]]: item for item in items if item["index"] in by_index
    }


def _spec(name: str, item: Mapping[str, Any]) -> TensorSpec:
    try:
        return TensorSpec(
            name=name,
            datatype=datatype_of(_dtype(item["dtype"])),
            shape=tuple(int(size) for size in item["shape_signature"]),
        )
    except ValueError as error:
        raise ArtifactError(
            f"tensor {name!r} cannot be served: {' '.join(str(error).split())}"
        ) from error


def _dtype(kind: Any) -> Any:
    import numpy as np

    return np.dtype(kind)


def _taken(ops: list[dict[str, Any]], delegates: list[dict[str, Any]]) -> set[int]:
    """Operators that delegates stand for: all between their outputs and inputs."""
    maker = {int(tensor): op for op in ops for tensor in op["outputs"]}
    taken: set[int] = set()
    for delegate in delegates:
        ends = {int(tensor) for tensor in delegate["inputs"]}
        open_ = [int(tensor) for tensor in delegate["outputs"]]
        while open_:
            op = maker.get(open_.pop())
            if op is None or op["index"] in taken:
                continue
            taken.add(op["index"])
            open_ += [int(one) for one in op["inputs"] if int(one) not in ends]
    return taken
