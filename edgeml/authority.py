"""A small certificate authority: who a device is, and who a server is.

The rules it keeps:

1. Keys are made where they are used: a device sends a request (CSR), never a key. Only
   a server's key may be made here.
2. The common name of a device's certificate is its id, and nothing of the request but
   its public key gets into the certificate.
3. Times and numbers come in as arguments; nothing is read from the environment.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import InputError

CA_DAYS = 3650
SERVER_DAYS = 825
DEVICE_DAYS = 365
BACKDATED = timedelta(hours=1)
"""For devices whose clock is a little behind."""
REQUEST_BYTES_MAX = 16 << 10


@dataclass(frozen=True)
class Pair:
    """A private key and its certificate, both PEM."""

    key: bytes
    certificate: bytes


class Authority:
    """Signs certificates with one key; NIST P-256 throughout, which MCUs have, too."""

    def __init__(
        self, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
    ) -> None:
        self._key = key
        self._certificate = certificate

    @classmethod
    def create(cls, name: str, now: datetime) -> "Authority":
        """A new one that signs itself.

        Args:
            name: its common name.
            now: when its certificate begins; UTC.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = _name(name)
        certificate = (
            _builder(subject, subject, key.public_key(), now, CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign=True), critical=True)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()),
                critical=False,
            )
            .sign(key, hashes.SHA256())
        )
        return cls(key, certificate)

    @classmethod
    def load(cls, folder: Path) -> "Authority":
        """What :meth:`save` wrote.

        Raises:
            InputError: it is not there, or it cannot be read.
        """
        try:
            key = serialization.load_pem_private_key(
                (folder / "ca.key").read_bytes(), None
            )
            certificate = x509.load_pem_x509_certificate(
                (folder / "ca.crt").read_bytes()
            )
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{folder}: no certificate authority: {error}") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InputError(f"{folder / 'ca.key'}: expected an elliptic curve key")
        return cls(key, certificate)

    def save(self, folder: Path) -> None:
        """Write ``ca.key`` (0600) and ``ca.crt``."""
        path = folder / "ca.key"
        path.touch(mode=0o600)
        path.write_bytes(_private(self._key))
        (folder / "ca.crt").write_bytes(self.certificate)

    @property
    def certificate(self) -> bytes:
        """What others verify with, PEM."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def server(
        self, hosts: tuple[str, ...], now: datetime, days: int = SERVER_DAYS
    ) -> Pair:
        """Key and certificate of a server known by these names and addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([_general(host) for host in hosts])
        certificate = self._sign(
            self._leaf(
                hosts[0], key.public_key(), now, days, ExtendedKeyUsageOID.SERVER_AUTH
            ).add_extension(names, critical=False)
        )
        return Pair(_private(key), certificate)

    def client(
        self, request: bytes, name: str, now: datetime, days: int = DEVICE_DAYS
    ) -> bytes:
        """The certificate, PEM, for whoever holds the key of a request.

        Args:
            request: the CSR, PEM; nobody vouches for it yet.
            name: the common name of the certificate, whatever the request asks for.
            now: when it begins; UTC.
            days: how long it is good.

        Raises:
            InputError: it is no request for a NIST P-256 key, or its signature is
                wrong.
        """
        if len(request) > REQUEST_BYTES_MAX:
            raise InputError(f"certificate request: over {REQUEST_BYTES_MAX} bytes")
        try:
            found = x509.load_pem_x509_csr(request)
            key = found.public_key()
            good = found.is_signature_valid
        except (ValueError, TypeError, InvalidSignature) as error:
            raise InputError(f"not a certificate request: {error}") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or key.key_size != 256:
            raise InputError("certificate request: expected a key on NIST P-256")
        if not good:
            raise InputError("certificate request: its signature is wrong")
        return self._sign(
            self._leaf(name, key, now, days, ExtendedKeyUsageOID.CLIENT_AUTH)
        )

    def _leaf(
        self, name: str, key: ec.EllipticCurvePublicKey, now: datetime, days: int,
        usage: x509.ObjectIdentifier,
    ) -> x509.CertificateBuilder:  # fmt: skip
        return (
            _builder(_name(name), self._certificate.subject, key, now, days)
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(_usage(sign=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(
                    self._key.public_key()
                ),
                critical=False,
            )
        )

    def _sign(self, builder: x509.CertificateBuilder) -> bytes:
        made = builder.sign(self._key, hashes.SHA256())
        return made.public_bytes(serialization.Encoding.PEM)


def request(name: str) -> tuple[bytes, bytes]:
    """A new key and a request for its certificate, both PEM, as a device makes them."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(_name(name))
        .sign(key, hashes.SHA256())
    )
    return _private(key), made.public_bytes(serialization.Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey,
    now: datetime, days: int,
) -> x509.CertificateBuilder:  # fmt: skip
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, sign: bool) -> x509.KeyUsage:
    """A CA signs certificates and revocations, everybody else a handshake."""
    return x509.KeyUsage(
        digital_signature=not sign, key_cert_sign=sign, crl_sign=sign,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
