"""How an artifact is run: one module per runtime, the same on host and device.

``RUNTIMES`` is the plug-in table: name → dotted path, imported when asked for.
"""

from importlib import import_module

from ..contract.errors import MachineError
from .base import Runtime

RUNTIMES = {
    "onnxruntime": "device_agent.runtimes.onnxruntime:OnnxRuntime",
    "openvino": "device_agent.runtimes.openvino:OpenVino",
    "litert": "device_agent.runtimes.litert:LiteRt",
}

PACKAGES = {"litert": "ai-edge-litert (on 32-bit ARM: tflite-runtime==2.14.0)"}
"""Where the package is not called like the runtime."""


def runtime(name: str) -> Runtime:
    """The runtime of that name.

    Raises:
        MachineError: no such runtime, or its package is not installed here.
    """
    if name not in RUNTIMES:
        raise MachineError(f"no runtime {name!r}; known: {', '.join(RUNTIMES)}")
    path, _, attribute = RUNTIMES[name].partition(":")
    try:
        made: Runtime = getattr(import_module(path), attribute)()
    except ImportError as error:
        raise MachineError(
            f"runtime {name!r} is not installed here ({error}); "
            f"install it with: pip install {PACKAGES.get(name, name)}"
        ) from error
    return made
