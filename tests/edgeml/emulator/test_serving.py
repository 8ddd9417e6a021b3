"""The agent in a guest answers on this host's own address, and stops when told."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import foreign
import pytest
from commands import ROOT

from edgeml.emulator.memory import tree

pytestmark = pytest.mark.long
REQUEST = {
    "inputs": [
        {"name": name, "shape": [1, 3], "datatype": "FP32", "data": data}
        for name, data in (("a", [1, 2, 3]), ("b", [1, 1, 1]))
    ]
}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_it_serves_until_it_is_told_to_stop(tmp_path):
    foreign.store("aarch64")
    bundle = foreign.added(tmp_path, "rpi4", foreign.ARM64)
    listen = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [sys.executable, "-m", "edgeml", "emulator", "run", str(bundle),
         "--listen", listen],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url = f"http://{listen}"
        assert _until(process, url) == url
        asked = urllib.request.Request(
            f"{url}/v2/models/linear/infer", json.dumps(REQUEST).encode()
        )
        with urllib.request.urlopen(asked, timeout=60) as answer:
            assert json.load(answer)["outputs"][0]["data"] == [2, 3, 4]
        guests = tree(process.pid)[1:]
        assert guests
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not any(Path(f"/proc/{pid}").exists() for pid in guests)
    finally:
        process.kill()
        process.wait()


def _until(process: "subprocess.Popen[str]", wanted: str) -> str:
    """The line of standard output that says so; "" when it ended before."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip() == wanted:
            return line.strip()
    return ""
