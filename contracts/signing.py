"""Ed25519 signatures (RFC 8032) over canonical JSON: the envelope in which every contract crosses."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any, TypeVar

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError
from rfc8785 import CanonicalizationError

from contracts.canonical import canonical_json, digest
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Key, Signature, Text

MAX_DOCUMENT_BYTES = 256 * 1024

_Document = TypeVar("_Document", bound=BaseModel)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Signed(Contract):
    """A document, its type, and who signed it. The signature covers type, signer and document."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    type: Text
    signer: Text
    key: Key
    document: dict[str, Any]
    signature: Signature

    def signed_bytes(self) -> bytes:
        """Return the exact bytes that the signature covers."""
        return canonical_json({"type": self.type, "signer": self.signer, "document": self.document})

    @property
    def digest(self) -> str:
        """Digest of the document alone, by which other documents name it."""
        return digest(self.document)


class SigningKey:
    """An Ed25519 private key with the name of its owner ("coordinator" or a site)."""

    def __init__(self, owner: str, private: Ed25519PrivateKey) -> None:
        self.owner = owner
        self._private = private

    @classmethod
    def generate(cls, owner: str) -> SigningKey:
        """Draw a new key from the operating system."""
        return cls(owner, Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, owner: str, path: Path) -> SigningKey:
        """Read a PKCS #8 PEM file.

        Raises:
            ConsiliumError: E801, the file is missing or holds no Ed25519 key.
        """
        try:
            private = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except (OSError, ValueError) as error:
            raise ConsiliumError("E801", f"key file {path}: {error}") from error
        if not isinstance(private, Ed25519PrivateKey):
            raise ConsiliumError("E801", f"key file {path} holds {type(private).__name__}, expected Ed25519")
        return cls(owner, private)

    def save(self, path: Path) -> None:
        """Write the key as PKCS #8 PEM, readable by its owner only; refuses to overwrite."""
        path.parent.mkdir(parents=True, exist_ok=True)
        data = self._private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(data)

    @property
    def public(self) -> str:
        """The public key: 32 bytes, base64url without padding."""
        raw = self._private.public_key().public_bytes(
            serialization.Encoding.Raw, serialization.PublicFormat.Raw
        )
        return _b64(raw)

    def sign_bytes(self, data: bytes) -> str:
        """Return the signature over `data`, base64url without padding."""
        return _b64(self._private.sign(data))

    def sign(self, document: BaseModel) -> Signed:
        """Wrap and sign a contract."""
        body = json.loads(canonical_json(document))
        unsigned = Signed(
            type=type(document).__name__,
            signer=self.owner,
            key=self.public,
            document=body,
            signature="A" * 86,
        )
        return self.sign_again(unsigned)

    def sign_again(self, signed: Signed) -> Signed:
        """Put the document of another envelope, as it stands and of the same digest, into one by this key."""
        anew = signed.model_copy(update={"signer": self.owner, "key": self.public})
        return anew.model_copy(update={"signature": self.sign_bytes(anew.signed_bytes())})


def verify_bytes(data: bytes, signature: str, public: str) -> bool:
    """Say whether `signature` over `data` was made by the holder of `public`."""
    try:
        Ed25519PublicKey.from_public_bytes(_unb64(public)).verify(_unb64(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True


def parse_signed(text: str | bytes) -> Signed:
    """Parse a signed document without yet trusting it. A document has one spelling: its canonical JSON.

    Raises:
        ConsiliumError: E802, too large, not JSON, not a signed document, or not in canonical form.
    """
    # A lone surrogate has no UTF-8; what replaces it is refused as another spelling.
    data = text.encode(errors="replace") if isinstance(text, str) else text
    if len(data) > MAX_DOCUMENT_BYTES:
        raise ConsiliumError("E802", f"document of {len(data)} bytes, expected at most {MAX_DOCUMENT_BYTES}")
    try:
        signed = Signed.model_validate_json(data)
        canonical = canonical_json(signed)
    except ValidationError as error:
        raise ConsiliumError("E802", first_problem(error)) from error
    except CanonicalizationError as error:  # NaN, or an integer beyond 2**53
        raise ConsiliumError("E802", str(error)) from error
    if canonical != data:
        raise ConsiliumError("E802", "the document is not in canonical form (RFC 8785)")
    return signed


def open_signed(text: str | bytes, kind: type[_Document], signer: str, public: str) -> _Document:
    """Verify a signed document against a key known beforehand and return its contract.

    The key inside the document is never trusted: `public` comes from the registry of the federation.

    Raises:
        ConsiliumError: E802, malformed or of another type; E803, wrong signer, key or signature.
    """
    signed = parse_signed(text)
    if signed.type != kind.__name__:
        raise ConsiliumError("E802", f"type {signed.type!r}, expected {kind.__name__!r}")
    if signed.signer != signer or signed.key != public:
        raise ConsiliumError(
            "E803", f"signed by {signed.signer!r}, expected {signer!r} with its enrolled key"
        )
    if not verify_bytes(signed.signed_bytes(), signed.signature, public):
        raise ConsiliumError("E803", f"the signature of {signer!r} does not match the document")
    try:
        return kind.model_validate(signed.document)
    except ValidationError as error:
        raise ConsiliumError("E802", first_problem(error)) from error


def to_text(signed: Signed) -> str:
    """Return the canonical JSON text of a signed document: the one string a task returns."""
    return canonical_json(signed).decode()


def first_problem(error: ValidationError) -> str:
    """Say field, value and expectation of the first problem pydantic found."""
    problem = error.errors(include_url=False, include_context=False)[0]
    field = ".".join(str(part) for part in problem["loc"]) or "document"
    value = repr(problem.get("input"))
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"field {field!r}: {problem['msg']} (got {shown})"
