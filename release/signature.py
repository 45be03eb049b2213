"""The signature of a whole release directory: model-signing with an EC P-256 key, offline, in one spelling.

`release.sig` is the Sigstore bundle (v0.3, DSSE) that the `model-signing` library writes: an in-toto
statement with the SHA-256 of every file but itself. It can be read by that library's own command as well.

A bundle has many spellings: blanks and fields that nobody reads, base64 with spare bits, and two ECDSA
signatures (r, s) and (r, n - s) for one message. Here exactly one is accepted: RFC 8785 JSON without further
fields, strict base64, DER, and the lower s. Then every changed byte of `release.sig` is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from durable.files import write_atomic
from release.contents import SIGNATURE

MAX_BYTES = 8 * 1024 * 1024  # of release.sig: 5000 files are about 1 MB

_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
_PAYLOAD_TYPE = "application/vnd.in-toto+json"
_STATEMENT = "https://in-toto.io/Statement/v1"
_PREDICATE = "https://model_signing/signature/v1.0"
_SERIALIZATION = {
    "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE],
}  # fmt: skip
ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256 (SP 800-186, 3.2.1.3)


@dataclass(frozen=True)
class PublicKey:
    """A coordinator's release key as others know it: PEM (SubjectPublicKeyInfo), always in one spelling."""

    pem: str

    @classmethod
    def parse(cls, pem: str | bytes, where: str = "the key") -> PublicKey:
        """Read an EC P-256 public key.

        Raises:
            ConsiliumError: E801, it is another kind of key or none.
        """
        data = pem.encode() if isinstance(pem, str) else pem
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise ConsiliumError("E801", f"{where} is no public key in PEM form") from error
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
            raise ConsiliumError("E801", f"{where} holds {type(key).__name__}, expected EC P-256")
        return cls(_pem(key))

    @classmethod
    def read(cls, path: Path) -> PublicKey:
        """Read a PEM file.

        Raises:
            ConsiliumError: E801.
        """
        try:
            return cls.parse(path.read_bytes(), str(path))
        except OSError as error:
            raise ConsiliumError("E801", f"{path}: {error.strerror}") from error

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the PEM text: what `sha256sum release.pub.pem` prints, and what a bundle names."""
        return hashlib.sha256(self.pem.encode()).hexdigest()

    @cached_property
    def _key(self) -> ec.EllipticCurvePublicKey:
        key = serialization.load_pem_public_key(self.pem.encode())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    def verifies(self, data: bytes, signature: bytes) -> bool:
        """Say whether `signature` (DER, lower s) over `data` (SHA-256) is by this key."""
        try:
            r, s = decode_dss_signature(signature)
            if s > ORDER // 2 or encode_dss_signature(r, s) != signature:
                return False
            self._key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True


class ReleaseKey:
    """The coordinator's EC P-256 private key for releases, in a PKCS #8 PEM file of its own."""

    def __init__(self, path: Path, private: ec.EllipticCurvePrivateKey) -> None:
        self.path = path
        self._private = private

    @classmethod
    def load(cls, path: Path) -> ReleaseKey:
        """Read the file.

        Raises:
            ConsiliumError: E801, it is missing or holds no EC P-256 key.
        """
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ConsiliumError("E801", f"key file {path}: {error}") from error
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise ConsiliumError("E801", f"key file {path} holds {type(private).__name__}, expected EC P-256")
        return cls(path, private)

    @classmethod
    def make(cls, path: Path) -> ReleaseKey:
        """Draw a new key and write it, readable by its owner only; refuses to overwrite (FileExistsError)."""
        private = ec.generate_private_key(ec.SECP256R1())
        data = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        if path.exists():
            raise FileExistsError(path)
        write_atomic(path, data)
        return cls(path, private)

    @property
    def public(self) -> PublicKey:
        """The half that is handed out."""
        return PublicKey(_pem(self._private.public_key()))

    def sign_bytes(self, data: bytes) -> bytes:
        """Return the ECDSA signature (SHA-256, DER, lower s) over `data`."""
        return _lower(self._private.sign(data, ec.ECDSA(hashes.SHA256())))

    def sign_directory(self, folder: Path) -> None:
        """Sign every file of `folder` and write `release.sig` into it.

        Raises:
            ConsiliumError: E703, the folder holds a link or something that is no file.
        """
        from model_signing import signing

        with tempfile.TemporaryDirectory() as apart:
            made = Path(apart) / SIGNATURE
            config = signing.Config().use_elliptic_key_signer(private_key=self.path)  # type: ignore[no-untyped-call]
            try:
                config.set_hashing_config(_hashing()).sign(folder, made)
            except ValueError as error:
                raise ConsiliumError("E703", str(error)) from error
            envelope = json.loads(made.read_bytes())["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"])
        signature = _lower(base64.b64decode(envelope["signatures"][0]["sig"]))
        (folder / SIGNATURE).write_bytes(_bundle(payload, signature, self.public.fingerprint))


