"""The exchange as a bucket: content under its digest behind any fsspec URL (S3 and others), for large models.

Whoever may read and write is the bucket's business, with each party's own credentials from its environment.
The content is not trusted: it counts only with the right digest.
"""

from __future__ import annotations

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contracts.errors import ConsiliumError
from durable.partial import Busy, Partial

_BLOCK = 1 << 20  # bytes


@dataclass(frozen=True)
class BucketExchange:
    """`put` and `get` by SHA-256 below one URL.

    Args:
        url: as fsspec reads it, `s3://bucket/prefix` or `file:///mnt/share`.
    """

    url: str

    def put(self, path: Path, plan: str = "") -> str:
        """Store the file and return its digest; what is there in full is not sent again.

        Raises:
            ConsiliumError: E820, the URL cannot be used here; E805, the bucket cannot be reached or refuses.
        """
        with open(path, "rb") as source:
            digest = hashlib.file_digest(source, "sha256").hexdigest()
            system, key = self._key(digest)
            try:
                if _size(system, key) == path.stat().st_size:
                    return digest
                source.seek(0)
                system.makedirs(system._parent(key), exist_ok=True)
                with system.transaction, system.open(key, "wb") as target:  # appears when it is whole
                    while block := source.read(_BLOCK):
                        target.write(block)
            except Exception as error:  # each driver has exceptions of its own
                raise ConsiliumError("E805", f"{self.url}: {error!r}") from error
        return digest

    def get(self, digest: str, target: Path) -> None:
        """Write the content of `digest` to `target`, from where an earlier attempt ended.

        Raises:
            ConsiliumError: E509, it is not there; E804, it has another digest; E820, E805, E821.
        """
        system, key = self._key(digest)
        beginning = partial_of(target, digest)
        for attempt in ("goes on", "anew"):
            with contextlib.closing(_beginning(beginning)) as partial:
                try:
                    with system.open(key, "rb") as source:
                        source.seek(partial.size)
                        while block := source.read(_BLOCK):
                            partial.write(block)
                except FileNotFoundError as error:
                    partial.discard()
                    raise ConsiliumError("E509", f"digest {digest} is not in {self.url}") from error
                except ConsiliumError:
                    raise
                except Exception as error:
                    raise ConsiliumError("E805", f"{self.url}: {error!r}") from error
                if partial.digest == digest:
                    return partial.move(target)
                found = partial.digest
                partial.discard()
            if attempt == "anew":
                raise ConsiliumError("E804", f"asked for {digest}, received {found}")

    def _key(self, digest: str) -> tuple[Any, str]:
        import fsspec

        try:
            system, root = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:  # unknown scheme; a driver that is not installed
            raise ConsiliumError("E820", f"{self.url!r}: {error}") from error
        return system, f"{root.rstrip('/')}/{digest[:2]}/{digest}"


def partial_of(target: Path, digest: str) -> Path:
    """Where the beginning of a download is kept: beside its target."""
    return target.with_name(f".{target.name}.{digest[:16]}.partial")


def _beginning(path: Path) -> Partial:
    try:
        return Partial(path)
    except Busy as error:
        raise ConsiliumError("E805", f"{path} is being received by another process") from error


def _size(system: Any, key: str) -> int | None:
    try:
        return int(system.size(key))
    except FileNotFoundError:
        return None
