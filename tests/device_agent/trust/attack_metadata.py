"""Rows against the registry's metadata: forged, old, mixed, delegated too far."""

from datetime import timedelta
from typing import Any

from registries import House
from thieves import OLD, OLDER, World, evil
from tuf.api.metadata import DelegatedRole, Delegations, Key, Metadata

from device_agent.contract.codes import Reason
from device_agent.contract.messages import Release
from edgeml.registry import ceremony
from edgeml.registry.metadata import TIMESTAMP, to_bytes, versioned, versions
from edgeml.registry.storage import Folder

from .attacks import attack, edited, row

FAR = 1 << 30


def _publisher_of(world: World, state: str) -> House:
    """The honest publisher, of a state that the device is shown."""
    house = House(Folder(world.folder / state), world.honest.keys)
    house.ring, house.now = world.honest.ring, world.honest.now
    world.thief.stole.add("timestamp")  # versions run ahead of what comes next
    return house


def _newest(role: str) -> Any:
    def path(world: World) -> str:
        if role == "timestamp":
            return TIMESTAMP
        return versioned(versions(world.thief.storage, role)[-1], role)

    return path


def _bump(value: Any) -> None:
    value["signed"]["version"] += 1


# -- arbitrary software: signatures that are missing, wrong or of the wrong people

for _role, _reason in (
    ("timestamp", Reason.METADATA_SIGNATURE),
    ("snapshot", Reason.METADATA_SIGNATURE),
    ("model-linear", Reason.METADATA_SIGNATURE),
):
    row("arbitrary", f"{_role} edited in place", _reason, edited(_newest(_role), _bump))


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def timestamp_by_a_key_that_nobody_trusts(world: World) -> None:
    world.thief.stamp("evil")


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def snapshot_by_a_key_that_nobody_trusts(world: World) -> None:
    world.thief.relist(snapshot="evil")


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def targets_by_a_key_that_nobody_trusts(world: World) -> None:
    world.thief.sign("targets", "evil")
    world.thief.relist("targets")


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def release_by_a_key_that_nobody_trusts(world: World) -> bytes:
    world.thief.plant(b"evil", "evil")
    return world.claimed(b"evil")


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def release_by_the_team_of_another_model(world: World) -> bytes:
    world.thief.plant(b"evil", "team-other")
    return world.claimed(b"evil")


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def release_by_the_director(world: World) -> bytes:
    world.thief.plant(b"evil", "director")
    return world.claimed(b"evil")


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def release_without_any_signature(world: World) -> bytes:
    world.thief.plant(b"evil")
    return world.claimed(b"evil")


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def targets_by_snapshot_and_timestamp_keys(world: World) -> None:
    world.thief.sign("targets", "snapshot", "timestamp")
    world.thief.relist("targets")


def _own(signed: Any) -> None:
    """A root in which all keys are the thief's."""
    key = evil().public_key
    signed.keys = {key.keyid: key}
    for role in signed.roles.values():
        role.keyids, role.threshold = [key.keyid], 1


for _keys in ((), ("evil",), ("evil", "root-1"), ("root-1", "snapshot", "timestamp")):
    row(
        "arbitrary", f"new root by {' and '.join(_keys) or 'nobody'}",
        Reason.METADATA_SIGNATURE,
        lambda world, keys=_keys: world.thief.sign("root", *keys, edit=_own) and None,
    )  # fmt: skip


@attack("arbitrary", Reason.METADATA_SIGNATURE)
def new_root_by_the_old_keys_but_not_by_its_own(world: World) -> None:
    world.thief.sign("root", "root-1", "root-2", edit=_own)


@attack("keys", Reason.METADATA_MALFORMED)
def one_key_signs_twice(world: World) -> None:
    path = versioned(2, "root")
    world.thief.sign("root", "root-1", edit=_own)
    edited(lambda _: path, lambda value: value["signatures"].extend(
        value["signatures"]))(world)  # fmt: skip


