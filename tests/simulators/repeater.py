"""Says again what was said: old batches and old acknowledgements, at every SIGUSR1."""

import random
import signal
import threading
from types import FrameType
from typing import Any

from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from device_agent.contract.topics import MAJOR

KEPT_MAX = 400
AT_ONCE = 20
MARK = "again"
TOPICS = (f"edgeml/{MAJOR}/+/d/+/up/rec", f"edgeml/{MAJOR}/+/d/+/dn/ack")


def repeat(host: str, port: int, user: str, password: str, seed: int) -> None:
    """The process; a client of the fleet's, which may say everything."""
    draw, kept = random.Random(seed), list[MQTTMessage]()
    asked = threading.Event()

    def heard(_c: Client, _u: Any, message: MQTTMessage) -> None:
        if len(kept) < KEPT_MAX:
            kept.append(message)
        else:
            kept[draw.randrange(KEPT_MAX)] = message

    def connected(client: Client, _u: Any, _f: Any, code: Any, _p: Any) -> None:
        if not code.is_failure:
            # its own are not heard again
            options = SubscribeOptions(qos=0, noLocal=True)
            client.subscribe([(topic, options) for topic in TOPICS])

    def ask(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    signal.signal(signal.SIGUSR1, ask)
    client = Client(
        CallbackAPIVersion.VERSION2, "repeater", protocol=MQTTProtocolVersion.MQTTv5
    )
    client.username_pw_set(user, password)
    client.reconnect_delay_set(1, 1)
    client.on_connect, client.on_message = connected, heard
    client.connect_async(host, port, 30)
    client.loop_start()
    while True:
        asked.wait()
        asked.clear()
        for one in draw.sample(kept, min(AT_ONCE, len(kept))):
            properties = Properties(PacketTypes.PUBLISH)
            content_type = getattr(one.properties, "ContentType", None)
            if content_type is not None:
                properties.ContentType = content_type
            client.publish(one.topic, one.payload, 1, False, properties)
