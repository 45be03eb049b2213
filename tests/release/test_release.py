"""A release proves itself: nothing in it changes, goes, comes or is swapped unnoticed."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from consilium.ledger import app as ledger_app
from contracts.canonical import canonical_json, sha256
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from release.directory import SIGNATURE, read_manifest, seal, signed_bytes, write_candidate
from release.dp_statement import dp_statement, statement
from release.report import validation_document, validation_page
from release.verify import verified, verify_release
from tests.dossiers import APPROVED, PUBLISHED, approval_of, tiny_candidate, tiny_facts, tiny_onnx
from tests.factories import study_fields, tiny_study

FILES = [
    "README.txt", "dp_statement.json", "dp_statement.md", "golden.json", "manifest.json", "manifest.sig",
    "model.onnx", "study.json", "validation.html", "validation.json",
]  # fmt: skip
PRIVATE = {"mode": "patient", "epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 0.7}


@pytest.fixture(scope="module")
def sealed(tmp_path_factory):
    root = tmp_path_factory.mktemp("release")
    key = SigningKey.generate("coordinator")
    candidate, manifest = tiny_candidate(root)
    seal(candidate, root / "1.0.0", [approval_of(manifest)], key, PUBLISHED)
    return root / "1.0.0", key


@pytest.fixture
def copy(sealed, tmp_path):
    return shutil.copytree(sealed[0], tmp_path / "copy"), sealed[1]


def failures(folder, key):
    return [check.number for check in verify_release(folder, key.public) if check.passed is False]


def resign(folder, key, **changes):
    """What an insider with the coordinator's key could make: a changed manifest, signed anew."""
    manifest = read_manifest(folder).model_copy(update=changes)
    (folder / "manifest.json").write_bytes(canonical_json(manifest))
    (folder / SIGNATURE).write_text(key.sign_bytes(signed_bytes(manifest)) + "\n")


def test_a_sealed_release_verifies_and_holds_exactly_its_files(sealed):
    folder, key = sealed
    checks = verify_release(folder, key.public)
    assert verified(checks) and all(check.passed for check in checks)
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_refused(sealed, name, where, flip):
    folder, key = sealed
    path = folder / name
    before = path.read_bytes()
    changed = bytearray(before)
    changed[int(where * len(before))] ^= flip
    try:
        path.write_bytes(changed)
        assert not verified(verify_release(folder, key.public))
    finally:
        path.write_bytes(before)


def test_every_byte_of_the_signature_counts(copy):
    """base64 spells the last byte of a signature in several ways: only one of them verifies."""
    folder, key = copy
    text = (folder / SIGNATURE).read_text()
    for position in range(len(text)):
        for other in "ABQgwxyz09-_ =\n":
            if other != text[position]:
                (folder / SIGNATURE).write_text(text[:position] + other + text[position + 1 :])
                assert failures(folder, key) == ["E702"]
    for changed in ("", text[:-1], text + "\n", text + "A"):
        (folder / SIGNATURE).write_text(changed)
        assert "E702" in failures(folder, key)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(copy, name):
    (copy[0] / name).unlink()
    assert failures(*copy)


@pytest.mark.parametrize("name", ["extra.txt", ".hidden", "manifest.json.bak", "folder/inside.txt", "empty/"])
def test_an_added_file_or_folder_is_refused(copy, name):
    target = copy[0] / name
    target.parent.mkdir(exist_ok=True)
    if name.endswith("/"):
        target.mkdir()
    else:
        target.write_text("x")
    assert failures(*copy) == ["E703"]


def test_a_renamed_or_linked_file_is_refused(copy, tmp_path):
    folder, key = copy
    (folder / "golden.json").rename(tmp_path / "elsewhere.json")
    os.symlink(tmp_path / "elsewhere.json", folder / "golden.json")
    assert failures(folder, key) == ["E703"]


def test_another_key_is_refused_even_when_the_release_is_consistent(copy):
    folder, key = copy
    stranger = SigningKey.generate("coordinator")
    resign(folder, stranger)
    assert failures(folder, key) == ["E702"]
    assert verified(verify_release(folder, stranger.public))


def test_an_unapproved_or_differently_approved_candidate_is_refused(copy):
    folder, key = copy
    manifest = read_manifest(folder)
    resign(folder, key, approvals=[])
    assert failures(folder, key) == ["E704"]
    resign(folder, key, approvals=[approval_of(manifest, candidate="1" * 64)])
    assert failures(folder, key) == ["E705"]
    resign(folder, key, approvals=[approval_of(manifest, time="2025-12-31T23:59:59Z")])
    assert failures(folder, key) == ["E705"]


def test_approval_does_not_carry_over_to_changed_facts(copy):
    resign(*copy, intended_use="Anything.")
    assert failures(*copy) == ["E705"]


