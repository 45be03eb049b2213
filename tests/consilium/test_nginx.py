"""The nginx of `federation init`, for real: what reaches the API server behind it, and what does not."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from consilium.certificates import TlsFiles, make_server
from consilium.nginx import STALL_SECONDS, coordinator_configuration, write_coordinator_nginx
from consilium.processes import wait_until
from tasks.home import CoordinatorHome
from tasks.settings import Exchange, Settings, Tls
from tests.transport import (
    WITH_NGINX,
    Upstream,
    answer,
    connection,
    free_port,
    nginx,
    say,
    trusting,
    upstream,
)

pytestmark = [pytest.mark.slow, WITH_NGINX]

QUOTA = 64 << 20
DIGEST = "ab" * 32


@dataclass
class Front:
    """nginx before an upstream."""

    folder: Path
    port: int
    ca: Path
    behind: Upstream

    def say(self, request: str, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request line and headers as they are, with the right host, and return the answer."""
        first, _, rest = request.partition("\n")
        lines = [first, f"Host: localhost:{self.port}", "Connection: close", *filter(None, rest.split("\n"))]
        return say(self.port, trusting(self.ca), "\r\n".join([*lines, "", ""]).encode() + body)


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """nginx with TLS on loopback, as `federation init` writes it, but quicker to lose patience."""
    home = CoordinatorHome(tmp_path_factory.mktemp("front") / "coordinator")
    port = free_port()
    make_server(home, "localhost", "test")
    with upstream() as behind:
        settings = Settings(
            url=f"https://localhost:{port}",
            port=behind.port,
            tls=Tls(mode="proxy", listen=f"127.0.0.1:{port}"),
            exchange=Exchange(quota_bytes=QUOTA),
        )
        write_coordinator_nginx(home, settings)
        (home.nginx / "nginx.conf").write_text(coordinator_configuration(settings, stall_seconds=1))
        with nginx(home.nginx, port):
            yield Front(home.nginx, port, TlsFiles(home.tls).ca, behind)


def test_what_hospitals_and_people_ask_arrives_as_it_was_asked(front: Front) -> None:
    for target in (
        "/edge_worker/v1/jobs/state/heart.round/ash.train/asset__2026-01-01T00:00:00+00:00_x/1/-1/success",
        "/execution/xcoms/heart.round/manual__2026%3A1/open_round/plan?map_index=-1&x=//../",
        f"/consilium/blobs/{DIGEST}",
        "/api/v2/assets?uri_pattern=consilium://heart/round",
        "/dags/heart%20x/grid",
        "/",
    ):
        status, body = front.say(f"GET {target} HTTP/1.1\nAuthorization: Bearer abc")
        assert status == 200, target
        seen = json.loads(body)
        assert seen["target"] + (f"?{seen['query']}" if seen["query"] else "") == target
        assert ["authorization", "Bearer abc"] in seen["headers"]


@pytest.mark.parametrize(
    "target",
    [
        "/x/../edge_worker/v1/worker/ash",
        "/edge_worker/v1/worker/..",
        "/edge_worker/v1/../../api/v2/dags",
        "/./execution/health",
        "/%2e%2e/execution/health",
        "/x/%2E%2e/execution/health",
        "//execution/health",
        "/execution//health",
        "/execution%2fhealth",
        "/execution%2Fhealth",
        "/execution\\health",
        "/execution%5chealth",
        "/execution;a=b/health",
        "/execution/%00",
        "/execution/health#x",
        "http://elsewhere/execution/health",
        "*",
    ],
)
def test_a_path_that_two_programs_could_read_differently_is_refused(front: Front, target: str) -> None:
    before = len(front.behind.requests)
    status, _ = front.say(f"GET {target} HTTP/1.1")
    assert status in (400, 421)
    assert len(front.behind.requests) == before


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ("Content-Length: 5\nTransfer-Encoding: chunked", 400),
        ("Transfer-Encoding: chunked", 411),
        ("Transfer-Encoding: xchunked", 501),
        ("Transfer-Encoding : chunked", 400),
        ("Content-Length: 5\nContent-Length: 6", 400),
        ("Content-Length: +5", 400),
        ("Content-Length: 0x5", 400),
        ("Authorization: Bearer a\nAuthorization: Bearer b", 400),
    ],
)
def test_a_request_of_two_lengths_or_two_senders_is_refused(
    front: Front, headers: str, expected: int
) -> None:
    before = len(front.behind.requests)
    smuggled = b"0\r\n\r\nGET /api/v2/dags HTTP/1.1\r\nHost: localhost\r\n\r\n"
    status, _ = front.say(f"POST /edge_worker/v1/worker/ash HTTP/1.1\n{headers}", smuggled)
    assert status == expected
    assert len(front.behind.requests) == before


