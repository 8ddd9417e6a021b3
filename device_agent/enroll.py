"""``edgeml-agent enroll``: this device becomes one of a fleet.

The rules it keeps:

1. The private key is made here and never leaves. It is on the disk before the token is
   used, so that after a power cut the same command gets the same answer again.
2. The token and the answer travel over HTTPS, to the named server and nobody else: no
   redirect is followed. HTTP is for a server on this machine.
3. What the server answers is tried before it is kept: certificate and key fit, the
   broker's CA can be used, root and director's keys can be read.
4. ``identity.json`` is written last. Until then this device is not enrolled, or, where
   it was and is enrolled again, not any more.
"""

import argparse
import json
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from .contract.document import read_document
from .contract.enrolment import (
    MEMBERSHIP_BYTES_MAX,
    PATH,
    Enrolment,
    Membership,
    Refusal,
)
from .contract.errors import MessageError
from .contract.messages import read, write
from .durable import Disk, StateLock, make_folder, remove, replace
from .errors import (
    ConfigError,
    EnrolmentError,
    IdentityError,
    LockedError,
    StorageError,
)
from .identity import (
    FOLDER,
    Identity,
    IdentityDocument,
    is_loopback,
    load_identity,
    write_identity,
)

DONE, USAGE, REFUSED, UNREACHABLE = 0, 2, 4, 5
TIMEOUT_S: Final = 60.0
TOKEN_BYTES_MAX: Final = 1024
PENDING: Final = "device.key.pending"
"""The key until the server has answered."""
CLOCK_TOLERANCE_S: Final = 3600.0
REFUSAL_BYTES_MAX: Final = 64 << 10

Post = Callable[[str, bytes], bytes]
"""Sends a body to a URL; the body of the answer. Raises EnrolmentError."""


def run(namespace: argparse.Namespace) -> int:
    """Enrol, and say how it went.

    Returns:
        The exit code: 0 enrolled, 2 usage, 4 refused, 5 the server cannot be reached or
        believed, or the state directory cannot be used.
    """
    from .config import default_state
    from .durable import REAL

    try:
        state = namespace.state or default_state()
        token = _token(namespace)
        _checked(namespace.server)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        with StateLock(state):
            now = datetime.now(UTC)
            post = poster(namespace.ca, now)
            made = enroll(state, REAL, namespace.server, token, post, namespace.again)
    except EnrolmentError as error:
        sys.stderr.write(f"not enrolled: {error}\n")
        return error.code
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except (IdentityError, LockedError, StorageError, OSError) as error:
        sys.stderr.write(f"not enrolled: {error}\n")
        return UNREACHABLE
    behind_s = (made.document.enrolled_at - now).total_seconds()
    if abs(behind_s) > CLOCK_TOLERANCE_S:
        word = "behind" if behind_s > 0 else "ahead of"
        sys.stderr.write(
            f"this device's clock is {abs(behind_s) / 3600:.1f} hours {word} the "
            "server's: until it is right, what is signed may be refused as expired\n"
        )
    document = made.document
    sys.stdout.write(
        f"enrolled: {document.device} of {document.tenant}, broker "
        f"{document.broker.host}:{document.broker.port}, in {made.folder}\n"
    )
    return DONE


def enroll(
    state: Path, disk: Disk, server: str, token: str, post: Post, again: bool = False
) -> Identity:
    """Become who the server says.

    Args:
        state: the state directory; it is there.
        disk: the seam for durable effects.
        server: URL of the fleet.
        token: the one-time token.
        post: sends the request.
        again: replace an identity that is there.

    Raises:
        EnrolmentError: refused, or the server cannot be reached or believed.
        StorageError: the disk failed; the same may be tried again.
    """
    known = None if again else load_identity(state)
    if known is not None:
        raise EnrolmentError(
            REFUSED,
            f"this device is {known.document.device} of {known.document.tenant} "
            f"already ({known.folder}); --again replaces that",
        )
    folder = state / FOLDER
    make_folder(disk, folder)
    key, csr = _key(folder, disk)
    asked = Enrolment(token=token, csr=csr, facts=_facts())
    raw = post(server.rstrip("/") + PATH, write(asked))
    try:
        answer = read(raw, Membership, MEMBERSHIP_BYTES_MAX)
    except MessageError as error:
        raise EnrolmentError(
            UNREACHABLE, f"{server} does not answer as a fleet does: {error}"
        ) from error
    files = _files(answer, key)
    remove(disk, folder / "identity.json")
    for name in ("password", "device.crt", "device.key", "registry-ca.crt"):
        if name not in files:
            remove(disk, folder / name)
    for name, data in files.items():
        replace(disk, folder / name, data)
    document = IdentityDocument(
        tenant=answer.tenant, device=answer.device, server=server,
        broker=answer.broker, registry=answer.registry, enrolled_at=answer.time,
    )  # fmt: skip
    try:
        Identity(folder, document).context()
    except IdentityError as error:
        raise EnrolmentError(
            UNREACHABLE, f"what {server} answered is of no use: {error}"
        ) from error
    replace(disk, folder / "identity.json", write_identity(document))
    remove(disk, folder / PENDING)
    return Identity(folder, document)


