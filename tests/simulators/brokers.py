"""A real mosquitto with the configuration that we ship, for a test's time.

::

    with broker() as one:
        one.device("cam-7")        # its key, certificate and CA, as files
        one.kill()                 # kill -9: what was not on the disk is gone
        one.wipe()                 # its data, too
        one.start()                # on the same ports again

1. It listens on loopback, on free ports: one for devices, one for the fleet.
2. Devices show certificates; ``passwords=True``: users and passwords over TLS;
   ``tls=False``: passwords without TLS.
3. What ends the test ends it, however often it was killed and started.
"""

import signal
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from shutil import rmtree
from threading import Condition
from typing import Any
from urllib.parse import quote

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from edgeml.authority import Authority, request

sys.path.append(str(Path(__file__).resolve().parents[2] / "packaging" / "mosquitto"))
import broker as shipped  # packaging/mosquitto/broker.py

FLEET: str = shipped.FLEET
TENANT = "acme"
ANSWER_S = 20.0
"""How long a test waits for what must come: these machines are busy."""
SYS_S = 1
FIGURES = (
    "bytes/received", "bytes/sent", "clients/connected", "messages/received",
    "publish/messages/received",
)  # fmt: skip
"""Of ``$SYS/broker/``; mosquitto sends others, too."""


@dataclass(frozen=True)
class Credentials:
    """What a device or the fleet shows: files, or a user and a password."""

    user: str
    ca: Path | None
    certificate: Path | None = None
    key: Path | None = None
    password: str | None = None

    def apply(self, client: Client) -> None:
        """Let a paho client show them."""
        if self.ca is not None:
            context = ssl.create_default_context(cafile=str(self.ca))
            if self.certificate is not None and self.key is not None:
                context.load_cert_chain(self.certificate, self.key)
            client.tls_set_context(context)
        if self.password is not None:
            client.username_pw_set(self.user, self.password)


class Broker:
    """The process, its folder and its ports."""

    host = "127.0.0.1"

    def __init__(self, settings: Any, authority: Authority) -> None:
        self._settings = settings
        self._passwords: dict[str, str] = {}
        self.authority = authority
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def folder(self) -> Path:
        path: Path = self._settings.state
        return path

    @property
    def port(self) -> int:
        """Of the devices' listener."""
        return int(self._settings.port)

    @property
    def fleet_port(self) -> int:
        return int(self._settings.fleet_port)

    @property
    def ca(self) -> Path | None:
        """The CA of its certificate; None: it speaks no TLS."""
        return self.folder / "ca.crt" if self._settings.tls else None

    def start(self) -> None:
        """Start it (again) and wait until it listens."""
        assert self.process is None or self.process.poll() is not None, "it runs"
        self.process = shipped.start(self._settings)

    def kill(self) -> None:
        """``kill -9``: what it had not saved is gone."""
        self._signal(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM: it saves what it keeps."""
        self._signal(signal.SIGTERM)

    def restart(self, *, wipe: bool = False) -> None:
        """Kill it and start it, with or without what it had saved."""
        self.kill()
        if wipe:
            self.wipe()
        self.start()

    def wipe(self) -> None:
        """Throw away its retained messages, sessions and queues. It must not run."""
        assert self.process is None or self.process.poll() is not None, "it runs"
        rmtree(self.folder / "data")
        (self.folder / "data").mkdir()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """It is there and says nothing: connections are half open for that time."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def log(self) -> str:
        """What it has written so far."""
        return (self.folder / "mosquitto.log").read_text()

    def device(self, name: str) -> Credentials:
        """Credentials of a device; made when they are first asked for."""
        if self._by_password:
            if name not in self._passwords:
                self._passwords[name] = f"password of {name}"
                self._publish_passwords()
            return Credentials(name, self.ca, password=self._passwords[name])
        folder, file = self.folder / "devices", quote(name, safe="")
        key, certificate = folder / f"{file}.key", folder / f"{file}.crt"
        if not key.exists():
            folder.mkdir(exist_ok=True)
            private, asked = request(name)
            key.write_bytes(private)
            now = datetime.now(UTC)
            certificate.write_bytes(self.authority.client(asked, name, now))
        return Credentials(name, self.ca, certificate, key)

    def fleet(self) -> Credentials:
        """Credentials of the fleet service."""
        if self._by_password:
            password = (self.folder / "fleet.password").read_text()
            return Credentials(FLEET, self.ca, password=password)
        return Credentials(
            FLEET, self.ca, self.folder / "fleet.crt", self.folder / "fleet.key"
        )

    def statistics(self) -> dict[str, float]:
        """Its own figures of the last second: ``bytes/received``, ``clients/connected``

        … (``$SYS/broker/`` left out), seen by a client of the fleet's.
        """
        with self.peer("statistics") as peer:
            peer.subscribe("$SYS/#")
            peer.until(lambda: all(peer.on(f"$SYS/broker/{name}") for name in FIGURES))
            found = {one.topic: one.payload for one in tuple(peer.heard)}
        return {
            topic.removeprefix("$SYS/broker/"): float(payload)
            for topic, payload in found.items()
            if payload.replace(b".", b"", 1).isdigit()
        }

    @contextmanager
    def peer(self, client_id: str, *, device: str | None = None) -> Iterator["Peer"]:
        """A connected client: of the fleet's, or with a device's credentials."""
        shown = self.fleet() if device is None else self.device(device)
        port = self.fleet_port if device is None else self.port
        peer = Peer(client_id, shown, self.host, port)
        try:
            peer.connect()
            yield peer
        finally:
            peer.close()

    @property
    def _by_password(self) -> bool:
        return bool(self._settings.passwords or not self._settings.tls)

    def _publish_passwords(self) -> None:
        fleet = (self.folder / "fleet.password").read_text()
        shipped.write_passwords(self.folder, {FLEET: fleet, **self._passwords})
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGHUP)

    def _signal(self, number: signal.Signals) -> None:
        if self.process is not None:
            self.process.send_signal(number)
            self.process.wait(ANSWER_S)