def test_no_client_says_where_it_comes_from_or_who_it_is_to_the_server(front: Front) -> None:
    lies = (
        "X-Forwarded-For: 10.0.0.9",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Host: evil.example",
        "X-Forwarded-Port: 1",
        "X-Forwarded-Prefix: /evil",
        "X-Real-IP: 10.0.0.9",
        "Forwarded: for=10.0.0.9",
        "X_Forwarded_For: 10.0.0.9",
        "Upgrade: websocket",
    )
    _, body = front.say("GET /edge_worker/v1/health HTTP/1.1\n" + "\n".join(lies))
    headers = json.loads(body)["headers"]
    told = {name: value for name, value in headers}
    assert len(told) == len(headers)
    assert told.pop("host") == f"localhost:{front.port}"
    # uvicorn takes the address from here, because nginx is on loopback.
    assert told == {"x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "https"}


def test_another_host_is_not_served(front: Front) -> None:
    request = b"GET / HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert say(front.port, trusting(front.ca), request)[0] == 421


def test_a_large_body_is_streamed_and_never_written_to_disk(front: Front) -> None:
    size, half = 16 << 20, 8 << 20
    before = front.behind.received
    head = f"PUT /consilium/plans/{DIGEST}/blobs/{DIGEST} HTTP/1.1\r\nHost: localhost:{front.port}\r\n"
    with connection(front.port, trusting(front.ca)) as tls:
        tls.sendall(f"{head}Connection: close\r\nContent-Length: {size}\r\n\r\n".encode())
        tls.sendall(b"x" * half)
        # The first half is there, but for what lies in sockets, while the second was not even sent.
        assert wait_until(lambda: front.behind.received - before > half // 2, 20)
        assert [path for path in (front.folder / "temporary").rglob("*") if path.is_file()] == []
        tls.sendall(b"x" * (size - half))
        assert answer(tls)[0] == 200
    assert front.behind.received - before == size


def test_a_body_over_its_limit_is_refused_before_it_comes(front: Front) -> None:
    for target, length in (
        ("/edge_worker/v1/worker/ash", (1 << 20) + 1),
        ("/execution/health", (1 << 20) + 1),
        ("/api/v2/dags", (1 << 20) + 1),
        (f"/consilium/blobs/{DIGEST}", QUOTA + 1),
    ):
        assert front.say(f"PUT {target} HTTP/1.1\nContent-Length: {length}")[0] == 413, target


def test_a_request_that_stalls_is_ended(front: Front) -> None:
    with connection(front.port, trusting(front.ca)) as tls:  # in its header
        tls.sendall(b"GET /execution/health HTTP/1.1\r\nHost: loc")
        assert answer(tls)[0] in (0, 408)
    with connection(front.port, trusting(front.ca)) as tls:  # in its body
        head = f"PUT /edge_worker/v1/worker/ash HTTP/1.1\r\nHost: localhost:{front.port}\r\n"
        tls.sendall(f"{head}Content-Length: 100\r\n\r\nslow".encode())
        assert answer(tls)[0] in (0, 408)


def test_the_shipped_patience_is_the_documented_one() -> None:
    text = coordinator_configuration(Settings(url="https://fed.example", tls=Tls(mode="proxy")))
    assert f"client_body_timeout {STALL_SECONDS}s;" in text
    page = (Path(__file__).resolve().parents[2] / "docs" / "federation.md").read_text()
    assert f"stalls for {STALL_SECONDS} s" in " ".join(page.split())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1", "TLSv1_2", "TLSv1_3"])
def test_old_tls_is_refused(front: Front, version: str) -> None:
    context = trusting(front.ca)
    context.set_ciphers("ALL:@SECLEVEL=0")  # else the client itself would not try
    wanted = ssl.TLSVersion[version]
    context.minimum_version = context.maximum_version = wanted
    request = f"GET / HTTP/1.1\r\nHost: localhost:{front.port}\r\nConnection: close\r\n\r\n".encode()
    if wanted >= ssl.TLSVersion.TLSv1_2:
        assert say(front.port, context, request)[0] == 200
    else:
        with pytest.raises(ssl.SSLError, match="alert protocol version"):
            say(front.port, context, request)


def test_no_version_of_any_server_is_told_and_the_api_is_not_described(front: Front) -> None:
    with connection(front.port, trusting(front.ca)) as tls:
        tls.sendall(f"GET / HTTP/1.1\r\nHost: localhost:{front.port}\r\nConnection: close\r\n\r\n".encode())
        head = tls.recv(1 << 16).lower()
    assert b"\r\nserver: nginx\r\n" in head and b"uvicorn" not in head
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert front.say(f"GET {path} HTTP/1.1")[0] == 404


def test_what_was_refused_is_noted_without_token_or_query(front: Front) -> None:
    front.say("GET //noted?token=secret HTTP/1.1\nAuthorization: Bearer secret")
    log = front.folder / "refused.log"
    assert wait_until(lambda: "noted" in log.read_text(), 10)
    assert "secret" not in log.read_text()
