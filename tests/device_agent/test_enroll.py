"""Enrolment, told to a real HTTPS server: who a device is afterwards, or why not."""

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from brokers import broker
from enrolment import EnrolmentServer, enrolling
from fleets import fleet
from linked import linked
from recording import Recording

from device_agent.__main__ import main
from device_agent.durable import REAL, Disk, File, StateLock
from device_agent.enroll import enroll, poster
from device_agent.errors import EnrolmentError, StorageError
from device_agent.identity import load_identity
from edgeml.authority import Authority

ROOT = Path(__file__).parents[2]
NOW = datetime.now(UTC)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EnrolmentServer]:
    with enrolling(tmp_path / "server") as made:
        yield made


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "state"
    path.mkdir()
    return path


def command(server: EnrolmentServer, state: Path, *more: str, token: str = "") -> int:
    return main(
        ["enroll", "--server", server.url, "--ca", str(server.ca), "--state",
         str(state), *(("--token", token) if token else ()), *more]
    )  # fmt: skip


def test_an_enrolled_device_is_on_the_broker(
    state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with broker() as there, enrolling(tmp_path / "s", there.authority) as server:
        server.broker = server.broker.model_copy(update={"port": there.port})
        assert command(server, state, token=server.token("cam-7")) == 0
        assert "enrolled: cam-7 of acme" in capsys.readouterr().out
        found = load_identity(state)
        assert found is not None

        async def story() -> None:
            async with linked(found) as one:
                await one.until(lambda: heard.said("cam-7", "birth"))

        with fleet(there) as heard:
            asyncio.run(story())


def test_what_is_kept_is_for_its_owner_alone(
    server: EnrolmentServer, state: Path
) -> None:
    old = os.umask(0)
    try:
        assert command(server, state, token=server.token("cam-7")) == 0
    finally:
        os.umask(old)
    folder = state / "identity"
    assert {path.name for path in folder.iterdir()} == {
        "ca.crt", "device.crt", "device.key", "director.json", "identity.json",
        "root.json",
    }  # fmt: skip
    for path in folder.iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "root.json").read_text() == server.root
    assert json.loads((folder / "director.json").read_text()) == server.director
    key = (folder / "device.key").read_text()
    assert all(key not in asked.csr for asked in server.asked)


def test_the_token_from_a_file(server: EnrolmentServer, state: Path) -> None:
    path = state / "token"
    path.write_text(server.token("cam-7") + "\n")
    assert command(server, state, "--token-file", str(path)) == 0