def poster(ca: Path | None, now: datetime) -> Post:
    """What sends the request over the network.

    Args:
        ca: whom to believe to be the server; None: whom the system does.
        now: this device's clock, for errors.

    Raises:
        EnrolmentError: the CA cannot be read.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise EnrolmentError(UNREACHABLE, f"--ca {ca}: no CA: {error}") from error
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context), _NoRedirect()
    )

    def post(url: str, body: bytes) -> bytes:
        request = urllib.request.Request(  # noqa: S310 - http(s), see _checked
            url, body, {"Content-Type": "application/json"}, method="POST"
        )
        try:
            with opener.open(request, timeout=TIMEOUT_S) as response:
                answer: bytes = response.read(MEMBERSHIP_BYTES_MAX + 1)
                return answer
        except urllib.error.HTTPError as error:
            raise _refused(url, error.code, error.read(REFUSAL_BYTES_MAX)) from error
        except urllib.error.URLError as error:
            raise EnrolmentError(
                UNREACHABLE, _unreachable(url, error.reason, now)
            ) from error
        except OSError as error:
            raise EnrolmentError(UNREACHABLE, _unreachable(url, error, now)) from error

    return post


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Whoever is redirected to would be told the token."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _token(namespace: argparse.Namespace) -> str:
    if namespace.token is not None:
        text = str(namespace.token)
    else:
        path = namespace.token_file
        try:
            with path.open("rb") as file:
                lines = file.read(TOKEN_BYTES_MAX).decode("ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--token-file {path}: cannot be read: {error}"
            ) from error
        text = lines[0] if lines else ""
    if not text.strip():
        raise ConfigError("expected a token, found nothing")
    return text.strip()


def _checked(server: str) -> None:
    """Raise ConfigError where the token would travel openly."""
    try:
        parts = urlsplit(server)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigError(f"--server {server}: {error}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"--server: expected https://HOST[:PORT], found {server!r}")
    if parts.scheme == "http" and not is_loopback(host):
        raise ConfigError(
            f"--server {server}: expected https: a token and whom to believe would "
            "travel openly"
        )


def _key(folder: Path, disk: Disk) -> tuple[bytes, str]:
    """The key of this attempt, PEM, durable; and a request for its certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    path = folder / PENDING
    try:
        raw = path.read_bytes()
        key = serialization.load_pem_private_key(raw, None)
    except (OSError, ValueError):  # none of an earlier attempt, or half of one
        key = ec.generate_private_key(ec.SECP256R1())
        raw = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        replace(disk, path, raw)
    assert isinstance(key, ec.EllipticCurvePrivateKey), "as it was written here"
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
    )
    return raw, csr.public_bytes(serialization.Encoding.PEM).decode()


def _files(answer: Membership, key: bytes) -> dict[str, bytes]:
    """What to keep, tried as far as that goes here.

    Raises:
        EnrolmentError: it does not fit together.
    """
    files = {"ca.crt": answer.ca.encode()}
    if answer.registry_ca is not None:
        files["registry-ca.crt"] = answer.registry_ca.encode()
    if answer.password is not None:
        files["password"] = answer.password.encode()
    elif answer.certificate is not None:
        _fits(answer.certificate.encode(), key, answer.device)
        files["device.key"] = key
        files["device.crt"] = answer.certificate.encode()
    else:
        raise _useless("neither certificate nor password")
    try:
        root = json.loads(answer.root)
        kind = root["signed"]["_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise _useless(f"root is not TUF metadata: {error!r}") from error
    if kind != "root":
        raise _useless(f"expected TUF metadata of type root, found {kind!r:.100}")
    keys = answer.director.get("keys")
    if not isinstance(keys, dict) or not keys:
        raise _useless("it names no key of a director")
    files["root.json"] = answer.root.encode()
    files["director.json"] = json.dumps({"keys": keys}).encode()
    return files


def _fits(certificate: bytes, key: bytes, device: str) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization
    from cryptography.x509.oid import NameOID

    try:
        found = x509.load_pem_x509_certificate(certificate)
        names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    except ValueError as error:
        raise _useless(f"its certificate cannot be read: {error}") from error
    ours = serialization.load_pem_private_key(key, None).public_key()
    if found.public_key() != ours:
        raise _useless("its certificate is for another key than this device's")
    if [name.value for name in names] != [device]:
        raise _useless(
            f"its certificate is for {[name.value for name in names]}, not {device!r}"
        )


def _facts() -> dict[str, Any]:
    from .contract import machine

    return {
        "arch": machine.arch(), "processor": machine.name(), "cores": machine.cores(),
    }  # fmt: skip


def _refused(url: str, status: int, raw: bytes) -> EnrolmentError:
    """What an answer with an error means."""
    if 300 <= status < 400:
        return EnrolmentError(
            UNREACHABLE,
            f"{url} sends this device somewhere else (HTTP {status}), and it does not "
            "go: name the server that it should ask with --server",
        )
    try:
        found = read_document(
            raw, Refusal, what="refusal", version=("v", 1), bytes_max=REFUSAL_BYTES_MAX,
            error=MessageError,
        )  # fmt: skip
    except MessageError:
        code = UNREACHABLE if status >= 500 else REFUSED
        return EnrolmentError(code, f"{url} answers HTTP {status}: is it a fleet's?")
    return EnrolmentError(
        UNREACHABLE if status >= 500 else REFUSED,
        f"{found.text or found.reason} ({found.reason}){_HINTS.get(found.reason, '')}",
    )


_HINTS: Final = {
    "token_unknown": "; ask the fleet for a token",
    "token_used": "; a token is good for one device: ask the fleet for another",
    "token_expired": "; ask the fleet for another",
}


def _unreachable(url: str, cause: object, now: datetime) -> str:
    """Why there is no answer, for people."""
    if not isinstance(cause, ssl.SSLCertVerificationError):
        return f"{url} cannot be reached: {cause}"
    text = f"{url}: its certificate is refused: {cause.verify_message}; "
    if cause.verify_code in (9, 10):  # not yet valid, expired
        return text + f"this device's clock says {now:%Y-%m-%d %H:%M} UTC: is it right?"
    return text + "name the CA that it is of with --ca FILE"


def _useless(why: str) -> EnrolmentError:
    return EnrolmentError(UNREACHABLE, f"the server's answer is of no use: {why}")
