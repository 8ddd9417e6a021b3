"""Where messages go: ``edgeml/1/{tenant}/d/{device}/…``.

Device id, MQTT client id and the common name of the device's certificate are one word,
so that a broker can keep devices apart with two lines of patterns.
"""

import re
from dataclasses import dataclass
from typing import Final

MAJOR: Final = 1
"""Version of the protocol; another one has another root."""
ID = re.compile(r"[a-z0-9-]{1,64}")


@dataclass(frozen=True)
class Topics:
    """The topics of one device."""

    tenant: str
    device: str

    def __post_init__(self) -> None:
        for what, text in (("tenant", self.tenant), ("device", self.device)):
            if not ID.fullmatch(text):
                raise ValueError(f"{what} {text!r}: expected 1 to 64 of a-z, 0-9 and -")

    @property
    def root(self) -> str:
        """What all of them begin with."""
        return f"edgeml/{MAJOR}/{self.tenant}/d/{self.device}"

    @property
    def desired(self) -> str:
        """Down, QoS 1, retained: an envelope (:mod:`.envelope`) of a ``Desired``."""
        return f"{self.root}/dn/desired"

    @property
    def command(self) -> str:
        """Down, QoS 1, with expiry, response topic, correlation data: ``Command``."""
        return f"{self.root}/dn/cmd"

    @property
    def ack(self) -> str:
        """Down, QoS 1: ``Ack``, what the fleet's database has committed."""
        return f"{self.root}/dn/ack"

    @property
    def state(self) -> str:
        """Up, QoS 1, retained, also the Will: ``State``."""
        return f"{self.root}/up/state"

    @property
    def birth(self) -> str:
        """Up, QoS 1: ``Birth``."""
        return f"{self.root}/up/birth"

    @property
    def reported(self) -> str:
        """Up, QoS 1, retained: ``Reported``."""
        return f"{self.root}/up/reported"

    @property
    def records(self) -> str:
        """Up, QoS 1: ``Batch``, compressed as its content type says."""
        return f"{self.root}/up/rec"

    @property
    def response(self) -> str:
        """Up, QoS 1: ``Response`` to a command."""
        return f"{self.root}/up/rsp"

    @property
    def down(self) -> tuple[str, ...]:
        """What a device subscribes to."""
        return self.desired, self.command, self.ack


def ingest(group: str = "fleet") -> str:
    """The shared subscription by which a fleet service hears every device."""
    return f"$share/{group}/edgeml/{MAJOR}/+/d/+/up/#"


def parse(topic: str) -> tuple[Topics, str]:
    """Whose topic it is and which one (``up/birth``).

    Raises:
        ValueError: it is none of ours.
    """
    found = re.fullmatch(
        rf"edgeml/{MAJOR}/({ID.pattern})/d/({ID.pattern})/((?:up|dn)/[a-z]+)", topic
    )
    if found is None:
        raise ValueError(f"{topic!r:.200} is not a topic of edgeml/{MAJOR}")
    return Topics(found[1], found[2]), found[3]