@attack("keys", Reason.METADATA_SIGNATURE)
def one_key_under_two_ids_reaches_the_threshold(world: World) -> None:
    def twice(signed: Any) -> None:
        key = world.honest.ring.entry("timestamp").key
        twin = Key.from_dict("f" * 64, key.to_dict())
        signed.keys[twin.keyid] = twin
        role = signed.roles["timestamp"]
        role.keyids, role.threshold = [key.keyid, twin.keyid], 2

    world.thief.sign("root", "root-1", "root-2", "root-3", edit=twice)

    stamp = world.thief.sign("timestamp", "timestamp")
    (one,) = stamp.signatures.values()
    again = type(one)("f" * 64, one.signature, dict(one.unrecognized_fields))
    stamp.signatures[again.keyid] = again
    world.thief.write("timestamp", stamp)


@attack("keys", Reason.METADATA_SIGNATURE)
def fewer_signatures_than_the_threshold(world: World) -> bytes:
    house = _publisher_of(world, "shown")
    change = house.change()
    ceremony.add(change, "linear", house.ring.entry("team-other").key, threshold=2)
    change.commit(house.storage)
    world.thief.plant(b"evil", "team-linear")
    return world.claimed(b"evil")


@attack("keys", Reason.METADATA_SIGNATURE)
def a_revoked_team_key(world: World) -> bytes:
    house = _publisher_of(world, "shown")
    change = house.change()
    ring = house.ring
    ceremony.replace(
        change, "linear", ring.entry("team-linear").key, ring.entry("team-other").key
    )
    change.commit(house.storage)
    world.thief.plant(b"evil", "team-linear")
    return world.claimed(b"evil")


@attack("keys", Reason.METADATA_SIGNATURE)
def a_revoked_timestamp_key(world: World) -> None:
    """The device follows the new root; the thief has the former key."""

    def swap(signed: Any) -> None:
        key = world.honest.ring.entry("spare").key
        signed.keys[key.keyid] = key
        signed.roles["timestamp"].keyids = [key.keyid]

    world.thief.sign("root", "root-1", "root-2", edit=swap)
    world.thief.stamp("timestamp")
    _heal_after_root(world)


def _heal_after_root(world: World) -> None:
    """The honest registry goes on from the root that the device has followed."""
    house = world.honest
    raw = world.thief.storage.read(versioned(2, "root")) or b""
    house.storage.write(versioned(2, "root"), raw)
    change = house.change(rebuild=True)
    for role in ("snapshot", "timestamp"):
        spare = house.ring.entry(f"spare-{role}").key
        change.assign(role, [spare], 1)
    change.touch("snapshot")
    change.commit(house.storage)
    world.healed = True


# -- rollback: of every role, by files alone and by stolen online keys


@attack("rollback", Reason.METADATA_ROLLBACK)
def the_whole_registry_as_it_was(world: World) -> None:
    world.show("older")


@attack("rollback", Reason.METADATA_ROLLBACK)
def snapshot_by_a_stolen_timestamp_key(world: World) -> None:
    def older(signed: Any) -> None:
        signed.snapshot_meta.version -= 2
        signed.snapshot_meta.hashes = signed.snapshot_meta.length = None

    world.thief.stamp(edit=older)


def _listed(role: str, by: int) -> Any:
    def act(world: World) -> None:
        def older(signed: Any) -> None:
            meta = signed.meta[f"{role}.json"]
            meta.version -= by
            meta.hashes = meta.length = None

        world.thief.relist(edit=older)

    return act


row("rollback", "targets by stolen online keys", Reason.METADATA_ROLLBACK,
    _listed("targets", 1))  # fmt: skip
row("rollback", "team metadata by stolen online keys", Reason.METADATA_ROLLBACK,
    _listed("model-linear", 2))  # fmt: skip


@attack("rollback", Reason.METADATA_MALFORMED)
def a_role_is_left_out_of_the_snapshot(world: World) -> None:
    world.thief.relist(edit=lambda signed: signed.meta.pop("model-linear.json"))


@attack("rollback", Reason.METADATA_ROLLBACK)
def the_old_root_as_the_next(world: World) -> None:
    raw = world.thief.storage.read(versioned(1, "root")) or b""
    world.thief.storage.write(versioned(2, "root"), raw)


