"""From a finished study to a published release or its end: real hospitals, every step repeatable."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from consilium.simulation import RUN, Simulation, ask_everywhere, run_intake, run_rounds
from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.refusal import Refusal
from contracts.signing import SigningKey, to_text
from release.directory import read_manifest
from release.dossier.vulnerabilities import purl
from release.events import Event, chain_head, check_events
from release.facts import Evidence
from release.verify import Check, verified, verify_release
from tasks.approvals import APPROVE, REJECT, Answer
from tasks.candidate import collect_verification, export
from tasks.evaluation import judge, open_evaluation
from tasks.events import events_path, read_events
from tasks.head import load_head, now
from tasks.lineage import components
from tasks.publication import publish
from tasks.release_key import release_key
from tasks.stopped import evidence_page
from tasks.store import load_record
from tests.factories import PRIVACY, tiny_rows, tiny_simulation, tiny_study

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]

FACTS = [{"metric": "parity"}, {"metric": "ledgers"}, {"metric": "approvals"}]
ROLES = ["clinician", "quality"]
DIAGNOSTICS = {"minimum_events": 3, "testable_sites": 2}


def finished(root: Path, **changes: object) -> Simulation:
    """Two hospitals whose study is trained."""
    fields = {
        "gates": [{"metric": "auroc", "at_least": 0.01}, *FACTS],
        "sign_off": {"roles": ROLES},
        "validation": {"diagnostics": DIAGNOSTICS},
        "privacy": PRIVACY,
        "rounds": 1,
    }
    protocol = tiny_study(**(fields | changes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulation = tiny_simulation(root, protocol, tiny_rows(160))
        run_rounds(simulation, lambda text: None)
    return simulation


def evaluate(simulation: Simulation) -> dict[str, str | None]:
    """Open the evaluation and return every hospital's sealed answer."""
    opened = open_evaluation(simulation.coordinator, "tiny", RUN, set(simulation.sites))
    return ask_everywhere(simulation, opened)


def verify(simulation: Simulation) -> dict[str, str | None]:
    """Export and return every hospital's verification."""
    opened = export(simulation.coordinator, "tiny", RUN, set(simulation.sites))
    return ask_everywhere(simulation, opened)


def answers(candidate: str, **changes: Answer | None) -> dict[str, Answer | None]:
    """Both roles approve, but for the changes."""
    given = {role: Answer(candidate, APPROVE, role, f"Dr {role}", "good", now()) for role in ROLES}
    return {**given, **changes}


def refused(step, *arguments, **named) -> ConsiliumError:
    with pytest.raises(ConsiliumError) as error:
        step(*arguments, **named)
    return error.value


@pytest.fixture(scope="module")
def candidate(tmp_path_factory: pytest.TempPathFactory) -> Simulation:
    """A study with a candidate that waits; its verification's answers in `verified.json`."""
    simulation = finished(tmp_path_factory.mktemp("candidate"))
    judge(simulation.coordinator, "tiny", RUN, evaluate(simulation))
    found = verify(simulation)
    (simulation.root / "verified.json").write_text(json.dumps(found))
    assert collect_verification(simulation.coordinator, "tiny", RUN, found, "operator")
    return simulation


@pytest.fixture
def waiting(candidate: Simulation, tmp_path: Path) -> Simulation:
    """A copy of it for one test."""
    shutil.copytree(candidate.root, tmp_path / "copy")
    return replace(candidate, root=tmp_path / "copy")


def collected(simulation: Simulation, **changes: object) -> str | None:
    results = json.loads((simulation.root / "verified.json").read_text()) | changes
    return collect_verification(simulation.coordinator, "tiny", RUN, results, "operator")


def test_the_manifest_says_what_it_was_made_from(candidate: Simulation) -> None:
    home = candidate.coordinator
    manifest = read_manifest(home.study("tiny") / "release" / "candidate")
    assert [g.passed for g in manifest.gates] == [True] * 4
    assert [g.gate for g in manifest.gates] == [g.title for g in candidate.protocol.gates]
    assert manifest.triggered_by == "operator" and manifest.sign_off == ROLES
    assert {d.site for d in manifest.lineage.data} == {"ash", "birch"}
    assert [r.kind for r in manifest.lineage.rounds] == ["statistics", "training"]
    assert set(manifest.lineage.rounds[-1].updates) == {"ash", "birch"}
    assert manifest.lineage.rounds[-1].model == manifest.model
    assert manifest.created >= manifest.verified


def test_the_log_tells_the_study_in_order_up_to_its_verification(candidate: Simulation) -> None:
    names = [event.event for event in read_events(candidate.coordinator, "tiny")]
    assert names == [
        *("registered", "intake", "round_opened", "round_closed", "round_opened", "round_closed"),
        *("evaluation_opened", "unsealed", "judged", "exported", "verified", "candidate"),
    ]


def test_a_repeated_collection_makes_the_same_candidate(waiting: Simulation) -> None:
    before = load_head(waiting.coordinator, "tiny").candidate
    assert collected(waiting) == before
    assert collected(waiting, ash=None) == before  # delivered under this plan before


