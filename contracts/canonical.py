"""Canonical JSON (RFC 8785) and SHA-256 digests: what is hashed and signed here is always these bytes."""

from __future__ import annotations

import hashlib
from typing import Any

import rfc8785
from pydantic import BaseModel


def canonical_json(value: BaseModel | dict[str, Any] | list[Any] | str) -> bytes:
    """Return the RFC 8785 encoding of `value`; a contract may define its own `body()`.

    Fields that are None are left out, so that adding an optional field to a contract changes no old digest.

    Raises:
        rfc8785.CanonicalizationError: a number is not finite or an integer exceeds 2**53.
    """
    if isinstance(value, BaseModel):
        body = getattr(value, "body", None)
        value = body() if body else value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return rfc8785.dumps(value)


def sha256(data: bytes) -> str:
    """Return the digest of `data` as 64 lower-case hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def digest(value: BaseModel | dict[str, Any] | list[Any] | str) -> str:
    """Return the SHA-256 of the canonical JSON of `value`."""
    return sha256(canonical_json(value))
