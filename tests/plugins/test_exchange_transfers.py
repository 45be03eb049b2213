"""Transfers over links that break, stall and meet full disks: nothing is lost, nothing is half there."""

from __future__ import annotations

import errno
import hashlib
import io
import select
import shutil
import socket
import time
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import durable.partial
import plugins.uploads
import site_runtime.exchange
from contracts.errors import ConsiliumError
from contracts.masking import MaskKey, UnmaskRequest
from contracts.plan import RosterEntry
from contracts.signing import SigningKey, to_text
from durable.bucket import partial_of
from durable.files import write_atomic
from privacy.secure_sum import new_mask_key
from tasks.federation import coordinator_key
from tasks.membership import rotate_coordinator
from tasks.settings import Exchange, Settings, save_settings
from tests.plugins.served import FlappingLink, Served, serving

pytestmark = pytest.mark.slow


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    monkeypatch.setattr(site_runtime.exchange, "ATTEMPTS", 3)
    monkeypatch.setattr(site_runtime.exchange, "FIRST_WAIT_SECONDS", 0.01)
    with serving(Served(tmp_path)) as served:
        yield served


def digest_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def beginning(served: Served, site: str, path: Path) -> Path:
    """Where the coordinator keeps the beginning of an upload."""
    return served.store.partial / served.plan / site / digest_of(path)


def nothing_half_written(served: Served) -> bool:
    return not [path for path in served.store.root.rglob("*") if path.is_file() and path.name != served.base]


def test_an_upload_goes_on_where_the_link_broke(served: Served) -> None:
    link, path = FlappingLink(served.port, 1_500_000), served.large()
    digest = served.site("ash", link.port).put(path, served.plan)
    link.close()
    assert served.store.path_of(digest).read_bytes() == path.read_bytes()
    assert link.cuts >= 3
    assert link.carried < 2 * path.stat().st_size  # from the start each time, it would never end
    assert not list(served.store.partial.rglob("*/*/*"))


def test_a_download_goes_on_where_the_link_broke(served: Served, tmp_path: Path) -> None:
    link, path = FlappingLink(served.port, 1_500_000), served.large()
    served.make_plan(base_model=served.store.put(path))
    target = tmp_path / "got" / "model"
    served.site("ash", link.port).get(digest_of(path), target)
    link.close()
    assert target.read_bytes() == path.read_bytes()
    assert link.cuts >= 3 and link.carried < 1.5 * path.stat().st_size
    assert [entry.name for entry in target.parent.iterdir()] == ["model"]


def test_an_upload_that_another_process_began_goes_on(served: Served) -> None:
    """After a kill of the site's task, and after a kill of the coordinator's server."""
    path = served.large()
    write_atomic(beginning(served, "ash", path), path.read_bytes()[:4_000_000])
    link = FlappingLink(served.port, 1 << 40)
    digest = served.site("ash", link.port).put(path, served.plan)
    assert served.store.path_of(digest).read_bytes() == path.read_bytes()
    assert link.carried < 1_200_000


@pytest.mark.parametrize("damaged", [b"x" * 4_000_000, b"x" * 5_000_001, b"x" * 6_000_000])
def test_a_damaged_beginning_is_thrown_away_and_sent_anew(served: Served, damaged: bytes) -> None:
    path = served.large()
    write_atomic(beginning(served, "ash", path), damaged)
    digest = served.site("ash").put(path, served.plan)
    assert served.store.path_of(digest).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("damaged", [b"x" * 4_000_000, b"x" * 5_000_001, b"x" * 6_000_000])
def test_a_damaged_download_is_thrown_away_and_begun_anew(
    served: Served, tmp_path: Path, damaged: bytes
) -> None:
    path = served.large()
    served.make_plan(base_model=served.store.put(path))
    target = tmp_path / "got" / "model"
    write_atomic(partial_of(target, digest_of(path)), damaged)
    served.site("ash").get(digest_of(path), target)
    assert target.read_bytes() == path.read_bytes()
    assert [entry.name for entry in target.parent.iterdir()] == ["model"]


