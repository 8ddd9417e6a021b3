"""One connection to the broker, from CONNECT to its end; MQTT 5 by paho.

::

    async with Session(identity, settings, will) as session:
        async for message in session.messages():
            ...
            session.done(message)

The rules it keeps:

1. A session has a thread of its own, which sleeps until the socket or a publisher wakes
   it or the keep-alive is due. What it hears it hands to the event loop; whatever is
   not called ``_in_thread…`` runs there.
2. Every session has a new client: what an earlier one did not get rid of is not sent
   again behind anyone's back. What must arrive is in the spool, or said anew at birth.
3. A message that was heard is acknowledged when it was dealt with, so that the broker
   holds back what is too much; messages without acknowledgement (QoS 0) are not heard.
4. It never reconnects: its end is said, with the reason, and another one is made.
"""

import asyncio
import selectors
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Self

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from ..contract.messages import MESSAGE_BYTES_MAX, State, write
from ..errors import LinkError
from ..identity import Identity

RECEIVE_MAX: Final = 16
"""Messages that the broker may send before one of them is dealt with."""
PACKET_BYTES_MAX: Final = 64 << 10
"""Of what is heard: an envelope, a command or an ack is far smaller."""
TAKEN_OVER: Final = 142
GOODBYE_S: Final = 2.0
OVERHEAD_BYTES: Final = 512
"""Of a packet: header, topic and properties."""


@dataclass(frozen=True)
class SessionSettings:
    """How a session is kept."""

    keep_alive_s: int = 60
    session_s: int = 86_400
    """How long the broker keeps subscriptions and messages after the connection."""
    will_s: int = 45
    """How long the broker waits before it says that the device is offline."""
    connect_s: float = 20.0
    """The most that TCP, TLS and CONNACK may take, each."""


@dataclass(frozen=True)
class Incoming:
    """A message that was heard."""

    topic: str
    payload: bytes
    mid: int
    response_topic: str | None = None
    correlation: bytes | None = None


