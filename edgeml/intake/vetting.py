"""What the limited subprocess does with an ONNX file before the host touches it.

Each step can refuse, in this order:

1. the file: regular, not empty, not too big; parses; has a graph
2. external data: only regular files inside the model's own folder, then inlined
3. operator sets and operators: known, of a version that the runtimes have
4. pinned shapes: every dimension but the batch is known
5. ``onnx.checker`` with shape inference
6. ONNX Runtime makes a session and runs once on zeros, within the limits
"""

import hashlib
import os
import re
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import ModelError, one_line
from ..graphs.protos import (
    EXTERNAL,
    describe,
    name_nodes,
    nodes,
    real_inputs,
    spec_of,
    strip_remarks,
    tensors,
)
from .sandbox import short_of_memory
from .shapes import bind

MAX_MODEL_BYTES = 2**30
OLDEST_OPSET = 7
"""ONNX Runtime promises operators of this opset and later."""
NEWEST_OPSET = 26
OLDEST_IR = 4
"""From this IR version on initializers need not be inputs."""
MICROSOFT = "com.microsoft"
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")


def vet_onnx(
    path: str, pinned: Mapping[str, Sequence[int]], scratch: Path
) -> dict[str, Any]:
    """Look at an ONNX file; write what was found good to ``scratch/model.onnx``.

    Returns:
        Facts: ``files`` (name → SHA-256), ``inputs`` and ``outputs`` (specs),
        ``opset``, ``zero_run`` (what a run on zeros said, "" if it went well).

    Raises:
        ModelError: refused; one line with operator, node and reason where known.
    """
    file = Path(path)
    data = read_whole(file, "the model")
    files = {file.name: _sha256(data)}
    model = _parse(data)
    files |= inline(model, file.parent, len(data))
    check_operators(model)
    _drop_constant_inputs(model)
    strip_remarks(model)
    name_nodes(model)
    bind(model.graph, pinned)
    model = _checked(model)
    found = model.SerializeToString(deterministic=True)
    zero_run = _rehearse(found, model)
    outputs = [spec_of(value, "output").model_dump() for value in model.graph.output]
    (scratch / "model.onnx").write_bytes(found)
    return {
        "files": files,
        "inputs": [spec_of(value).model_dump() for value in model.graph.input],
        "outputs": outputs,
        "opset": _opset(model),
        "zero_run": zero_run,
    }


