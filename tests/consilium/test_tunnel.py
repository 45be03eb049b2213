"""Certificates of hospitals, with real nginx at both ends: shown by the tunnel, asked for in front."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from consilium.address import parse_address
from consilium.certificates import TlsFiles, issue_client, make_client_authority, make_server, write_crl
from consilium.nginx import reload, write_coordinator_nginx, write_tunnel
from consilium.processes import wait_until
from consilium.site_start import take_certificate
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from durable.files import write_atomic, write_json
from site_runtime.home import SiteHome
from tasks.federation import enrol, load_federation
from tasks.home import CoordinatorHome
from tasks.settings import Settings, Tls
from tests.transport import WITH_NGINX, Upstream, free_port, nginx, say, trusting, upstream

HEALTH = "/edge_worker/v1/health"


@dataclass
class Front:
    """A coordinator's nginx that asks for certificates, before an upstream."""

    home: CoordinatorHome
    port: int
    behind: Upstream

    def status(self, context: ssl.SSLContext, path: str = HEALTH) -> int:
        """Ask over TLS as `context` does."""
        request = f"GET {path} HTTP/1.1\r\nHost: localhost:{self.port}\r\nConnection: close\r\n\r\n"
        return say(self.port, context, request.encode())[0]

    def shown(self, site: SiteHome) -> ssl.SSLContext:
        """A client that shows a hospital's certificate."""
        return trusting(TlsFiles(self.home.tls).ca, site.certificate, site.edge_key)


def hospital(home: CoordinatorHome, root: Path, name: str) -> SiteHome:
    """An enrolled hospital with its certificate, in a folder of its own."""
    site = SiteHome(root / name)
    key, sign = SigningKey.generate(name), SigningKey.generate(name)
    key.save(site.edge_key)
    enrol(home, {"site": name, "sign_key": sign.public, "edge_key": key.public, "declared_size": 100})
    write_atomic(site.certificate, issue_client(home, name).encode())
    write_atomic(site.ca, TlsFiles(home.tls).ca.read_bytes())
    return site


def asking(root: Path) -> CoordinatorHome:
    """A coordinator's home with both authorities."""
    home = CoordinatorHome(root / "coordinator")
    make_server(home, "localhost", "test")
    make_client_authority(home, "test")
    return home


@pytest.fixture
def front(tmp_path: Path) -> Iterator[Front]:
    home, port = asking(tmp_path), free_port()
    with upstream() as behind:
        tls = Tls(mode="proxy", client_certificates=True, listen=f"127.0.0.1:{port}")
        write_coordinator_nginx(home, Settings(url=f"https://localhost:{port}", port=behind.port, tls=tls))
        with nginx(home.nginx, port):
            yield Front(home, port, behind)


@WITH_NGINX
def test_hospitals_need_a_certificate_that_is_theirs_and_not_revoked(front: Front, tmp_path: Path) -> None:
    ash, birch = (hospital(front.home, tmp_path, name) for name in ("ash", "birch"))
    tls = TlsFiles(front.home.tls)
    nobody = trusting(tls.ca)
    for path in (
        HEALTH,
        "/execution/health",
        "/consilium/blobs/" + "0" * 64,
        "/edge_worker/v1",
        "/execution",
    ):
        assert front.status(nobody, path) == 403, path
        assert front.status(front.shown(ash), path) == 200, path
    assert front.status(nobody, "/api/v2/monitor/health") == 200  # people sign in without one
    other = asking(tmp_path / "other")
    stranger = hospital(other, tmp_path / "other", "ash")
    before = len(front.behind.requests)
    assert front.status(trusting(tls.ca, stranger.certificate, stranger.edge_key)) == 400  # same name
    assert front.status(trusting(tls.ca, tls.certificate, tls.key)) == 400  # the server's own
    assert len(front.behind.requests) == before

    assert front.status(front.shown(birch)) == 200
    members = [m.model_dump(mode="json") for m in load_federation(front.home).members if m.site != "birch"]
    write_json(front.home.federation, {"members": members})
    assert write_crl(front.home) == ["birch"] and reload(front.home.nginx)
    assert wait_until(lambda: front.status(front.shown(birch)) == 400, 20)
    assert front.status(front.shown(ash)) == 200


@WITH_NGINX
def test_the_tunnel_shows_the_certificate_and_takes_no_other_coordinator(
    front: Front, tmp_path: Path
) -> None:
    ash = hospital(front.home, tmp_path, "ash")
    port = free_port()
    write_tunnel(ash, parse_address(f"https://localhost:{front.port}"), port)
    with (
        nginx(ash.tunnel, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        target = "/execution/xcoms/d/manual__2026%3A1/t/plan?map_index=-1"
        answer = client.put(target, content=b"x" * (1 << 19), headers={"Authorization": "Bearer abc"})
        assert answer.status_code == 200
        seen = json.loads(answer.content)
        assert f"{seen['target']}?{seen['query']}" == target
        headers = dict(seen["headers"])
        assert headers["authorization"] == "Bearer abc" and headers["host"] == f"localhost:{front.port}"
        assert client.get(HEALTH, headers={"Host": "evil.example"}).status_code == 421
    # Another authority is trusted: what answers is not the coordinator.
    write_atomic(ash.ca, TlsFiles(asking(tmp_path / "other").tls).ca.read_bytes())
    before = len(front.behind.requests)
    with (
        nginx(ash.tunnel, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        assert client.get(HEALTH).status_code == 502
    assert "certificate verify error" in (ash.tunnel / "error.log").read_text()
    # So is a host that the certificate is not for.
    write_atomic(ash.ca, TlsFiles(front.home.tls).ca.read_bytes())
    text = (ash.tunnel / "nginx.conf").read_text()
    (ash.tunnel / "nginx.conf").write_text(
        text.replace("proxy_ssl_name localhost", "proxy_ssl_name elsewhere")
    )
    with (
        nginx(ash.tunnel, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        assert client.get(HEALTH).status_code == 502
    assert len(front.behind.requests) == before


def test_a_certificate_of_another_key_is_not_kept(tmp_path: Path) -> None:
    home = asking(tmp_path)
    ash, birch = (hospital(home, tmp_path, name) for name in ("ash", "birch"))
    before = ash.certificate.read_bytes()
    with pytest.raises(ConsiliumError, match=r"E116.*with key"):
        take_certificate(ash, birch.certificate)
    ash.certificate.unlink()
    with pytest.raises(ConsiliumError, match=r"E116.*edge.crt.pem"):
        take_certificate(ash, None)
    (tmp_path / "ash.crt.pem").write_bytes(before)
    take_certificate(ash, tmp_path / "ash.crt.pem")
    assert ash.certificate.read_bytes() == before
