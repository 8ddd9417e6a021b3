"""Getting models in, safely.

What a file is, is told by its content, not by its name:

1. ONNX: looked at in a limited subprocess (:mod:`.vetting`); the host loads only
   what came out of there → level ``graph``
2. ``module:factory``: the user's own code by definition; weights only as safetensors →
   level ``module``
3. ``.pt2``: loading one can run code, so only with ``trust_model_code`` → ``module``
4. TensorFlow Lite, pickles, TorchScript and anything else: refused with the way out

Every refusal is a :class:`ModelError` of one line, without a traceback.
"""

import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from device_agent.contract.tensors import TensorSpec

from ..errors import MachineLacks, ModelError, one_line
from ..model import Model, Step
from .sandbox import GIB, Limits, limited

Pins = Mapping[str, Sequence[int]]

_CONVERT = "convert its weights with: edgeml convert-weights {0} OUT.safetensors"
_WAYS_OUT = {
    "pickle": "is a Python pickle, which can run code when it is loaded; " + _CONVERT
    + " and give the model as module:factory",
    "torchscript": "is TorchScript, which can run code when it is loaded; give the "
    "model as module:factory, or export it to ONNX",
    "zip": "is a zip archive; expected an ONNX file or module:factory",
    "tflite": "is TensorFlow Lite, which can be inspected, checked and benched; "
    "to build, give ONNX or module:factory",
    "safetensors": "holds weights without a model; give the model as module:factory "
    'and this file as weights = "{0}"',
    "lfs": "is a Git LFS pointer and not the file itself; fetch it with: git lfs pull",
    "html": "is a web page and not a model; download the file itself",
    "keras": "is HDF5 (Keras); export it to ONNX with tf2onnx",
}  # fmt: skip
_PICKLE_SUFFIXES = (".pt", ".pth", ".pkl", ".pickle", ".bin", ".ckpt")


def load_model(
    source: str,
    weights: str | None,
    folder: Path,
    pinned: Pins,
    trust_model_code: bool = False,
    seed: int = 0,
) -> Model:
    """Read the model that a recipe names.

    Args:
        source: a path relative to ``folder``, or ``module:factory``.
        weights: a ``.safetensors`` for a factory's module, relative to ``folder``.
        folder: the recipe's folder; first on ``sys.path`` while a factory is imported.
        pinned: input name → shape with the batch dimension; replaces variable
            dimensions. A factory's module needs every input pinned.
        trust_model_code: whether a ``.pt2`` may be loaded although that can run code.
        seed: what weights that a factory draws come from.

    Raises:
        ModelError: the model is refused; one line with the reason and the way out.
        MachineLacks: torch or onnx is not installed.
    """
    path = folder / source
    if not path.exists() and _names_factory(source):
        from .modules import load_factory

        file = None if weights is None else weights_file(folder / weights)
        return load_factory(source, file, folder, pinned, seed)
    if weights is not None:
        raise ModelError(
            f"[model] weights go with a module:factory, but source {source!r} is a file"
        )
    kind = kind_of(path)
    if kind == "pt2":
        return _load_pt2(path, pinned, trust_model_code)
    if kind in _WAYS_OUT or path.suffix.lower() in _PICKLE_SUFFIXES:
        way_out = _WAYS_OUT[kind if kind in _WAYS_OUT else "pickle"]
        raise ModelError(f"{path.name} {way_out.format(path.name)}")
    return load_onnx(path, pinned)


def _names_factory(source: str) -> bool:
    module, colon, factory = source.partition(":")
    names = [*module.split("."), *factory.split(".")]
    return bool(colon) and all(name.isidentifier() for name in names)


def weights_file(path: Path) -> Path:
    """``path`` when it holds safetensors.

    Raises:
        ModelError: it holds something else, or cannot be read.
    """
    kind = kind_of(path)
    if kind != "safetensors":
        what = {"pickle": "a Python pickle", "": "of an unknown format"}
        raise ModelError(
            f"weights {path.name} is {what.get(kind, kind)}; expected safetensors: "
            + _CONVERT.format(path.name)
        )
    return path


def kind_of(path: Path) -> str:
    """What a file is by its content; "" when no known format begins like this.

    Raises:
        ModelError: there is no such regular file, or it is empty.
    """
    if not path.exists():
        raise ModelError(f"there is no file {path.name} where the recipe says")
    if not path.is_file():
        raise ModelError(f"{path.name} is not a regular file")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error
    if not size:
        raise ModelError(f"{path.name} is empty")
    return _kind(head, size, path)


def _kind(head: bytes, size: int, path: Path) -> str:
    if head[:4] == b"PK\x03\x04":
        return _zip_kind(path)
    # pickle protocols 2 to 5, and the text of protocol 0
    if (head[:1] == b"\x80" and 2 <= head[1] <= 5) or head[:4] in (b"cos\n", b"(dp0"):
        return "pickle"
    if head[4:8] == b"TFL3":
        return "tflite"
    if head[:4] == b"\x89HDF":
        return "keras"
    if head.startswith(b"version https://git-lfs"):
        return "lfs"
    if head.lstrip()[:5].lower() in (b"<!doc", b"<html"):
        return "html"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return "safetensors"
    return ""


def _zip_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
            folders = {part for name in archive.namelist() for part in name.split("/")}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "zip"
    if "serialized_exported_program.json" in names or "archive_format" in names:
        return "pt2"
    if "constants.pkl" in names or "code" in folders:
        return "torchscript"
    return "pickle" if "data.pkl" in names else "zip"


def load_onnx(path: Path, pinned: Pins, limits: Limits | None = None) -> Model:
    """Vet an ONNX file in the limited subprocess and load what came out of it.

    Raises:
        ModelError: refused, with operator, node and reason where they are known.
        MachineLacks: onnx or onnxruntime is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise MachineLacks(
            "onnx is not installed; install it with: pip install 'edgeml[build]'"
        ) from error
    arguments = {
        "path": str(path.resolve()),
        "pinned": {name: list(shape) for name, shape in pinned.items()},
    }
    with tempfile.TemporaryDirectory(prefix="edgeml-") as name:
        scratch = Path(name)
        try:
            facts = limited("onnx", arguments, scratch, limits or _limits(path))
            payload = onnx.load_model_from_string((scratch / "model.onnx").read_bytes())
        except ModelError as error:
            raise ModelError(one_line(f"{path.name} is refused: {error}")) from error
    parameters = {
        "files": facts["files"],
        "opset": facts["opset"],
        "pinned": arguments["pinned"],
    }
    if facts["zero_run"]:
        parameters["zero_run"] = facts["zero_run"]
    return Model(
        level="graph",
        payload=payload,
        inputs=tuple(TensorSpec(**spec) for spec in facts["inputs"]),
        outputs=tuple(TensorSpec(**spec) for spec in facts["outputs"]),
        lineage=(Step("load", parameters),),
    )


def _limits(path: Path) -> Limits:
    """A model of some size needs several copies of it: file, proto, session."""
    size = path.stat().st_size
    return Limits(memory_bytes=4 * GIB + 8 * size, cpu_s=60 + size // (4 * 2**20))


def _load_pt2(path: Path, pinned: Pins, trust_model_code: bool) -> Model:
    if not trust_model_code:
        raise ModelError(
            f"{path.name} is a torch.export file, and loading one can run code that is "
            "in it; if you trust who made it, add --trust-model-code, or give ONNX"
        )
    from .modules import load_exported

    return load_exported(path, pinned)
