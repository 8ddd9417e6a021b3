"""Which HTTP protocol this device runs, with its limits.

httptools where it is installed (compiled), else h11; both keep the same limits and
give the same answers. The class is what ``uvicorn.Config(http=…)`` takes.
"""

import asyncio
import importlib.util
from typing import Literal

from ..config import LimitsConfig
from .connections import ConnectionCounts, Connections

__all__ = ["ConnectionCounts", "Connections", "Http", "protocol"]

Http = Literal["auto", "httptools", "h11"]


def protocol(
    limits: LimitsConfig, table: Connections, http: Http = "auto"
) -> type[asyncio.Protocol]:
    """The protocol class for one server.

    Args:
        limits: what one connection may take.
        table: shared by all connections of this agent.
        http: the parser; ``auto``: httptools where it is installed.
    """
    if http == "auto":
        found = importlib.util.find_spec("httptools") is not None
        http = "httptools" if found else "h11"
    base: type[asyncio.Protocol]
    if http == "httptools":
        from .compiled import CompiledHttp

        base = CompiledHttp
    else:
        from .pure import PureHttp

        base = PureHttp
    return type(base.__name__, (base,), {"limits": limits, "table": table})
