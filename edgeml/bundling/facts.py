"""What a bundle or a model file is, without running it.

A bundle is verified before anything is said of it.
"""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from device_agent.contract.bundle import SUFFIX, Bundle

from ..errors import InputError
from ..intake.tflite import read_tflite
from .bundle import opened

Facts = dict[str, Any]

MODEL_BYTES_MAX = 2 << 30


def inspect(path: Path) -> Facts:
    """Facts of a ``.edgeml``, ``.onnx`` or ``.tflite`` file.

    Raises:
        InputError: the file is none of these, or not readable.
        InputError: it is a bundle that is not what it says.
    """
    suffix = path.suffix.lower()
    if suffix == SUFFIX:
        return _bundle_facts(path, opened(path))
    raw = _read(path)
    head: Facts = {"file": path.name, "size_bytes": len(raw)}
    if suffix == ".onnx":
        return {**head, "kind": "onnx", **_onnx_facts(raw, path.name)}
    if suffix == ".tflite":
        lite = asdict(read_tflite(raw, path.name))
        return {**head, "kind": "tflite", **lite}
    raise InputError(
        f"{path.name} is neither {SUFFIX}, .onnx nor .tflite; nothing is known of it"
    )


def render_facts(facts: Facts) -> list[str]:
    """Facts as aligned lines, nested ones indented below their name."""
    lines: list[str] = []
    for key, value in facts.items():
        if isinstance(value, dict) and value:
            lines.append(key)
            lines += [f"  {line}" for line in render_facts(value)]
        elif isinstance(value, (list, tuple)) and any(
            isinstance(item, dict) for item in value
        ):
            lines.append(key)
            lines += [f"  {_row(item)}" for item in value]
        else:
            lines.append(f"{key:<20} {word(value)}".rstrip())
    return lines


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise InputError(f"{path} is not a file")
        size = path.stat().st_size
        if size > MODEL_BYTES_MAX:
            raise InputError(f"{path} has {size} bytes; at most {MODEL_BYTES_MAX}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def _bundle_facts(path: Path, bundle: Bundle) -> Facts:
    manifest = bundle.manifest.model_dump(mode="json")
    members = manifest.pop("members")
    return {
        "file": path.name,
        "kind": "bundle",
        "sha256": bundle.sha256,
        "size_bytes": bundle.size_bytes,
        **manifest,
        "operators": operators(bundle),
        "members": members,
    }


def _onnx_facts(raw: bytes, name: str) -> Facts:
    import onnx
    from google.protobuf.message import DecodeError

    from ..graphs.protos import nodes, real_inputs, spec_of

    try:
        model = onnx.ModelProto.FromString(raw)
    except DecodeError as error:
        raise InputError(f"{name} is not a readable ONNX file: {error}") from error
    if not model.graph.node:
        raise InputError(f"{name} is not a readable ONNX file: its graph is empty")
    return {
        "opsets": {one.domain or "ai.onnx": one.version for one in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [spec_of(one).model_dump() for one in real_inputs(model.graph)],
        "outputs": [
            spec_of(one, "output").model_dump() for one in model.graph.output
        ],
        "operators": dict(sorted(Counter(one.op_type for one in nodes(model)).items())),
    }  # fmt: skip


def operators(bundle: Bundle) -> dict[str, int]:
    """How often each operator occurs in the bundle's artifact."""
    entry = bundle.manifest.artifact
    raw = bundle.member(entry)
    if entry.endswith(".onnx"):
        found: dict[str, int] = _onnx_facts(raw, entry)["operators"]
        return found
    if entry.endswith(".tflite"):
        return read_tflite(raw, entry).operators
    if entry.endswith(".xml"):
        # OpenVINO IR; a pattern, so that no XML parser meets what is not ours
        kinds = re.findall(rb'<layer [^>]*?\btype="([A-Za-z0-9_]+)"', raw)
        counts = Counter(kind.decode() for kind in kinds)
        return dict(sorted(counts.items()))
    return {}


def _row(item: object) -> str:
    if not isinstance(item, Mapping):
        return word(item)
    return "  ".join(f"{key} {word(value)}" for key, value in item.items())


def word(value: object) -> str:
    """A value in a line for people."""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(word, value)) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {word(v)}" for k, v in value.items()) + "}"
    return "-" if value is None else str(value)
