"""A publisher's story: keys, releases, refusals, two at once, cut off anywhere."""

import json
from datetime import timedelta
from pathlib import Path

import pytest
import registries
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from registries import House, house, release
from securesystemslib.signer import CryptoSigner, Key, Signature

from edgeml.errors import InputError, UsageError
from edgeml.registry import ceremony
from edgeml.registry.change import LOCK
from edgeml.registry.housekeeping import collect
from edgeml.registry.metadata import TIMESTAMP, versions
from edgeml.registry.storage import Folder, Objects, storage
from edgeml.registry.verify import verify


def problems(one: House) -> list[str]:
    return verify(one.storage, one.anchor, one.now).problems


def test_a_registry_is_made_published_to_and_sound(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    (first,) = one.publish(release("1.0.0", 1))
    (second,) = one.publish(release("2.0.0", 2))
    found = verify(one.storage, one.anchor, one.now)
    assert found.problems == []
    assert [each["digest"] for each in found.releases] == [first.digest, second.digest]
    assert [each["release_counter"] for each in found.releases] == [1, 2]
    roles = {each["role"]: each["version"] for each in found.roles}
    assert roles == {
        "root": 1, "targets": 2, "model-linear": 3, "snapshot": 4, "timestamp": 4,
    }  # fmt: skip


def test_private_keys_lie_encrypted(tmp_path: Path) -> None:
    house(tmp_path)
    names = {path.stem for path in (tmp_path / "keys").glob("*.pem")}
    assert names == {
        "root-1", "root-2", "root-3", "snapshot", "timestamp", "director",
    }  # fmt: skip
    for path in (tmp_path / "keys").glob("*.pem"):
        assert path.read_text().startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----")
        assert path.stat().st_mode & 0o077 == 0


def test_a_counter_that_does_not_grow_is_refused_with_the_way_out(
    tmp_path: Path,
) -> None:
    one = house(tmp_path, "linear")
    one.publish(release("1.0.0", 5))
    with pytest.raises(InputError, match=r"--counter next \(it becomes 6\)"):
        one.publish(release("2.0.0", 5))
    assert problems(one) == []


def test_a_release_is_never_replaced(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    one.publish(release("1.0.0", 1))
    one.publish(release("1.0.0", 1))  # the same bytes: nothing new
    with pytest.raises(InputError, match="other bytes"):
        one.publish(release("1.0.0", 2))


def test_a_model_without_a_team_is_refused(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    with pytest.raises(InputError, match="edgeml keys add NAME --model other"):
        one.publish(release("1.0.0", 1, name="other"))


def test_the_root_needs_two_of_three(tmp_path: Path) -> None:
    one = house(tmp_path)
    away = tmp_path / "away"
    away.mkdir()
    for name in ("root-2", "root-3"):
        for path in (tmp_path / "keys").glob(f"{name}.*"):
            path.rename(away / path.name)
    one.ring = one.ring_of(one.keys)
    change = one.change()
    ceremony.replace(
        change, "timestamp", one.ring.entry("timestamp").key, one.ring.make("t2").key
    )
    with pytest.raises(InputError, match="root needs 2 of 3 keys"):
        change.commit(one.storage)
    one.ring = one.ring_of(one.keys, away)
    change = one.change()
    ceremony.replace(
        change, "timestamp", one.ring.entry("timestamp").key, one.ring.entry("t2").key
    )
    change.commit(one.storage)
    assert problems(one) == []


def test_a_wrong_passphrase_is_said(tmp_path: Path) -> None:
    one = house(tmp_path)
    from edgeml.keys.ring import Ring

    ring = Ring([one.keys], lambda _: "wrong")
    with pytest.raises(InputError, match="key timestamp cannot be used"):
        ring.signer(ring.entry("timestamp"))


def test_a_key_may_be_elsewhere(tmp_path: Path) -> None:
    """As securesystemslib names it: here a file of its own scheme, else an HSM."""
    from cryptography.hazmat.primitives import serialization

    one = house(tmp_path, "linear")
    private = Ed25519PrivateKey.generate()
    pem = tmp_path / "token.pem"
    pem.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )  # fmt: skip
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    entry = one.ring.bring("token", f"file2:{pem}", public)
    change = one.change()
    team = one.ring.entry(registries.TEAM).key
    ceremony.replace(change, "linear", team, entry.key)
    change.commit(one.storage)
    one.publish(release("1.0.0", 1))
    assert problems(one) == []


def test_a_director_that_devices_cannot_verify_is_refused(tmp_path: Path) -> None:
    key = CryptoSigner(generate_private_key(SECP256R1())).public_key
    change = house(tmp_path, "linear").change()
    with pytest.raises(UsageError, match="ed25519 keys only; this one is ecdsa"):
        change.assign("director", [key], 1)


def test_a_key_that_does_not_sign_is_named(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    entry = one.ring.entry(registries.TEAM)

    class Locked(CryptoSigner):
        @property
        def public_key(self) -> Key:
            return entry.key

        def sign(self, payload: bytes) -> Signature:
            raise OSError("the token is locked")

    one.ring._signers[entry.key.keyid] = Locked(Ed25519PrivateKey.generate())
    before = one.storage.names("")
    with pytest.raises(InputError, match=f"key {entry.name} .* the token is locked"):
        one.publish(release("1.0.0", 1))
    found = [name for name in one.storage.names("") if name.startswith("metadata")]
    assert found == [name for name in before if name.startswith("metadata")]


@pytest.mark.parametrize(
    "role", ["root", "snapshot", "timestamp", "director", "linear"]
)
def test_every_key_is_rotated(tmp_path: Path, role: str) -> None:
    one = house(tmp_path, "linear")
    one.publish(release("1.0.0", 1))
    change = one.change()
    old = change.holders(role)[0][0]
    ceremony.replace(change, role, old, one.ring.make("another").key)
    change.commit(one.storage)
    assert problems(one) == []
    after = [key.keyid for key in one.change().holders(role)[0]]
    assert old.keyid not in after
    assert one.ring.entry("another").key.keyid in after
    one.publish(release("2.0.0", 2))
    assert problems(one) == []


def test_thresholds_change_and_are_kept(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    change = one.change()
    ceremony.add(change, "linear", one.ring.make("second").key, threshold=2)
    change.commit(one.storage)
    one.publish(release("1.0.0", 1))
    assert problems(one) == []
    change = one.change()
    with pytest.raises(UsageError, match="2 signatures and 1 keys would be left"):
        ceremony.revoke(change, "linear", one.ring.entry("second").key)
    (one.keys / "second.pem").unlink()
    (one.keys / "second.json").unlink()
    one.ring = one.ring_of(one.keys)
    with pytest.raises(InputError, match="linear needs 2 of 2 keys"):
        one.publish(release("2.0.0", 2))


def test_what_was_tampered_with_is_not_signed_again(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    one.publish(release("1.0.0", 1))
    (newest,) = versions(one.storage, "model-linear")[-1:]
    path = f"metadata/{newest}.model-linear.json"
    value = json.loads(one.storage.read(path) or b"")
    value["signed"]["version"] += 1
    one.storage.write(path, json.dumps(value).encode())
    with pytest.raises(InputError, match=r"model-linear\.json is not the file"):
        one.publish(release("2.0.0", 2))


def test_of_two_publishers_the_second_is_refused(tmp_path: Path) -> None:
    one = house(tmp_path, "linear", "other")
    mine, theirs = one.change(), one.change()
    from device_agent.contract.bundle import read_bundle
    from edgeml.registry.publish import publish

    first, second = release("1.0.0", 1), release("1.0.0", 1, name="other")
    publish(mine, one.storage, [(read_bundle(first), first)])
    publish(theirs, one.storage, [(read_bundle(second), second)])
    mine.commit(one.storage)
    with pytest.raises(InputError, match=r"somebody else (publishes|has published)"):
        theirs.commit(one.storage)
    assert [each["model"] for each in verify(
        one.storage, one.anchor, one.now).releases] == ["linear"]  # fmt: skip
    one.publish(second)
    assert problems(one) == []


def test_who_publishes_locks_the_others_out(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    one.storage.create(LOCK, b'{"at": "then"}')
    with pytest.raises(InputError, match="--take-over"):
        one.publish(release("1.0.0", 1))
    one.change().commit(one.storage, take_over=True)
    assert one.storage.read(LOCK) is None


class CutOff(Exception):  # noqa: N818 - a power cut is no error
    pass


class Failing(Folder):
    """A folder whose power is cut before the k-th durable effect, for ever."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self.left = at

    def _count(self) -> None:
        if self.left <= 0:
            raise CutOff
        self.left -= 1

    def write(self, path: str, data: bytes) -> None:
        self._count()
        super().write(path, data)

    def create(self, path: str, data: bytes) -> None:
        self._count()
        super().create(path, data)

    def remove(self, path: str) -> None:
        self._count()
        super().remove(path)


def _publishes(one: House) -> None:
    one.publish(release("2.0.0", 2))


def _rotates(role: str):  # type: ignore[no-untyped-def]
    def run(one: House) -> None:
        change = one.change()
        old = change.holders(role)[0][0]
        if "new" not in {each.name for each in one.ring.entries}:
            one.ring.make("new")
        if old.keyid != one.ring.entry("new").key.keyid:
            ceremony.replace(change, role, old, one.ring.entry("new").key)
        change.commit(one.storage, take_over=True)

    return run


@pytest.mark.parametrize(
    "act",
    [_publishes, *map(_rotates, ("root", "timestamp", "snapshot", "linear"))],
    ids=["publish", "root", "timestamp", "snapshot", "team"],
)
def test_cut_off_anywhere_the_registry_is_sound_and_it_can_be_done_again(
    tmp_path: Path, act
) -> None:  # type: ignore[no-untyped-def]
    points = 0
    for point in range(40):
        one = house(tmp_path / str(point), "linear")
        one.publish(release("1.0.0", 1))
        sound = one.storage
        one.storage = Failing(tmp_path / str(point) / "registry", point)
        try:
            act(one)
            finished = True
        except CutOff:
            finished = False
        one.storage = sound
        assert problems(one) == [], f"cut off before effect {point}"
        if finished:
            break
        points += 1
        sound.remove(LOCK)
        act(one)
        assert problems(one) == [], f"again after a cut before effect {point}"
    assert finished
    assert points >= 4


def test_refresh_signs_what_is_due(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    assert one.refresh() == [TIMESTAMP]
    one.now += timedelta(days=2, hours=20)
    assert any("timestamp expires" in line for line in problems(one))
    assert one.refresh() == [TIMESTAMP]
    assert problems(one) == []
    one.now += timedelta(days=15)
    assert any("timestamp has expired" in line for line in problems(one))
    assert len(one.refresh()) == 2
    assert problems(one) == []


def test_after_a_theft_of_the_online_keys_the_roles_count(tmp_path: Path) -> None:
    """Fast forward: the thief's snapshot and timestamp are not built upon."""
    one = house(tmp_path, "linear")
    one.publish(release("1.0.0", 1))
    change = one.change()
    change.state.snapshot.signed.version = 1 << 30
    change.state.timestamp.signed.version = 1 << 30
    change.state.snapshot.signed.meta["model-linear.json"].version = 1 << 30
    change.touch("snapshot")
    change.commit(one.storage)
    with pytest.raises(InputError, match="which its metadata lists"):
        one.publish(release("2.0.0", 2))
    change = one.change(rebuild=True)
    for role in ("snapshot", "timestamp"):
        old = change.holders(role)[0][0]
        ceremony.replace(change, role, old, one.ring.make(f"new-{role}").key)
    change.touch("snapshot")
    change.commit(one.storage)
    one.publish(release("2.0.0", 2))
    assert problems(one) == []


def test_every_problem_of_the_files_is_told(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    paths = [
        registries.file_of(one.publish(release(f"{n}.0.0", n))[0]) for n in range(1, 5)
    ]
    raw = one.storage.read(paths[0]) or b""
    one.storage.remove(paths[0])
    one.storage.write(paths[1], raw[:-1])
    one.storage.write(paths[2], raw)
    found = problems(one)
    assert len(found) >= 3
    assert "is not there" in found[0]
    assert "bytes;" in found[1]
    assert any("linear/1.0.0" in line for line in found[2:])


def test_gc_removes_what_nothing_lists(tmp_path: Path) -> None:
    one = house(tmp_path, "linear")
    for number in range(1, 6):
        one.publish(release(f"{number}.0.0", number))
    one.storage.write("targets/linear/9/stray.cpu.edgeml", b"left by a cut-off publish")
    told = collect(one.storage, one.anchor, keep=2, remove=False)
    assert problems(one) == []
    removed = collect(one.storage, one.anchor, keep=2, remove=True)
    assert told == removed
    assert "targets/linear/9/stray.cpu.edgeml" in {each["path"] for each in removed}
    assert problems(one) == []
    assert len(versions(one.storage, "snapshot")) == 2
    assert versions(one.storage, "root") == [1]
    one.publish(release("6.0.0", 6))
    assert problems(one) == []


def test_an_object_store_serves_as_well(tmp_path: Path) -> None:
    place = storage("memory://bucket/one")
    assert isinstance(place, Objects)
    one = House(place, tmp_path / "keys").begin("linear")
    one.publish(release("1.0.0", 1))
    assert problems(one) == []
    with pytest.raises(FileExistsError):
        place.create(TIMESTAMP, b"")
