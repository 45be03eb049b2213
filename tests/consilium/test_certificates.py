"""Who is taken for the coordinator, by every program of a hospital, and what is revoked for good."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from consilium import certificate_forms
from consilium.airflow_home import site_environment, write_site
from consilium.certificate_forms import check_chain, check_key, check_server, load, load_key, names_of
from consilium.certificates import (
    TlsFiles,
    federation_ca,
    issue_client,
    make_client_authority,
    make_server,
    take_server,
    write_crl,
)
from contracts.errors import ConsiliumError
from durable.files import write_json
from site_runtime.enrol import site_card
from tasks.federation import enrol, load_federation
from tasks.home import CoordinatorHome
from tests.factories import enrolled_site
from tests.transport import upstream

AN_HOUR_AGO = -0.5 / 24  # days: begun an hour ago, ended half an hour later


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome(tmp_path / "coordinator")


def content(home: CoordinatorHome) -> dict[str, bytes]:
    """Every file in `keys/tls`."""
    return {path.name: path.read_bytes() for path in home.tls.iterdir() if path.is_file()}


def take_out(home: CoordinatorHome, site: str) -> None:
    """The registry without a hospital."""
    members = [m for m in load_federation(home).members if m.site != site]
    write_json(home.federation, {"members": [m.model_dump(mode="json") for m in members]})


def test_keys_are_made_once_and_readable_by_their_owner_only(home: CoordinatorHome) -> None:
    assert make_server(home, "fed.example", "test") == "made"
    make_client_authority(home, "test")
    before = content(home)
    assert make_server(home, "fed.example", "test") == "kept"
    make_client_authority(home, "test")
    assert content(home) == before
    for path in (TlsFiles(home.tls).ca_key, TlsFiles(home.tls).key, TlsFiles(home.tls).client_ca_key):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert isinstance(load_key(path).curve, ec.SECP256R1)
    assert federation_ca(home) == TlsFiles(home.tls).ca.read_text()


@pytest.mark.parametrize("host", ["fed.example", "192.0.2.7", "2001:db8::7"])
def test_the_certificate_is_for_the_host_and_for_loopback(home: CoordinatorHome, host: str) -> None:
    make_server(home, host, "test")
    files = TlsFiles(home.tls)
    assert names_of(load(files.certificate)) and check_server(files.certificate, files.key, host)
    for name in (host, "localhost", "127.0.0.1"):
        check_chain(files.certificate, files.key, files.ca, name)
    with pytest.raises(ConsiliumError, match=r"E116.*expected 'other.example'"):
        check_server(files.certificate, files.key, "other.example")
    with pytest.raises(ConsiliumError, match=r"E116"):
        check_chain(files.certificate, files.key, files.ca, "other.example")


def test_a_certificate_that_ends_soon_or_is_for_another_host_is_made_anew_with_the_same_keys(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(certificate_forms, "LEAF_DAYS", 29)
        make_server(home, "fed.example", "test")
    before = content(home)
    assert make_server(home, "fed.example", "test") == "renewed"
    assert make_server(home, "fed.example", "test") == "kept"
    assert make_server(home, "new.example", "test") == "renewed"
    changed = {name for name, data in content(home).items() if before[name] != data}
    assert changed == {"server.pem"}


def test_an_expired_certificate_a_foreign_key_and_what_is_none_are_refused(
    home: CoordinatorHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate_forms, "LEAF_DAYS", AN_HOUR_AGO)
    make_server(home, "fed.example", "test")
    files = TlsFiles(home.tls)
    with pytest.raises(ConsiliumError, match=r"E116.*valid from .* and today is"):
        check_server(files.certificate, files.key, "fed.example")
    with pytest.raises(ConsiliumError, match=r"E116.*with key .*ca.key"):
        check_server(files.certificate, files.ca_key, "fed.example")
    (tmp_path / "none.pem").write_text("nothing")
    with pytest.raises(ConsiliumError, match=r"E116.*none.pem"):
        check_key(tmp_path / "none.pem", files.key)


def test_a_certificate_of_ones_own_is_taken_whole_or_not_at_all(
    home: CoordinatorHome, tmp_path: Path
) -> None:
    other = CoordinatorHome(tmp_path / "other")
    make_server(other, "fed.example", "other")
    make_client_authority(other, "other")
    theirs, files = TlsFiles(other.tls), TlsFiles(home.tls)
    for ca, host in (
        (theirs.client_ca, "fed.example"),
        (theirs.ca, "new.example"),
        (theirs.key, "fed.example"),
    ):
        with pytest.raises(ConsiliumError, match="E116"):
            take_server(home, theirs.certificate, theirs.key, ca, host)
    assert not home.tls.exists() and federation_ca(home) is None
    take_server(home, theirs.certificate, theirs.key, theirs.ca, "fed.example")
    assert files.certificate.read_bytes() == theirs.certificate.read_bytes()
    with pytest.raises(ConsiliumError, match=r"E114.*authority of its own"):
        take_server(other, files.certificate, files.key, files.ca, "fed.example")


def test_a_certificate_goes_with_its_key_and_never_comes_back(home: CoordinatorHome, tmp_path: Path) -> None:
    from cryptography import x509

    ash = enrolled_site(tmp_path)
    make_client_authority(home, "test")
    with pytest.raises(ConsiliumError, match="E806"):
        issue_client(home, "ash")
    enrol(home, site_card(ash).model_dump())
    given = tmp_path / "ash.crt.pem"
    given.write_text(issue_client(home, "ash"))
    check_key(given, ash.edge_key)
    assert write_crl(home) == []
    registry = home.federation.read_bytes()
    take_out(home, "ash")
    assert write_crl(home) == ["ash"] and write_crl(home) == ["ash"]
    home.federation.write_bytes(registry)
    assert write_crl(home) == ["ash"]
    crl = x509.load_pem_x509_crl(TlsFiles(home.tls).crl.read_bytes())
    assert [entry.serial_number for entry in crl] == [load(given).serial_number]
    assert crl.next_update_utc is not None
    again = tmp_path / "again.pem"
    again.write_text(issue_client(home, "ash"))  # after a new enrolment with the same key: a new certificate
    assert crl.get_revoked_certificate_by_serial_number(load(again).serial_number) is None


def test_a_federation_that_asks_for_no_certificate_issues_and_revokes_none(
    home: CoordinatorHome, tmp_path: Path
):
    enrol(home, site_card(enrolled_site(tmp_path)).model_dump())
    assert write_crl(home) == []
    with pytest.raises(ConsiliumError, match=r"E116.*--client-certificates"):
        issue_client(home, "ash")


_CLIENTS = """
import asyncio, json, os, ssl, sys
from pathlib import Path

