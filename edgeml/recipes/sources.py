"""What a build is made of: digests of the recipe, the model's files and its code."""

import re
import subprocess
from mmap import ACCESS_READ, mmap
from pathlib import Path

from ..cache import file_digest
from .recipe import Recipe
from .verbs import CODE

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]?[\x01-\x7f])")
"""The key in ``external_data`` as protobuf writes it, up to the value's length."""


def source_digests(recipe: Recipe) -> dict[str, str]:
    """Name → SHA-256 of model file, weights (also of passes) and the user's own code.

    What ``module:function`` imports further away cannot be seen; every Python file in
    the recipe's folder counts, so that an edit there is noticed.
    """
    folder = recipe.folder
    found: dict[str, str] = {}
    texts = [
        value
        for one in recipe.passes
        for value in one.parameters.values()
        if isinstance(value, str) and value
    ]
    for name in (recipe.model.source, recipe.model.weights, *texts):
        if name is not None and (folder / name).is_file():
            found[name] = file_digest(folder / name)
    if _calls_code(recipe) or any(re.fullmatch(CODE, text) for text in texts):
        for path in sorted(folder.glob("*.py")):
            found[path.name] = file_digest(path)
    for name in external_files(folder / recipe.model.source):
        found[name] = file_digest((folder / recipe.model.source).parent / name)
    return found


def external_files(path: Path) -> list[str]:
    """Files beside an ONNX file that it says its weights are in.

    The text is searched, not parsed: who vets the file is not this module. What leads
    out of the folder, or is not there, is left to the reader to refuse.
    """
    if not path.is_file() or not path.stat().st_size:
        return []
    with path.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as raw:
        named = {
            raw[found.end() : found.end() + _length(found[1])].decode(errors="replace")
            for found in _LOCATION.finditer(raw)
        }
    return sorted(name for name in named if _is_beside(name, path.parent.resolve()))


def _length(varint: bytes) -> int:
    return sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(varint))


def _is_beside(name: str, home: Path) -> bool:
    try:
        path = (home / name).resolve()
        return path.is_file() and path.is_relative_to(home)
    except (OSError, ValueError):  # too long, or with a NUL: no file is called so
        return False


def commit_of(folder: Path) -> str | None:
    """The git commit of the repository that ``folder`` is in, where there is one."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), "rev-parse", "HEAD"],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _calls_code(recipe: Recipe) -> bool:
    data = recipe.data
    named = [recipe.model.source, recipe.metric.name]
    named += [
        split.location
        for split in (data.calibration, data.validation, data.train)
        if split is not None
    ]
    return any(":" in name and not name.startswith("set:") for name in named)
