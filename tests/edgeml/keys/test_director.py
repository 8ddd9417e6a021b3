"""What the fleet signs is what a device reads."""

import subprocess
import sys
from pathlib import Path

import pytest
from registries import House, release
from securesystemslib.signer import Signature

from device_agent.contract.envelope import DESIRED_TYPE, read_envelope
from device_agent.contract.messages import DESIRED_BYTES_MAX, Desired, read
from edgeml.errors import InputError
from edgeml.keys.director import sign_desired
from edgeml.registry.storage import Folder


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(Folder(tmp_path / "registry"), tmp_path / "keys").begin()


def test_the_signature_is_of_type_and_payload(house: House) -> None:
    wanted = house.desired(release("1.0.0", 1))
    envelope = read_envelope(
        sign_desired(wanted, house.signer("director")), DESIRED_BYTES_MAX
    )
    assert read(envelope.payload, Desired) == wanted
    assert envelope.payload_type == DESIRED_TYPE
    (one,) = envelope.signatures
    key = house.ring.entry("director").key
    key.verify_signature(Signature(one.keyid, one.sig.hex()), envelope.signed)


def test_what_no_device_would_read_is_not_signed(house: House) -> None:
    wanted = house.desired(release("1.0.0", 1), config={"x" * 2000: 1})
    with pytest.raises(InputError, match="at most 2048"):
        sign_desired(wanted, house.signer("director"))


def test_a_server_without_compilers_can_sign() -> None:
    code = "import sys, edgeml.keys.director, edgeml.keys.ring; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "onnx", "onnxruntime", "openvino", "nncf", "pyarrow", "typer"}
    assert not heavy & set(done.stdout.split())