def signer_of(data: bytes) -> str:
    """Return the fingerprint that a bundle names; nothing is verified.

    Raises:
        ConsiliumError: E702, it is no bundle in its one spelling.
    """
    return _parse(data)[2]


def signed_digests(data: bytes, trusted: PublicKey) -> dict[str, str]:
    """Verify a bundle against one key, and return the SHA-256 of each file that it covers, by path.

    Args:
        data: the bytes of `release.sig`.
        trusted: the only key that counts.

    Raises:
        ConsiliumError: E702, another key, a wrong signature, or not the one spelling.
    """
    payload, signature, named = _parse(data)
    if named != trusted.fingerprint:
        raise ConsiliumError("E702", f"by the key {named[:12]}..., trusted is {trusted.fingerprint[:12]}...")
    # DSSE pre-authentication encoding: what is signed names its type and length.
    head = f"DSSEv1 {len(_PAYLOAD_TYPE)} {_PAYLOAD_TYPE} {len(payload)} ".encode()
    if not trusted.verifies(head + payload, signature):
        raise ConsiliumError("E702", f"the signature does not match the key {named[:12]}...")
    return _resources(payload)


def library_agrees(folder: Path, trusted: PublicKey) -> str | None:
    """Let model-signing itself verify the directory; return what it says when it does not agree."""
    from model_signing import verifying

    with tempfile.TemporaryDirectory() as apart:
        key = Path(apart) / "release.pub.pem"
        key.write_text(trusted.pem, encoding="ascii")
        config = verifying.Config().use_elliptic_key_verifier(public_key=key)  # type: ignore[no-untyped-call]
        try:
            config.set_hashing_config(_hashing()).verify(folder, folder / SIGNATURE)
        except (ValueError, OSError, InvalidSignature) as error:
            return str(error) or type(error).__name__
    return None


def _hashing() -> Any:
    """Every file counts but the signature: hidden files and those of git too, and no link is followed."""
    from model_signing import hashing

    config = hashing.Config().use_file_serialization(hashing_algorithm="sha256")  # type: ignore[no-untyped-call]
    return config.set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)


def _bundle(payload: bytes, signature: bytes, fingerprint: str) -> bytes:
    """Write the one spelling of a bundle."""
    return canonical_json(
        {
            "mediaType": _MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": fingerprint}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(payload).decode(),
                "payloadType": _PAYLOAD_TYPE,
                "signatures": [{"keyid": "", "sig": base64.b64encode(signature).decode()}],
            },
        }
    )


def _parse(data: bytes) -> tuple[bytes, bytes, str]:
    """Payload, signature and named fingerprint of a bundle that is spelled as `_bundle` spells it."""
    try:
        found = json.loads(data)
        envelope = found["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        signature = base64.b64decode(envelope["signatures"][0]["sig"], validate=True)
        named = found["verificationMaterial"]["publicKey"]["hint"]
        canonical = _bundle(payload, signature, named)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError, binascii.Error) as error:
        raise ConsiliumError("E702", f"{SIGNATURE} is no bundle of model-signing") from error
    if canonical != data or not isinstance(named, str):
        raise ConsiliumError("E702", f"{SIGNATURE} is not in its one spelling")
    return payload, signature, named


def _resources(payload: bytes) -> dict[str, str]:
    """The files of a statement as this project signs it: all by SHA-256, none ignored, no link followed."""
    try:
        statement: Mapping[str, Any] = json.loads(payload)
        predicate = statement["predicate"]
        resources: Sequence[Mapping[str, str]] = predicate["resources"]
        digests = {line["name"]: line["digest"] for line in resources}
        rolled = hashlib.sha256(b"".join(bytes.fromhex(line["digest"]) for line in resources)).hexdigest()
        (subject,) = statement["subject"]
        kinds = statement["_type"], statement["predicateType"], subject["digest"]
        as_signed = (
            kinds == (_STATEMENT, _PREDICATE, {"sha256": rolled})
            and predicate["serialization"] == _SERIALIZATION
            and len(digests) == len(resources)
            and all(set(line) == {"name", "algorithm", "digest"} for line in resources)
            and all(line["algorithm"] == "sha256" for line in resources)
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConsiliumError("E702", "what is signed is no list of files") from error
    if not as_signed:
        raise ConsiliumError("E702", "what is signed is not a whole directory by SHA-256")
    return digests


def _lower(signature: bytes) -> bytes:
    """(r, s) and (r, n - s) are both valid: of the two only the lower s is used."""
    r, s = decode_dss_signature(signature)
    return encode_dss_signature(r, min(s, ORDER - s))


def _pem(key: ec.EllipticCurvePublicKey) -> str:
    return key.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
