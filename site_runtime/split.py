"""Who is held out: a keyed hash of the patient id, or the declared exception, a fixed list at the site.

All keyed hashes of a site come from its split key (32 bytes, drawn at enrolment), each under its own label,
so that the same patient has unrelated hashes in the split, in the cohort file and in another product. All
studies of one product (a study and those that amend it) share one split: who was held out from an earlier
release stays unseen, so that releases can be compared on patients that none of them was trained on.
"""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from site_runtime.home import SiteHome


def load_split_key(home: SiteHome) -> bytes:
    """Read the site's split key.

    Raises:
        ConsiliumError: E801, it is missing or damaged.
    """
    try:
        key = home.split_key.read_bytes()
    except OSError as error:
        raise ConsiliumError("E801", f"{home.split_key}: {error}") from error
    if len(key) != 32:
        raise ConsiliumError("E801", f"{home.split_key}: {len(key)} bytes, expected 32")
    return key


def keyed_hash(key: bytes, label: str, value: bytes) -> bytes:
    """HMAC-SHA256 of `value` under `key`, separated from other uses by `label` (no NUL in it)."""
    return hmac.new(key, label.encode() + b"\0" + value, hashlib.sha256).digest()


def pseudonym(key: bytes, product: str, patient: str) -> str:
    """The name of a patient inside the frozen cohort: 32 hexadecimal characters."""
    return keyed_hash(key, f"patient/{product}", patient.encode())[:16].hex()


def in_holdout(key: bytes, product: str, fraction: float, patient: str) -> bool:
    """Whether a patient is held out: a function of key, product, fraction and this patient alone."""
    uniform = int.from_bytes(keyed_hash(key, f"holdout/{product}", patient.encode())[:8], "big") / 2**64
    return uniform < fraction


def read_holdout_list(path: Path | None) -> frozenset[str]:
    """Read a fixed list: one patient id a line; `#` starts a comment.

    Raises:
        ConsiliumError: E103, no file is named; E201, it cannot be read.
    """
    if path is None:
        raise ConsiliumError("E103", "field 'holdout': not set, expected a file with the study's list")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConsiliumError("E201", f"{path}: {error}") from error
    return frozenset(text for line in lines if (text := line.split("#")[0].strip()))


def holdout_patients(
    key: bytes, protocol: StudyProtocol, patients: list[str], list_file: Path | None
) -> frozenset[str]:
    """The held-out patients among `patients` (identifiers as the source has them).

    Raises:
        ConsiliumError: E103 or E201, for a list that is missing.
    """
    if protocol.holdout.method == "list":
        return read_holdout_list(list_file) & frozenset(patients)
    fraction = protocol.holdout.fraction
    return frozenset(p for p in patients if in_holdout(key, protocol.product_name, fraction, p))