def test_a_download_that_was_complete_before_a_kill_is_not_sent_again(served: Served, tmp_path: Path) -> None:
    path = served.large()
    target = tmp_path / "model"
    write_atomic(partial_of(target, digest_of(path)), path.read_bytes())
    served.site("ash").get(digest_of(path), target)  # no plan names it: a request would be refused
    assert target.read_bytes() == path.read_bytes()


@pytest.mark.parametrize("receipt", ["", "same"])
def test_a_crash_around_the_receipt_does_not_block_the_site(served: Served, receipt: str) -> None:
    """An empty note, as an earlier version could leave; a whole one whose content was never moved."""
    path = served.update()
    note = served.home.study("tiny") / "received" / served.plan / "ash"
    write_atomic(note, (digest_of(path) if receipt else "").encode())
    digest = served.site("ash").put(path, served.plan)
    assert served.store.path_of(digest).is_file() and note.read_text() == digest
    with pytest.raises(ConsiliumError, match=r"E804.*409"):
        served.site("ash").put(served.update(2.0), served.plan)


def raw_put(served: Served, path: Path, sent: int, offset: int = 0) -> socket.socket:
    """Send the head of a PUT and only the beginning of its body, and keep the connection."""
    body, digest = path.read_bytes(), digest_of(path)
    where = f"/consilium/plans/{served.plan}/blobs/{digest}"
    headers = served.site("ash")._authorisation("PUT", where, digest, len(body), offset)
    lines = [f"PUT {where} HTTP/1.1", "Host: x", f"Content-Length: {len(body) - offset}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if offset:
        lines.append(f"Content-Range: bytes {offset}-{len(body) - 1}/{len(body)}")
    connection = socket.create_connection(("127.0.0.1", served.port))
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body[offset : offset + sent])
    return connection


def test_a_slow_body_is_ended_and_what_came_is_kept(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins.uploads, "BATCH_SECONDS", 0.2)
    path = served.large()
    connection = raw_put(served, path, 3_000_000)
    assert b" 408 " in connection.recv(100)
    assert beginning(served, "ash", path).read_bytes() == path.read_bytes()[:3_000_000]


def test_a_connection_that_only_the_coordinator_believes_in_does_not_block_the_next(served: Served) -> None:
    path = served.large()
    dead = raw_put(served, path, 3_000_000)
    digest = served.site("ash").put(path, served.plan)
    assert served.store.path_of(digest).read_bytes() == path.read_bytes()
    assert b" 408 " in dead.recv(100)


def test_begun_uploads_count_against_the_quota(served: Served) -> None:
    save_settings(served.home, Settings(exchange=Exchange(quota_bytes=8_000_000)))
    write_atomic(beginning(served, "ash", served.large("other")), b"x" * 4_000_000)
    with pytest.raises(ConsiliumError, match=r"E804.*413.*quota"):
        served.site("ash").put(served.large(), served.plan)
    served.site("birch").put(served.large(), served.plan)


def uploads(served: Served, number: int, size: int) -> list[socket.socket]:
    """Heads of so many uploads of ash for one plan at once, with one byte of each body."""
    return [raw_put(served, served.large(f"large-{n}", size), 1) for n in range(number)]


def until_refused(wires: list[socket.socket], number: int, status: int) -> None:
    waiting, end = list(wires), time.monotonic() + 30
    while len(wires) - len(waiting) < number:
        assert time.monotonic() < end
        for wire in select.select(waiting, [], [], 1)[0]:
            assert f" {status} ".encode() in wire.recv(100)
            waiting.remove(wire)


def test_what_is_sent_at_once_counts_whole_against_the_quota(served: Served) -> None:
    """Each of these alone fits; of a body that has not come yet the quota is taken when it is let in."""
    save_settings(served.home, Settings(exchange=Exchange(quota_bytes=8_000_000)))
    wires = uploads(served, 4, 3_000_000)
    until_refused(wires, 2, 413)
    served.site("birch").put(served.large(), served.plan)
    for wire in wires:
        wire.close()


