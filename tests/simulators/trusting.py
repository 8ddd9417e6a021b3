"""A device as far as trust goes: it believes, fetches, verifies and switches.

What it runs is a name in a file. Everything that decides is the agent's own code;
``ask`` in this process is the code of the verifying process without the process.
"""

import hashlib
import json
import urllib.request
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from registries import NOW, House

from device_agent.contract.bundle import read_bundle
from device_agent.contract.codes import Reason
from device_agent.contract.errors import BundleError
from device_agent.errors import UpdateError
from device_agent.trust.agreement import check_bundle
from device_agent.trust.client import Ask, Authorized, TrustClient, TrustConfig
from device_agent.trust.judge import judged
from device_agent.trust.wire import Facts, FetchLimits, Question

FACTS = Facts("device-1", ("x86_64-linux",), "0.1.0")
LIMITS = FetchLimits(grace_s=0.5)
"""Only what a test has to wait for is short; the machine may be busy."""


def here(question: bytes, seconds: float) -> bytes:
    """The verifying process's work, in this process."""
    return judged(Question.read(question)).write()


@dataclass
class Device:
    """One device: what it was enrolled with, its state, its clock."""

    folder: Path
    house: House
    urls: tuple[str, ...]
    facts: Facts = FACTS
    limits: FetchLimits = LIMITS
    ask: Ask = here
    now: float = NOW.timestamp()
    client: TrustClient = field(init=False)

    def __post_init__(self) -> None:
        for part in ("state", "floors", "identity"):
            (self.folder / part).mkdir(parents=True, exist_ok=True)
        self.identity.joinpath("root.json").write_bytes(self.house.anchor)
        key = self.house.ring.entry("director").key
        self.identity.joinpath("director.json").write_text(
            json.dumps({"keys": {key.keyid: key.to_dict()}})
        )
        self.open()

    @property
    def identity(self) -> Path:
        return self.folder / "identity"

    @property
    def running(self) -> str | None:
        """Digest of what runs."""
        path = self.folder / "running"
        return path.read_text() if path.exists() else None

    def open(self, **changes: Any) -> None:
        """(Re)start of the agent."""
        self.client = TrustClient(
            replace(
                TrustConfig(
                    self.identity / "root.json", self.identity / "director.json",
                    self.urls, self.facts, self.limits,
                    enrolled=NOW.timestamp() - 86_400,
                ),
                **changes,
            ),
            self.folder / "state", self.folder / "floors", ask=self.ask,
        )  # fmt: skip

    def reopen(self, **changes: Any) -> None:
        self.client.close()
        self.open(**changes)

    def update(self, envelope: bytes) -> Authorized:
        """Authorize, fetch, verify, switch, commit."""
        allowed = self.client.authorize(envelope, self.now)
        path = self.fetch(allowed)
        self.switch(allowed, path)
        return allowed

    def fetch(self, allowed: Authorized) -> Path:
        """At most as many bytes as were signed for, and those with their digest."""
        with urllib.request.urlopen(allowed.urls[0], timeout=2) as stream:
            raw = stream.read(allowed.length + 1)
        if len(raw) > allowed.length:
            raise UpdateError(Reason.DOWNLOAD_TOO_LARGE, "more than was signed for")
        if hashlib.sha256(raw).hexdigest() != allowed.desired.digest:
            raise UpdateError(Reason.DOWNLOAD_DIGEST, "not what was signed for")
        path = self.folder / "candidate.edgeml"
        path.write_bytes(raw)
        return path

    def switch(self, allowed: Authorized, path: Path) -> None:
        try:
            bundle = read_bundle(path)
        except BundleError as error:
            raise UpdateError(Reason.BUNDLE_INVALID, str(error)) from error
        check_bundle(bundle, allowed)
        self.client.still(allowed, self.now)
        (self.folder / "running").write_text(bundle.sha256)
        self.client.committed(allowed)