class Peer:
    """A plain MQTT 5 client that keeps what it hears."""

    def __init__(
        self, client_id: str, shown: Credentials, host: str, port: int
    ) -> None:
        self.heard: list[MQTTMessage] = []
        self.refused = ""
        """Why the broker did not take it, or ended the session."""
        self._where = host, port
        self._change = Condition()
        self._acked: dict[int, str] = {}
        self._answered = False
        self.client = Client(
            CallbackAPIVersion.VERSION2, client_id, reconnect_on_failure=False,
            protocol=MQTTProtocolVersion.MQTTv5,
        )  # fmt: skip
        shown.apply(self.client)
        self.client.on_connect = self._connected
        self.client.on_disconnect = self._disconnected
        self.client.on_message = self._message
        self.client.on_publish = self._published
        self.client.on_subscribe = self._subscribed

    def connect(self, *, clean: bool = True, session_s: int = 0) -> None:
        """Connect and wait for CONNACK.

        Raises:
            ConnectionRefusedError: the broker does not take it; says why.
        """
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = session_s
        self._answered, self.refused = False, ""
        try:
            self.client.connect(
                *self._where, 30, clean_start=clean, properties=properties
            )
        except ssl.SSLError as error:
            raise ConnectionRefusedError(str(error)) from error
        self.client.loop_start()
        try:
            self.until(lambda: self._answered and not self.refused)
        except ConnectionResetError as error:
            raise ConnectionRefusedError(self.refused) from error

    def subscribe(self, topic: str, *, retain_handling: int = 0) -> None:
        """Subscribe with QoS 1 and wait for SUBACK."""
        options = SubscribeOptions(qos=1, retainHandling=retain_handling)
        _, mid = self.client.subscribe(topic, options=options)
        assert mid is not None
        self.until(lambda: mid in self._acked)

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False, **properties: Any
    ) -> str:
        """Publish with QoS 1 and wait for PUBACK; empty, or why it was not taken."""
        carried = Properties(PacketTypes.PUBLISH)
        for name, value in properties.items():
            setattr(carried, name, value)
        sent = self.client.publish(topic, payload, 1, retain, carried)
        self.until(lambda: sent.mid in self._acked)
        return self._acked[sent.mid]

    def on(self, topic: str) -> list[bytes]:
        """The payloads that were heard on a topic, in order."""
        return [one.payload for one in tuple(self.heard) if one.topic == topic]

    def until(self, true: Callable[[], bool], wait_s: float = ANSWER_S) -> None:
        """Wait until something is so; looked at whenever something is heard.

        Raises:
            TimeoutError: it did not become so.
            ConnectionResetError: the session ended instead; says why.
        """
        with self._change:
            self._change.wait_for(lambda: true() or bool(self.refused), wait_s)
            if true():
                return
            if self.refused:
                raise ConnectionResetError(self.refused)
            topics = [one.topic for one in self.heard]
            raise TimeoutError(f"not so after {wait_s:g} s; heard {topics[-20:]}")

    def close(self) -> None:
        """Say goodbye, end its thread."""
        self.client.disconnect()
        self.client.loop_stop()

    def _connected(
        self, _c: Client, _u: object, _f: object, code: Any, _p: object
    ) -> None:
        with self._change:
            self.refused = str(code) if code.is_failure else ""
            self._answered = True
            self._change.notify_all()

    def _disconnected(
        self, _c: Client, _u: object, _f: object, code: Any, _p: object
    ) -> None:
        with self._change:
            self.refused = self.refused or str(code)
            self._change.notify_all()

    def _message(self, _c: Client, _u: object, message: MQTTMessage) -> None:
        with self._change:
            self.heard.append(message)
            self._change.notify_all()

    def _published(
        self, _c: Client, _u: object, mid: int, code: Any, _p: object
    ) -> None:
        with self._change:
            self._acked[mid] = str(code) if code.is_failure else ""
            self._change.notify_all()

    def _subscribed(
        self, _c: Client, _u: object, mid: int, codes: Any, _p: object
    ) -> None:
        with self._change:
            self._acked[mid] = str(codes[0])
            self._change.notify_all()


@contextmanager
def broker(
    folder: Path | None = None, *, passwords: bool = False, tls: bool = True,
    extra: str = "",
) -> Iterator[Broker]:  # fmt: skip
    """Start one and wait until it listens.

    Args:
        folder: where it keeps everything; None: a folder that goes with it.
        passwords: devices and fleet show passwords in place of certificates.
        tls: False: no TLS, and passwords.
        extra: further lines of its configuration.
    """
    with tempfile.TemporaryDirectory(prefix="broker-") as name:
        settings = shipped.Settings(
            folder or Path(name), *free_ports(), passwords=passwords, tls=tls,
            extra=f"sys_interval {SYS_S}\n{extra}",
        )  # fmt: skip
        one = Broker(settings, shipped.prepare(settings, datetime.now(UTC)))
        try:
            one.start()
            yield one
        finally:
            one.stop()


def free_ports() -> tuple[int, int]:
    """Two ports that nobody listens on now."""
    with socket.socket() as first, socket.socket() as second:
        first.bind(("127.0.0.1", 0))
        second.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