def test_a_device_is_enrolled_again_only_when_that_is_asked(
    server: EnrolmentServer, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(server, state, token=server.token("cam-7")) == 0
    key = (state / "identity/device.key").read_bytes()
    assert command(server, state, token=server.token("cam-8")) == 4
    assert "cam-7 of acme already" in capsys.readouterr().err
    assert len(server.asked) == 1, "the token was not used"
    assert command(server, state, "--again", token=server.token("cam-8")) == 0
    found = load_identity(state)
    assert found is not None
    assert found.document.device == "cam-8"
    assert (state / "identity/device.key").read_bytes() != key


def test_what_replaces_a_certificate_by_a_password_leaves_no_certificate(
    server: EnrolmentServer, state: Path
) -> None:
    assert command(server, state, token=server.token("cam-7")) == 0
    server.changes = {"certificate": None, "password": "a-long-password"}
    assert command(server, state, "--again", token=server.token("cam-7")) == 0
    folder = state / "identity"
    assert (folder / "password").read_text() == "a-long-password"
    assert not (folder / "device.key").exists()
    found = load_identity(state)
    assert found is not None
    assert found.password == "a-long-password"


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("unknown", "there is no such token (token_unknown); ask the fleet"),
        ("expired", "(token_expired); ask the fleet for another"),
        ("used", "(token_used); a token is good for one device"),
    ],
)
def test_a_token_that_is_not_good_is_refused(
    server: EnrolmentServer, state: Path, tmp_path: Path, token: str, why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    given = {
        "unknown": lambda: "what",
        "expired": lambda: server.token("cam-7", timedelta(seconds=-1)),
        "used": lambda: server.token("cam-7"),
    }[token]()
    if token == "used":
        other = tmp_path / "other"
        other.mkdir()
        assert command(server, other, token=given) == 0
    assert command(server, state, token=given) == 4
    assert why in capsys.readouterr().err
    assert load_identity(state) is None


def test_after_a_power_cut_the_same_command_gets_the_same_identity(
    server: EnrolmentServer, state: Path
) -> None:
    token, cut = server.token("cam-7"), 0
    while True:  # at each effect on the disk in turn
        disk = _Cut(cut)
        try:
            enroll(state, disk, server.url, token, poster(server.ca, NOW), cut > 0)
        except StorageError:
            found = load_identity(state)
            assert found is None or found.context() is not None, "half of one is none"
            cut += 1
            continue
        break
    assert cut > 15
    found = load_identity(state)
    assert found is not None
    assert found.context() is not None
    assert {path.name for path in (state / "identity").iterdir()} == {
        "ca.crt", "device.crt", "device.key", "director.json", "identity.json",
        "root.json",
    }  # fmt: skip


def test_the_key_is_on_the_disk_before_the_token_is_used(
    server: EnrolmentServer, state: Path
) -> None:
    disk, before = Recording(), []
    real = poster(server.ca, NOW)

    def post(url: str, body: bytes) -> bytes:
        before.extend(disk.done)
        return real(url, body)

    enroll(state, disk, server.url, server.token("cam-7"), post)
    assert before[-3:] == [
        ("sync", ".device.key.pending.new"), ("rename", "device.key.pending"),
        ("sync_folder", "identity"),
    ]  # fmt: skip
    after = [name for what, name in disk.done[len(before) :] if what == "rename"]
    assert after[-1] == "identity.json"


class _Cut(Disk):
    """Fails at its n-th effect and at all later ones."""

    def __init__(self, effects: int) -> None:
        self._left = effects

    def _one(self) -> None:
        if self._left == 0:
            from device_agent.contract.codes import Reason

            raise StorageError(Reason.STORAGE, "the power is gone")
        self._left -= 1

    def create(self, path: Path, mode: int = 0o600) -> File:
        self._one()
        return super().create(path, mode)

    def write(self, file: File, data: bytes, offset: int) -> None:
        self._one()
        super().write(file, data, offset)

    def rename(self, old: Path, new: Path) -> None:
        self._one()
        super().rename(old, new)

    def unlink(self, path: Path) -> None:
        self._one()
        super().unlink(path)

    def mkdir(self, path: Path, mode: int = 0o700) -> None:
        self._one()
        super().mkdir(path, mode)


def _others() -> str:
    from edgeml.authority import request

    _, csr = request("x")
    made = Authority.create("x", NOW)
    return made.client(csr, "cam-7", NOW).decode()


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"certificate": None}, "neither certificate nor password"),
        ({"certificate": "no PEM"}, "its certificate cannot be read"),
        ({"certificate": _others()}, "for another key"),
        ({"device": "cam-8"}, "not 'cam-8'"),
        ({"device": "Cam 8"}, "does not answer as a fleet does"),
        ({"ca": "no PEM"}, "of no use"),
        ({"root": "{"}, "root is not TUF metadata"),
        ({"root": '{"signed":{"_type":"targets"}}'}, "expected TUF metadata of type"),
        ({"director": {}}, "no key of a director"),
        ({"registry": ()}, "does not answer as a fleet does"),
        ({"registry": ("file:///etc",)}, "does not answer as a fleet does"),
        ({"v": 2}, "v 2 is unknown"),
    ],
)
def test_an_answer_that_is_of_no_use_is_not_kept(
    server: EnrolmentServer, state: Path, changes: dict[str, Any], why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server.changes = changes
    assert command(server, state, token=server.token("cam-7")) == 5
    assert why in capsys.readouterr().err
    assert load_identity(state) is None


@pytest.mark.parametrize(
    ("answer", "code", "why"),
    [
        ((302, {"Location": "https://127.0.0.1:1/"}, b""), 5, "somewhere else"),
        ((307, {"Location": "https://127.0.0.1:1/"}, b""), 5, "somewhere else"),
        ((404, {}, b"<html>"), 4, "HTTP 404: is it a fleet's?"),
        ((503, {}, b""), 5, "HTTP 503"),
        ((200, {}, b"hello"), 5, "does not answer as a fleet does"),
        ((200, {}, b"[" * (2 << 20)), 5, "does not answer as a fleet does"),
    ],
)
def test_who_is_no_fleet_is_told_so(
    server: EnrolmentServer, state: Path, answer: Any, code: int, why: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server.answer = answer
    assert command(server, state, token="t") == code
    assert why in capsys.readouterr().err


def test_a_server_that_is_not_believed(
    server: EnrolmentServer, state: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    words = ["enroll", "--server", server.url, "--token", "t", "--state", str(state)]
    assert main(words) == 5
    assert "name the CA that it is of with --ca" in capsys.readouterr().err
    with enrolling(tmp_path / "x", hosts=("other.example",)) as other:
        assert command(other, state, token="t") == 5
        assert "certificate is refused" in capsys.readouterr().err
    later = NOW + timedelta(days=2)
    with enrolling(tmp_path / "y", certified=later) as other:
        assert command(other, state, token="t") == 5
        assert "this device's clock says" in capsys.readouterr().err
    assert server.asked == []


def test_a_clock_that_is_wrong_is_said(
    server: EnrolmentServer, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.changes = {"time": NOW + timedelta(days=3)}
    assert command(server, state, token=server.token("cam-7")) == 0
    assert "hours behind the server's" in capsys.readouterr().err


def test_nobody_there(state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"https://127.0.0.1:{port}"
    words = ["enroll", "--server", url, "--token", "t", "--state", str(state)]
    assert main(words) == 5
    assert "cannot be reached" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--server", "fleet", "--token", "t"], "expected https://HOST"),
        (["--server", "http://fleet.example", "--token", "t"], "travel openly"),
        (["--server", "https://x:y", "--token", "t"], "--server https://x:y"),
        (["--server", "https://x", "--token", " "], "expected a token"),
        (["--server", "https://x", "--token-file", "/no/such"], "cannot be read"),
        (["--server", "https://x"], "one of the arguments --token --token-file"),
        (["--token", "t"], "--server"),
    ],
)
def test_usage(
    state: Path, words: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["enroll", "--state", str(state), *words]) == 2
    assert why in capsys.readouterr().err


def test_not_while_the_agent_runs(
    server: EnrolmentServer, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with StateLock(state):
        assert command(server, state, token=server.token("cam-7")) == 5
    assert "is in use by process" in capsys.readouterr().err
    assert server.asked == []


def test_nothing_is_followed_in_a_ring(state: Path, server: EnrolmentServer) -> None:
    server.answer = (308, {"Location": server.url}, b"")
    with pytest.raises(EnrolmentError, match="somewhere else"):
        enroll(state, REAL, server.url, "t", poster(server.ca, NOW))


def test_it_runs_as_a_program(server: EnrolmentServer, state: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "device_agent", "enroll", "--server", server.url, "--ca",
         str(server.ca), "--state", str(state), "--token", server.token("cam-7")],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("enrolled: cam-7 of acme, broker 127.0.0.1:8883, in ")
