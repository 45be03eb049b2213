"""A directory made to harm its verifier is refused, quickly, with a number and without a trace."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilium.release import app
from release.directory import read_manifest
from release.verify import verified, verify_release
from release.verify.files import check_files
from tests.full_release import Sealed, full_release


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return full_release(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def release(made: Sealed, tmp_path: Path) -> Sealed:
    folder = tmp_path / made.folder.name
    shutil.copytree(made.folder, folder)
    return Sealed(folder, made.key)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def nested(path: Path) -> None:
    path.write_bytes(b'{"a":' * 100_000)


def large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 * 1024 * 1024)  # sparse


@pytest.mark.parametrize("what", [pipe, endless, folder, nested, large])
@pytest.mark.parametrize(
    ("name", "numbers"),
    [("manifest.json", {"E703", "E802"}), ("release.sig", {"E702"}), ("golden.json", {"E703"})],
)
def test_what_is_no_file_of_a_release_is_refused(release: Sealed, name, numbers, what) -> None:
    (release.folder / name).unlink()
    what(release.folder / name)
    checks = verify_release(release.folder, release.key.public)
    first = next(check for check in checks if check.passed is False)
    assert first.number in numbers or (name == "golden.json" and first.number == "E701")


@pytest.mark.parametrize(
    "name", ["[/]", "[bold green]Verified.[/]", "a\x1b[2J", "b\n digests passed", b"\xff.txt"]
)
def test_a_name_does_not_speak_for_the_command(release: Sealed, tmp_path: Path, name: str | bytes) -> None:
    path = os.path.join(os.fsencode(release.folder), os.fsencode(name).replace(b"/", b"\xe2\x88\x95"))
    with open(path, "wb") as file:
        file.write(b"x")
    key = tmp_path / "key.pub.pem"
    key.write_text(release.key.public.pem)
    for further in ((), ("--json",)):
        said = CliRunner().invoke(app, ["verify", str(release.folder), "--key", str(key), *further])
        assert said.exit_code == 1 and isinstance(said.exception, SystemExit)
        assert "\x1b" not in said.output and "\n digests passed" not in said.stdout


def test_a_file_that_is_exchanged_after_its_digest_was_checked_is_noticed(
    release: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    def then_exchanged(*given):
        checks = check_files(*given)
        (release.folder / "conformance.json").write_bytes(b"{}")
        return checks

    monkeypatch.setattr("release.verify.check_files", then_exchanged)
    checks = verify_release(release.folder, release.key.public)
    assert not verified(checks)
    (failed,) = [check for check in checks if check.passed is False]
    assert (failed.name, failed.number) == ("conformance", "E701") and "changed while" in failed.detail


def test_the_manifest_that_was_read_is_the_one_that_was_signed(release: Sealed) -> None:
    forged = read_manifest(release.folder).model_copy(update={"title": "Another"})
    _, digests = check_files(release.folder, forged, release.key.public)
    assert digests.passed is False and "manifest.json" in digests.detail