def read_whole(path: Path, what: str, limit: int = MAX_MODEL_BYTES) -> bytes:
    """The bytes of a regular file; links at its end are followed, devices are not.

    Raises:
        ModelError: it is missing, unreadable, no regular file, empty or too big.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        raise ModelError(
            f"{what} {path.name} cannot be opened: {error.strerror}"
        ) from (error)
    with os.fdopen(descriptor, "rb") as file:
        about = os.fstat(file.fileno())
        if not stat.S_ISREG(about.st_mode):
            raise ModelError(f"{what} {path.name} is not a regular file")
        if about.st_size > limit:
            raise ModelError(
                f"{what} {path.name} has {about.st_size} bytes, more than {limit}"
            )
        data = file.read(limit + 1)
    if not data or len(data) > limit:
        raise ModelError(f"{what} {path.name} is empty or grew while it was read")
    return data


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _parse(data: bytes) -> Any:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model_from_string(data)
    except (DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ModelError(
            "it does not parse as ONNX: truncated, damaged or of another format"
        ) from error
    if not model.ir_version or not model.HasField("graph"):
        raise ModelError("it does not parse as ONNX: no IR version or no graph in it")
    if not model.graph.output:
        raise ModelError("its graph has no output")
    return model


def inline(model: Any, folder: Path, spent: int) -> dict[str, str]:
    """Read external data into ``model``; every file must lie inside ``folder``.

    Returns:
        The files that were read: relative name → SHA-256.

    Raises:
        ModelError: a path leads out of the folder, or the file is missing, too short
            or together with the rest (``spent`` bytes so far) too big.
    """
    cache: dict[str, bytes] = {}
    for tensor in tensors(model):
        if tensor.data_location != EXTERNAL:
            continue
        entry = {pair.key: pair.value for pair in tensor.external_data}
        location = entry.get("location", "")
        where = f"external data {location!r} of tensor {tensor.name!r}"
        if location not in cache:
            left = MAX_MODEL_BYTES - spent
            path = _inside(location, folder, where)
            cache[location] = read_whole(path, where, max(left, 0))
            spent += len(cache[location])
        tensor.raw_data = _cut(cache[location], entry, where)
        tensor.data_location = 0
        del tensor.external_data[:]
    return {name: _sha256(data) for name, data in sorted(cache.items())}


def _inside(location: str, folder: Path, where: str) -> Path:
    parts = PurePosixPath(location.replace("\\", "/"))
    if not location or "\0" in location or parts.is_absolute() or ".." in parts.parts:
        raise ModelError(f"{where} leads out of the model's own folder")
    path = (folder / location).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise ModelError(f"{where} leads out of the model's own folder by a link")
    if not path.exists():
        raise ModelError(f"{where} is missing; put it beside the model")
    return path


def _cut(data: bytes, entry: Mapping[str, str], where: str) -> bytes:
    try:
        offset = int(entry.get("offset", 0))
        length = int(entry.get("length", len(data) - offset))
    except ValueError as error:
        raise ModelError(f"{where} has an offset or length that is no number") from (
            error
        )
    if offset < 0 or length < 0 or offset + length > len(data):
        raise ModelError(
            f"{where} asks for bytes {offset} to {offset + length} "
            f"of a file of {len(data)}"
        )
    return data[offset : offset + length]


def _opset(model: Any) -> int:
    return max((o.version for o in model.opset_import if o.domain in _STANDARD[:2]),
               default=0)  # fmt: skip


def check_operators(model: Any) -> None:
    """Every operator must be one that the runtimes know, by name and by version.

    Raises:
        ModelError: names the operator, the node and what to do.
    """
    import onnx

    opsets = {entry.domain: entry.version for entry in model.opset_import}
    opsets |= {"" if d == "ai.onnx" else d: v for d, v in opsets.items()}
    local = {(function.domain, function.name) for function in model.functions}
    version = opsets.get("", OLDEST_OPSET)
    if not OLDEST_OPSET <= version <= NEWEST_OPSET:
        raise ModelError(
            f"it uses ONNX opset {version}; {OLDEST_OPSET} to {NEWEST_OPSET} can be "
            "built, so export it again or use onnx.version_converter"
        )
    for node in nodes(model):
        domain = "" if node.domain == "ai.onnx" else node.domain
        if (domain, node.op_type) in local:
            continue
        if domain not in (*_STANDARD, MICROSOFT):
            raise ModelError(
                f"{describe(node)} is a custom operator, which no runtime here has; "
                "replace it by standard ONNX operators when exporting"
            )
        if domain not in opsets:
            raise ModelError(f"{describe(node)}: no opset of its domain is imported")
        if domain == MICROSOFT:
            continue  # ONNX Runtime's own: the session decides
        _check_standard(onnx, node, domain, opsets[domain])


def _check_standard(onnx: Any, node: Any, domain: str, version: int) -> None:
    if not onnx.defs.has(node.op_type, domain):
        raise ModelError(
            f"{describe(node)} is not an ONNX operator; a custom operator must be "
            "replaced by standard ones when exporting"
        )
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError as error:
        raise ModelError(
            f"{describe(node)} does not exist in opset {version}, "
            "which the model declares"
        ) from error
    if schema.deprecated:
        raise ModelError(
            f"{describe(node)} is deprecated in opset {version}; export the model again"
        )


def _drop_constant_inputs(model: Any) -> None:
    """Initializers are no inputs; IR 3 had to list them, later versions need not."""
    kept = real_inputs(model.graph)
    del model.graph.input[:]
    model.graph.input.extend(kept)
    model.ir_version = max(model.ir_version, OLDEST_IR)


def _checked(model: Any) -> Any:
    """Run the checker; give the model with the output shapes it could infer."""
    import onnx

    try:
        onnx.checker.check_model(model, full_check=True)
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the ONNX checker refuses it: {one_line(error)}") from error
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"its shapes contradict: {one_line(error)}") from error
    del model.graph.output[:]
    model.graph.output.extend(inferred.graph.output)
    return model


def _rehearse(data: bytes, model: Any) -> str:
    """Make a session and run it once on zeros; a complaint of the run is no refusal.

    Zeros can be wrong data for a sound model (a sample rate of 0), so only what
    crosses the limits refuses. Gives the complaint, or "".
    """
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            data, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        if short_of_memory(str(error)):
            raise MemoryError(str(error)) from error
        raise ModelError(f"ONNX Runtime refuses it: {_reason(error)}") from error
    specs = [spec_of(value) for value in model.graph.input]
    try:
        feeds = {
            spec.name: np.zeros([abs(dim) for dim in spec.shape], spec.dtype)
            for spec in specs
        }
        arrays = session.run(None, feeds)
    except Exception as error:
        if short_of_memory(str(error)):
            raise MemoryError(str(error)) from error
        return _reason(error)
    _complete(model.graph.output, arrays)
    return ""


def _complete(outputs: Any, arrays: Sequence[Any]) -> None:
    """Give an output without a shape the rank that the run saw."""
    for value, array in zip(outputs, arrays, strict=True):
        tensor = value.type.tensor_type
        if value.type.WhichOneof("value") == "tensor_type" and not tensor.HasField(
            "shape"
        ):
            for _ in array.shape:
                tensor.shape.dim.add()
            tensor.shape.SetInParent()


def _reason(error: Exception) -> str:
    """The error's text without ONNX Runtime's name and code before it."""
    return re.sub(r"^(\[ONNXRuntimeError\] : )?\d+ : \w+ : ", "", one_line(error))
