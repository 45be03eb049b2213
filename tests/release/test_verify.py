"""A release proves itself to whoever brings the right key, and to nobody else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from release.directory import seal
from release.signature import ReleaseKey
from release.verify import verified, verify_release
from tests.dossiers import PUBLISHED, approval_of, tiny_candidate
from tests.factories import study_fields, tiny_study
from tests.full_release import Sealed, full_release

NAMES = [
    "manifest", "signature", "files", "digests", "protocol", "manifest and protocol", "lineage", "events",
    "approvals", "approvers", "approval binding", "personal signatures", "gates", "ledgers", "conformance",
    "schemas", "regulatory status", "model file", "model facts", "golden rows",
]  # fmt: skip


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Sealed:
    return full_release(tmp_path_factory.mktemp("verify"))


def test_a_release_is_checked_in_the_order_in_which_it_may_be_trusted(sealed: Sealed) -> None:
    checks = verify_release(sealed.folder, sealed.key.public)
    assert [check.name for check in checks] == NAMES and verified(checks)
    made = {check.name: check for check in checks}
    assert "2 replayed" in made["ledgers"].detail and "model-signing agrees" in made["digests"].detail
    assert b"secret-trial" not in b"".join(p.read_bytes() for p in sealed.folder.rglob("*") if p.is_file())


@pytest.mark.parametrize("privacy", [{"mode": "none"}, {"mode": "site", "epsilon": 5.0, "delta": 1e-2}])
def test_a_release_without_patient_level_privacy_verifies(tmp_path: Path, privacy: dict) -> None:
    if privacy["mode"] == "site":
        training = study_fields()["training"] | {"normalisation": "declared"}
        study = tiny_study(privacy=privacy | {"max_update_norm": 1.0}, training=training)
    else:
        study = tiny_study()
    candidate, manifest = tiny_candidate(tmp_path, study=study)
    key = ReleaseKey.make(tmp_path / "key.pem")
    seal(candidate, tmp_path / "1.0.0", [approval_of(manifest)], key, PUBLISHED)
    checks = {check.name: check for check in verify_release(tmp_path / "1.0.0", key.public)}
    assert verified(list(checks.values())), checks


def test_nothing_that_was_not_signed_is_parsed_or_run(sealed: Sealed, tmp_path: Path) -> None:
    stranger = ReleaseKey.make(tmp_path / "stranger.pem")
    checks = verify_release(sealed.folder, stranger.public)
    assert checks[1].passed is False and checks[1].number == "E702"
    assert {check.passed for check in checks[2:]} == {None}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_refused(
    sealed: Sealed, data: st.DataObject, where: float, flip: int
) -> None:
    path = data.draw(st.sampled_from(sorted(p for p in sealed.folder.rglob("*") if p.is_file())))
    before = path.read_bytes()
    changed = bytearray(before)
    changed[int(where * len(before))] ^= flip
    try:
        path.write_bytes(changed)
        assert not verified(verify_release(sealed.folder, sealed.key.public))
    finally:
        path.write_bytes(before)


def test_without_the_verify_extra_nothing_is_said_to_be_verified(
    sealed: Sealed, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name))
    with pytest.raises(ConsiliumError, match=r"E110.*onnx"):
        verify_release(sealed.folder, sealed.key.public)


def test_a_malformed_file_that_was_signed_fails_its_check_and_not_the_program(
    sealed: Sealed, tmp_path: Path
) -> None:
    import shutil

    copy = Sealed(shutil.copytree(sealed.folder, tmp_path / "1.0.0"), sealed.key)
    for path in ("study.json", "golden.json", "validation.json", "sbom.cdx.json", "model.onnx"):
        before = (copy.folder / path).read_bytes()
        for data in (b"", b"[]", b"\xff\x00", b'{"a": NaN}'):
            copy.rewrite({path: data})
            assert not verified(verify_release(copy.folder, copy.key.public)), (path, data)
        copy.rewrite({path: before})
    assert verified(verify_release(copy.folder, copy.key.public))