@attack("rollback", Reason.RELEASE_ROLLBACK)
def the_director_asks_for_an_older_release(world: World) -> bytes:
    return world.wanted(OLDER)


@attack("rollback", Reason.RELEASE_ROLLBACK)
def another_bundle_of_the_counter_that_runs(world: World) -> bytes:
    world.thief.plant(b"evil", "team-linear", release_counter=OLD[1])
    release = Release(model="linear", version="6.6.6")
    return world.claimed(b"evil", release=release, counter=OLD[1])


# -- replay after the loss of what the device has seen


def _lose(*names: str) -> Any:
    def act(world: World) -> None:
        world.device.client.close()
        for name in names:
            for path in (world.folder / "device").rglob(f"{name}*"):
                path.unlink()
        world.device.open()
        world.show("older")

    return act


row("replay", "database of metadata lost", Reason.METADATA_ROLLBACK, _lose("trust.db"))
row("replay", "file of floors lost", Reason.METADATA_ROLLBACK, _lose("floors.json"))


@attack("replay", Reason.METADATA_ROLLBACK)
def database_damaged(world: World) -> None:
    world.device.client.close()
    path = world.folder / "device/state/trust.db"
    path.write_bytes(b"\xff" * path.stat().st_size)
    world.device.open()
    assert any("put aside" in note for note in world.device.client.notes)
    world.show("older")


@attack("replay", Reason.METADATA_ROLLBACK)
def file_of_floors_damaged(world: World) -> None:
    world.device.client.close()
    path = world.folder / "device/floors/floors.json"
    path.write_bytes(path.read_bytes().replace(b'"root":1', b'"root":0'))
    world.device.open()
    assert any("damaged" in note for note in world.device.client.notes)
    world.show("older")


@attack("replay", Reason.METADATA_ROLLBACK)
def metadata_lost_and_only_the_newest_root_held_back(world: World) -> None:
    """The device has followed root 2; all metadata is lost; root 1 is shown."""
    world.thief.sign("root", "root-1", "root-2")
    world.device.client.authorize(world.wanted(), world.device.now)
    _heal_after_root(world)
    _lose("trust.db")(world)
    world.show("new")


# -- freeze


def _expires(role: str, *keys: str) -> Any:
    def act(world: World) -> None:
        def ended(signed: Any) -> None:
            signed.expires = (world.honest.now - timedelta(hours=1)).replace(
                microsecond=0
            )

        world.thief.sign(role, *keys, edit=ended)
        if role == "snapshot":
            world.thief.stamp()
        elif role not in ("root", "timestamp"):
            world.thief.relist(role)
        if role == "root":
            _heal_after_root(world)

    return act


row("freeze", "timestamp has expired", Reason.METADATA_EXPIRED,
    _expires("timestamp", "timestamp"))  # fmt: skip
row("freeze", "snapshot has expired", Reason.METADATA_EXPIRED,
    _expires("snapshot", "snapshot"))  # fmt: skip
row("freeze", "targets have expired", Reason.METADATA_EXPIRED,
    _expires("targets", "root-1", "root-2"))  # fmt: skip
row("freeze", "team metadata has expired", Reason.METADATA_EXPIRED,
    _expires("model-linear", "team-linear"))  # fmt: skip
row("freeze", "root has expired", Reason.METADATA_EXPIRED,
    _expires("root", "root-1", "root-2"))  # fmt: skip


@attack("freeze", Reason.TARGET_UNKNOWN)
def the_registry_is_held_where_it_was(world: World) -> None:
    world.show("old")


# -- fast forward


@attack("fast-forward", Reason.METADATA_UNREACHABLE)
def stolen_online_keys_jump_ahead(world: World) -> None:
    """All versions are poisoned; the rotated keys begin anew (the floors, too)."""

    def far(signed: Any) -> None:
        signed.version = FAR
        for meta in signed.meta.values():
            meta.version = FAR
            meta.hashes = meta.length = None

    world.thief.relist(edit=far)
    world.thief.stamp(edit=lambda signed: setattr(signed, "version", FAR))