def test_what_is_sent_at_once_counts_whole_against_the_free_disk(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    free = plugins.uploads.SPARE_BYTES + 8_000_000
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, free))
    wires = uploads(served, 2, 3_000_000)
    deadline = time.monotonic() + 30
    while len(list(served.store.partial.glob("*/*/*"))) < 2:
        assert time.monotonic() < deadline
    with pytest.raises(ConsiliumError, match=r"E805.*507"):  # another hospital
        served.site("birch").put(served.large(size=3_000_000), served.plan)
    for wire in wires:
        wire.close()


def test_attempts_that_add_little_read_nothing_of_what_is_there(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hospital could else have the coordinator hash a gigabyte for each byte that it sends."""
    path = served.large()
    whole = path.read_bytes()
    write_atomic(beginning(served, "ash", path), whole[:4_000_000])
    read: list[int] = []

    class Counting(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes | None:
            block = super().read(size)
            read.append(len(block or b""))
            return block

    monkeypatch.setattr(durable.partial, "FileIO", Counting)
    with monkeypatch.context() as patch:
        patch.setattr(plugins.uploads, "BATCH_SECONDS", 0.2)
        for number in range(3):
            with raw_put(served, path, 10, 4_000_000 + 10 * number) as slow:
                assert b" 408 " in slow.recv(100)
    assert beginning(served, "ash", path).read_bytes() == whole[:4_000_030]
    assert sum(read) == 0
    assert served.store.path_of(served.site("ash").put(path, served.plan)).read_bytes() == whole
    assert sum(read) == len(whole)


def test_a_site_begins_only_a_few_uploads_for_a_plan(served: Served) -> None:
    for number in range(4):
        write_atomic(served.store.partial / served.plan / "ash" / str(number) / "x", b"")
    with pytest.raises(ConsiliumError, match=r"E804.*413"):
        served.site("ash").put(served.large(), served.plan)


def test_a_full_disk_is_seen_before_anything_is_written(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage(1 << 40, 1 << 40, 200 << 20))
        with pytest.raises(ConsiliumError, match=r"E805.*507"):
            served.site("ash").put(served.large(), served.plan)
        assert nothing_half_written(served)
    served.site("ash").put(served.large(), served.plan)


class FullDisk(io.FileIO):
    """A file on a disk that has room for 2 MB of it."""

    def write(self, block: object) -> int:
        if self.tell() + len(block) > 2_000_000:  # type: ignore[arg-type]
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(block)  # type: ignore[arg-type]


def test_a_disk_that_fills_up_keeps_nothing_and_the_site_comes_again(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(durable.partial, "FileIO", FullDisk)
        with pytest.raises(ConsiliumError, match=r"E805.*507"):
            served.site("ash").put(served.large(), served.plan)
        assert nothing_half_written(served)
    digest = served.site("ash").put(served.large(), served.plan)
    assert served.store.path_of(digest).is_file()


def test_a_hospital_with_a_full_disk_says_so_and_keeps_nothing(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.make_plan(base_model=served.store.put(served.large()))
    monkeypatch.setattr(durable.partial, "FileIO", FullDisk)
    with pytest.raises(ConsiliumError, match="E821"):
        served.site("ash").get(digest_of(served.large()), tmp_path / "got" / "model")
    assert list((tmp_path / "got").iterdir()) == []


def request(served: Served, path: str, claims: tuple[str, int], **headers: str) -> httpx.Response:
    token = served.site("ash")._authorisation("GET", path, *claims)
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        return client.get(path, headers=token | {k.replace("_", "-"): v for k, v in headers.items()})


def test_a_range_is_served_only_of_the_content_that_was_begun(served: Served) -> None:
    path, where = served.root / "base", f"/consilium/blobs/{served.base}"
    claims = (site_runtime.exchange._EMPTY, 0)
    part = request(served, where, claims, Range="bytes=10-", If_Range=f'"{served.base}"')
    assert part.status_code == 206 and part.content == path.read_bytes()[10:]
    whole = request(served, where, claims, Range="bytes=10-", If_Range='"' + "0" * 64 + '"')
    assert whole.status_code == 200 and whole.content == path.read_bytes()
    assert request(served, where, claims, Range="bytes=0-1,3-4").status_code == 400


@pytest.mark.parametrize(
    ("content_range", "offset", "status"),
    [
        ("bytes 5-79/80", 5, 416),  # nothing is here yet
        ("bytes 5-79/80", 0, 403),  # the token is for the whole body
        ("bytes 5-78/80", 5, 400),
        ("bytes 0-74/75", 5, 400),
        ("bytes */80", 5, 400),
        ("lines 5-79/80", 5, 400),
    ],
)
def test_a_body_that_does_not_fit_is_refused(
    served: Served, content_range: str, offset: int, status: int
) -> None:
    path = served.large(size=80)
    where = f"/consilium/plans/{served.plan}/blobs/{digest_of(path)}"
    headers = served.site("ash")._authorisation("PUT", where, digest_of(path), 80, offset)
    with httpx.Client(base_url=served.url, trust_env=False) as client:
        body = path.read_bytes()[5:]
        answer = client.put(where, content=body, headers=headers | {"Content-Range": content_range})
    assert answer.status_code == status
    assert not list(served.store.root.glob(f"*/{digest_of(path)}"))


def request_to_unmask(served: Served) -> UnmaskRequest:
    """A request to ash and birch, and their shares in the exchange."""
    digests = {site: served.store.put(served.update(value)) for site, value in (("ash", 8.0), ("birch", 9.0))}
    return UnmaskRequest(
        study="tiny",
        protocol_hash=served.federation.protocol.hash,
        plan=served.plan,
        exchange=1,
        alive=["ash", "birch"],
        dead=[],
        shares=digests,
    )


def test_what_a_former_key_of_the_coordinator_signed_is_served_after_a_restart(tmp_path: Path) -> None:
    served = Served(tmp_path)
    signed = coordinator_key(served.home).sign(request_to_unmask(served))
    folder = served.home.study("tiny") / "requests"
    write_atomic(folder / f"{signed.digest}.json", to_text(signed).encode())
    rotate_coordinator(served.home, officer="Dr. A. Smith", reason="yearly")
    with serving(served):
        for digest in (served.base, signed.document["shares"]["ash"]):
            served.site("ash").get(digest, tmp_path / digest)
        served.site("ash").put(served.update(), served.plan)


def test_shares_are_read_by_the_site_that_a_signed_request_names_them_for(
    served: Served, tmp_path: Path
) -> None:
    asked = request_to_unmask(served)
    digests = asked.shares
    forged = SigningKey.generate("coordinator").sign(asked)
    folder = served.home.study("tiny") / "requests"
    write_atomic(folder / f"{forged.digest}.json", to_text(forged).encode())
    with pytest.raises(ConsiliumError, match="E804"):
        served.site("ash").get(digests["ash"], tmp_path / "mine")
    signed = coordinator_key(served.home).sign(asked)
    write_atomic(folder / f"{signed.digest}.json", to_text(signed).encode())
    served.site("ash").get(digests["ash"], tmp_path / "mine")
    for site, digest in (("ash", digests["birch"]), ("birch", digests["ash"]), ("cedar", digests["ash"])):
        with pytest.raises(ConsiliumError, match="E804"):
            served.site(site).get(digest, tmp_path / "others")


def test_a_masked_update_may_be_twice_as_large(served: Served) -> None:
    """Its numbers have 64 bits; shares and commitments come on top."""
    base = served.store.put(served.large("model", 6_000_000))
    served.make_plan(base_model=base)
    served.plan = served.make_plan(base_model=base, round=2)
    large = served.large("masked", 6 * 6_000_000)
    with pytest.raises(ConsiliumError, match=r"E804.*413"):
        served.site("ash").put(large, served.plan)
    roster = []
    for site in ("ash", "birch"):
        key = SigningKey.generate(site)
        mask = MaskKey.sign(key, "tiny", "a" * 64, 1, new_mask_key()[1])
        roster.append(RosterEntry(site=site, data_sheet="0" * 64, declared_size=100, mask=mask))
    served.plan = served.make_plan(base_model=base, roster=roster)
    served.site("ash").put(large, served.plan)
    with pytest.raises(ConsiliumError, match=r"E804.*413"):
        served.site("birch").put(served.large("more", 6 * 6_000_000 + 1000), served.plan)