class Session:
    """One connection; made and used on the event loop."""

    def __init__(
        self, identity: Identity, settings: SessionSettings, session_id: str
    ) -> None:
        self.id = session_id
        self.present = False
        """Whether the broker still had this device's subscriptions."""
        self.size_bytes_max = MESSAGE_BYTES_MAX
        """The largest payload that the broker takes."""
        self.sent_bytes = 0
        """Payloads given to the broker, without what the protocol adds."""
        self.heard_bytes = 0
        self._identity = identity
        self._settings = settings
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._messages: asyncio.Queue[Incoming | None] = asyncio.Queue()
        self._ended: LinkError | None = None
        self._reason = ""
        self._taken_over = False
        self._wake, self._woken = socket.socketpair()
        self._wake.setblocking(False)
        self._woken.setblocking(False)
        self._client = self._made()
        self._thread = threading.Thread(
            target=self._in_thread, name="link", daemon=True
        )

    async def __aenter__(self) -> Self:
        """Connect and subscribe.

        Raises:
            LinkError: there is no session; says why.
        """
        self._thread.start()
        try:
            async with asyncio.timeout(3 * self._settings.connect_s):
                await asyncio.shield(self._opened)
        except TimeoutError as error:
            self._finish()
            raise LinkError("the broker did not answer in time") from error
        except BaseException:
            self._finish()
            raise
        options = SubscribeOptions(qos=1)
        topics = self._identity.topics.down
        self._client.subscribe([(topic, options) for topic in topics])
        self._nudge()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Say goodbye, so that the broker publishes no Will, and end the thread."""
        if self._ended is None:
            self._client.disconnect()
            self._nudge()
            with suppress(TimeoutError):
                async with asyncio.timeout(GOODBYE_S):
                    while await self._messages.get() is not None:
                        pass
        self._finish()

    async def messages(self) -> AsyncIterator[Incoming]:
        """What is heard, until the session ends.

        Raises:
            LinkError: it ended; says why.
        """
        while (message := await self._messages.get()) is not None:
            yield message
        assert self._ended is not None
        raise self._ended

    def done(self, message: Incoming) -> None:
        """The message was dealt with; the broker may forget it."""
        self._client.ack(message.mid, 1)
        self._nudge()

    def publish(
        self, topic: str, payload: bytes, *, retain: bool = False,
        expiry_s: int | None = None, content_type: str = "application/json",
        correlation: bytes | None = None,
    ) -> None:  # fmt: skip
        """Say something, QoS 1. Nothing tells whether it arrived but the fleet itself.

        Raises:
            ValueError: it is larger than the broker takes.
        """
        if len(payload) > self.size_bytes_max:
            raise ValueError(
                f"{topic}: {len(payload)} bytes; the broker takes {self.size_bytes_max}"
            )
        properties = _properties(
            PacketTypes.PUBLISH, ContentType=content_type,
            MessageExpiryInterval=expiry_s, CorrelationData=correlation,
        )  # fmt: skip
        self.sent_bytes += len(payload)
        self._client.publish(topic, payload, 1, retain, properties)
        self._nudge()

    def _made(self) -> Client:
        identity = self._identity
        client = Client(
            CallbackAPIVersion.VERSION2, identity.document.device, manual_ack=True,
            protocol=MQTTProtocolVersion.MQTTv5, reconnect_on_failure=False,
        )  # fmt: skip
        client.connect_timeout = self._settings.connect_s
        context = identity.context()
        if context is not None:
            client.tls_set_context(context)
        password = identity.password
        if password is not None:
            client.username_pw_set(identity.document.device, password)
        properties = _properties(
            PacketTypes.WILLMESSAGE, WillDelayInterval=self._settings.will_s
        )
        will = write(State(session=self.id, online=False))
        client.will_set(identity.topics.state, will, 1, True, properties)
        client.on_connect = self._in_thread_connected
        client.on_message = self._in_thread_heard
        client.on_disconnect = self._in_thread_disconnected
        # With it paho only queues what is published; our thread writes it.
        client.on_socket_register_write = _leave_it_to_the_thread
        return client

    def _in_thread(self) -> None:
        broker, settings = self._identity.document.broker, self._settings
        properties = _properties(
            PacketTypes.CONNECT, SessionExpiryInterval=settings.session_s,
            ReceiveMaximum=RECEIVE_MAX, MaximumPacketSize=PACKET_BYTES_MAX,
        )  # fmt: skip
        try:
            self._client.connect(
                broker.host, broker.port, settings.keep_alive_s,
                clean_start=False, properties=properties,
            )  # fmt: skip
            self._in_thread_drive()
        except (OSError, ValueError) as error:
            self._reason = self._reason or _told(error)
        finally:
            self._wake.close()
            self._woken.close()
            # paho's own descriptors go with it: nothing may hold it in a ring
            self._client.on_connect = self._client.on_message = None
            self._client.on_disconnect = None
            with suppress(RuntimeError):  # the loop is gone: so is who would hear it
                self._loop.call_soon_threadsafe(self._end)

    def _in_thread_drive(self) -> None:
        """Read, write and keep alive, until there is no socket any more."""
        client, wait_s = self._client, self._settings.keep_alive_s / 4
        with selectors.DefaultSelector() as selector:
            watched = client.socket()
            assert watched is not None
            selector.register(self._woken, selectors.EVENT_READ)
            selector.register(watched, selectors.EVENT_READ)
            while client.socket() is not None:
                writing = selectors.EVENT_WRITE if client.want_write() else 0
                selector.modify(watched, selectors.EVENT_READ | writing)
                for key, mask in selector.select(wait_s):
                    if key.fileobj is self._woken:
                        with suppress(BlockingIOError):
                            self._woken.recv(4096)
                    elif mask & selectors.EVENT_READ:
                        self._in_thread_read()
                if client.want_write():
                    client.loop_write()
                client.loop_misc()

    def _in_thread_read(self) -> None:
        """What has come; of TLS also what was decrypted and not read yet."""
        self._client.loop_read()
        while isinstance(one := self._client.socket(), ssl.SSLSocket) and one.pending():
            self._client.loop_read()

    def _in_thread_connected(
        self, _c: Client, _u: Any, flags: Any, code: ReasonCode,
        properties: Properties | None,
    ) -> None:  # fmt: skip
        if code.is_failure:
            self._reason = f"the broker refuses this device: {code}"
            return
        limit = getattr(properties, "MaximumPacketSize", None)
        if limit is not None:
            size = min(MESSAGE_BYTES_MAX, limit - OVERHEAD_BYTES)
            self.size_bytes_max = max(size, 0)
        self.present = bool(flags.session_present)
        self._hand(self._connected)

    def _in_thread_heard(self, _c: Client, _u: Any, message: MQTTMessage) -> None:
        if message.qos != 1:
            return
        found = message.properties
        heard = Incoming(
            message.topic, bytes(message.payload), message.mid,
            getattr(found, "ResponseTopic", None),
            getattr(found, "CorrelationData", None),
        )  # fmt: skip
        self._hand(self._heard, heard)

    def _in_thread_disconnected(
        self, _c: Client, _u: Any, flags: Any, code: ReasonCode, _p: Properties | None
    ) -> None:
        said = "the broker ended the session" if (
            flags.is_disconnect_packet_from_server
        ) else "the connection was lost"  # fmt: skip
        self._reason = self._reason or f"{said}: {code}"
        self._taken_over = code.value == TAKEN_OVER

    def _hand(self, call: Callable[..., None], *arguments: Any) -> None:
        with suppress(RuntimeError):  # the loop is gone
            self._loop.call_soon_threadsafe(call, *arguments)

    def _connected(self) -> None:
        if not self._opened.done():
            self._opened.set_result(None)

    def _heard(self, message: Incoming) -> None:
        self.heard_bytes += len(message.payload)
        self._messages.put_nowait(message)

    def _end(self) -> None:
        self._ended = LinkError(
            self._reason or "the connection was lost", taken_over=self._taken_over
        )
        if not self._opened.done():
            self._opened.set_exception(self._ended)
        self._messages.put_nowait(None)

    def _finish(self) -> None:
        """Nothing more is waited for; a connect under way ends by its own limits."""
        if not self._opened.done():
            self._opened.cancel()
        elif not self._opened.cancelled():
            self._opened.exception()  # heard, though nobody may be waiting
        self._client.disconnect()
        self._nudge()

    def _nudge(self) -> None:
        with suppress(BlockingIOError, OSError):
            self._wake.send(b"!")


def _properties(packet: int, **values: Any) -> Properties:
    """Properties of a packet; what is None is left out."""
    made = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        if value is not None:
            setattr(made, name, value)
    return made


def _leave_it_to_the_thread(_c: Client, _u: Any, _socket: Any) -> None:
    """Called by paho when it has something to write."""


def _told(error: Exception) -> str:
    """Why there is no connection, for people."""
    text = str(error) or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        hint = (
            "; is this device's clock right?"
            if error.verify_code in (9, 10)  # not yet valid, expired
            else "; it is not the broker that this device was enrolled with"
        )
        return f"the broker's certificate is refused: {error.verify_message}{hint}"
    return f"the broker cannot be reached: {text}"
