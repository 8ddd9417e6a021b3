"""What the fleet wants of a device, signed: the director's half of trust.

A device runs only what both say: this message, and the registry's metadata.
"""

from securesystemslib.signer import Signer

from device_agent.contract.envelope import DESIRED_TYPE, Envelope, Signature
from device_agent.contract.messages import DESIRED_BYTES_MAX, Desired, write

from ..errors import InputError


def sign_desired(desired: Desired, signer: Signer) -> bytes:
    """The message in a DSSE envelope, as it goes to the device.

    Raises:
        InputError: it is larger than a device reads.
    """
    envelope = Envelope(write(desired), DESIRED_TYPE, ())
    made = signer.sign(envelope.signed)
    signature = Signature(made.keyid, bytes.fromhex(made.signature))
    raw = Envelope(envelope.payload, envelope.payload_type, (signature,)).write()
    if len(raw) > DESIRED_BYTES_MAX:
        raise InputError(
            f"the message for {desired.device} has {len(raw)} bytes; "
            f"at most {DESIRED_BYTES_MAX}: shorten its config"
        )
    return raw
