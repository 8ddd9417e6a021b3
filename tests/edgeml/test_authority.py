"""The certificate authority: OpenSSL, as TLS uses it, is the judge."""

import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from edgeml.authority import Authority, request
from edgeml.errors import InputError

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.create("a test", NOW)


def handshake(folder: Path, server: Authority, device: bytes, key: bytes) -> str:
    """The common name that a server of this authority sees; else the error's text."""
    pair = server.server(("127.0.0.1",), NOW)
    for name, data in (
        ("s.key", pair.key), ("s.crt", pair.certificate), ("d.key", key),
        ("d.crt", device), ("ca.crt", server.certificate),
    ):  # fmt: skip
        (folder / name).write_bytes(data)
    there = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    there.load_cert_chain(folder / "s.crt", folder / "s.key")
    there.load_verify_locations(folder / "ca.crt")
    there.verify_mode = ssl.CERT_REQUIRED
    seen: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            try:
                with there.wrap_socket(listener.accept()[0], server_side=True) as one:
                    (pairs,) = one.getpeercert()["subject"]
                    seen.append(pairs[0][1])
                    one.sendall(b"!")
            except OSError as error:
                seen.append(str(error))

        thread = threading.Thread(target=answer)
        thread.start()
        here = ssl.create_default_context(cafile=str(folder / "ca.crt"))
        here.load_cert_chain(folder / "d.crt", folder / "d.key")
        try:
            with here.wrap_socket(
                socket.create_connection(listener.getsockname()),
                server_hostname="127.0.0.1",
            ) as one:
                one.recv(1)
        except OSError:
            pass  # the server has said why
        thread.join(20)
    return seen[0]


def test_a_device_of_it_is_known_by_its_name(
    authority: Authority, tmp_path: Path
) -> None:
    key, asked = request("cam-7")
    certificate = authority.client(asked, "cam-7", NOW)
    assert handshake(tmp_path, authority, certificate, key) == "cam-7"


def test_the_name_is_the_authoritys_word(authority: Authority, tmp_path: Path) -> None:
    key, asked = request("edgeml_fleet")
    certificate = authority.client(asked, "cam-7", NOW)
    assert handshake(tmp_path, authority, certificate, key) == "cam-7"


@pytest.mark.parametrize(
    ("when", "who", "why"),
    [
        (NOW - timedelta(days=400), "same", "expired"),
        (NOW + timedelta(days=1), "same", "not yet valid"),
        (NOW, "other", "local issuer certificate"),
    ],
)
def test_openssl_refuses_others(
    authority: Authority, tmp_path: Path, when: datetime, who: str, why: str
) -> None:
    # of the same name: told apart by its signature alone
    signer = authority if who == "same" else Authority.create("a test", NOW)
    key, asked = request("cam-7")
    found = handshake(tmp_path, authority, signer.client(asked, "cam-7", when), key)
    assert why in found


def test_a_device_is_no_server(authority: Authority) -> None:
    _, asked = request("cam-7")
    made = x509.load_pem_x509_certificate(authority.client(asked, "cam-7", NOW))
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [one._name for one in usage] == ["clientAuth"]
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_it_is_saved_and_loaded(authority: Authority, tmp_path: Path) -> None:
    authority.save(tmp_path)
    assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0
    again = Authority.load(tmp_path)
    key, asked = request("cam-7")
    certificate = again.client(asked, "cam-7", NOW)
    assert handshake(tmp_path, authority, certificate, key) == "cam-7"


def test_nothing_is_loaded_from_nowhere(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no certificate authority"):
        Authority.load(tmp_path)


def _csr(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .sign(key, hashes.SHA256())
        .public_bytes(serialization.Encoding.DER)
    )


def _pem(der: bytes) -> bytes:
    import base64

    text = base64.encodebytes(der)
    mark = b"CERTIFICATE REQUEST-----\n"
    return b"-----BEGIN " + mark + text + b"-----END " + mark


def test_bad_requests_are_refused(authority: Authority) -> None:
    small = _csr(ec.generate_private_key(ec.SECP256R1()))
    forged = small[:-1] + bytes([small[-1] ^ 1])
    for asked, why in (
        (b"", "not a certificate request"),
        (b"x" * 20_000, "over 16384 bytes"),
        (_pem(b"\x30\x00"), "not a certificate request"),
        (_pem(_csr(rsa.generate_private_key(65537, 2048))), "NIST P-256"),
        (_pem(_csr(ec.generate_private_key(ec.SECP384R1()))), "NIST P-256"),
        (_pem(forged), "signature is wrong|not a certificate request"),
    ):
        with pytest.raises(InputError, match=why):
            authority.client(asked, "cam-7", NOW)
