"""The way of a hospital into a federation and out again, as the two people type it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from consilium.__main__ import app
from consilium.simulation import prepare
from contracts.enrolment import fingerprint
from site_runtime.peers import load_peers
from site_runtime.rotation import rotate_signing_key
from tasks.federation import coordinator_key, load_federation
from tasks.home import CoordinatorHome
from tasks.membership import revoke, rotate, rotate_coordinator
from tasks.settings import Exchange, Settings, save_settings
from tests.factories import SITE, tiny_study, write_site

WHO = ("--officer", "Dr. A. Smith", "--reason", "yearly")


class Desk:
    """One person's machine: commands run in its own home."""

    def __init__(self, home: Path, patch: pytest.MonkeyPatch) -> None:
        self.home, self.patch = home, patch

    def type(self, *words: str | Path, answer: str | None = None) -> tuple[int, str]:
        self.patch.setenv("CONSILIUM_HOME", str(self.home))
        result = CliRunner().invoke(app, [str(word) for word in words], input=answer)
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
        return result.exit_code, result.output

    def json(self, *words: str | Path) -> Any:
        code, output = self.type(*words, "--json")
        value = json.loads(output)
        assert (code == 0) == ("error" not in value), output
        return value


@pytest.fixture
def coordinator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    home = CoordinatorHome(tmp_path / "c" / "coordinator")
    save_settings(home, Settings(federation="North", url="https://fed.example"))
    return Desk(tmp_path / "c", monkeypatch)


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    write_site(tmp_path / "source")
    return Desk(tmp_path / "h", monkeypatch)


def test_from_request_to_kit_by_two_fingerprints(tmp_path: Path, coordinator: Desk, hospital: Desk) -> None:
    request, kit = tmp_path / "request.json", tmp_path / "kit.json"
    config = tmp_path / "source" / "site.yaml"
    asked = hospital.json("site", "enrol", "ash", "--config", config, "--out", request)
    assert "private" not in request.read_text().lower()
    approve = ("federation", "approve", request, "--out", kit)
    code, shown = coordinator.type(*approve, answer="n\n")
    assert code == 1 and "E810" in shown and asked["fingerprints"]["sign_key"] in shown
    assert coordinator.json(*approve)["error"]["number"] == "E810"  # nobody confirmed
    wrong = asked["fingerprints"]["edge_key"]
    assert coordinator.json(*approve, "--fingerprint", wrong)["error"]["number"] == "E809"
    assert not kit.exists() and coordinator.json("federation", "list") == []
    done = coordinator.json(*approve, "--fingerprint", asked["fingerprints"]["sign_key"], "--by", "Dr. B")
    assert done["members"] == ["ash"] and "PRIVATE" not in kit.read_text()
    assert hospital.json("site", "join", kit)["error"]["number"] == "E809"
    own = fingerprint(done["coordinator_key"])
    joined = hospital.json("site", "join", kit, "--fingerprint", own)
    assert (joined["federation"], joined["fingerprints"]["coordinator"]) == ("North", own)
    (row,) = coordinator.json("federation", "list")
    assert (row["site"], row["status"], row["last_seen"], row["declared_size"]) == ("ash", "active", None, 90)
    assert row["fingerprints"]["sign_key"] == asked["fingerprints"]["sign_key"]
    assert "ash" in coordinator.type("federation", "list")[1]


def test_a_hospital_is_shown_the_bucket_of_the_federation_and_allows_it_by_name(
    tmp_path: Path, coordinator: Desk, hospital: Desk
) -> None:
    request, kit, bucket = tmp_path / "request.json", tmp_path / "kit.json", "s3://bucket/prefix"
    hospital.json("site", "enrol", "ash", "--config", tmp_path / "source" / "site.yaml", "--out", request)
    settings = Settings(federation="North", url="https://fed.example", exchange=Exchange(url=bucket))
    save_settings(CoordinatorHome(coordinator.home / "coordinator"), settings)
    done = coordinator.json("federation", "approve", request, "--out", kit, "--yes")
    assert done["exchange"] == bucket
    join = ("site", "join", kit, "--fingerprint", fingerprint(done["coordinator_key"]))
    shown = " ".join(hospital.type(*join)[1].split())
    assert f"also keeps models and updates in {bucket}" in shown and f"--exchange {bucket}" in shown
    assert hospital.json(*join)["exchange"] == {"offered": bucket, "allowed": None}
    assert hospital.json(*join, "--exchange", "s3://other/prefix")["error"]["number"] == "E811"
    assert hospital.json("site", "policy", "show")["policy"]["exchange"] is None
    assert "the coordinator alone" in hospital.type("site", "policy", "show")[1]
    assert hospital.json(*join, "--exchange", bucket)["exchange"] == {"offered": bucket, "allowed": bucket}
    assert hospital.json("site", "policy", "show")["policy"]["exchange"] == bucket
    assert f"go by {bucket}" in " ".join(hospital.type(*join)[1].split())


