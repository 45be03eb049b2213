"""The federation's certificates: the server's, and those that hospitals may have to show.

Two private authorities, one for each direction, so that neither kind of certificate passes for the other. A
hospital's certificate is for the edge key that the registry holds already: it needs no request and no new
key, and a revoked or rotated key takes its certificate with it.
"""

from __future__ import annotations

import base64
import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.x509.oid import ExtendedKeyUsageOID

from consilium.certificate_forms import (
    AUTHORITY_DAYS,
    PEM,
    SKEW,
    certificate_of,
    check_chain,
    check_server,
    covers,
    draw_key,
    ends_soon,
    general_name,
    load,
    load_key,
    make_authority,
)
from contracts.errors import ConsiliumError
from durable.files import locked, write_atomic
from tasks.federation import load_federation
from tasks.home import CoordinatorHome


@dataclass(frozen=True)
class TlsFiles:
    """Files in `keys/tls` of a coordinator; keys are readable by their owner only."""

    folder: Path

    @property
    def ca(self) -> Path:
        """Authority of the server's certificate: what hospitals trust. Absent: any that they trust anyhow."""
        return self.folder / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """Its private key (EC P-256); absent where the server's certificate is one of your own."""
        return self.folder / "ca.key"

    @property
    def certificate(self) -> Path:
        """The server's certificate, with its chain."""
        return self.folder / "server.pem"

    @property
    def key(self) -> Path:
        """The server's private key."""
        return self.folder / "server.key"

    @property
    def client_ca(self) -> Path:
        """Authority of the hospitals' certificates."""
        return self.folder / "client-ca.pem"

    @property
    def client_ca_key(self) -> Path:
        """Its private key (EC P-256)."""
        return self.folder / "client-ca.key"

    @property
    def crl(self) -> Path:
        """Certificates of hospitals that are no longer taken (RFC 5280, section 5)."""
        return self.folder / "client-crl.pem"

    @property
    def issued(self) -> Path:
        """Every certificate that a hospital was given."""
        return self.folder / "issued"


def federation_ca(home: CoordinatorHome) -> str | None:
    """The authority (PEM) that a startup kit gives to hospitals; None where they trust it anyhow."""
    ca = TlsFiles(home.tls).ca
    return ca.read_text() if ca.exists() else None


def make_server(home: CoordinatorHome, host: str, federation: str) -> str:
    """Make the authority and the server's certificate, or make the latter anew when it ends soon.

    Keys are made once. Besides `host` the certificate is for loopback, where the coordinator's own
    processes ask.

    Returns:
        "made", "renewed" or "kept".

    Raises:
        ConsiliumError: E116, a file is damaged, or the authority's key is needed and not here.
    """
    files = TlsFiles(home.tls)
    with locked(home.tls / ".lock"):
        if not files.ca.exists():
            make_authority(files.ca, files.ca_key, f"{federation} server authority")
        known = files.certificate.exists()
        if known and covers(load(files.certificate), host) and not ends_soon(load(files.certificate)):
            return "kept"
        key = draw_key(files.key)
        names = [general_name(name) for name in dict.fromkeys((host, "localhost", "127.0.0.1"))]
        certificate = (
            certificate_of(files.ca, key.public_key(), host, ExtendedKeyUsageOID.SERVER_AUTH)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(load_key(files.ca_key), hashes.SHA256())
        )
        write_atomic(files.certificate, certificate.public_bytes(PEM))
    return "renewed" if known else "made"


def take_server(home: CoordinatorHome, certificate: Path, key: Path, ca: Path | None, host: str) -> None:
    """Take a certificate (with its chain) and a key of one's own, again when they were renewed.

    Args:
        ca: the authority that hospitals are to trust; None when they trust it anyhow.

    Raises:
        ConsiliumError: E116, they do not fit each other or `host`; E114, certificates were made here.
    """
    files = TlsFiles(home.tls)
    if files.ca_key.exists():
        raise ConsiliumError("E114", f"{files.ca_key}: this federation has an authority of its own")
    check_server(certificate, key, host)
    if ca is not None:
        check_chain(certificate, key, ca, host)
    given = {files.certificate: certificate, files.key: key, **({files.ca: ca} if ca else {})}
    with locked(home.tls / ".lock"):
        for target, source in given.items():
            write_atomic(target, source.read_bytes())


