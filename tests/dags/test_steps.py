"""A hospital's task reaches the exchange that the hospital allows at that moment."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.enrolment import StartupKit
from contracts.signing import SigningKey, to_text
from dags.steps import exchange
from durable.bucket import BucketExchange
from durable.files import write_atomic
from site_runtime.exchange import HttpExchange
from tests.factories import POLICY, enrolled_site

BUCKET, URL = "s3://bucket/prefix", "https://fed.example"


@pytest.mark.parametrize("offered", [BUCKET, "s3://elsewhere/prefix", None, "damaged"])
@pytest.mark.parametrize("allowed", [BUCKET, None])
def test_tensors_go_by_a_bucket_only_where_kit_and_policy_name_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offered: str | None, allowed: str | None
) -> None:
    monkeypatch.setenv("CONSILIUM_COORDINATOR_URL", URL)
    monkeypatch.setenv("CONSILIUM_SITE", "ash")
    monkeypatch.setenv("CONSILIUM_EXCHANGE_URL", "s3://set/by/hand")  # of version 0.4.0; nobody reads it now
    home = enrolled_site(tmp_path, policy=POLICY | ({} if allowed is None else {"exchange": allowed}))
    over_the_door = HttpExchange(URL, "ash", home.edge_key)
    assert exchange(home) == over_the_door  # it has taken no kit
    coordinator = SigningKey.generate("coordinator")
    kit = StartupKit(
        federation="north",
        url=URL,
        coordinator_key=coordinator.public,
        exchange=None if offered == "damaged" else offered,
        members=[],
        code_versions=["0.1.0"],
        log_head="0" * 64,
        created="2026-01-01T00:00:00Z",
    )
    text = "damaged" if offered == "damaged" else to_text(coordinator.sign(kit))
    write_atomic(home.kit, text.encode())
    both = offered == allowed == BUCKET
    assert exchange(home) == (BucketExchange(BUCKET) if both else over_the_door)
