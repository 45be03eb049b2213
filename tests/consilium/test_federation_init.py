"""`consilium federation init` and what may start then: nothing that sends in clear to other machines."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consilium.__main__ import app
from consilium.address import parse_address, require_protected
from consilium.airflow_home import coordinator_settings, inside_url, site_settings
from consilium.certificates import TlsFiles, make_server
from consilium.coordinator import prepare_coordinator
from consilium.platform import component_command
from consilium.systemd import site_unit
from consilium.up import prepare
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from site_runtime.home import SiteHome
from tasks.home import CoordinatorHome
from tasks.settings import Settings, Tls, load_settings, save_settings
from tests.factories import enrolled_site
from tests.transport import WITH_NGINX

URL = "https://fed.example:8443"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CoordinatorHome:
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path / "home"))
    return CoordinatorHome(tmp_path / "home" / "coordinator")


def init(*arguments: str) -> dict[str, Any]:
    """Run the command for machines; a refusal is what it prints under `error`."""
    result = CliRunner().invoke(app, ["federation", "init", *arguments, "--json"])
    found: dict[str, Any] = json.loads(result.stdout)
    assert (result.exit_code == 0) == ("error" not in found), result.output
    return found


def everything(home: CoordinatorHome) -> dict[str, bytes]:
    """Every file of a coordinator."""
    return {str(p.relative_to(home.root)): p.read_bytes() for p in home.root.rglob("*") if p.is_file()}


@WITH_NGINX
def test_once_sets_everything_up_and_again_changes_nothing(home: CoordinatorHome) -> None:
    facts = init("--url", URL + "/", "--name", "Heart network", "--client-certificates")
    assert facts["url"] == URL and facts["tls"] == "proxy" and facts["certificate"] == "made"
    assert load_settings(home) == Settings(
        federation="Heart network", url=URL, tls=Tls(mode="proxy", client_certificates=True)
    )
    before = everything(home)
    for name in ("keys/sign.pem", "keys/api.pem", "keys/tls/client-crl.pem", "nginx/nginx.conf"):
        assert name in before
    assert init()["certificate"] == "kept"
    assert init("--url", URL, "--name", "Heart network", "--tls", "proxy")["certificate"] == "kept"
    assert everything(home) == before


@WITH_NGINX
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--url", "https://new.example"),
        ("--name", "Other"),
        ("--tls", "server"),
        ("--database", "sqlite:///x"),
    ],
)
def test_what_hospitals_know_is_not_changed_in_passing(
    home: CoordinatorHome, option: str, value: str
) -> None:
    init("--url", URL)
    before = everything(home)
    error = init(option, value)["error"]
    assert error["number"] == "E114" and repr(value) in error["detail"]
    assert everything(home) == before


@WITH_NGINX
def test_a_changed_settings_file_is_followed_with_the_same_keys(home: CoordinatorHome) -> None:
    init("--url", URL)
    before = everything(home)
    save_settings(home, load_settings(home).model_copy(update={"url": "https://new.example", "port": 9090}))
    assert init()["certificate"] == "renewed"
    changed = {name for name, data in everything(home).items() if before[name] != data}
    assert changed == {"settings.yaml", "keys/tls/server.pem", "nginx/nginx.conf"}
    text = (home.nginx / "nginx.conf").read_text()
    assert "listen 443 ssl" in text and "http://127.0.0.1:9090" in text and "fed.example" not in text


@pytest.mark.parametrize(
    ("arguments", "number"),
    [
        ([], "E113"),
        (["--url", "fed.example"], "E113"),
        (["--url", "ftp://fed.example"], "E113"),
        (["--url", "https://fed.example/path"], "E113"),
        (["--url", "https://user:secret@fed.example"], "E113"),
        (["--url", "https://fed.example:99999"], "E113"),
        (["--url", "https://fed_example;include"], "E113"),
        (["--url", "http://127.0.0.1:8080", "--tls", "proxy"], "E113"),
        (["--url", "https://192.0.2.7", "--client-certificates"], "E113"),
        (["--url", "http://fed.example"], "E115"),
        (["--url", URL, "--tls", "none"], "E115"),
        (["--url", URL, "--tls", "server", "--client-certificates"], "E115"),
        (["--url", URL, "--listen", "everywhere"], "E112"),
        (["--url", URL, "--port", "0"], "E112"),
        (["--url", URL, "--certificate", "absent.pem", "--key", "absent.key"], "E116"),
    ],
)
def test_what_would_not_work_or_not_be_safe_leaves_nothing_behind(
    home: CoordinatorHome, arguments: list[str], number: str
) -> None:
    assert init(*arguments)["error"]["number"] == number
    assert {name for name in everything(home) if not name.endswith(".lock")} == set()


def test_a_certificate_of_ones_own_is_used_and_replaced_when_it_was_renewed(
    home: CoordinatorHome, tmp_path: Path
) -> None:
    authority = CoordinatorHome(tmp_path / "authority")
    make_server(authority, "fed.example", "hospital network")
    theirs = TlsFiles(authority.tls)
    options = ["--certificate", str(theirs.certificate), "--key", str(theirs.key), "--ca", str(theirs.ca)]
    assert init("--url", URL, "--tls", "server", *options)["certificate"] == "yours"
    theirs.certificate.unlink()
    make_server(authority, "fed.example", "hospital network")
    assert init(*options)["certificate"] == "yours"
    assert TlsFiles(home.tls).certificate.read_bytes() == theirs.certificate.read_bytes()
    assert init()["certificate"] == "none"
    assert not TlsFiles(home.tls).ca_key.exists()


def test_the_api_server_that_speaks_tls_itself(home: CoordinatorHome) -> None:
    init("--url", URL, "--tls", "server")
    api = coordinator_settings(home, 8443, 60, sites=4)["api"]
    files = TlsFiles(home.tls)
    assert (api["host"], api["ssl_cert"], api["ssl_key"]) == ("0.0.0.0", files.certificate, files.key)
    assert api["ssl_ca_file"] == files.ca and api["client_use_public_certs"] is False
    assert api["base_url"] == URL and inside_url(home, 8443) == "https://127.0.0.1:8443"
    with pytest.raises(ConsiliumError, match=r"E114.*up --coordinator"):
        prepare(home.root.parent, home.root, [], 8080)


@WITH_NGINX
def test_behind_nginx_the_api_server_stays_on_loopback_and_believes_its_addresses(
    home: CoordinatorHome,
) -> None:
    init("--url", URL)
    api = coordinator_settings(home, 8080, 60, sites=4)["api"]
    assert api["host"] == "127.0.0.1" and "ssl_cert" not in api and api["base_url"] == URL
    assert inside_url(home, 8080) == "http://127.0.0.1:8080"
    assert "--proxy-headers" in component_command(home, "api-server")
    assert "--proxy-headers" not in component_command(home, "scheduler")


@pytest.mark.parametrize(
    ("settings", "number"),
    [
        (Settings(url="http://fed.example:8080"), "E115"),
        (Settings(url=URL), "E115"),
        (Settings(tls=Tls(mode="proxy")), "E113"),
        (Settings(url=URL, tls=Tls(mode="server")), "E116"),
    ],
)
def test_no_coordinator_starts_that_would_be_exposed(
    home: CoordinatorHome, settings: Settings, number: str
) -> None:
    save_settings(home, settings)
    with pytest.raises(ConsiliumError, match=number):
        prepare_coordinator(home.root.parent, [])
    assert not home.airflow.exists()


def test_no_hospital_speaks_to_another_machine_in_clear(tmp_path: Path, home: CoordinatorHome) -> None:
    site = enrolled_site(tmp_path)
    with pytest.raises(ConsiliumError, match="E115"):
        site_settings(site, "ash", "http://fed.example:8080")

    def start(*arguments: str) -> str:
        command = ["site", "start", "--home", str(site.root), *arguments]
        result = CliRunner().invoke(app, command)
        return result.output

    assert "E806" in start()
    site.coordinator_url.write_text("http://fed.example:8080\n")
    assert "E115" in start()
    assert "E115" in CliRunner().invoke(app, ["site", "tunnel", "--home", str(site.root)]).output
    site.coordinator_url.write_text(URL)
    unit = start("--unit", "--tunnel-port", "8444")
    assert 'ExecStart="' in unit and '"--tunnel-port" "8444"' in unit and "Restart=always" in unit


def test_a_hospitals_worker_trusts_the_pinned_authority_alone(tmp_path: Path) -> None:
    site = enrolled_site(tmp_path)
    assert "api" not in site_settings(site, "ash", URL)
    site.ca.write_text("pinned")
    api = site_settings(site, "ash", URL)["api"]
    assert api == {"ssl_ca_file": site.ca, "client_use_public_certs": False}


@pytest.mark.parametrize(
    ("url", "host", "port", "loopback"),
    [
        ("https://Fed.Example", "fed.example", 443, False),
        ("https://[2001:db8::7]:8443/", "2001:db8::7", 8443, False),
        ("http://localhost:8080", "localhost", 8080, True),
        ("http://127.0.0.9", "127.0.0.9", 80, True),
        ("http://[::1]:8080", "::1", 8080, True),
    ],
)
def test_addresses(url: str, host: str, port: int, loopback: bool) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)
    assert parse_address(address.url) == address == require_protected(address)


@pytest.mark.parametrize("host", ["127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0", "127.1"])
def test_a_host_that_only_looks_like_loopback_is_another_machine(host: str) -> None:
    with pytest.raises(ConsiliumError, match=r"E11[35]"):
        require_protected(parse_address(f"http://{host}:8080"))


@WITH_NGINX
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no program systemd-analyze")
def test_the_units_are_what_systemd_reads(home: CoordinatorHome, tmp_path: Path) -> None:
    units = [Path(unit) for unit in init("--url", URL)["units"]]
    for verb in ("start", "tunnel"):
        path = tmp_path / f"consilium-site-{verb}.service"
        path.write_text(site_unit(tmp_path / "a site 100%", [], verb))
        units.append(path)
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for unit in units:
        text = unit.read_text()
        for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "RestrictNamespaces=yes"):
            assert line in text, (unit.name, line)
        assert ("Restart=always" in text) == (unit.stem != "consilium-prepare")


@WITH_NGINX
def test_a_hospital_gets_its_certificate_by_its_name(home: CoordinatorHome, tmp_path: Path) -> None:
    from consilium.certificate_forms import check_key
    from tasks.federation import enrol

    def certify(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["federation", "certificate", *arguments])

    site, key = SiteHome(tmp_path / "ash"), SigningKey.generate("ash")
    key.save(site.edge_key)
    out = tmp_path / "ash.crt.pem"
    init("--url", URL, "--client-certificates")
    assert "E806" in certify("ash", "--out", str(out)).output and not out.exists()
    enrol(home, {"site": "ash", "sign_key": key.public, "edge_key": key.public, "declared_size": 100})
    assert certify("ash", "--out", str(out)).exit_code == 0
    check_key(out, site.edge_key)
