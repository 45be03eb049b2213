"""The exchange over HTTP: a site stores one answer to the open plan and reads what a plan of its names."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import httpx
import pytest

import site_runtime.exchange
from contracts.errors import ConsiliumError
from plugins.exchange import Documents
from plugins.limits import Buckets
from site_runtime.exchange import HttpExchange
from tasks.exchange import DirectoryExchange
from tasks.late import late_sites
from tasks.settings import Exchange, Settings, save_settings
from tests.plugins.served import FlappingLink, Served, serving

pytestmark = pytest.mark.slow

TASKS_OF_A_WORKER = 4  # its concurrency, as `consilium.airflow_home` sets it
REQUESTS_OF_AN_ATTEMPT = 2  # where to go on, and the body


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(site_runtime.exchange, "ATTEMPTS", 2)
    monkeypatch.setattr(site_runtime.exchange, "FIRST_WAIT_SECONDS", 0.01)
    with serving(Served(tmp_path)) as served:
        yield served


def test_what_a_site_put_is_what_the_coordinator_finds(served: Served) -> None:
    digest = served.site("ash").put(served.update(), served.plan)
    stored = DirectoryExchange(served.home.exchange).path_of(digest)
    assert stored.read_bytes() == served.update().read_bytes()
    assert served.site("ash").put(served.update(), served.plan) == digest
    assert served.site("birch").put(served.update(2.0), served.plan) != digest
    assert not list(served.home.exchange.glob(".incoming.*"))


def test_a_site_gets_the_model_of_its_plan_and_nothing_else(served: Served, tmp_path: Path) -> None:
    target = tmp_path / "got" / "model"
    served.site("ash").get(served.base, target)
    assert target.read_bytes() == (served.root / "base").read_bytes()
    foreign = served.site("birch").put(served.update(2.0), served.plan)
    for site, digest in (("ash", foreign), ("cedar", served.base), ("ash", "f" * 64)):
        with pytest.raises(ConsiliumError, match="E804"):
            served.site(site).get(digest, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_site_gets_the_models_that_it_compares_with_and_no_other_hospitals_fold(
    served: Served, tmp_path: Path
) -> None:
    """The earlier releases, and the model that was trained without this very hospital."""
    store = DirectoryExchange(served.home.exchange)
    first, own, other = (store.put(served.update(value)) for value in (3.0, 4.0, 5.0))
    served.make_plan(kind="evaluation", baselines={"first": first}, folds={"ash": own, "birch": other})
    for digest in (first, own):
        served.site("ash").get(digest, tmp_path / digest)
    for site, digest in (("ash", other), ("birch", own), ("cedar", first)):
        with pytest.raises(ConsiliumError, match="E804"):
            served.site(site).get(digest, tmp_path / "nothing")


def _second(served: Served) -> None:
    served.site("ash").put(served.update(), served.plan)
    served.site("ash").put(served.update(2.0), served.plan)


def _off_roster(served: Served) -> None:
    served.site("cedar").put(served.update(), served.plan)


def _unknown_plan(served: Served) -> None:
    served.site("ash").put(served.update(), "e" * 64)


def _closed_plan(served: Served) -> None:
    old, served.plan = served.plan, served.make_plan(round=2)
    served.site("ash").put(served.update(), old)


def _local(served: Served) -> None:
    served.site("ash").put(served.update(), served.make_plan(kind="local"))


def _verification(served: Served) -> None:
    served.site("ash").put(served.update(), served.make_plan(kind="verification"))


def _unsigned_plan(served: Served) -> None:
    path = served.home.study("tiny") / "plans" / f"{served.plan}.json"
    text = path.read_text().replace('"round":1', '"round":7')
    path.write_text(text)
    served.site("ash").put(served.update(), served.plan)


def _too_large(served: Served) -> None:
    path = served.root / "large"
    path.write_bytes(b"0" * ((16 << 20) + 1))
    served.site("ash").put(path, served.plan)


def _others_key(served: Served) -> None:
    thief = HttpExchange(served.url, "birch", served.site("ash").edge_key)
    thief.put(served.update(), served.plan)


def test_a_site_gets_the_earlier_releases_that_its_evaluation_is_compared_with(
    served: Served, tmp_path: Path
) -> None:
    earlier = DirectoryExchange(served.home.exchange).put(served.update(7.0))
    with pytest.raises(ConsiliumError, match="E804"):
        served.site("ash").get(earlier, tmp_path / "got")
    served.make_plan(kind="evaluation", baselines={"previous": earlier})
    served.site("ash").get(earlier, tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == served.update(7.0).read_bytes()
    with pytest.raises(ConsiliumError, match="E804"):
        served.site("cedar").get(earlier, tmp_path / "other")


@pytest.mark.parametrize(
    "attempt",
    [
        _second,
        _off_roster,
        _unknown_plan,
        _closed_plan,
        _local,
        _verification,
        _unsigned_plan,
        _too_large,
        _others_key,
    ],
)
def test_the_exchange_refuses(served: Served, attempt: Any) -> None:
    with pytest.raises(ConsiliumError, match="E804"):
        attempt(served)


def test_a_late_update_is_kept_out_and_noted(served: Served) -> None:
    """Ash was in time and sends its update once more; birch is late."""
    closed = served.plan
    sent = served.site("ash").put(served.update(), closed)
    served.make_plan(round=2)
    for site in ("ash", "birch"):
        with pytest.raises(ConsiliumError, match=r"E804.*409"):
            served.site(site).put(served.update(2.0) if site == "birch" else served.update(), closed)
    assert late_sites(served.home, "tiny", closed) == ["birch"]
    stored = [path.name for path in served.home.exchange.rglob("*") if path.is_file()]
    assert sorted(stored) == sorted([served.base, sent])


def test_a_token_is_for_one_request_only(served: Served) -> None:
    site, path = served.site("ash"), served.update()
    body = path.read_bytes()
    digest = site_runtime.exchange.hashlib.sha256(body).hexdigest()
    where = f"/consilium/plans/{served.plan}/blobs/{digest}"

    def header() -> dict[str, str]:
        return site._authorisation("PUT", where, digest, len(body))

    last = header()
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        assert client.put(where, content=b"x" * len(body), headers=header()).status_code == 422
        assert client.put(where, content=body + b"x", headers=header()).status_code == 400
        assert client.put(where.replace(digest, "0" * 64), content=body, headers=header()).status_code == 403
        assert client.get(f"/consilium/blobs/{served.base}", headers=header()).status_code == 403
        assert client.get(where, headers=header()).status_code == 403
        assert client.put(where, content=body).status_code == 401
        assert client.put(where, content=body, headers=last).status_code == 201
        assert client.put(where, content=body, headers=last).status_code == 403  # used


def limited(root: Path, **limits: float) -> Served:
    served = Served(root)
    save_settings(served.home, Settings(exchange=Exchange.model_validate(limits)))
    return served


def test_a_site_that_asks_too_often_is_told_when_to_come_again_and_nobody_else_is(tmp_path: Path) -> None:
    with (
        serving(limited(tmp_path, requests_per_second=0.001, burst=10)) as served,
        httpx.Client(base_url=served.url, trust_env=False) as client,
    ):
        where = f"/consilium/blobs/{served.base}"

        def asked(site: str, key: str) -> httpx.Response:
            signer = HttpExchange(served.url, site, served.site(key).edge_key)
            return client.get(
                where, headers=signer._authorisation("GET", where, site_runtime.exchange._EMPTY, 0)
            )

        # Without ash's key, in its name: that costs ash nothing.
        assert {asked("ash", "birch").status_code for _ in range(12)} == {403}
        answers = [asked("ash", "ash") for _ in range(12)]
        assert [answer.status_code for answer in answers] == [200] * 10 + [429] * 2
        assert answers[-1].headers["retry-after"] == "1"
        assert asked("birch", "birch").status_code == 200


def test_a_transfer_that_was_told_to_come_again_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(site_runtime.exchange, "ATTEMPTS", 20)
    monkeypatch.setattr(site_runtime.exchange, "FIRST_WAIT_SECONDS", 0.01)
    told, answered = [], site_runtime.exchange._answered

    def noting(response: httpx.Response) -> httpx.Response:
        told.append(response.status_code)
        return answered(response)

    monkeypatch.setattr(site_runtime.exchange, "_answered", noting)
    with serving(limited(tmp_path, requests_per_second=10, burst=10)) as served:
        link = FlappingLink(served.port, 500_000)
        digest = served.site("ash", link.port).put(served.large(), served.plan)
        link.close()
        assert served.store.path_of(digest).read_bytes() == served.large().read_bytes()
    assert 429 in told


def test_no_transfer_of_a_gigabyte_over_a_bad_link_meets_the_limit_that_is_set_by_default() -> None:
    """As many as a worker has tasks, each cut off at every megabyte and back at once: it asks, and sends."""
    clock, limits = [0.0], Settings().exchange
    rates = Buckets(limits.requests_per_second, limits.burst, lambda: clock[0])
    for _ in range(1000):
        assert all(rates.take("ash") for _ in range(TASKS_OF_A_WORKER * REQUESTS_OF_AN_ATTEMPT))
        clock[0] += site_runtime.exchange.FIRST_WAIT_SECONDS


def test_looking_through_many_plans_keeps_nobody_waiting(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a digest that it does not know the exchange looks at every plan there is."""
    looking, go_on, may_read = Event(), Event(), Documents.may_read

    def slow(documents: Documents, site: str, digest: str) -> bool:
        looking.set()
        assert go_on.wait(30)
        return may_read(documents, site, digest)

    monkeypatch.setattr(Documents, "may_read", slow)
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(served.site("ash").get, served.base, tmp_path / "model")
        assert looking.wait(30)
        served.site("birch").put(served.update(), served.plan)
        go_on.set()
        asked.result(30)


def test_a_coordinator_that_is_away_is_said_to_be(tmp_path: Path, served: Served) -> None:
    away = HttpExchange("http://127.0.0.1:9", "ash", served.site("ash").edge_key)
    with pytest.raises(ConsiliumError, match="E805"):
        away.get(served.base, tmp_path / "x")


def test_a_corrupt_download_never_appears(served: Served, tmp_path: Path) -> None:
    DirectoryExchange(served.home.exchange).path_of(served.base).write_bytes(b"other")
    with pytest.raises(ConsiliumError, match="E804"):
        served.site("ash").get(served.base, tmp_path / "model")
    assert list(tmp_path.glob("model*")) == [] and list(tmp_path.glob(".incoming*")) == []