@pytest.mark.parametrize(("passed", "number"), [(False, "E601"), (None, "E602")])
def test_a_failed_or_undecided_gate_is_never_sealed_nor_verified(tmp_path, copy, passed, number):
    candidate, manifest = tiny_candidate(tmp_path / "stopped", passed=passed)
    with pytest.raises(ConsiliumError, match=number):
        seal(candidate, tmp_path / "stopped" / "1.0.0", [approval_of(manifest)], copy[1], PUBLISHED)
    assert not (tmp_path / "stopped" / "1.0.0").exists()
    resign(*copy, gates=manifest.gates, approvals=[])
    resign(*copy, approvals=[approval_of(read_manifest(copy[0]))])
    assert failures(*copy) == [number]


def test_sealing_refuses_changed_candidates_wrong_approvals_and_existing_releases(tmp_path, sealed):
    candidate, manifest = tiny_candidate(tmp_path)
    key = sealed[1]
    with pytest.raises(ConsiliumError, match="E705"):
        seal(candidate, tmp_path / "1.0.0", [approval_of(manifest, candidate="1" * 64)], key, PUBLISHED)
    with pytest.raises(ConsiliumError, match="E707"):
        seal(candidate, sealed[0], [approval_of(manifest)], key, PUBLISHED)
    with (candidate / "validation.html").open("a") as page:
        page.write("<!-- -->")
    with pytest.raises(ConsiliumError, match="E701"):
        seal(candidate, tmp_path / "1.0.0", [approval_of(manifest)], key, PUBLISHED)
    assert not [path for path in tmp_path.iterdir() if path.name not in ("candidate", "model.onnx")]


