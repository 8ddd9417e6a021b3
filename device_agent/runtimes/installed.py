"""Which runtimes this machine has, without loading one: an agent that only asks must
not grow by a runtime's tens of megabytes."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from importlib.util import find_spec

_PACKAGES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "onnxruntime": (("onnxruntime", "onnxruntime", ""),
                    ("onnxruntime", "onnxruntime-gpu", "")),
    "openvino": (("openvino", "openvino", ""),),
    "litert": (("ai_edge_litert", "ai-edge-litert", ""),
               ("tflite_runtime", "tflite-runtime", "0.")),
}  # fmt: skip
"""Runtime → module, distribution, what is put before its version (``litert.py``)."""


def installed() -> dict[str, str]:
    """Runtime → version, as :meth:`Runtime.version` has it; empty: it is not here.

    A runtime is left out where it is here and its version cannot be told: a build under
    another name, for which there is no metadata.

    Raises:
        OSError: the disk does not let it look.
    """
    found = {}
    for runtime, packages in _PACKAGES.items():
        versions = [one for one in map(_version, packages) if one is not None]
        present = any(find_spec(module) for module, _, _ in packages)
        if versions or not present:
            found[runtime] = versions[0] if versions else ""
    return found


def _version(package: tuple[str, str, str]) -> str | None:
    module, distribution, prefix = package
    if find_spec(module) is None:
        return None
    try:
        return prefix + version_of(distribution)
    except PackageNotFoundError:
        return None