def make_client_authority(home: CoordinatorHome, federation: str) -> None:
    """Make the authority of the hospitals' certificates, and an empty list of revoked ones; once."""
    files = TlsFiles(home.tls)
    with locked(home.tls / ".lock"):
        if not files.client_ca.exists():
            make_authority(files.client_ca, files.client_ca_key, f"{federation} hospitals")
    if not files.crl.exists():
        write_crl(home)


def issue_client(home: CoordinatorHome, site: str) -> str:
    """Issue a certificate (PEM) for the edge key of an enrolled hospital, named after it.

    Raises:
        ConsiliumError: E806, not enrolled; E116, this federation has no authority for it.
    """
    files = TlsFiles(home.tls)
    member = load_federation(home).member(site)
    if not files.client_ca.exists():
        raise ConsiliumError("E116", f"{files.client_ca} is missing: `federation init --client-certificates`")
    public = Ed25519PublicKey.from_public_bytes(_raw(member.edge_key))
    with locked(home.tls / ".lock"):
        certificate = certificate_of(files.client_ca, public, site, ExtendedKeyUsageOID.CLIENT_AUTH).sign(
            load_key(files.client_ca_key), hashes.SHA256()
        )
        text = certificate.public_bytes(PEM)
        write_atomic(files.issued / f"{site}-{certificate.serial_number:x}.pem", text)
    return text.decode()


def write_crl(home: CoordinatorHome) -> list[str]:
    """Revoke every issued certificate whose key is no longer that of an active member.

    To be called when a hospital was revoked or its key rotated. nginx reads the list when it is told to
    (`consilium.nginx.reload`). What was revoked once stays so.

    Returns:
        names of the hospitals with a revoked certificate; empty where none is asked for.

    Raises:
        ConsiliumError: E116, the authority is damaged or its key is missing.
    """
    files = TlsFiles(home.tls)
    if not files.client_ca.exists():
        return []
    federation = load_federation(home)
    current = {site: _raw(federation.member(site).edge_key) for site in federation.sites}
    now = datetime.datetime.now(datetime.UTC)
    with locked(home.tls / ".lock"):
        revoked = _revoked(files.crl)
        gone = set()
        for path in sorted(files.issued.glob("*.pem")):
            certificate = load(path)
            site = path.stem.rpartition("-")[0]
            if certificate.public_key() != _ed25519(current.get(site)):
                revoked.setdefault(certificate.serial_number, now)
            if certificate.serial_number in revoked:
                gone.add(site)
        # An outdated list would lock every hospital out: it lasts as long as the authority.
        builder = x509.CertificateRevocationListBuilder(
            issuer_name=load(files.client_ca).subject,
            last_update=now - SKEW,
            next_update=now + datetime.timedelta(days=AUTHORITY_DAYS),
        )
        for serial, since in revoked.items():
            entry = x509.RevokedCertificateBuilder(serial_number=serial, revocation_date=since)
            builder = builder.add_revoked_certificate(entry.build())
        signed = builder.sign(load_key(files.client_ca_key), hashes.SHA256())
        write_atomic(files.crl, signed.public_bytes(PEM))
    return sorted(gone)


def _revoked(crl: Path) -> dict[int, datetime.datetime]:
    if not crl.exists():
        return {}
    try:
        entries: Iterable[x509.RevokedCertificate] = x509.load_pem_x509_crl(crl.read_bytes())
    except (OSError, ValueError) as error:
        raise ConsiliumError("E116", f"{crl}: {error}") from error
    return {entry.serial_number: entry.revocation_date_utc for entry in entries}


def _raw(key: str) -> bytes:
    return base64.urlsafe_b64decode(key + "=")


def _ed25519(raw: bytes | None) -> Ed25519PublicKey | None:
    return None if raw is None else Ed25519PublicKey.from_public_bytes(raw)