from airflow.providers.edge3.cli import api_client
from airflow.sdk.api.client import API_SSL_CA_FILE_PATH, API_SSL_CERT_PATH, Client

import site_runtime.exchange
from consilium.site_worker import wait_for_coordinator

site_runtime.exchange.ATTEMPTS = 1

def edge(url):
    os.environ["AIRFLOW__EDGE__API_URL"] = url + "/edge_worker/v1/rpcapi"
    asyncio.run(api_client._make_generic_request("GET", "health"))

def task(url):
    Client(base_url=url, token="none").get("/execution/health")

def exchange(url):
    home = Path(os.environ["CONSILIUM_SITE_HOME"])
    there = site_runtime.exchange.HttpExchange(url, "ash", home / "keys/edge.pem", home / "keys/ca.pem")
    there.get("0" * 64, home / "got")

def outcome(client, url):
    try:
        client(url)
    except Exception as error:
        text = ""
        while error is not None:
            text, error = f"{text} {error!r}", error.__cause__ or error.__context__
        return text
    return "answered"

clients = {"edge": edge, "task": task, "exchange": exchange, "wait": wait_for_coordinator}
found = {name: {kind: outcome(client, url) for kind, url in json.loads(sys.argv[1]).items()}
         for name, client in clients.items()}
of_a_task = Client._get_ssl_context_cached(API_SSL_CA_FILE_PATH, API_SSL_CERT_PATH)
trusted = [ssl.create_default_context(), of_a_task]
found["authorities"] = [len(context.get_ca_certs()) for context in trusted]
found["folder"] = ssl.get_default_verify_paths().capath
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_client_of_a_hospital_takes_the_coordinator_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Edge worker (aiohttp), tasks (httpx of the SDK), exchange (httpx) and the wait at start (urllib)."""
    home, foreign, old = (CoordinatorHome(tmp_path / name) for name in ("home", "foreign", "old"))
    make_server(home, "localhost", "test")
    make_server(foreign, "localhost", "test")
    shutil.copytree(home.tls, old.tls)  # the same authority
    TlsFiles(old.tls).certificate.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(certificate_forms, "LEAF_DAYS", AN_HOUR_AGO)
        make_server(old, "localhost", "test")
    site = enrolled_site(tmp_path)
    site.ca.write_text(federation_ca(home) or "")

    def serving(files: CoordinatorHome, **options: Any) -> Any:
        tls = TlsFiles(files.tls)
        return upstream(ssl_certfile=tls.certificate, ssl_keyfile=tls.key, **options)

    with (
        serving(home) as right,
        serving(foreign) as wrong_authority,
        serving(old) as expired,
        serving(home, host="127.0.0.2") as wrong_host,
    ):
        urls = {
            "right": f"https://localhost:{right.port}",
            "unable to get local issuer certificate": f"https://localhost:{wrong_authority.port}",
            "certificate has expired": f"https://localhost:{expired.port}",
            "IP address mismatch": f"https://127.0.0.2:{wrong_host.port}",
        }
        write_site(site, "ash", urls["right"])
        environment = site_environment(site, "ash", urls["right"]) | {
            "AIRFLOW__EDGE__API_RETRIES": "1",
            "AIRFLOW__WORKERS__EXECUTION_API_RETRIES": "1",
            "PYTHONPATH": os.getcwd(),
        }
        (site.airflow / "config" / "airflow_local_settings.py").unlink()  # no warming up for this
        done = subprocess.run(
            [sys.executable, "-c", _CLIENTS, json.dumps(urls)],
            env=environment, capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        found = json.loads(done.stdout.splitlines()[-1])
        refused = [wrong_authority, expired, wrong_host]
        assert [len(server.requests) for server in refused] == [0, 0, 0]
    assert found.pop("authorities") == [1, 1] and found.pop("folder") is None
    for client, outcomes in found.items():
        right_outcome = outcomes.pop("right")
        assert right_outcome == "answered" or (client == "exchange" and "E804" in right_outcome), (
            right_outcome
        )
        for kind, outcome in outcomes.items():
            assert "CERTIFICATE_VERIFY_FAILED" in outcome or "E117" in outcome, (client, kind, outcome)
            assert kind in outcome, (client, kind, outcome)
    assert all("E117" in outcome for outcome in found["wait"].values())
