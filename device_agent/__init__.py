"""The program on the device: installs bundles, serves them, says how it goes.

Copy this folder and it is complete on the device. It imports neither ``edgeml`` nor
any compiler; the host imports only its ``contract`` and its ``runtimes``.
"""

__version__ = "0.1.0"