def test_keys_change_on_both_sides_and_a_revocation_is_in_the_log(
    tmp_path: Path, coordinator: Desk, hospital: Desk
) -> None:
    files = {name: tmp_path / name for name in ("request", "kit", "change")}
    hospital.json(
        "site", "enrol", "ash", "--config", tmp_path / "source" / "site.yaml", "--out", files["request"]
    )
    coordinator.json("federation", "approve", files["request"], "--out", files["kit"], "--yes")
    own = fingerprint(coordinator_key(CoordinatorHome(coordinator.home / "coordinator")).public)
    before = hospital.json("site", "join", files["kit"], "--fingerprint", own)["fingerprints"]
    assert hospital.json("site", "rotate")["error"]["number"] == "E417"
    waiting = hospital.json("site", "rotate", *WHO, "--out", files["change"])["fingerprints"]
    assert waiting["sign_key"] == before["sign_key"]
    coordinator.json("federation", "rotate", files["change"], "--out", files["kit"])
    coordinator.json("federation", "rotate", "--coordinator", *WHO, "--yes", "--out", files["kit"])
    done = hospital.json("site", "join", files["kit"])
    assert done["rotated"] and done["coordinator_changed"]
    assert done["fingerprints"]["sign_key"] == waiting["next_sign_key"]
    coordinator.json("federation", "revoke", "ash", "--reason", "ended", "--by", "Dr. B", "--yes")
    shown = coordinator.json("federation", "show", "ash")
    assert (shown["status"], shown["reason"]) == ("revoked", "ended")
    assert [former["sign_key"] for former in shown["former"]] == [before["sign_key"]]
    log = coordinator.json("federation", "log")
    assert [(d["site"], d["decision"]) for d in log["decisions"]] == [
        ("ash", "admitted"),
        ("ash", "rotated"),
        ("coordinator", "rotated"),
        ("ash", "revoked"),
    ]
    assert "Dr. B" in coordinator.type("federation", "log")[1]
    refused = coordinator.json("federation", "approve", files["request"], "--out", files["kit"], "--yes")
    assert refused["error"]["number"] == "E810"  # its first keys, which came to an end


def test_a_request_under_another_name_than_site_yaml_is_refused(tmp_path: Path, hospital: Desk) -> None:
    config = tmp_path / "source" / "site.yaml"
    assert hospital.json("site", "enrol", "birch", "--config", config)["error"]["number"] == "E103"
    assert hospital.json("site", "enrol", "ash")["error"]["number"] == "E103"
    assert not hospital.home.exists()


def test_peers_are_pinned_by_their_fingerprint_alone(
    tmp_path: Path, coordinator: Desk, hospital: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Desk(tmp_path / "o", monkeypatch)
    write_site(tmp_path / "other", site="birch", governance={**SITE["governance"], "lineage": "birch"})
    kit, shown = tmp_path / "kit", {}
    for desk, name, source in ((hospital, "ash", "source"), (other, "birch", "other")):
        request = tmp_path / f"{name}.json"
        config = tmp_path / source / "site.yaml"
        shown[name] = desk.json("site", "enrol", name, "--config", config, "--out", request)["fingerprints"]
        own = coordinator.json("federation", "approve", request, "--out", kit, "--yes")["coordinator_key"]
    joined = hospital.json("site", "join", kit, "--fingerprint", fingerprint(own))
    assert joined["peers"] == {"birch": "offered"}
    pin = ("site", "peers", "pin", "birch", "--fingerprint")
    assert hospital.json(*pin, shown["ash"]["sign_key"])["error"]["number"] == "E809"
    hospital.json(*pin, shown["birch"]["sign_key"])
    assert hospital.json("site", "peers", "show", "birch")["pinned"] == shown["birch"]["sign_key"]
    assert [p["standing"] for p in hospital.json("site", "peers", "list")] == ["pinned"]
    unknown = hospital.json("site", "peers", "pin", "cedar", "--fingerprint", "00")
    assert unknown["error"]["number"] == "E807"


def test_hospitals_of_one_machine_pin_each_other_and_follow_changes(tmp_path: Path) -> None:
    for site in ("ash", "birch"):
        governance = {**SITE["governance"], "lineage": site}
        write_site(tmp_path / "federation" / site, site=site, governance=governance)

    def start() -> Any:
        return prepare(tmp_path, tiny_study(), tmp_path / "federation")

    simulation = start()
    home = simulation.coordinator

    def pinned() -> dict[str, dict[str, str]]:
        return {site: load_peers(place) for site, place in simulation.sites.items()}

    def expected() -> dict[str, dict[str, str]]:
        keys = {m.site: m.sign_key for m in load_federation(home).members}
        return {"ash": {"birch": keys["birch"]}, "birch": {"ash": keys["ash"]}}

    assert pinned() == expected()
    done = rotate_signing_key(simulation.sites["ash"], officer="Dr. A", reason="yearly")
    rotate(home, done.document.read_bytes(), "Dr. B")
    rotate_coordinator(home, officer="Dr. B", reason="yearly")
    start()
    assert pinned() == expected()
    own = simulation.sites["birch"].coordinator_key.read_text()
    assert own == coordinator_key(home).public
    revoke(home, "ash", "ended", "Dr. B")
    start()  # is no decision to admit it again
    assert load_federation(home).sites == ["birch"]
