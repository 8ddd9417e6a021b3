"""``scripts/tuf-client``, driven as the public conformance suite drives a client:
commands, exit codes, the metadata that it trusts, the requests that it makes."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from liars import Liar
from registries import House, release, stored
from thieves import NEW, Ground, World

from edgeml.registry import ceremony
from edgeml.registry.storage import Folder

CLIENT = Path(__file__).resolve().parents[3] / "scripts/tuf-client"
NAME = "linear/2.0.0/cpu-x86_64.edgeml"


@dataclass
class Client:
    """The client under test."""

    folder: Path
    server: Liar

    def run(self, *words: str) -> int:
        done = subprocess.run(
            [CLIENT, "--metadata-dir", str(self.folder / "metadata"), *words],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert "Traceback" not in done.stderr
        return done.returncode

    def init(self, root: bytes) -> int:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "initial_root.json").write_bytes(root)
        (self.folder / "metadata").mkdir(exist_ok=True)
        return self.run("init", str(self.folder / "initial_root.json"))

    def refresh(self) -> int:
        return self.run("--metadata-url", f"{self.server.url}/metadata", "refresh")

    def download(self, name: str = NAME) -> int:
        return self.run(
            "--metadata-url", f"{self.server.url}/metadata", "--target-name", name,
            "--target-base-url", f"{self.server.url}/targets",
            "--target-dir", str(self.folder / "targets"), "download",
        )  # fmt: skip

    def version(self, role: str) -> int:
        raw = (self.folder / f"metadata/{role}.json").read_bytes()
        return int(json.loads(raw)["signed"]["version"])

    def downloaded(self) -> list[bytes]:
        files = (self.folder / "targets").rglob("*")
        return [one.read_bytes() for one in files if one.is_file()]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture
def world(ground: Ground, tmp_path: Path) -> Iterator[World]:
    """Signed to be good now, by the machine's own clock."""
    with ground.world(tmp_path / "world") as made:
        far = timedelta(days=36_500)
        late = made.honest.now.replace(microsecond=0) + far

        def later(signed: object) -> None:
            signed.expires = late  # type: ignore[attr-defined]

        made.thief.sign("root", "root-1", "root-2", edit=later)
        made.thief.sign("targets", "root-1", "root-2", edit=later)
        made.thief.sign("model-linear", "team-linear", edit=later)
        made.thief.relist("targets", "model-linear", until=late)
        yield made


@pytest.fixture
def client(world: World, tmp_path: Path) -> Client:
    made = Client(tmp_path / "client", world.server)
    assert made.init(world.honest.anchor) == 0
    assert world.server.asked == []
    return made


def test_init_refresh_download(client: Client, world: World) -> None:
    assert client.refresh() == 0
    assert [client.version(role) for role in ("root", "timestamp", "targets")] == [
        2, world.thief.current("timestamp").signed.version,
        world.thief.current("targets").signed.version,
    ]  # fmt: skip
    assert client.download() == 0
    assert client.downloaded() == [release(*NEW)]
    digest = world.honest.desired(release(*NEW)).digest
    path = f"/{stored(NAME, digest)}"
    assert world.server.asked.count(path) == 1
    assert client.download() == 0
    assert world.server.asked.count(path) == 1, "what is there is not fetched again"


@pytest.mark.long
def test_metadata_is_asked_for_in_the_order_of_the_specification(
    client: Client, world: World
) -> None:
    assert client.refresh() == 0
    names = [path.rpartition("/")[2] for path in world.server.asked]
    roles = [name.removesuffix(".json").split(".", 1)[-1] for name in names]
    assert roles == ["root", "root", "timestamp", "snapshot", "targets"]


@pytest.mark.long
def test_nothing_new_is_success(client: Client) -> None:
    assert client.refresh() == client.refresh() == 0


@pytest.mark.long
@pytest.mark.parametrize("role", ["timestamp", "snapshot"])
def test_expired_is_exit_code_1(client: Client, world: World, role: str) -> None:
    def ended(signed: object) -> None:
        signed.expires = world.honest.now.replace(  # type: ignore[attr-defined]
            year=2020, microsecond=0
        )

    world.thief.sign(role, role, edit=ended)
    if role == "snapshot":
        world.thief.stamp()
    assert client.refresh() == 1


@pytest.mark.long
def test_rollback_is_exit_code_1_and_what_was_trusted_stays(
    client: Client, world: World
) -> None:
    assert client.refresh() == 0
    before = client.version("timestamp")
    world.thief.sign("timestamp", "timestamp", bump=-1)
    assert client.refresh() == 1
    assert client.version("timestamp") == before


@pytest.mark.long
def test_rollback_after_the_loss_of_metadata(client: Client, world: World) -> None:
    """More than the suite asks for: the floors."""
    assert client.refresh() == 0
    (client.folder / "metadata/timestamp.json").unlink()
    (client.folder / "metadata/snapshot.json").unlink()
    world.thief.sign("timestamp", "timestamp", bump=-1)
    assert client.refresh() == 1


@pytest.mark.long
def test_fast_forward_recovery_by_rotated_keys(client: Client, world: World) -> None:
    far = world.thief.current("timestamp").signed.expires
    world.thief.stamp(edit=lambda signed: setattr(signed, "version", 99_999))
    assert client.refresh() == 0
    key = world.honest.ring.entry("spare").key

    def swap(signed: object) -> None:
        signed.keys[key.keyid] = key  # type: ignore[attr-defined]
        signed.roles["timestamp"].keyids = [key.keyid]  # type: ignore[attr-defined]

    world.thief.sign("root", "root-1", "root-2", edit=swap)

    def low(signed: object) -> None:
        signed.version, signed.expires = 1, far  # type: ignore[attr-defined]

    world.thief.sign("timestamp", "spare", edit=low)
    assert client.refresh() == 0
    assert (client.version("root"), client.version("timestamp")) == (3, 1)


@pytest.mark.long
def test_a_root_that_is_not_signed_well(client: Client, world: World) -> None:
    world.thief.sign("root", "root-1")
    assert client.refresh() == 1
    assert client.version("root") == 2


@pytest.mark.long
def test_wrong_or_missing_targets(client: Client, world: World) -> None:
    assert client.download("linear/7.7.7/cpu-x86_64.edgeml") == 1
    digest = world.honest.desired(release(*NEW)).digest
    world.thief.storage.write(stored(NAME, digest), b"something else")
    assert client.download() == 1
    assert client.downloaded() == []


@pytest.mark.long
def test_a_publishers_rotations_are_followed(client: Client, tmp_path: Path) -> None:
    """A registry by our own publisher, with roots changed many times."""
    house = House(Folder(tmp_path / "own/registry"), tmp_path / "own/keys")
    from datetime import UTC, datetime

    house.now = datetime.now(UTC)
    house.begin("linear")
    anchor = house.anchor
    for number in range(6):
        change = house.change()
        old = change.holders("root")[0][0]
        ceremony.replace(change, "root", old, house.ring.make(f"r-{number}").key)
        change.commit(house.storage)
    client.server.folder = tmp_path / "own/registry"
    other = Client(tmp_path / "other", client.server)
    assert other.init(anchor) == 0
    assert other.refresh() == 0
    assert other.version("root") == 7
