"""A coordinator that is lost and put back: nothing is spent twice, overwritten or taken in damaged."""

from __future__ import annotations

import json
import shutil
import stat
import tarfile
from pathlib import Path

import psycopg
import pytest
from click.testing import Result
from typer.testing import CliRunner

from consilium.backup import backup, digest_of, restore, saved_paths
from consilium.federation import app
from consilium.processes import wait_until
from consilium.simulation import Simulation, ask_site
from contracts.enrolment import fingerprint
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from durable.clock import now
from privacy.ledger import Ledger
from site_runtime.rotation import begin_rotation
from site_runtime.steps import train
from tasks.exchange import DirectoryExchange
from tasks.federation import load_federation
from tasks.head import load_head
from tasks.home import CoordinatorHome
from tasks.membership import revoke, rotate, rotate_coordinator, startup_kit
from tasks.replay import replay
from tasks.rounds import close_round, open_round
from tasks.settings import Settings, load_settings, save_settings
from tasks.store import load_record
from tests.factories import private_study, tiny_simulation
from tests.live.conftest import free_port
from tests.postgres import private_postgres

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BUDGET = {"epsilon": 50.0, "delta": 1e-3}


@pytest.fixture
def simulation(tmp_path: Path) -> Simulation:
    """Two hospitals and a private study of four rounds, after intake."""
    return tiny_simulation(tmp_path / "home", private_study(rounds=4, min_sites=1), budget=BUDGET)


def one_round(simulation: Simulation, run: str, present: set[str] | None = None) -> dict:
    """Open the next exchange, ask its hospitals, close it and return its record."""
    home, study = simulation.coordinator, simulation.protocol.study
    opened = open_round(home, study, run, present or set(simulation.sites))
    exchange = DirectoryExchange(home.exchange)
    answers = {s: ask_site(simulation, s, train, opened.plan, exchange) for s in opened.roster}
    return close_round(home, study, run, answers).record


def until(simulation: Simulation, number: int, prefix: str) -> None:
    """Close exchanges until the one with this number is the next."""
    home, study = simulation.coordinator, simulation.protocol.study
    while load_head(home, study).round < number:
        one_round(simulation, f"{prefix}-{load_head(home, study).round}")


def spent(simulation: Simulation) -> dict[str, int]:
    """Number of reservations of each hospital."""
    found = {}
    for site, home in simulation.sites.items():
        key = SigningKey.load(site, home.signing_key)
        found[site] = len(Ledger(home.ledger(site), site, site, key).spends())
    return found


def put_back(simulation: Simulation, file: Path) -> None:
    """Lose the coordinator, and restore it from a backup."""
    shutil.rmtree(simulation.coordinator.root)
    restore(file, simulation.root)


def models(simulation: Simulation) -> list[str]:
    """The digest of each closed round's model."""
    home, study = simulation.coordinator, simulation.protocol.study
    last = load_head(home, study).round
    return [load_record(home, study, str(n))["model"] for n in range(simulation.protocol.first_round, last)]


def test_rounds_after_the_backup_are_made_again_with_the_same_bytes_and_spend_nothing(
    simulation: Simulation, tmp_path: Path
) -> None:
    until(simulation, 2, "before")
    backup(simulation.coordinator, tmp_path / "backup.tar")
    until(simulation, 4, "lost")
    lost, charged = models(simulation), spent(simulation)
    record = load_record(simulation.coordinator, simulation.protocol.study, "2")
    put_back(simulation, tmp_path / "backup.tar")
    assert load_head(simulation.coordinator, simulation.protocol.study).round == 2
    # A plan tells its second: within the same one the round would be planned in the same words.
    assert wait_until(lambda: now() > record["opened"], 5)
    until(simulation, 4, "again")
    assert models(simulation) == lost
    assert spent(simulation) == charged
    # The round has a plan of its own: a number that was used is not signed anew with another content.
    assert load_record(simulation.coordinator, simulation.protocol.study, "2")["plan"] != record["plan"]
    assert one_round(simulation, "last")["status"] == "closed"
    assert all(found.matches for found in replay(simulation.coordinator, simulation.protocol.study))


