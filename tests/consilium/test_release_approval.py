"""`consilium release keygen` and `approve`: a key of one's own, a signature that waits for publication."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner

from consilium.__main__ import app
from contracts.release import Approval
from contracts.signing import SigningKey, verify_bytes
from tasks.approvals import personal_approval
from tasks.head import advance, load_head
from tests.factories import ZERO, TinyFederation, tiny_study

RUNNER = CliRunner()


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyFederation:
    """A home whose study has a candidate that waits."""
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    found = TinyFederation(tmp_path, tiny_study())
    advance(found.home, load_head(found.home, "tiny"), status="finished", candidate=ZERO)
    return found


def call(*arguments: str) -> tuple[int, dict]:
    done = RUNNER.invoke(app, ["release", *arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def approve(key: Path, **changes: str) -> tuple[int, dict]:
    given = {"role": "clinician", "name": "Dr A", "reason": "reviewed"} | changes
    options = [part for name, value in given.items() for part in (f"--{name}", value)]
    return call("approve", "tiny", "--key", str(key), *options)


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "mine.pem"
    code, made = call("keygen", str(file))
    assert code == 0 and made["public"] == SigningKey.load("person", file).public
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    code, refused = call("keygen", str(file))
    assert code != 0 and refused["error"]["number"] == "E801" and file.read_bytes() == before


def test_the_signature_covers_candidate_name_role_and_reason(
    federation: TinyFederation, tmp_path: Path
) -> None:
    _, made = call("keygen", str(tmp_path / "mine.pem"))
    code, printed = approve(tmp_path / "mine.pem")
    kept = personal_approval(federation.home, "tiny", "clinician")
    assert code == 0 and kept == Approval.model_validate(printed)
    assert (kept.candidate, kept.approved_by, kept.key) == (ZERO, "Dr A", made["public"])
    for field in ("candidate", "approved_by", "role", "reason"):
        changed = kept.model_copy(update={field: "1" * 64})
        assert not verify_bytes(changed.signed_bytes, kept.signature, kept.key)


def test_without_a_candidate_or_with_another_role_nothing_is_signed(
    federation: TinyFederation, tmp_path: Path
) -> None:
    call("keygen", str(tmp_path / "mine.pem"))
    code, refused = approve(tmp_path / "mine.pem", role="operator")
    assert code != 0 and refused["error"]["number"] == "E704"
    assert personal_approval(federation.home, "tiny", "operator") is None
    code, refused = approve(tmp_path / "none.pem")
    assert code != 0 and refused["error"]["number"] == "E801"