def test_an_interrupted_candidate_leaves_the_earlier_one_whole(tmp_path, monkeypatch):
    candidate, _ = tiny_candidate(tmp_path)
    later = dataclasses.replace(tiny_facts(), version="2.0.0")
    before = {path.name: path.read_bytes() for path in candidate.iterdir()}
    monkeypatch.setattr("release.directory.golden_document", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_candidate(candidate, later, tmp_path / "model.onnx")
    assert {path.name: path.read_bytes() for path in candidate.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["candidate", "model.onnx"]


def test_the_same_facts_give_the_same_bytes(tmp_path):
    (one, a), (two, b) = tiny_candidate(tmp_path / "a"), tiny_candidate(tmp_path / "b")
    assert a.candidate_digest == b.candidate_digest
    assert all((two / path.name).read_bytes() == path.read_bytes() for path in one.iterdir())


def test_a_model_that_answers_otherwise_is_refused_although_signed(copy, tmp_path):
    folder, key = copy
    tiny_onnx(folder / "model.onnx", scale=0.011)
    manifest = read_manifest(folder)
    data = (folder / "model.onnx").read_bytes()
    files = [
        f.model_copy(update={"sha256": sha256(data), "size": len(data)}) if f.path == "model.onnx" else f
        for f in manifest.files
    ]
    resign(folder, key, files=files, approvals=[])
    resign(folder, key, approvals=[approval_of(read_manifest(folder))])
    assert failures(folder, key) == ["E603"]


def test_validation_json_holds_pooled_and_every_site(sealed):
    document = json.loads((sealed[0] / "validation.json").read_text())
    assert document["pooled"]["auroc"]["value"] and document["ash"]["auroc"]["lower"] is not None
    assert document["birch"]["suppressed"] and "auroc" not in document["birch"]
    assert document == json.loads(json.dumps(validation_document(tiny_facts())))


def test_the_page_stands_alone_and_escapes_what_people_wrote():
    study = tiny_study(title="<script>alert(1)</script> & co")
    page = validation_page(tiny_facts(study))
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page) and "url(" not in page
    assert "withheld" in page.lower()


def test_dp_statement_says_holdout_first_and_the_numbers_of_each_site():
    text = dp_statement(tiny_facts(tiny_study(privacy=PRIVATE)))
    first = re.search(r"^## (.*)", text, re.M).group(1)
    assert first == "Holdout patients: suppression, not epsilon"
    facts = tiny_facts(tiny_study(privacy=PRIVATE))
    value, ash = statement(facts), facts.site_privacy[0]
    numbers = [f"{e:.3f}" for e in (ash.epsilon_study, ash.epsilon_lineage)]
    for said in (*numbers, "0.0001", "1.2500", "rate x declared size", "add or remove one patient"):
        assert said in dp_statement(facts)
    assert value["epsilon"] == facts.epsilon and value["delta"] == 1e-4
    first = value["hospitals"][0]
    assert first["epsilon"] < first["epsilon_lineage"] and first["epsilon_beside_this_study"] > 0
    assert first["by_purpose"]["training"]["releases"] == 6
    assert value["epsilon_without_amplification"] > value["epsilon"]
    assert value["not_covered"][0].startswith("holdout patients")
    assert "What tuning cost" in text and "secret-trial" not in text
    assert "Not covered" in text and "quality verdicts" in text and "Timing" in text


def test_dp_statement_without_privacy_says_so_and_names_no_epsilon():
    text = dp_statement(tiny_facts())
    assert "trained without differential privacy" in text
    assert re.search(r"epsilon\D{0,20}\d", text) is None


@pytest.mark.parametrize("public_n", [False, True])
def test_the_command_that_the_statement_names_gives_its_numbers(tmp_path, monkeypatch, public_n):
    facts = tiny_facts(tiny_study(privacy=PRIVATE | {"public_n": public_n}))
    value = statement(facts)
    (tmp_path / "ledgers").mkdir()
    for name, data in facts.ledgers.items():
        (tmp_path / "ledgers" / f"{name}.jsonl").write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for line in value["hospitals"]:
        named = value["replay"]["one_ledger"]
        named = named.replace("HOSPITAL", line["site"]).replace("KEY", line["ledger_key"])
        assert named == line["replay"] and value["replay"]["one_ledger"] in dp_statement(facts)
        done = CliRunner().invoke(ledger_app, [*shlex.split(named)[2:], "--json"])
        (replayed,) = json.loads(done.output)
        assert replayed["epsilon_study"] == pytest.approx(line["epsilon"], abs=1e-9)
        assert replayed["epsilon"] == pytest.approx(line["epsilon_lineage"], abs=1e-9)
        assert replayed["delta"] == value["delta"] and replayed["adjacency"] == value["adjacency"]


def test_an_epsilon_that_promises_little_is_said_to():
    hospitals = {"mode": "site", "epsilon": 40.0, "delta": 1e-2, "max_update_norm": 1.0}
    training = study_fields()["training"] | {"normalisation": "declared"}
    for privacy, weak in ((hospitals, True), (hospitals | {"epsilon": 5.0}, False)):
        facts = tiny_facts(tiny_study(privacy=privacy, training=training))
        assert ("promises little" in dp_statement(facts)) == weak
        assert bool(statement(facts)["caution"]) == weak
        assert "ledgers/coordinator.jsonl" in dp_statement(facts)
        assert "--delta 0.01" in statement(facts)["replay"]["one_ledger"]


@pytest.fixture
def private(tmp_path):
    """A sealed release of a private study, and its key."""
    key = SigningKey.generate("coordinator")
    candidate, manifest = tiny_candidate(tmp_path / "made", study=tiny_study(privacy=PRIVATE))
    seal(candidate, tmp_path / "1.0.0", [approval_of(manifest)], key, PUBLISHED)
    return tmp_path / "1.0.0", key


def replaced(folder, key, name, data):
    """The release with another file and a manifest that names it: what an insider could make."""
    (folder / name).write_bytes(data)
    manifest = read_manifest(folder)
    files = [
        f.model_copy(update={"sha256": sha256(data), "size": len(data)}) if f.path == name else f
        for f in manifest.files
    ]
    bound = manifest.model_copy(update={"files": files})
    approval = manifest.approvals[0].model_copy(update={"candidate": bound.candidate_digest})
    resign(folder, key, files=files, approvals=[approval])


def test_the_ledgers_of_a_release_are_replayed_and_open_no_other_study(private):
    folder, key = private
    checks = {c.name: c for c in verify_release(folder, key.public)}
    assert checks["ledgers"].passed and "2 replayed" in checks["ledgers"].detail
    assert b"secret-trial" not in b"".join(p.read_bytes() for p in folder.rglob("*") if p.is_file())


def test_a_ledger_that_lost_changed_or_exchanged_entries_fails_the_release(private):
    folder, key = private
    name = "ledgers/ash.jsonl"
    lines = (folder / name).read_bytes().splitlines(keepends=True)
    for damaged in (
        b"".join(lines[:-2]),
        lines[0] + b"".join(lines[3:]),
        (folder / name).read_bytes().replace(b'"steps":3', b'"steps":2'),
        (folder / "ledgers/birch.jsonl").read_bytes(),
        b"",
    ):
        replaced(folder, key, name, damaged)
        assert [n for n in failures(folder, key) if n in ("E402", "E407", "E408")]
    replaced(folder, key, name, b"".join(lines))
    assert failures(folder, key) == []


def test_an_epsilon_that_the_ledger_does_not_give_fails_the_release(private):
    folder, key = private
    manifest = read_manifest(folder)
    less = [p.model_copy(update={"epsilon_study": p.epsilon_study - 0.01}) for p in manifest.site_privacy]
    bound = manifest.model_copy(update={"site_privacy": less})
    approval = manifest.approvals[0].model_copy(update={"candidate": bound.candidate_digest})
    resign(folder, key, site_privacy=less, approvals=[approval])
    assert failures(folder, key) == ["E408"]


def test_approval_time_is_in_the_manifest(sealed):
    assert read_manifest(sealed[0]).approvals[0].time == APPROVED
