"""Tools that turn a float graph into a quantized one, one module per tool.

``QUANTIZERS`` is the plug-in table: the name that recipes use → module. Backends import
the module when a candidate asks for it.
"""

QUANTIZERS = {
    "ort": "edgeml.quantizers.ort",
    "nncf": "edgeml.quantizers.nncf",
    "inc": "edgeml.quantizers.inc",
    "nbits": "edgeml.quantizers.nbits",
    "aeq": "edgeml.quantizers.aeq",
}
