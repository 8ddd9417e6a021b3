"""How this agent is set: ``agent.toml``, the command line, sane defaults without both.

The rules it keeps:

1. Every mistake is reported at once, with its line in the file.
2. Every limit has a name, a unit, a range and a default fit for a small device.
3. Only this package reads the environment (:mod:`.environment`).
"""

from .environment import default_state, is_watched, notify_socket
from .reader import load_config
from .rules import is_loopback
from .schema import (
    SOCKET_NAME,
    AgentConfig,
    LimitsConfig,
    LinkConfig,
    ListenConfig,
    LogConfig,
    ModelConfig,
    Overrides,
    SandboxConfig,
    SpoolConfig,
    SwapPolicy,
    UpdateConfig,
)

__all__ = [
    "SOCKET_NAME",
    "AgentConfig",
    "LimitsConfig",
    "LinkConfig",
    "ListenConfig",
    "LogConfig",
    "ModelConfig",
    "Overrides",
    "SandboxConfig",
    "SpoolConfig",
    "SwapPolicy",
    "UpdateConfig",
    "default_state",
    "is_loopback",
    "is_watched",
    "load_config",
    "notify_socket",
]
