"""A path is read in its widest sense to find what it could reach, and accepted in its normal form only."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import pytest

from plugins.paths import family
from plugins.refused import Refused

RUN = "asset_triggered__2026-11-26T04:00:00.123456+00:00_aB3"


def scope(raw: str) -> dict[str, Any]:
    """What uvicorn makes of a path on the wire."""
    return {"path": unquote(raw), "raw_path": raw.encode("latin-1", "replace")}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/edge_worker/v1/jobs/fetch/ash", "edge"),
        (f"/edge_worker/v1/jobs/state/heart-live.round/ash.train/{RUN}/1/-1/running", "edge"),
        ("/edge_worker", "edge"),
        ("/edge_worker/docs", "edge"),
        ("/edge_worker/ui/worker", "people"),
        ("/edge_worker/static/main.umd.cjs", "people"),
        (f"/execution/xcoms/heart-live.round/{RUN}/open_round/plan", "execution"),
        ("/execution/docs", "execution"),
        ("/consilium/blobs/" + "a" * 64, "exchange"),
        ("/", "people"),
        ("/api/v2/dags/x/dagRuns/a%2Bb%20c/taskInstances", "people"),
    ],
)
def test_a_path_in_normal_form_has_one_family(path: str, expected: str) -> None:
    assert family(scope(path)) == expected


@pytest.mark.parametrize(
    "path",
    [
        "/edge_worker/v1/jobs%2ffetch/ash",
        "/edge_worker/%76%31/jobs/fetch/ash",
        "/edge%5fworker/v1/jobs/fetch/ash",
        "/%65dge_worker/v1/jobs/fetch/ash",
        "/%2565dge_worker/v1/jobs/fetch/ash",
        "//edge_worker/v1/jobs/fetch/ash",
        "/edge_worker//v1/jobs/fetch/ash",
        "/edge_worker/v1/jobs/fetch/ash/",
        "/edge_worker/v1/./jobs/fetch/ash",
        "/edge_worker/v1/worker/../jobs/fetch/ash",
        "/edge_worker/ui/../v1/jobs/fetch/ash",
        "/edge_worker/ui/%2e%2e/v1/jobs/fetch/ash",
        "/api/v2/../../execution/variables/x",
        "/Execution/variables/x",
        "/EDGE_WORKER/v1/jobs/fetch/ash",
        "/execution;a=b/variables/x",
        "/execution/variables/x;y",
        "/execution%00/variables/x",
        "/execution\\variables\\x",
        "/execution%5cvariables%5cx",
        "/%20execution/variables/x",
        "/%EF%BD%85xecution/variables/x",  # a fullwidth e
        "/execution/variables/%C3%A4",
        "/execution/.hidden",
        "/consilium/blobs/%61",
    ],
)
def test_another_spelling_of_a_machines_path_is_refused(path: str) -> None:
    with pytest.raises(Refused) as refused:
        family(scope(path))
    assert refused.value.code == "path_form"


def test_a_server_that_sends_no_raw_path_is_read_by_its_decoded_one() -> None:
    assert family({"path": "/execution/variables/x"}) == "execution"
    with pytest.raises(Refused):
        family({"path": "/execution//variables/x"})
