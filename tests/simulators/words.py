"""What a director may say, and what the registry adds to it."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from device_agent.contract.messages import Desired, Release
from device_agent.updating.facts import Goal


def digest(name: str) -> str:
    """A digest by name."""
    return hashlib.sha256(name.encode()).hexdigest()


def desired(serial: int = 1, name: str = "one", **changes: Any) -> Desired:
    """A word of the director: the bundle of that name, version ``serial``.0.0."""
    plain = {
        "device": "pi-1", "serial": serial, "counter": serial,
        "release": Release(model="linear", version=f"{serial}.0.0"),
        "digest": digest(name), "not_after": datetime(2040, 1, 1, tzinfo=UTC),
        "rollout": "first", "attempt": 1,
    }  # fmt: skip
    return Desired(**{**plain, **changes})


def goal(serial: int = 1, name: str = "one", **changes: Any) -> Goal:
    """The same with the registry's word."""
    wanted = desired(serial, name, **changes)
    envelope = b"\xff" + wanted.model_dump_json().encode()
    return Goal(envelope, wanted, f"linear/{name}.edgeml", 1000, ("http://x/1",))
