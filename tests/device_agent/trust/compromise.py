"""What stolen keys allow, found by trying: for a set of powers, every attack is run.

A thief signs with the keys that were stolen, and with one of its own where it lacks
them. ``transport``: it writes the registry's files or sits on the way, and what it says
reaches the device's topic.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

from registries import release
from thieves import NEW, NEXT, OLDER, Ground, Thief, World, evil

from device_agent.contract.bundle import read_bundle
from device_agent.contract.codes import Reason
from device_agent.contract.messages import Release
from device_agent.errors import UpdateError
from edgeml.bundling.bundle import renumbered
from edgeml.keys.director import sign_desired

POWERS = (
    "root-1", "root-2", "root-3", "team", "snapshot", "timestamp", "director",
    "transport",
)  # fmt: skip
FAR = timedelta(days=36_500)
NOTICED_DAYS = (3, 21, 365)
"""When timestamp, snapshot and what people signed have expired."""
NEVER = 0
Powers = frozenset[str]


@dataclass(frozen=True)
class Damage:
    """What a set of powers allows."""

    arbitrary: bool
    """Run what nobody honest has signed."""
    old: bool
    """Run a model that is older than what runs."""
    choose: bool
    """Run a valid release that the fleet does not want."""
    freeze: int | None
    """Keep the newest release away; noticed after so many days (:data:`NEVER`: not
    at all). None: it cannot."""


def subsets() -> Iterator[Powers]:
    """All sets of powers."""
    for size in range(len(POWERS) + 1):
        for some in combinations(POWERS, size):
            yield frozenset(some)


def damage(powers: Powers, ground: Ground, folder: Path) -> Damage:
    """Try everything with these powers."""
    tried = _Tries(powers, ground, folder)
    if "transport" not in powers:
        return tried.unheard()
    return Damage(
        arbitrary=tried.ends(
            lambda world: tried.planted(world, release("6.6.6", 66)),
        ),
        old=tried.ends(
            lambda world: tried.planted(
                world, renumbered(read_bundle(release(*OLDER)), 66)
            ),
            lambda world: tried.asked(world, OLDER),
            lambda world: (world.show("older"), tried.asked(world, OLDER))[1],
        ),
        choose=tried.ends(lambda world: tried.asked(world, NEW)),
        freeze=tried.frozen(),
    )


class _Tries:
    """One thief, many attempts; each against a fresh device."""

    def __init__(self, powers: Powers, ground: Ground, folder: Path) -> None:
        self._powers = powers
        self._ground = ground
        self._folder = folder
        self._count = 0
        self._roots = sorted(one for one in powers if one.startswith("root"))

    def ends(self, *attacks: Callable[[World], tuple[bytes, str]]) -> bool:
        """Whether one of the attacks makes a device run what the thief wants."""
        for attack in attacks:
            for own_root in (False, True) if self._roots else (False,):
                with self._world() as world:
                    if own_root:
                        self._own(world.thief)
                    self._own_root = own_root
                    envelope, digest = attack(world)
                    try:
                        world.device.update(envelope)
                    except UpdateError:
                        continue
                    if world.device.running == digest:
                        return True
        return False

    def planted(self, world: World, raw: bytes) -> tuple[bytes, str]:
        """List bytes as a release, and say that they are wanted."""
        bundle = read_bundle(raw)
        manifest = bundle.manifest
        thief = world.thief
        thief.plant(
            raw, self._key("team-linear", "team"),
            path=f"linear/{manifest.version}/{manifest.target}.edgeml",
            release_counter=manifest.release_counter,
            online=(self._key("snapshot"), self._key("timestamp")),
        )  # fmt: skip
        return self._desired(world, raw), bundle.sha256

    def asked(self, world: World, which: tuple[str, int]) -> tuple[bytes, str]:
        """Say that a release is wanted that was published once."""
        raw = release(*which)
        return self._desired(world, raw), read_bundle(raw).sha256

    def frozen(self) -> int | None:
        """How long the newest release can be kept away before that is noticed."""
        for days in NOTICED_DAYS:
            with self._world() as world:
                self._renew(world.thief)
                world.device.now += (days + 1) * 86_400
                until = world.honest.now + FAR
                try:
                    world.device.update(world.wanted(NEXT, not_after=until))
                except UpdateError as error:
                    if error.reason is Reason.METADATA_EXPIRED:
                        return days
                    continue
                return None
        return NEVER

    def unheard(self) -> Damage:
        """Without a way to the device: it goes on with what is honest."""
        with self._world() as world:
            self._key("team-linear", "team")
            world.show("next")
            world.device.update(world.wanted(NEXT))
            honest = world.honest.desired(release(*NEXT)).digest
            other = world.device.running != honest
        return Damage(other, other, other, None)

    def _world(self) -> Any:
        self._count += 1
        self._own_root = False
        return self._ground.world(self._folder / str(self._count))

    def _key(self, name: str, power: str | None = None) -> str:
        """That key if it was stolen, else the thief's own."""
        return (
            name if not self._own_root and (power or name) in self._powers else "evil"
        )

    def _desired(self, world: World, raw: bytes) -> bytes:
        manifest = read_bundle(raw).manifest
        wanted = world.honest.desired(raw, 99).model_copy(
            update={"release": Release(model="linear", version=manifest.version)}
        )
        return sign_desired(wanted, world.thief.signer(self._key("director")))

    def _own(self, thief: Thief) -> None:
        """A root of the thief's: every role, every model and the director are its own.

        It is signed by all root keys that were stolen.
        """
        key = evil().public_key
        far = (thief.house.now + FAR).replace(microsecond=0)

        def root(signed: Any) -> None:
            signed.keys = {key.keyid: key}
            signed.expires = far
            for role in signed.roles.values():
                role.keyids, role.threshold = [key.keyid], 1

        def targets(signed: Any) -> None:
            signed.expires = far
            signed.unrecognized_fields["director"] = {key.keyid: key.to_dict()}
            signed.delegations.keys = {key.keyid: key}
            for role in signed.delegations.roles.values():
                role.keyids, role.threshold = [key.keyid], 1

        def later(signed: Any) -> None:
            signed.expires = far

        thief.sign("root", *self._roots, "evil", edit=root)
        thief.sign("targets", "evil", edit=targets)
        for role in ("model-linear", "model-other"):
            thief.sign(role, "evil", edit=later)
        thief.relist(
            "targets", "model-linear", "model-other",
            snapshot="evil", timestamp="evil", until=far,
        )  # fmt: skip

    def _renew(self, thief: Thief) -> None:
        """Sign again what can be, so that nothing seems to be late."""
        far = (thief.house.now + FAR).replace(microsecond=0)
        if len(self._roots) >= 2:
            self._own(thief)
        elif {"snapshot", "timestamp"} <= self._powers:
            thief.relist(until=far)
        elif "timestamp" in self._powers:
            thief.stamp(until=far)