def test_both_approvals_publish_once_a_release_that_verifies(waiting: Simulation) -> None:
    home = waiting.coordinator
    digest = load_head(home, "tiny").candidate
    assert digest is not None
    given = answers(digest)
    folder = publish(home, "tiny", RUN, given)
    assert publish(home, "tiny", RUN, given) == folder
    assert publish(home, "tiny", RUN, {}) == folder  # a cleared run without answers takes nothing back
    assert load_head(home, "tiny").status == "released"
    manifest = read_manifest(folder)
    assert [(a.role, a.user) for a in manifest.approvals] == [(role, role) for role in ROLES]
    assert verified(verify_release(folder, release_key(home).public))
    names = [event.event for event in read_events(home, "tiny")]
    assert names[-3:] == ["approved", "approved", "published"]


def test_no_one_role_suffices_and_the_starter_may_not_approve(waiting: Simulation) -> None:
    home = waiting.coordinator
    digest = load_head(home, "tiny").candidate
    assert digest is not None
    assert refused(publish, home, "tiny", RUN, answers(digest, quality=None)).number == "E704"
    assert refused(publish, home, "tiny", RUN, answers(digest), ["clinician"]).number == "E709"
    assert load_head(home, "tiny").status == "finished"  # the right people may still answer
    assert not home.releases.exists()


def test_one_rejection_ends_the_study_even_beside_an_approval_or_silence(waiting: Simulation) -> None:
    home = waiting.coordinator
    digest = load_head(home, "tiny").candidate
    assert digest is not None
    no = Answer(digest, REJECT, "quality", "Dr Q", "too few women", now())
    said = refused(publish, home, "tiny", RUN, {"clinician": None, "quality": no})
    assert said.number == "E704" and "too few women" in said.detail
    assert load_head(home, "tiny").status == "rejected"
    assert refused(publish, home, "tiny", RUN, answers(digest)).number == "E704"
    assert collected(waiting) is None and not home.releases.exists()
    assert read_events(home, "tiny")[-1].event == "rejected"


def test_a_candidate_that_was_changed_on_disk_is_not_published(waiting: Simulation) -> None:
    home = waiting.coordinator
    digest = load_head(home, "tiny").candidate
    assert digest is not None
    page = home.study("tiny") / "release" / "candidate" / "validation.html"
    page.write_bytes(page.read_bytes().replace(b"0.", b"1.", 1))
    assert refused(publish, home, "tiny", RUN, answers(digest)).number == "E701"
    assert load_head(home, "tiny").status == "finished"


def test_an_approval_that_is_older_than_the_candidate_is_for_another_one(waiting: Simulation) -> None:
    """Collected again with an older scan brought meanwhile, a candidate's own dates do not show it."""
    home = waiting.coordinator
    digest = load_head(home, "tiny").candidate
    assert digest is not None
    path = events_path(home, "tiny")
    *before, last = path.read_bytes().splitlines(keepends=True)
    assert b'"event":"candidate"' in last
    later = json.loads(last) | {"time": "2099-01-01T00:00:00Z"}
    path.write_bytes(b"".join(before) + Event.model_validate(later).line + b"\n")
    assert refused(publish, home, "tiny", RUN, answers(digest)).number == "E705"
    assert not home.releases.exists()


