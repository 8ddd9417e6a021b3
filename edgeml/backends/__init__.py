"""Graph → artifact, one module per backend; the file names are those of the runtimes.

``BACKENDS`` is the plug-in table: name → dotted path, imported when asked for.
"""

from importlib import import_module

from ..errors import MachineLacks
from .base import Backend

BACKENDS = {
    "onnxruntime": "edgeml.backends.onnxruntime:OnnxRuntimeBackend",
    "openvino": "edgeml.backends.openvino:OpenVinoBackend",
    "litert": "edgeml.backends.litert:LiteRtBackend",
}

EXTRAS = {"litert": "litert"}
"""What is not in the extra ``build``."""


def backend(name: str) -> Backend:
    """The backend of that name.

    Raises:
        MachineLacks: there is none, or what it imports is not installed.
    """
    if name not in BACKENDS:
        raise MachineLacks(
            f"no backend {name!r} in this version; known: {', '.join(BACKENDS)}"
        )
    path, _, attribute = BACKENDS[name].partition(":")
    try:
        made: Backend = getattr(import_module(path), attribute)()
    except ImportError as error:
        raise MachineLacks(
            f"backend {name!r} cannot be imported ({error}); "
            f"install it with: pip install 'edgeml[{EXTRAS.get(name, 'build')}]'"
        ) from error
    return made
