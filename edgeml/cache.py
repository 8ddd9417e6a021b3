"""Content-addressed results of stages, so that a build can be resumed and repeated.

The rules it keeps:

1. A key is the digest of everything that the result depends on: stage name, input
   digests, parameters, versions of the tools and of edgeml's own source.
2. An entry appears whole or not at all (write, fsync, rename), also after ``kill -9``.
3. An entry carries its own digest; a damaged one is made again, never used.
"""

import errno
import hashlib
import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from device_agent.contract.manifest import canonical_json

from .errors import MachineLacks, UsageError

T = TypeVar("T")

TOOLS = (
    "numpy", "onnx", "onnxruntime", "openvino", "nncf", "onnxconverter-common",
    "torch", "onnxscript", "torchao", "neural-compressor",
    "litert-torch", "ai-edge-quantizer", "ai-edge-litert",
)  # fmt: skip

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def digest_of(value: object) -> str:
    """SHA-256 of a value: bytes as they are, anything else as canonical JSON.

    Dataclasses, tuples and models inside it count by their fields.

    Raises:
        PydanticSerializationError: the value holds something that JSON cannot.
    """
    if not isinstance(value, bytes):
        value = canonical_json(to_jsonable_python(value, bytes_mode="hex"))
    return hashlib.sha256(value).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@cache
def tool_versions() -> dict[str, str]:
    """Versions of the installed tools that can change an artifact's bytes."""
    found = {}
    for name in TOOLS:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def source_digest() -> str:
    """Digest of edgeml's own source: another program makes another result."""
    root = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for package in ("edgeml", "device_agent", "targets", "calibration"):
        for path in sorted((root / package).rglob("*")):
            if path.suffix in {".py", ".toml", ".j2"}:
                digest.update(f"{path.relative_to(root)}\0".encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def part_of(path: Path) -> Path:
    """Where this process writes what shall be at ``path``; ``sweep`` removes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old one or the whole new one.

    Raises:
        UsageError: it cannot be written there.
        MachineLacks: there is no room for it.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        kind = MachineLacks if error.errno in _NO_ROOM else UsageError
        raise kind(f"{path} cannot be written: {error.strerror}") from error


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before work is put into it.

    Raises:
        UsageError: something on the way to it is no folder, or not open to this user.
    """
    place = folder
    while not place.exists() and not place.is_symlink():
        place = place.parent
    if not place.is_dir():
        raise UsageError(f"{folder} cannot be written: {place} is not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UsageError(f"{folder} cannot be written: {place} is not open to you")


def place(path: Path, data: bytes) -> None:
    """Have these bytes at ``path``; what is there and differs is written again."""
    if not path.is_file() or path.read_bytes() != data:
        write_atomic(path, data)


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left half-written below a folder."""
    for path in folder.rglob(".*.part"):
        writer = path.name.removesuffix(".part").rpartition(".")[2]
        if not Path("/proc", writer).exists():
            path.unlink(missing_ok=True)


class Cache:
    """Results of stages in one folder.

    A process that it is sent to looks where this one does, even if somebody edits the
    program meanwhile.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._source = source_digest()

    def key(self, stage: str, **inputs: object) -> str:
        """The key of ``stage`` for these inputs, tools and this source."""
        return digest_of(
            {
                "stage": stage,
                "inputs": inputs,
                "tools": tool_versions(),
                "source": self._source,
            }
        )

    def read(self, key: str) -> bytes | None:
        """The entry, or None when there is none or it is damaged."""
        try:
            raw = self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        digest, _, data = raw.partition(b"\n")
        return data if digest == digest_of(data).encode() else None

    def write(self, key: str, data: bytes) -> None:
        """Store an entry; it appears whole or not at all."""
        write_atomic(self._path(key), digest_of(data).encode() + b"\n" + data)

    def bytes(self, key: str, make: Callable[[], bytes]) -> bytes:
        """The entry, made and stored when it is missing."""
        found = self.read(key)
        if found is None:
            found = make()
            self.write(key, found)
        return found

    def record(self, kind: Any, key: str, make: Callable[[], T]) -> T:
        """A dataclass through its JSON form, made and stored when it is missing."""
        adapter: TypeAdapter[T] = TypeAdapter(kind)
        return adapter.validate_json(self.bytes(key, lambda: adapter.dump_json(make())))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key


def user_cache() -> Path:
    """Where facts about this machine, and the emulator, are kept between builds."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "edgeml"
