"""Key agreement of secure aggregation: mask keys, what is derived from them, bundles and commitments.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439); see `secure_sum` for what for.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from privacy.mask_context import Context
from privacy.shamir import SECRET_BYTES

_NONCE_BYTES = 12
_TAG_BYTES = 16
_CURVE_PRIME = 2**255 - 19


def new_mask_key() -> tuple[bytes, str]:
    """Draw an X25519 key for one exchange; return its 32 private bytes and the public key, base64url."""
    private = X25519PrivateKey.generate()
    public = base64.urlsafe_b64encode(private.public_key().public_bytes_raw()).rstrip(b"=").decode()
    return private.private_bytes_raw(), public


def check_keys(context: Context, keys: Mapping[str, str]) -> None:
    """Refuse mask keys that are not one good X25519 key for each site of the roster.

    Whose key each is, is not seen here: the caller has verified the signatures by the pinned keys.

    Raises:
        ConsiliumError: E432, a site without a key or one too many, the same key twice, a point of low order
            (whose shared secret everybody knows: RFC 7748, section 6.1), or a second spelling of a point.
    """
    if set(keys) != set(context.roster):
        raise ConsiliumError("E432", f"mask keys of {sorted(keys)}, expected of {list(context.roster)}")
    if len(set(keys.values())) != len(keys):
        raise ConsiliumError("E432", "two hospitals have the same mask key")
    throwaway = X25519PrivateKey.generate()
    for site in context.roster:
        agree(throwaway, site, keys)


def agree(own: X25519PrivateKey, peer: str, keys: Mapping[str, str]) -> bytes:
    """Return the secret that this key shares with a peer's.

    Raises:
        ConsiliumError: E432, the peer's key is no point, one of low order, or a second spelling of one.
    """
    try:
        data = base64.urlsafe_b64decode(keys[peer] + "=")
        if len(data) != 32 or int.from_bytes(data, "little") >= _CURVE_PRIME:
            raise ValueError("not 32 bytes below the prime")
        return own.exchange(X25519PublicKey.from_public_bytes(data))  # refuses a shared secret of zeros
    except ValueError as error:
        raise ConsiliumError("E432", f"the mask key of {peer!r} is no good X25519 key: {error}") from error


def own_key(private: bytes, site: str, keys: Mapping[str, str]) -> X25519PrivateKey:
    """Return this site's key, which must be the one that the others were given.

    Raises:
        ConsiliumError: E432, it is another.
    """
    key = X25519PrivateKey.from_private_bytes(private)
    if _text(key) != keys[site]:
        raise ConsiliumError("E432", f"the mask key of {site!r} in the plan is not the one made here")
    return key


def derive(context: Context, purpose: str, parties: Sequence[str], secret: bytes) -> bytes:
    """Derive 32 bytes for one purpose between these parties, in this context and no other."""
    info = canonical_json({"context": context.digest, "purpose": purpose, "parties": list(parties)})
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=info).derive(secret)


def bundle_bytes(context: Context) -> int:
    """Length L of an encrypted bundle of shares: nonce, one share for each site, tag."""
    return _NONCE_BYTES + SECRET_BYTES * len(context.roster) + _TAG_BYTES


def seal(context: Context, sender: str, receiver: str, secret: bytes, shares: bytes) -> bytes:
    """Encrypt one holder's shares; nobody but these two could have made it or opens it."""
    nonce = os.urandom(_NONCE_BYTES)  # a crash may mean a second encryption under the same key
    cipher = ChaCha20Poly1305(_bundle_key(context, sender, receiver, secret))
    return nonce + cipher.encrypt(nonce, shares, None)


def unseal(context: Context, sender: str, receiver: str, secret: bytes, bundle: bytes) -> list[bytes]:
    """Decrypt a bundle and return its shares in the order of the roster.

    Raises:
        ConsiliumError: E433, it was not made by this sender for this receiver and context, or was changed.
    """
    try:
        if len(bundle) != bundle_bytes(context):
            raise ValueError
        cipher = ChaCha20Poly1305(_bundle_key(context, sender, receiver, secret))
        rows = cipher.decrypt(bundle[:_NONCE_BYTES], bundle[_NONCE_BYTES:], None)
    except (ValueError, InvalidTag) as error:
        raise ConsiliumError(
            "E433", f"shares from {sender!r} for {receiver!r}, {len(bundle)} bytes"
        ) from error
    return [rows[at : at + SECRET_BYTES] for at in range(0, len(rows), SECRET_BYTES)]


def commitment(context: Context, site: str, peer: str, seed: bytes) -> bytes:
    """SHA-256 commitment to a seed: a site's own (`peer` is `site`), or a pair's, the same from both."""
    who = {"own": [site]} if site == peer else {"pair": sorted((site, peer))}
    label = canonical_json({"purpose": "commitment", "context": context.digest, **who})
    return hashlib.sha256(hashlib.sha256(label).digest() + seed).digest()


def _bundle_key(context: Context, sender: str, receiver: str, secret: bytes) -> bytes:
    return derive(context, "self" if sender == receiver else "share", [sender, receiver], secret)


def _text(key: X25519PrivateKey) -> str:
    return base64.urlsafe_b64encode(key.public_key().public_bytes_raw()).rstrip(b"=").decode()
