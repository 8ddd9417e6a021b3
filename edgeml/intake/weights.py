"""Pickled weights → safetensors, without running what is in the pickle.

1. The pickle is read with ``weights_only=True`` in the limited subprocess; whatever
   wants more than tensors and plain containers is refused with its name.
2. A checkpoint is unwrapped (``state_dict``, ``model``, …), and so is what
   ``DataParallel`` puts before every name; what is no tensor is left out and reported.
3. The result is written whole or not at all; the same weights give the same bytes.
"""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import MachineLacks, ModelError, UsageError, one_line
from .sandbox import GIB, Limits, limited

MAX_PICKLE_BYTES = 2 * GIB
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model", "net", "weights")
"""Where training scripts keep the weights in a checkpoint, in order of preference."""
_PARALLEL = "module."


def convert_weights(src: Path, out: Path) -> dict[str, Any]:
    """Write the tensors of a pickle as safetensors; an existing ``out`` is replaced.

    Returns:
        Facts: ``tensors`` and ``parameters`` (counts), ``bytes`` written, ``unwrapped``
        (keys descended), ``left_out`` (what was no tensor, with its type).

    Raises:
        ModelError: no pickled weights, or they hold more than weights; one line.
        UsageError: ``out`` is not a place for a ``.safetensors`` file.
        MachineLacks: torch or safetensors is not installed.
    """
    if out.suffix != ".safetensors" or out.is_dir():
        raise UsageError(f"{out.name} must be a file that ends in .safetensors")
    if not out.parent.is_dir():
        raise UsageError(f"the folder {out.parent} of {out.name} does not exist")
    size = _size(src)
    limits = Limits(
        memory_bytes=8 * GIB + 4 * size,
        cpu_s=60 + size // (4 * 2**20),
        written_bytes=GIB // 16 + 2 * size,
    )
    with tempfile.TemporaryDirectory(prefix="edgeml-") as name:
        scratch = Path(name)
        try:
            facts = limited("weights", {"path": str(src.resolve())}, scratch, limits)
        except ModelError as error:
            raise ModelError(one_line(f"{src.name} is refused: {error}")) from error
        _place(scratch / "out.safetensors", out)
    return {**facts, "bytes": out.stat().st_size}


def _size(src: Path) -> int:
    if not src.is_file():
        raise ModelError(f"there is no regular file {src.name}")
    size = src.stat().st_size
    if not 0 < size <= MAX_PICKLE_BYTES:
        raise ModelError(
            f"{src.name} has {size} bytes; expected 1 to {MAX_PICKLE_BYTES}"
        )
    return size


def _place(made: Path, out: Path) -> None:
    """Move across file systems without a moment at which half a file is there."""
    descriptor, name = tempfile.mkstemp(prefix=f".{out.name}.", dir=out.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as target, made.open("rb") as source:
            shutil.copyfileobj(source, target)
        part.chmod(0o644)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)


def read_pickle(path: str, scratch: Path) -> dict[str, Any]:
    """The subprocess's part: read the pickle, write ``scratch/out.safetensors``.

    Raises:
        ModelError: refused, with the reason.
        MachineLacks: torch or safetensors is not installed.
    """
    try:
        import torch
        from safetensors.torch import save_file
    except ImportError as error:
        raise MachineLacks(
            f"{error.name} is not installed; install it with: "
            "pip install 'edgeml[torch]'"
        ) from error
    torch.set_num_threads(1)
    loaded = _loaded(torch, path)
    weights, unwrapped = _unwrapped(torch, loaded)
    found = dict(_leaves(weights, ""))
    left_out = {
        name: type(value).__name__
        for name, value in found.items()
        if not isinstance(value, torch.Tensor)
    }
    tensors = {n: _plain(torch, n, v) for n, v in found.items() if n not in left_out}
    if not tensors:
        raise ModelError("it holds no tensors")
    if all(name.startswith(_PARALLEL) for name in tensors):
        tensors = {name.removeprefix(_PARALLEL): t for name, t in tensors.items()}
        unwrapped.append(_PARALLEL)
    save_file(
        dict(sorted(tensors.items())),
        scratch / "out.safetensors",
        metadata={"format": "pt"},
    )
    return {
        "tensors": len(tensors),
        "parameters": sum(tensor.numel() for tensor in tensors.values()),
        "unwrapped": unwrapped,
        "left_out": left_out,
    }


def _loaded(torch: Any, path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:
        raise ModelError(_why(str(error))) from error


def _why(text: str) -> str:
    """The reason in torch's long text about a pickle that it does not load."""
    if "TorchScript" in text:
        return "it is TorchScript, which holds code; save model.state_dict() instead"
    found = re.search(r"(?:GLOBAL|class|type) ([\w]+(?:\.\w+)+)", text)
    if found:
        name = found.group(1)
        return (
            f"it holds more than weights: it wants to load {name}, which can run code; "
            "where you trained it, save model.state_dict() alone"
        )
    if "allocate" in text or "alloc" in text:
        raise MemoryError(text)
    # the rest of torch's text advises to load it without looking
    inner = re.search(r"WeightsUnpickler error:\s*([^\n]+)", text)
    more = f": {one_line(inner.group(1))}" if inner else ""
    return f"it is no file of pickled weights, or damaged{more}"


def _unwrapped(torch: Any, loaded: Any) -> tuple[Mapping[str, Any], list[str]]:
    """Descend to the weights: a mapping that holds tensors itself is them."""
    if isinstance(loaded, torch.Tensor):
        raise ModelError("it holds one tensor without a name; expected a state_dict")
    path: list[str] = []
    while isinstance(loaded, Mapping):
        if any(isinstance(value, torch.Tensor) for value in loaded.values()):
            return loaded, path
        inner = [key for key in WRAPPERS if isinstance(loaded.get(key), Mapping)]
        if not inner:
            return loaded, path
        path.append(inner[0])
        loaded = loaded[inner[0]]
    raise ModelError(f"it holds a {type(loaded).__name__}; expected a state_dict")


def _leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _leaves(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def _plain(torch: Any, name: str, tensor: Any) -> Any:
    """A copy of its own: safetensors takes no shared, strided or exotic tensors."""
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
        kind = f"{tensor.layout} {tensor.dtype}".replace("torch.", "")
        raise ModelError(
            f"tensor {name!r} is {kind}, which safetensors cannot hold; "
            "save it dense and not quantized"
        )
    return tensor.detach().clone(memory_format=torch.contiguous_format)