def test_nothing_of_a_release_that_does_not_verify_is_left_behind(
    waiting: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = waiting.coordinator
    digest = load_head(home, "tiny").candidate
    assert digest is not None
    wrong = [Check("golden rows", False, "they differ", "E603")]
    monkeypatch.setattr("tasks.publication.verify_release", lambda *given: wrong)
    assert refused(publish, home, "tiny", RUN, answers(digest)).number == "E701"
    assert list(home.releases.rglob("*")) == [home.releases / "tiny"]
    assert load_head(home, "tiny").status == "finished" and not home.registry.exists()


def test_a_release_that_another_study_overtook_is_made_anew(
    waiting: Simulation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two studies of a product in parallel: the second was compared with what is no longer in use."""
    home = waiting.coordinator
    digest = load_head(home, "tiny").candidate
    assert digest is not None
    other = waiting.protocol.model_copy(
        update={"study": "tiny-2", "product": "tiny", "amends": waiting.protocol.hash}
    )
    manifest = read_manifest(home.study("tiny") / "release" / "candidate")
    folder = home.releases / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "study.json").write_bytes(canonical_json(other))
    fields = {"study": "tiny-2", "protocol_hash": other.hash}
    (folder / "manifest.json").write_bytes(canonical_json(manifest.model_copy(update=fields)))
    said = refused(publish, home, "tiny", RUN, answers(digest))
    assert said.number == "E707" and "in use is 1.0.0" in said.detail
    assert load_head(home, "tiny").status == "finished"


def test_a_hospital_that_withdrew_stops_the_release_and_is_named(waiting: Simulation) -> None:
    home = waiting.coordinator
    key = SigningKey.load("birch", waiting.sites["birch"].signing_key)
    refusal = Refusal.of(ConsiliumError("E303"), study="tiny", site="birch", stage="verify")
    # One hospital more than the quorum would be needed to come so far: the study asks for two.
    said = refused(collected, waiting, birch=to_text(key.sign(refusal)))
    assert said.number == "E506" and "birch (E303" in said.detail
    assert load_head(home, "tiny").status == "finished"


def test_without_a_scan_there_is_no_candidate_and_the_study_goes_on_once_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulation = finished(tmp_path, gates=[{"metric": "vulnerabilities"}])
    home = simulation.coordinator
    judge(home, "tiny", RUN, evaluate(simulation))
    found = verify(simulation)
    said = refused(collect_verification, home, "tiny", RUN, found)
    assert said.number == "E602" and "no vulnerability scan" in said.detail
    head = load_head(home, "tiny")
    assert (head.status, head.candidate) == ("finished", None) and "E602" in (head.reason or "")
    assert "no vulnerability scan" in evidence_page(home, "tiny").read_text()
    scanned = [{"purl": purl(c.name, c.version)} for c in components()]
    brought = Evidence(scan={"components": scanned, "vulnerabilities": []}, scan_time=now())
    monkeypatch.setattr("tasks.release_facts.load_evidence", lambda home: brought)
    assert collect_verification(home, "tiny", RUN, found) == load_head(home, "tiny").candidate
    manifest = read_manifest(home.study("tiny") / "release" / "candidate")
    assert manifest.created >= brought.scan_time and manifest.gates[0].passed
    assert evidence_page(home, "tiny").parent.name == "candidate" and not load_head(home, "tiny").reason


def test_a_failed_gate_ends_the_study_and_its_page_says_which_and_where(tmp_path: Path) -> None:
    gate = {"metric": "auroc", "scope": "site", "at_least": 0.999}
    simulation = finished(tmp_path, gates=[gate])
    home = simulation.coordinator
    assert refused(judge, home, "tiny", RUN, evaluate(simulation)).number == "E601"
    head = load_head(home, "tiny")
    assert head.status == "rejected" and "E601" in (head.reason or "")
    page = evidence_page(home, "tiny").read_text()
    assert "Stopped: an acceptance gate failed" in page and "ash" in page
    (result,) = load_record(home, "tiny", "evaluation")["gates"]
    assert result["margin"] < 0 and result["site"] in ("ash", "birch")
    assert judge(home, "tiny", RUN, {}) == []  # nothing is decided again


def test_what_the_diagnostics_forbid_to_see_stays_sealed(tmp_path: Path) -> None:
    simulation = finished(tmp_path, validation={"diagnostics": {**DIAGNOSTICS, "minimum_events": 1000}})
    home = simulation.coordinator
    said = refused(judge, home, "tiny", RUN, evaluate(simulation))
    assert said.number == "E606"
    head = load_head(home, "tiny")
    assert head.status == "finished" and (head.reason or "").startswith("E606")
    folder = home.study("tiny")
    assert not (folder / "answers" / str(head.evaluation)).exists()
    assert not (folder / "records" / "evaluation.json").exists()
    kept = sorted((folder / "sealed" / str(head.evaluation)).glob("*.json"))
    assert [path.stem for path in kept] == ["ash", "birch"]
    assert all("standard_error" not in path.read_text() for path in folder.rglob("*.json"))
    assert "unsealed" not in {event.event for event in read_events(home, "tiny")}


def test_a_holdout_that_changed_after_training_does_not_count_until_it_is_restored(tmp_path: Path) -> None:
    simulation = finished(tmp_path)
    home, site = simulation.coordinator, simulation.sites["birch"]
    data = tmp_path / "federation" / "birch" / "data.csv"
    before = data.read_bytes()
    data.write_bytes(before.replace(b"p1,0,41,", b"p1,0,42,"))
    assert data.read_bytes() != before
    run_intake(simulation, lambda text: None)
    said = refused(judge, home, "tiny", RUN, evaluate(simulation))
    assert said.number == "E606" and "birch" in said.detail and "frozen" in said.detail
    first = load_head(home, "tiny").evaluation
    data.write_bytes(before)
    run_intake(simulation, lambda text: None)
    # The hospital remembers that it answered about another cohort; its own officer must allow the repetition.
    (site.state("tiny") / "evaluated.json").unlink()
    judge(home, "tiny", RUN, evaluate(simulation))
    head = load_head(home, "tiny")
    assert head.evaluation != first and head.reason is None


def test_the_candidates_log_is_the_study_up_to_its_verification(candidate: Simulation) -> None:
    home = candidate.coordinator
    log = home.study("tiny") / "events.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    until = b"".join(lines[:-1])
    assert check_events(until, chain_head(until))[-1].event == "verified"
    reports = check_events(until, None)[-1].details["reports"]
    assert set(reports) == {"ash", "birch"}