def test_an_open_round_is_closed_under_its_saved_plan(simulation: Simulation, tmp_path: Path) -> None:
    until(simulation, 2, "before")
    opened = open_round(simulation.coordinator, "tiny", "open", set(simulation.sites))
    backup(simulation.coordinator, tmp_path / "backup.tar")
    exchange = DirectoryExchange(simulation.coordinator.exchange)
    answers = {s: ask_site(simulation, s, train, opened.plan, exchange) for s in opened.roster}
    lost = close_round(simulation.coordinator, "tiny", "open", answers).record
    charged = spent(simulation)
    put_back(simulation, tmp_path / "backup.tar")
    again = one_round(simulation, "resumed")
    assert (again["plan"], again["model"]) == (lost["plan"], lost["model"])
    assert spent(simulation) == charged


def test_another_course_after_a_restoration_spends_no_more_than_the_study_may(
    simulation: Simulation, tmp_path: Path
) -> None:
    """Made again without one hospital, a round has another model, and every later one is a new release."""
    until(simulation, 2, "before")
    backup(simulation.coordinator, tmp_path / "backup.tar")
    until(simulation, 4, "lost")
    charged = spent(simulation)
    put_back(simulation, tmp_path / "backup.tar")
    one_round(simulation, "alone", {"ash"})
    with pytest.raises(ConsiliumError, match="E506"):
        one_round(simulation, "after")
    refused = load_record(simulation.coordinator, "tiny", "3")["refused"]
    assert {line["number"] for line in refused.values()} == {"E324"}  # answered from another model
    assert spent(simulation) == charged


