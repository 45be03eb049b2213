"""Sealing a report so that only the coordinator's code can open it, and only when it has a reason to.

X25519 (RFC 7748) with an ephemeral key, HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439): the pattern of
HPKE's base mode (RFC 9180). The plan's digest is bound in, so that a sealed report answers one plan only.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from contracts.errors import ConsiliumError

_LABEL = b"consilium sealed report 1"
_RAW = (serialization.Encoding.Raw, serialization.PublicFormat.Raw)


class SealKey:
    """The coordinator's X25519 key, to which hospitals seal what they report."""

    def __init__(self, private: X25519PrivateKey) -> None:
        self._private = private

    @classmethod
    def load_or_make(cls, path: Path) -> SealKey:
        """Read the key at `path` (32 raw bytes, readable by its owner only), or make it.

        Raises:
            ConsiliumError: E801, the file does not hold a key.
        """
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            data = path.read_bytes()
            if len(data) != 32:
                raise ConsiliumError("E801", f"{path}: {len(data)} bytes, expected 32") from None
            return cls(X25519PrivateKey.from_private_bytes(data))
        private = X25519PrivateKey.generate()
        with os.fdopen(file, "wb") as target:
            target.write(private.private_bytes_raw())
            target.flush()
            os.fsync(target.fileno())
        return cls(private)

    @property
    def public(self) -> str:
        """32 bytes, base64url without padding: what a plan names."""
        return base64.urlsafe_b64encode(self._private.public_key().public_bytes(*_RAW)).rstrip(b"=").decode()

    def open(self, sealed: str, plan: str) -> str:
        """Open what a hospital sealed under this plan.

        Raises:
            ConsiliumError: E802, not sealed to this key, for another plan, or changed on the way.
        """
        try:
            data = base64.b64decode(sealed, validate=True)
            ephemeral, box = data[:32], data[32:]
            shared = self._private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
            key = _key(shared, ephemeral, self._private.public_key().public_bytes(*_RAW))
            return ChaCha20Poly1305(key).decrypt(bytes(12), box, plan.encode()).decode()
        except (ValueError, InvalidTag) as error:
            raise ConsiliumError("E802", "the sealed report cannot be opened with this key") from error


def seal(text: str, public: str, plan: str) -> str:
    """Seal a text to the holder of `public`, bound to a plan's digest; base64.

    Raises:
        ConsiliumError: E802, `public` is no key.
    """
    try:
        target = base64.urlsafe_b64decode(public + "=")
        recipient = X25519PublicKey.from_public_bytes(target)
        ephemeral = X25519PrivateKey.generate()
        own = ephemeral.public_key().public_bytes(*_RAW)
        key = _key(ephemeral.exchange(recipient), own, target)
    except ValueError as error:
        raise ConsiliumError("E802", "the plan's seal_key is no X25519 key") from error
    # A key is used once, so the nonce may be zero.
    box = ChaCha20Poly1305(key).encrypt(bytes(12), text.encode(), plan.encode())
    return base64.b64encode(own + box).decode()


def _key(shared: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=_LABEL + ephemeral + recipient).derive(shared)
