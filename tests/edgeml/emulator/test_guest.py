"""Guests: they and what they start are of the other architecture, and of it alone."""

import json
from pathlib import Path
from typing import Any

import foreign
import pytest

from edgeml.emulator.guest import guest
from edgeml.emulator.store import Store

pytestmark = pytest.mark.long
WHAT = """
import json, os, platform, struct, subprocess, sys
told = {
    "machine": platform.machine(), "bits": 8 * struct.calcsize("P"),
    "agent": __import__("device_agent").__file__,
    "telemetry": os.environ["ORT_DISABLE_TELEMETRY"], "home": os.environ["HOME"],
    "seed": os.environ["PYTHONHASHSEED"],
}
if len(sys.argv) == 2:
    words = [sys.executable, "-c", sys.argv[1]]
    told["child"] = json.loads(subprocess.check_output(words))
print(json.dumps(told))
"""
CASES = [("aarch64", "cortex-a53", 64), ("armv7l", "cortex-a7", 32)]


def asked(arch: str, cpu: str, code: str, **limits: Any) -> Any:
    given = {"memory_bytes": None, "timeout_s": 120.0, **limits}
    with guest(foreign.store(arch), arch, cpu, lambda line: None) as host:
        return host.run(["-c", code, code], **given)


@pytest.mark.parametrize(("arch", "cpu", "bits"), CASES)
def test_a_guest_and_its_children(arch, cpu, bits):
    ran = asked(arch, cpu, WHAT)
    assert ran.code == 0, ran.stderr
    told = json.loads(ran.stdout)
    for one in (told, told["child"]):
        assert one["machine"] == arch
        assert one["bits"] == bits
        assert one["telemetry"] == "1"
        assert one["seed"] == "0"
        assert "edgeml-guest-" in one["home"]
    assert not Path(told["home"]).exists()


@pytest.mark.parametrize(("arch", "cpu", "bits"), CASES)
def test_memory_is_the_guests_own(arch, cpu, bits):
    code = "data = bytearray(200 << 20); import time; time.sleep(0.5)"
    ran = asked(arch, cpu, code)
    assert ran.exact
    assert 200 << 20 <= ran.peak_bytes < 220 << 20
    ran = asked(arch, cpu, code, memory_bytes=100 << 20)
    assert ran.ended == "memory"
    assert ran.code == -9


def test_processors_have_their_features():
    store: Store = foreign.store("aarch64")
    has = {}
    for cpu in ("cortex-a53", "cortex-a72", "cortex-a76"):
        with guest(store, "aarch64", cpu, lambda line: None) as host:
            has[cpu] = "asimddp" in host.features()
    assert has == {"cortex-a53": False, "cortex-a72": False, "cortex-a76": True}
