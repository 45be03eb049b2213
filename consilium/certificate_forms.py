"""X.509 as this project uses it: EC P-256 authorities, leaves for one purpose, checks of what is given."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import NameOID

from consilium.address import ip_of
from contracts.errors import ConsiliumError
from durable.files import write_atomic

AUTHORITY_DAYS = 3650
LEAF_DAYS = 397  # what browsers accept at most
RENEW_DAYS = 30  # before its end, a certificate is made anew
SKEW = datetime.timedelta(hours=1)  # a hospital's clock may be behind
PEM = serialization.Encoding.PEM


def load(path: Path) -> x509.Certificate:
    """Read the first certificate of a PEM file.

    Raises:
        ConsiliumError: E116.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ConsiliumError("E116", f"{path}: {error}") from error


def check_server(certificate: Path, key: Path, host: str) -> datetime.datetime:
    """Check that a certificate is valid now, for `host`, and belongs to `key`; return when it ends.

    Raises:
        ConsiliumError: E116.
    """
    leaf = check_key(certificate, key)
    if not covers(leaf, host):
        raise ConsiliumError("E116", f"{certificate}: for {names_of(leaf)}, expected {host!r}")
    return leaf.not_valid_after_utc


def check_key(certificate: Path, key: Path) -> x509.Certificate:
    """Check that a certificate is valid now and belongs to `key`, and return it.

    Raises:
        ConsiliumError: E116.
    """
    leaf = load(certificate)
    try:
        # A key with a password is refused instead of asked for.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise ConsiliumError("E116", f"{certificate} with key {key}: {error}") from error
    now = datetime.datetime.now(datetime.UTC)
    if not leaf.not_valid_before_utc <= now <= leaf.not_valid_after_utc:
        valid = f"{leaf.not_valid_before_utc:%Y-%m-%d} to {leaf.not_valid_after_utc:%Y-%m-%d}"
        raise ConsiliumError("E116", f"{certificate}: valid from {valid}, and today is {now:%Y-%m-%d}")
    return leaf


def check_chain(certificate: Path, key: Path, ca: Path, host: str) -> None:
    """Check, by a handshake in memory, that who trusts `ca` alone takes the server for `host`.

    Raises:
        ConsiliumError: E116.
    """
    load(ca)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=ca)
    sent, received = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(received, sent, server_hostname=host),
        server.wrap_bio(sent, received, server_side=True),
    )
    for end in ends * 2:  # two flights each are a whole handshake (RFC 8446, section 2)
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLError as error:
            raise ConsiliumError("E116", f"{certificate} under authority {ca}: {error}") from error


def make_authority(certificate: Path, key: Path, name: str) -> None:
    """Make an authority that signs leaves only, and its key."""
    private = draw_key(key)
    subject = _name(name)
    usage = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    made = (
        _builder(subject, subject, private.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    write_atomic(certificate, made.public_bytes(PEM))


def certificate_of(
    authority: Path,
    public: ec.EllipticCurvePublicKey | Ed25519PublicKey,
    name: str,
    purpose: x509.ObjectIdentifier,
) -> x509.CertificateBuilder:
    """Begin a leaf under `authority` for a key, a common name and one extended key usage."""
    issuer = load(authority)
    identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        _builder(_name(name), issuer.subject, public, LEAF_DAYS)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey | Ed25519PublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=public,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - SKEW,
        not_valid_after=now + datetime.timedelta(days=days),
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])  # X.520: 64 characters


def draw_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Draw an EC P-256 key at first use."""
    if not path.exists():
        key = ec.generate_private_key(ec.SECP256R1())
        pem = key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        write_atomic(path, pem)
    return load_key(path)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """Read an EC P-256 key.

    Raises:
        ConsiliumError: E116.
    """
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as error:
        raise ConsiliumError("E116", f"key {path}: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConsiliumError("E116", f"key {path}: expected EC P-256")
    return key


def general_name(host: str) -> x509.GeneralName:
    """A host as a certificate names it."""
    ip = ip_of(host)
    return x509.DNSName(host) if ip is None else x509.IPAddress(ip)


def names_of(certificate: x509.Certificate) -> list[str]:
    """The hosts that a certificate is for."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    found: list[str] = list(names.get_values_for_type(x509.DNSName))
    return found + [str(ip) for ip in names.get_values_for_type(x509.IPAddress)]


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Say whether a certificate is for `host` (RFC 6125: a star stands for the first label)."""
    ip = ip_of(host)
    if ip is not None:
        return ip in [ipaddress.ip_address(n) for n in names_of(certificate) if ip_of(n) is not None]
    return bool({host, "*." + host.partition(".")[2]} & {name.lower() for name in names_of(certificate)})


def ends_soon(certificate: x509.Certificate) -> bool:
    """Say whether it is time to make a certificate anew."""
    left = certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    return left < datetime.timedelta(days=RENEW_DAYS)
