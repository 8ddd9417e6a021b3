"""Engines that a runtime compiled on this device, one folder per bundle in ``state``.

The rules it keeps:

1. A bundle is portable: it holds the graph, and the engine is built here, when the
   bundle is first tried. Later starts read it.
2. An engine belongs to one bundle and one version of the runtime, and so does its
   folder. One that cannot be read is thrown away and built again.
3. An engine is code: only this user may write where they lie.
4. Those of the last :data:`KEPT` bundles stay.
"""

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path

from ..contract.manifest import Option
from ..runtimes.base import ENGINE_CACHE, ON_DEVICE

KEPT = 8


def engine_folder(
    state: Path, options: Mapping[str, Option], bundle_sha256: str, version: str
) -> Path | None:
    """Where this bundle's engines are kept, made if need be; None: it wants none.

    Args:
        state: the agent's state directory.
        options: the bundle's runtime options.
        bundle_sha256: which bundle.
        version: of the runtime that builds them.

    Raises:
        OSError: the state directory cannot be written.
    """
    if options.get(ENGINE_CACHE) != ON_DEVICE:
        return None
    parent = state / "engines"
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    name = hashlib.sha256(f"{bundle_sha256} {version}".encode()).hexdigest()[:32]
    folder = parent / name
    folder.mkdir(mode=0o700, exist_ok=True)
    folder.touch()  # it is the newest now
    _forget_old(parent)
    return folder


def is_filled(folder: Path | None) -> bool:
    """Whether something was built before."""
    return folder is not None and any(folder.iterdir())


def empty(folder: Path) -> None:
    """Throw away what was built; the folder stays."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _forget_old(parent: Path) -> None:
    newest = sorted(parent.iterdir(), key=lambda one: -one.stat().st_mtime_ns)
    for path in newest[KEPT:]:
        shutil.rmtree(path, ignore_errors=True)
