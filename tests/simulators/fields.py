"""A device in the field, with everything that it depends on, for a test's time.

::

    with fielded(tmp_path) as site, site.agent() as device:
        one = release(1)
        site.publish(one)
        site.want(one, serial=1)
        assert site.ended(1).outcome is Outcome.COMMITTED

A real mosquitto, a registry made by the publisher's own code behind a real web server,
a fleet that hears the device, and the agent in its own process, as it is installed. The
one thing that is not done as in the field is the enrolment: its files are written.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import agents
import bundles
import numpy as np
from brokers import TENANT, Broker, broker
from fleets import Fleet, fleet
from linked import identity
from registries import House, house
from webserver import WebServer, serving

from device_agent.contract.codes import Outcome
from device_agent.contract.messages import Attempt, Reported
from device_agent.contract.topics import Topics
from device_agent.identity import FOLDER, write_identity
from edgeml.bundling.bundle import pack

DEVICE = "device-1"
TOML = """
[update]
trial_s = 4.0
trial_least_s = 0.5
trial_inferences = 50
recheck_s = 0.3
hang_s = 4.0
growth_bytes = 67108864
gate_latency = false
[link]
reconnect_max_s = 4.0
[sandbox]
memory_bytes = 1073741824
cpu_s = 5
wall_s = 30.0
"""
"""A trial for which a test need not wait, and a link that does not take one partition
after the other for a reason to ask ever less often."""
X = np.ones((1, 4), np.float32)
_Y = np.maximum(X @ bundles.WEIGHT, 0)


def release(number: int, ballast: int = 0, **changes: Any) -> bytes:
    """``linear`` in version ``number``.0.0, which answers ``number`` times as much;
    with so many bytes of ballast, which cannot be compressed."""
    weight = bundles.WEIGHT * np.float32(number)
    members = bundles.members(weight)
    if ballast:
        card = np.random.default_rng(number).bytes(ballast)
        members["card.md"] = ("card", card)
    plain = {"version": f"{number}.0.0", "release_counter": number}
    return pack(bundles.manifest(**{**plain, **changes}), members)


def check(document: Mapping[str, Any]) -> str:
    """The version that an answer names; it must be its own answer."""
    version = str(document["model_version"])
    (output,) = document["outputs"]
    number = float(version.partition(".")[0])
    np.testing.assert_allclose([output["data"]], _Y * number, 1e-5)
    return version


@dataclass
class Field:
    """What there is but the agent."""

    folder: Path
    broker: Broker
    fleet: Fleet
    house: House
    server: WebServer
    _stack: ExitStack
    _old: list[Fleet] = field(default_factory=list)

    @property
    def state(self) -> Path:
        """The agent's state directory."""
        return self.folder / "state"

    def enrol(self) -> None:
        """Leave what enrolment leaves."""
        folder = self.state / FOLDER
        document = identity(self.broker, DEVICE, folder).document
        document = document.model_copy(update={"registry": (self.server.url,)})
        (folder / "root.json").write_bytes(self.house.anchor)
        key = self.house.ring.entry("director").key
        (folder / "director.json").write_bytes(
            _json({"keys": {key.keyid: key.to_dict()}})
        )
        (folder / "identity.json").write_bytes(write_identity(document))

    @contextmanager
    def agent(
        self, toml: str = TOML, bundles: Sequence[Path] = (), **options: Any
    ) -> Iterator[agents.Agent]:
        """The agent, until the end of the block."""
        with agents.agent(
            bundles, toml, ["--state", str(self.state)], **options
        ) as one:
            yield one

    def rejoin(self) -> None:
        """The fleet's session ended with the broker; it begins another."""
        self.fleet.peer.close()
        peer = self._stack.enter_context(self.broker.peer(f"fleet-{len(self._old)}"))
        self._old.append(self.fleet)
        self.fleet = Fleet(peer)
        peer.subscribe(f"{Topics(TENANT, DEVICE).root}/up/reported")  # retained, too

    def publish(self, *raw: bytes) -> None:
        """Publish releases."""
        self.house.now = datetime.now(UTC)
        self.house.publish(*raw)

    def want(self, raw: bytes, serial: int, **changes: Any) -> None:
        """The director wants that release, in its ``serial``-th word."""
        until = datetime.now(UTC) + timedelta(days=1)
        envelope = self.house.envelope(raw, serial, not_after=until, **changes)
        self.fleet.desired(DEVICE, envelope)

    def reported(self) -> list[Reported]:
        """What the device said of itself, in order."""
        heard = [*self._old, self.fleet]
        return [said for one in heard for said in one.said(DEVICE, "reported")]

    def ended(self, serial: int, within_s: float = 60.0) -> Attempt:
        """Wait until the device says that its attempt at that word has ended."""

        def last() -> Attempt | None:
            found = [one.attempt for one in self.reported() if one.attempt]
            ends = [one for one in found if one.serial == serial and one.outcome]
            return ends[-1] if ends else None

        return self.until(last, f"an end of attempt {serial}", within_s)

    def until(self, what: Callable[[], Any], name: str, within_s: float = 60.0) -> Any:
        """Wait for something that is not nothing."""
        end = time.monotonic() + within_s
        while time.monotonic() < end:
            found = what()
            if found:
                return found
            time.sleep(0.01)
        raise AssertionError(f"no {name} in {within_s:g} s: {self.reported()[-3:]}")

    def runs(self, counter: int) -> bool:
        """Whether the device said last that it runs the release of that counter."""
        found = self.reported()
        running = found[-1].running if found else None
        return running is not None and running.counter == counter

    def steps(self) -> list[tuple[str, Outcome | None]]:
        """The steps that the fleet has stored."""
        found = [one for one in self.fleet.stored(DEVICE) if "step" in one]
        return [(one["phase"], one["outcome"]) for one in found]


@contextmanager
def fielded(folder: Path, *models: str, **served: Any) -> Iterator[Field]:
    """Broker, fleet, registry and web server; the device is enrolled.

    Args:
        folder: where all of it lies.
        models: the registry's; none: ``linear``.
        served: further arguments of the web server.
    """
    made = house(folder, *(models or ("linear",)), now=datetime.now(UTC))
    (folder / "registry").mkdir(exist_ok=True)
    with (
        broker() as one,
        fleet(one) as heard,
        serving(folder / "registry", **served) as server,
        ExitStack() as stack,
    ):
        site = Field(folder, one, heard, made, server, stack)
        site.enrol()
        yield site


def digest(raw: bytes) -> str:
    """A bundle's name."""
    return hashlib.sha256(raw).hexdigest()


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()