def test_a_backup_is_private_complete_and_never_overwritten(simulation: Simulation, tmp_path: Path) -> None:
    file = tmp_path / "backup.tar"
    found = backup(simulation.coordinator, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    before = file.read_bytes()
    with pytest.raises(ConsiliumError, match=r"E119.*exists"):
        backup(simulation.coordinator, file)
    assert file.read_bytes() == before
    saved = {p: p.read_bytes() for p in saved_paths(simulation.coordinator)}
    root = simulation.coordinator.root
    shutil.move(root, tmp_path / "lost")
    assert digest_of(restore(file, tmp_path / "new")) == digest_of(found)
    for path, content in saved.items():
        restored = tmp_path / "new" / "coordinator" / path.relative_to(root)
        assert restored.read_bytes() == content
        assert stat.S_IMODE(restored.stat().st_mode) == 0o600
    with pytest.raises(ConsiliumError, match=r"E121.*move it away"):
        restore(file, tmp_path / "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["backup.tar", "home", "lost", "new"]


@pytest.mark.parametrize("damage", ["flipped", "cut", "added", "outside", "nothing"])
def test_a_damaged_backup_leaves_nothing(simulation: Simulation, tmp_path: Path, damage: str) -> None:
    file = tmp_path / "backup.tar"
    backup(simulation.coordinator, file)
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[content.index(b"BEGIN PRIVATE KEY")] ^= 1
    elif damage == "cut":
        del content[len(content) // 2 :]
    elif damage == "nothing":
        content = bytearray(b"no tar at all")
    file.write_bytes(content)
    if damage in ("added", "outside"):
        (tmp_path / "extra").write_text("more")
        name = "coordinator/extra" if damage == "added" else "coordinator/../../extra"
        with tarfile.open(file, "a") as tar:
            tar.add(tmp_path / "extra", name)
    with pytest.raises(ConsiliumError, match="E120"):
        restore(file, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_missing_coordinator_and_a_missing_program_are_refused(tmp_path: Path, monkeypatch) -> None:
    simulation = tiny_simulation(tmp_path / "home", private_study(), budget=BUDGET)
    with pytest.raises(ConsiliumError, match=r"E119.*no coordinator"):
        backup(type(simulation.coordinator)(tmp_path / "nowhere"), tmp_path / "backup.tar")
    save_settings(simulation.coordinator, Settings(database="postgresql://me:secret@127.0.0.1:9/airflow"))
    with pytest.raises(ConsiliumError, match="E119") as refused:
        backup(simulation.coordinator, tmp_path / "backup.tar")
    assert "secret" not in str(refused.value)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConsiliumError, match=r"E119.*not installed"):
        backup(simulation.coordinator, tmp_path / "backup.tar")
    assert [p.name for p in tmp_path.iterdir()] == ["home"]


def test_a_postgresql_database_is_saved_and_put_into_an_empty_one(
    simulation: Simulation, tmp_path: Path
) -> None:
    with private_postgres(free_port()) as postgres:
        connection = psycopg.connect(postgres.url, autocommit=True)
        connection.execute("create table run (id int)")
        connection.execute("insert into run values (7)")
        connection.close()
        save_settings(simulation.coordinator, Settings(database=postgres.url))
        backup(simulation.coordinator, tmp_path / "backup.tar")
        with pytest.raises(ConsiliumError, match=r"E121.*holds tables"):
            restore(tmp_path / "backup.tar", tmp_path / "new")
        assert list((tmp_path / "new").iterdir()) == []
        restore(tmp_path / "backup.tar", tmp_path / "new", postgres.create("second"))
        assert postgres.query("select id from run", "second") == [(7,)]
        settings = load_settings(CoordinatorHome(tmp_path / "new" / "coordinator"))
        assert settings.database == postgres.url_of("second")


def test_the_commands_say_what_was_saved_and_that_keys_are_in_it(
    simulation: Simulation, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("CONSILIUM_HOME", str(simulation.root))
    runner, file = CliRunner(), str(tmp_path / "backup.tar")
    made = runner.invoke(app, ["backup", file])
    assert made.exit_code == 0 and "private keys" in made.stderr
    again = runner.invoke(app, ["restore", file, "--home", str(tmp_path / "new"), "--json", "--yes"])
    shown = json.loads(again.stdout)
    assert shown["studies"]["tiny"]["status"] == "registered" and shown["digest"] in made.stdout


def restored(file: Path, target: Path, *options: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, ["restore", str(file), "--home", str(target), *options], input=answer)


def test_nobody_is_let_in_again_by_an_old_backup_before_its_members_are_confirmed(
    simulation: Simulation, tmp_path: Path
) -> None:
    """Registry and log go back together: only people, or a later kit, know of a revocation since."""
    home, file, kit = simulation.coordinator, tmp_path / "backup.tar", tmp_path / "later.kit.json"
    save_settings(home, Settings(url="http://127.0.0.1:8080"))
    backup(home, file)
    revoke(home, "ash", "its key was stolen", "Dr. B")
    kit.write_text(startup_kit(home))
    for answer, options in ((None, ()), ("n\n", ()), (None, ("--json",))):
        refused = restored(file, tmp_path / "new", *options, answer=answer)
        assert refused.exit_code == 1 and "E121" in refused.output
        assert list((tmp_path / "new").iterdir()) == []
    asked = restored(file, tmp_path / "new", answer="y\n")
    key = load_federation(home).known("ash").sign_key
    assert asked.exit_code == 0 and fingerprint(key) in asked.stdout and "revoked since" in asked.stderr
    shown = json.loads(restored(file, tmp_path / "other", "--kit", str(kit), "--yes", "--json").stdout)
    assert shown["members"] == ["ash", "birch"] and shown["missing"] == ["ash was no member any more"]


def test_a_kit_shows_whether_decisions_are_lost(simulation: Simulation, tmp_path: Path) -> None:
    home, file, kit = simulation.coordinator, tmp_path / "backup.tar", tmp_path / "later.kit.json"
    save_settings(home, Settings(url="http://127.0.0.1:8080"))

    def missing(target: str) -> list[str]:
        kit.write_text(startup_kit(home))
        options = ("--kit", str(kit), "--yes", "--json")
        return json.loads(restored(file, tmp_path / target, *options).stdout)["missing"]

    backup(home, file)
    assert missing("same") == []
    rotate(home, begin_rotation(simulation.sites["ash"], officer="Dr. A. Smith", reason="yearly"), "Dr. B")
    rotate_coordinator(home, officer="Dr. B", reason="Yearly.")
    assert missing("later") == ["ash had other keys", "the coordinator had another key"]
    save_settings(CoordinatorHome(tmp_path / "stranger"), Settings(url="http://127.0.0.1:8080"))
    kit.write_text(startup_kit(CoordinatorHome(tmp_path / "stranger")))
    foreign = restored(file, tmp_path / "foreign", "--kit", str(kit), "--yes")
    assert foreign.exit_code == 1 and "E803" in foreign.output
