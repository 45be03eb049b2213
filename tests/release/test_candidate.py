"""A candidate is written whole, is the same for the same facts, and is sealed only when it may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest

from contracts.errors import ConsiliumError
from contracts.release import GateResult
from release.contents import SIGNATURE
from release.directory import seal, write_candidate
from release.signature import ReleaseKey
from tests.dossiers import PUBLISHED, approval_of, tiny_candidate, tiny_facts
from tests.full_release import approvals_of, full_facts, full_release

STATEMENT = '{"document":{"basis":"b","name":"n","role":"r","time":"2026-01-02"}}'


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReleaseKey]:
    yield ReleaseKey.make(tmp_path_factory.mktemp("key") / "release.pem")


def test_the_same_facts_give_the_same_bytes(tmp_path: Path) -> None:
    """Signatures and times aside, a release is a function of what it is made from."""
    facts = full_facts()
    one = full_release(tmp_path / "a", facts)
    two = full_release(tmp_path / "another" / "place", facts)
    files = [file.path for file in one.read().files]
    assert one.read().candidate_digest == two.read().candidate_digest
    assert all((one.folder / path).read_bytes() == (two.folder / path).read_bytes() for path in files)


def test_a_release_holds_what_its_facts_brought(tmp_path: Path) -> None:
    facts = full_facts(regulatory_statement=STATEMENT)
    release = full_release(tmp_path, facts)
    for site, text in facts.data_sheets.items():
        assert (release.folder / "data_sheets" / f"{site}.json").read_text() == text
    assert (release.folder / "events.jsonl").read_bytes() == facts.events
    assert (release.folder / "regulatory.json").read_text() == STATEMENT
    assert release.read().triggered_by == "operator" and release.read().sign_off == ["clinician", "quality"]
    assert sorted(p.name for p in release.folder.glob("*.cdx.json")) == ["sbom.cdx.json", "vex.cdx.json"]


def test_the_dossier_sees_what_was_written_and_replaces_none_of_it(tmp_path: Path) -> None:
    tiny_candidate(tmp_path)
    seen: dict[str, bytes] = {}

    def replacing(facts: object, files: dict[str, bytes]) -> dict[str, bytes]:
        seen.update(files)
        return {"study.json": b"{}"}

    with pytest.raises(ConsiliumError, match=r"E703.*study\.json"):
        write_candidate(tmp_path / "candidate", tiny_facts(), tmp_path / "model.onnx", replacing)
    assert {"model.onnx", "validation.json", "golden.json"} <= set(seen)


@pytest.mark.parametrize(("passed", "number"), [(False, "E601"), (None, "E602")])
def test_a_failed_or_undecided_gate_is_never_sealed(
    tmp_path: Path, key: ReleaseKey, passed: bool | None, number: str
) -> None:
    candidate, manifest = tiny_candidate(tmp_path, passed=passed)
    with pytest.raises(ConsiliumError, match=number):
        seal(candidate, tmp_path / "1.0.0", [approval_of(manifest)], key, PUBLISHED)
    assert not (tmp_path / "1.0.0").exists()


def test_sealing_refuses_changed_candidates_wrong_approvals_and_existing_releases(
    tmp_path: Path, key: ReleaseKey
) -> None:
    candidate, manifest = tiny_candidate(tmp_path)
    target, good = tmp_path / "1.0.0", approval_of(manifest)
    for approvals, published, number in (
        ([], PUBLISHED, "E704"),
        ([good, good], PUBLISHED, "E704"),
        ([approval_of(manifest, role="none")], PUBLISHED, "E704"),
        ([approval_of(manifest, candidate="1" * 64)], PUBLISHED, "E705"),
        ([approval_of(manifest, time="2025-12-31T23:59:59Z")], PUBLISHED, "E705"),
        ([good], "2026-01-01T00:04:59Z", "E705"),
    ):
        with pytest.raises(ConsiliumError, match=number):
            seal(candidate, target, approvals, key, published)
    seal(candidate, target, [good], key, PUBLISHED)
    with pytest.raises(ConsiliumError, match="E707"):
        seal(candidate, target, [good], key, PUBLISHED)
    with (candidate / "validation.html").open("a") as page:
        page.write("<!-- -->")
    with pytest.raises(ConsiliumError, match="E701"):
        seal(candidate, tmp_path / "1.0.1", [good], key, PUBLISHED)
    assert not [p for p in tmp_path.iterdir() if p.name not in ("candidate", "model.onnx", "1.0.0")]


def test_sealing_refuses_the_person_who_started_the_run(tmp_path: Path, key: ReleaseKey) -> None:
    release = full_release(tmp_path, key=key)
    approvals = approvals_of(release.read(), user="operator")
    with pytest.raises(ConsiliumError, match="E709"):
        seal(tmp_path / "candidate", tmp_path / "2", approvals, key, PUBLISHED)


def test_an_interrupted_candidate_leaves_the_earlier_one_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    candidate, _ = tiny_candidate(tmp_path)
    later = dataclasses.replace(tiny_facts(), version="2.0.0")
    before = {path.name: path.read_bytes() for path in candidate.iterdir() if path.is_file()}
    monkeypatch.setattr("release.directory.canonical_json", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_candidate(candidate, later, tmp_path / "model.onnx")
    assert {path.name: path.read_bytes() for path in candidate.iterdir() if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["candidate", "model.onnx"]


def test_a_later_candidate_replaces_the_earlier_one_whole(tmp_path: Path) -> None:
    candidate, first = tiny_candidate(tmp_path)
    (candidate / "left over.txt").write_text("x")
    _, second = tiny_candidate(tmp_path)
    assert first.candidate_digest == second.candidate_digest
    assert sorted(p.name for p in tmp_path.iterdir()) == ["candidate", "model.onnx"]
    assert not (candidate / "left over.txt").exists() and not (candidate / SIGNATURE).exists()


def test_the_gates_of_a_candidate_are_those_of_its_facts(tmp_path: Path) -> None:
    assert tiny_candidate(tmp_path)[1].gates == [
        GateResult(gate="pooled auroc >= 0.6", passed=True, value=0.8, detail="0.800")
    ]
