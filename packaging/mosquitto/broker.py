"""A mosquitto of our configuration on loopback: writes its folder, starts it, waits.

Usage: scripts/broker [--state DIR] [--port N] [--fleet-port N] [--passwords]

It makes, once, in the state folder (build/broker): a certificate authority, the
broker's and the fleet's certificates, mosquitto.conf, and a place for what mosquitto
keeps. It prints one line when it is ready, and ends with SIGINT or SIGTERM.

    ready: mqtts://127.0.0.1:8883 devices · mqtts://127.0.0.1:8884 fleet · build/broker

`--passwords`: devices and fleet show a user and a password (still over TLS) in place
of a certificate; add users with `mosquitto_passwd -b build/broker/passwords NAME
PASSWORD`, then send mosquitto a SIGHUP. The fleet's is in build/broker/fleet.password.
`--plain`: no TLS, with passwords; for programs on this machine alone.
"""

import argparse
import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PLACE = Path(__file__).resolve().parent
ROOT = PLACE.parents[1]
sys.path.insert(0, str(ROOT))

from edgeml.authority import Authority, request  # noqa: E402 - run as a file

HOST = "127.0.0.1"
FLEET = "edgeml_fleet"
"""The fleet's common name or user; no device id can be so."""
READY_S = 20.0
SEARCHED = ("/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin")


@dataclass(frozen=True)
class Settings:
    """One broker."""

    state: Path
    port: int
    fleet_port: int
    passwords: bool = False
    """Users and passwords in place of client certificates."""
    tls: bool = True
    extra: str = ""
    """Further lines of its configuration."""

    @property
    def scheme(self) -> str:
        """Of its URLs."""
        return "mqtts" if self.tls else "mqtt"


def program(name: str = "mosquitto") -> str:
    """Where mosquitto, or a tool of it, is.

    Raises:
        FileNotFoundError: nowhere.
    """
    path = os.pathsep.join((os.environ.get("PATH", ""), *SEARCHED))
    found = shutil.which(name, path=path)
    if found is None:
        raise FileNotFoundError(f"{name} is not installed: apt install mosquitto")
    return found


def prepare(settings: Settings, now: datetime) -> Authority:
    """Write the folder; what is there of an earlier time (keys, data) stays.

    Returns:
        The authority whose device certificates this broker takes.
    """
    state = settings.state
    state.mkdir(parents=True, exist_ok=True)
    (state / "data").mkdir(exist_ok=True)
    if (state / "ca.key").exists():
        authority = Authority.load(state)
    else:
        authority = Authority.create("edgeml broker", now)
        authority.save(state)
        server = authority.server((HOST, "localhost"), now)
        key, asked = request(FLEET)
        fleet = authority.client(asked, FLEET, now)
        for name, data in (
            ("server.key", server.key), ("server.crt", server.certificate),
            ("fleet.key", key), ("fleet.crt", fleet),
        ):  # fmt: skip
            _write(state / name, data)
    if (settings.passwords or not settings.tls) and not (state / "passwords").exists():
        password = secrets.token_urlsafe(24)
        _write(state / "fleet.password", password.encode())
        write_passwords(state, {FLEET: password})
    shutil.copy(PLACE / "acl", state / "acl")
    (state / "acl").chmod(0o600)
    (state / "mosquitto.conf").write_text(configuration(settings))
    return authority


def write_passwords(state: Path, users: Mapping[str, str]) -> None:
    """Replace the password file; mosquitto's own tool hashes it."""
    path = state / "passwords.new"
    lines = "".join(f"{name}:{password}\n" for name, password in users.items())
    _write(path, lines.encode())
    subprocess.run([program("mosquitto_passwd"), "-U", str(path)], check=True)
    path.rename(state / "passwords")


def configuration(settings: Settings) -> str:
    """The text of ``mosquitto.conf``: what we ship, and the listeners of this place."""
    state = settings.state.absolute()
    by_password = settings.passwords or not settings.tls
    lines = [
        (PLACE / "edgeml.conf").read_text(),
        f"persistence_location {state}/data/",
        f"acl_file {state}/acl",
        "log_dest stderr",
        # Started by root it would become another user, who cannot read this folder.
        f"user {getpass.getuser()}",
        *([f"password_file {state}/passwords"] if by_password else []),
        settings.extra,
    ]
    for port, device in ((settings.port, True), (settings.fleet_port, False)):
        lines.append(f"listener {port} {HOST}")
        if settings.tls:
            lines += [
                f"cafile {state}/ca.crt",
                f"certfile {state}/server.crt",
                f"keyfile {state}/server.key",
                "tls_version tlsv1.2",
            ]
        if not by_password:
            lines += ["require_certificate true", "use_identity_as_username true"]
        if device:
            lines.append("use_username_as_clientid true")
    return "\n".join(lines) + "\n"


def start(settings: Settings) -> "subprocess.Popen[bytes]":
    """Start mosquitto and wait until it listens; its log is ``mosquitto.log``.

    Raises:
        RuntimeError: it ended, or did not listen in time; the text holds its log.
    """
    log = settings.state / "mosquitto.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            [program(), "-c", str(settings.state / "mosquitto.conf")],
            stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    deadline = time.monotonic() + READY_S
    while process.poll() is None and time.monotonic() < deadline:
        if all(_listens(port) for port in (settings.port, settings.fleet_port)):
            return process
        time.sleep(0.01)
    process.kill()
    process.wait()
    raise RuntimeError(f"mosquitto did not start:\n{log.read_text()[-4000:]}")


def main() -> int:
    """Run one broker until it is told to stop."""
    parser = argparse.ArgumentParser(prog="scripts/broker", usage=__doc__)
    parser.add_argument("--state", type=Path, default=ROOT / "build" / "broker")
    parser.add_argument("--port", type=int, default=8883)
    parser.add_argument("--fleet-port", type=int, default=8884)
    parser.add_argument("--passwords", action="store_true")
    parser.add_argument("--plain", action="store_true")
    given = parser.parse_args()
    settings = Settings(
        given.state, given.port, given.fleet_port, given.passwords, not given.plain
    )
    try:
        prepare(settings, datetime.now(UTC))
        process = start(settings)
    except (FileNotFoundError, RuntimeError) as error:
        print(f"scripts/broker: {error}", file=sys.stderr)
        return 5
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: process.terminate())
    scheme, state = settings.scheme, settings.state
    print(
        f"ready: {scheme}://{HOST}:{settings.port} devices · "
        f"{scheme}://{HOST}:{settings.fleet_port} fleet · {state}",
        flush=True,
    )
    return process.wait()


def _listens(port: int) -> bool:
    try:
        socket.create_connection((HOST, port), timeout=1).close()
    except OSError:
        return False
    return True


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(data)


if __name__ == "__main__":
    sys.exit(main())
