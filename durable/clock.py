"""The time as contracts write it."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