@attack("fast-forward", Reason.METADATA_ROLLBACK)
def a_root_that_jumps_ahead(world: World) -> None:
    metadata = world.thief.current("root")
    metadata.signed.version = 99
    metadata.signatures.clear()
    for name in ("root-1", "root-2"):
        metadata.sign(world.thief.signer(name), append=True)
    world.thief.storage.write(versioned(2, "root"), to_bytes(metadata))


# -- mix and match


def _served(role: str, of: str, back: int = 0) -> Any:
    """One metadata file in the place of another."""

    def act(world: World) -> None:
        storage = world.thief.storage
        there = versions(storage, of)
        raw = storage.read(versioned(there[-1 - back], of)) or b""
        storage.write(_newest(role)(world), raw)

    return act


row("mix-and-match", "an older snapshot in the place of the new",
    Reason.METADATA_SIGNATURE, _served("snapshot", "snapshot", 1))  # fmt: skip
row("mix-and-match", "older team metadata in the place of the new",
    Reason.METADATA_SIGNATURE, _served("model-linear", "model-linear", 1))  # fmt: skip
row("mix-and-match", "another team's metadata in the place of this one's",
    Reason.METADATA_SIGNATURE, _served("model-linear", "model-other"))  # fmt: skip
row("mix-and-match", "targets in the place of the snapshot",
    Reason.METADATA_TOO_LARGE, _served("snapshot", "targets"))  # fmt: skip


@attack("mix-and-match", Reason.METADATA_SIGNATURE)
def another_teams_metadata_listed_by_stolen_online_keys(world: World) -> None:
    _served("model-linear", "model-other")(world)
    world.thief.relist("model-linear")


@attack("mix-and-match", Reason.METADATA_MALFORMED)
def targets_as_the_snapshot_by_stolen_online_keys(world: World) -> None:
    storage = world.thief.storage
    targets: Metadata[Any] = world.thief.current("targets")
    targets.signatures.clear()
    targets.sign(world.thief.signer("snapshot"))
    storage.write(_newest("snapshot")(world), to_bytes(targets))
    world.thief.stamp()


# -- delegations


@attack("delegation", Reason.TARGET_UNKNOWN)
def a_team_lists_the_release_of_another_model(world: World) -> bytes:
    path = "linear/6.6.6/cpu-x86_64.edgeml"
    world.thief.plant(b"evil", "team-other", role="model-other", path=path)
    return world.claimed(b"evil", release=Release(model="linear", version="6.6.6"))


@attack("delegation", Reason.TARGET_UNKNOWN)
def a_team_delegates_what_it_does_not_have(world: World) -> bytes:
    """Of ``other`` to a key of its own for all of ``linear``."""

    def delegate(signed: Any) -> None:
        key = evil().public_key
        role = DelegatedRole("all", [key.keyid], 1, False, paths=["*/*/*"])
        signed.delegations = Delegations({key.keyid: key}, {"all": role})

    world.thief.sign("model-other", "team-other", edit=delegate)
    world.thief.relist("model-other")
    return world.claimed(b"evil", release=Release(model="linear", version="6.6.6"))


@attack("delegation", Reason.TARGET_UNKNOWN)
def a_team_delegates_in_circles(world: World) -> bytes:
    def circle(signed: Any) -> None:
        key = world.thief.signer("team-linear").public_key
        role = DelegatedRole(
            "model-linear", [key.keyid], 1, False, paths=["linear/*/*"]
        )
        signed.delegations = Delegations({key.keyid: key}, {"model-linear": role})

    world.thief.sign("model-linear", "team-linear", edit=circle)
    world.thief.relist("model-linear")
    return world.claimed(b"evil", release=Release(model="linear", version="6.6.6"))


@attack("delegation", Reason.TARGET_UNKNOWN)
def a_model_of_the_name_of_a_role(world: World) -> bytes:
    return world.claimed(b"evil", release=Release(model="targets", version="1.0.0"))
