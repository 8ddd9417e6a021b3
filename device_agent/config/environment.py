"""What the environment says; nobody else in the agent asks it."""

import os
from pathlib import Path

from ..errors import ConfigError


def default_state() -> Path:
    """Where the agent keeps what it must not lose, unless it is told.

    systemd's ``$STATE_DIRECTORY``, else ``edgeml-agent`` in ``$XDG_STATE_HOME``, else
    in ``~/.local/state``.

    Raises:
        ConfigError: there is no home directory either.
    """
    given = os.environ.get("STATE_DIRECTORY", "").partition(":")[0]
    if given:
        return Path(given)
    shared = Path(os.environ.get("XDG_STATE_HOME", ""))
    if shared.is_absolute():  # others are to be ignored (XDG base directories)
        return shared / "edgeml-agent"
    try:
        return Path.home() / ".local/state/edgeml-agent"
    except RuntimeError as error:
        raise ConfigError(
            "state: expected a directory, found neither $STATE_DIRECTORY nor a home; "
            "give one with --state DIR"
        ) from error


def notify_socket() -> str | None:
    """Where systemd waits for READY=1: a path, or an abstract name after ``@``."""
    found = os.environ.get("NOTIFY_SOCKET", "")
    return found if found.startswith(("/", "@")) else None


def is_watched() -> bool:
    """Whether systemd kills this process when WATCHDOG=1 stays away (sd_notify(3))."""
    of = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    return bool(os.environ.get("WATCHDOG_USEC")) and of == str(os.getpid())
