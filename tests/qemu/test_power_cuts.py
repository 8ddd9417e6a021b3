"""Every state that a power cut can leave: a safe writer survives, others do not."""

from pathlib import Path

import pytest
import toy_writer
from blocklogs import Recording, State, judge, record
from machines import Drive, Machine, make_ext4

pytestmark = pytest.mark.qemu
VERSIONS = 20
TORN = 100


def written(machine: Machine, root: Drive, how: str) -> Recording:
    disk = make_ext4(machine.work / "data.img", 32 << 20)
    source = Path(toy_writer.__file__).read_bytes()
    recording = record(
        machine, disk.path, ["python3", "toy_writer.py", how, str(VERSIONS)],
        files={"toy_writer.py": source}, root=root,
    )  # fmt: skip
    assert recording.done.code == 0, recording.done.out
    return recording


def checker(state: State) -> str | None:
    """The file is one whole version, and none older than the one that was promised."""
    promised = int(state.mark or 0)
    content = state.read("/current")
    if content is None:
        return f"{promised} promised, found no file" if promised else None
    found = int(content[8:14]) if content[8:14].isdigit() else -1
    if content != toy_writer.content(found):
        return f"{promised} promised, found neither version whole"
    return None if found >= promised else f"{promised} promised, found {found}"


def test_the_safe_writer_survives_every_cut(machine: Machine, root: Drive):
    recording = written(machine, root, "safe")
    in_order = judge(recording.prefixes(), checker)
    assert in_order.states > 6 * VERSIONS and in_order.bad == {}
    assert judge(recording.torn(TORN), checker).bad == {}


@pytest.mark.parametrize("how", ["no_sync_of_file", "no_sync_of_folder", "in_place"])
def test_an_unsafe_writer_is_caught(machine: Machine, root: Drive, how: str):
    recording = written(machine, root, how)
    assert judge(recording.prefixes(), checker).bad
    assert judge(recording.torn(TORN), checker).bad


def test_the_last_state_is_what_the_machine_left(machine: Machine, root: Drive):
    recording = written(machine, root, "safe")
    *_, last = recording.prefixes()
    assert last.mark == str(VERSIONS)
    assert last.read("/current") == toy_writer.content(VERSIONS)
    assert last.read("/absent") is None
