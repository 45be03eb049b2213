"""A bucket behind an fsspec URL: content by digest, resumed, and never trusted."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import fsspec
import pytest

from contracts.errors import ConsiliumError
from durable.bucket import BucketExchange, partial_of

CONTENT = bytes(range(256)) * 20_000


@pytest.fixture(params=["memory", "file"])
def bucket(request: pytest.FixtureRequest, tmp_path: Path) -> BucketExchange:
    if request.param == "memory":
        return BucketExchange(f"memory://{uuid.uuid4().hex}/models")
    return BucketExchange(f"file://{tmp_path}/share/models")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "update"
    path.write_bytes(CONTENT)
    return path


def stored(bucket: BucketExchange, digest: str) -> tuple[fsspec.AbstractFileSystem, str]:
    return bucket._key(digest)


def test_content_comes_back_under_its_digest_and_twice_is_once(bucket: BucketExchange, path: Path) -> None:
    digest = bucket.put(path)
    assert digest == hashlib.sha256(CONTENT).hexdigest() == bucket.put(path, plan="0" * 64)
    bucket.get(digest, path.with_name("back"))
    assert path.with_name("back").read_bytes() == CONTENT
    system, key = stored(bucket, digest)
    assert len(system.find(key.removesuffix(f"/{digest[:2]}/{digest}"))) == 1


def test_a_half_stored_content_is_stored_again(bucket: BucketExchange, path: Path) -> None:
    system, key = stored(bucket, bucket.put(path))
    system.pipe_file(key, CONTENT[:100])
    bucket.get(bucket.put(path), path.with_name("back"))
    assert path.with_name("back").read_bytes() == CONTENT


@pytest.mark.parametrize("begun", [CONTENT[:1_000_001], b"x" * 1000, CONTENT + b"x"])
def test_a_download_goes_on_and_a_damaged_beginning_is_thrown_away(
    bucket: BucketExchange, path: Path, begun: bytes
) -> None:
    digest, target = bucket.put(path), path.with_name("back")
    partial_of(target, digest).write_bytes(begun)
    bucket.get(digest, target)
    assert target.read_bytes() == CONTENT and not partial_of(target, digest).exists()


def test_what_the_bucket_holds_counts_only_with_its_digest(bucket: BucketExchange, path: Path) -> None:
    system, key = stored(bucket, digest := bucket.put(path))
    system.pipe_file(key, CONTENT[:-1] + b"x")
    with pytest.raises(ConsiliumError, match="E804"):
        bucket.get(digest, path.with_name("back"))
    with pytest.raises(ConsiliumError, match="E509"):
        bucket.get("0" * 64, path.with_name("back"))
    assert [entry.name for entry in path.parent.iterdir() if entry.is_file()] == ["update"]


@pytest.mark.parametrize("url", ["nowhere://bucket/models", "models://"])
def test_an_address_that_fsspec_does_not_know_is_refused(url: str, path: Path) -> None:
    with pytest.raises(ConsiliumError, match=r"E820.*//"):
        BucketExchange(url).put(path)


def test_a_bucket_that_cannot_be_written_is_said_to_be_out_of_reach(tmp_path: Path, path: Path) -> None:
    (tmp_path / "share").write_text("not a folder")
    with pytest.raises(ConsiliumError, match="E805"):
        BucketExchange(f"file://{tmp_path}/share/models").put(path)
