"""`consilium simulate --runs --compare`: spreads over runs that share patients and nothing drawn."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from consilium.repetition import (
    INTAKE,
    allowing_exact_updates,
    by_chance,
    compare,
    spread,
    steps_of,
    summary,
)
from consilium.simulate import app
from consilium.simulation import Simulation, with_privacy
from contracts.errors import ConsiliumError
from contracts.study import parse_study
from tasks.store import load_record
from tests.factories import POLICY, PRIVACY, SITE, private_study, study_fields, tiny_study, write_site

pytestmark = pytest.mark.filterwarnings("ignore")


def federation(folder: Path, **changes: object) -> Path:
    """Two tiny sites."""
    for site in ("ash", "birch"):
        governance = {**SITE["governance"], "lineage": site}
        write_site(folder / site, **({"site": site, "governance": governance} | changes))
    return folder


STUDY = private_study(
    rounds=1,
    validation={"diagnostics": {"minimum_events": 1}},  # holdouts are drawn anew each time
    training={"steps": 2, "sample_rate": 1.0, "learning_rate": 0.5, "normalisation": "declared"},
    gates=[
        {"metric": "accuracy", "scope": "pooled", "at_least": 0.999},  # which no run passes
        {"metric": "epsilon", "scope": "site", "at_most": 3.0},
    ],
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[str]]:
    """Two private runs beside the one exact run, and the progress they told."""
    folder = tmp_path_factory.mktemp("compare")
    told: list[str] = []
    found = compare(STUDY, federation(folder / "federation"), folder / "out", 2, told.append)
    return folder / "out", found, told


def simulations(out: Path) -> list[Simulation]:
    """The two private runs and the exact one."""
    private = [Simulation(out / "private" / f"run-{n}", STUDY) for n in (1, 2)]
    return [*private, Simulation(out / "exact" / "run-1", tiny_study())]


@pytest.mark.slow
def test_every_run_has_the_same_patients_and_noise_of_its_own(compared):
    out, _, _ = compared
    first, second, exact = simulations(out)
    records = [load_record(s.coordinator, "tiny", "1") for s in (first, second, exact)]
    cohorts = [{u["site"]: u["cohort"] for u in r["updates"]} for r in records]
    assert cohorts[0] == cohorts[1] == cohorts[2]  # keyed by the split key: also the same held out
    assert len({r["model"] for r in records}) == 3
    assert records[0]["base_model"] == records[1]["base_model"]
    keys = [home.noise_key.read_bytes() for s in (first, second) for home in s.sites.values()]
    start = Simulation(out / "private" / INTAKE, STUDY)
    keys += [home.noise_key.read_bytes() for home in start.sites.values()]
    assert len(set(keys)) == 6
    assert all(not s.ledger("ash").exists() for s in start.sites.values())  # the copies spent, not the start


@pytest.mark.slow
def test_each_run_spends_the_study_once_and_a_failed_gate_ends_none(compared):
    _, found, _ = compared
    private, exact = found["with_privacy"], found["without_privacy"]
    assert private["runs"] == 2 and 2.9 < private["privacy"]["maximum"] <= 3.0
    assert [gate["passed"] for gate in private["gates"]] == [0, 2]
    # Full batches without noise are the same every time, so that one run is all there is to see.
    assert exact["runs"] == 1 and exact["privacy"]["mode"] == "none"
    assert [gate["passed"] for gate in exact["gates"]] == [0]
    assert exact["pooled"]["accuracy"]["standard_deviation"] is None


@pytest.mark.slow
def test_what_was_lost_is_the_difference_of_the_means(compared):
    _, found, _ = compared
    for metric in ("accuracy", "auroc"):
        exact, private = (found[a]["pooled"][metric]["mean"] for a in ("without_privacy", "with_privacy"))
        assert found["lost"][metric] == exact - private


@pytest.mark.slow
def test_progress_comes_to_its_announced_end(compared):
    _, _, told = compared
    assert len(told) == steps_of(STUDY, 2, 2, comparing=True)
    assert steps_of(tiny_study(), 2, 3, comparing=True) == steps_of(tiny_study(), 2, 3, comparing=False)


@pytest.mark.slow
def test_tables_name_both_arms_and_say_what_several_runs_would_cost(compared, capsys, monkeypatch):
    from consilium import run_tables

    _, found, _ = compared
    monkeypatch.setattr(run_tables.screen, "_width", 100)
    run_tables.show_runs(found | {"study": "tiny"})
    shown = capsys.readouterr().out
    for words in (
        "2 runs of 1 rounds",
        "epsilon 3",
        "no privacy",
        "birch",
        "pooled",
        "±",
        "passed in 0 of 2",
    ):
        assert words in shown, words
    assert "2 runs would cost more than one" in shown and max(map(len, shown.splitlines())) <= 100


@given(st.lists(st.floats(0, 1), min_size=2, max_size=8))
def test_a_spread_is_that_of_its_values(values):
    found = spread(values)
    assert found["mean"] == pytest.approx(sum(values) / len(values))
    assert found["standard_deviation"] == pytest.approx(statistics.stdev(values))
    assert (found["lowest"], found["highest"]) == (min(values), max(values))
    assert spread(values[:1])["standard_deviation"] is None


def test_a_metric_that_a_hospital_withholds_is_absent():
    site = {"n": 16, "accuracy": {"value": 0.75}}
    pooled = {"n": 16, "accuracy": {"value": 0.75}, "auroc": {"value": 0.8}}
    run = {"rounds": 1, "protocol_hash": "", "privacy": {}, "gates": [], "pooled": pooled, "ash": site}
    found = summary([run, run])
    assert set(found["sites"]["ash"]) == {"accuracy"} and set(found["pooled"]) == {"accuracy", "auroc"}
    assert found["hospitals_mean"]["accuracy"]["values"] == [0.75, 0.75]


def test_runs_can_differ_by_noise_or_by_who_is_in_a_step():
    full = STUDY.body()["training"]
    assert by_chance(STUDY) and by_chance(tiny_study())
    assert not by_chance(tiny_study(training=full))
    assert by_chance(tiny_study(training=full | {"sampling": "shuffled"}))


def test_epsilon_replaces_that_of_the_study_and_keeps_the_rest():
    fields = study_fields(privacy=PRIVACY | {"clipping": "per-layer", "public_n": True})
    changed = with_privacy(parse_study(fields), epsilon=1.0).body()
    assert changed == fields | {"privacy": fields["privacy"] | {"epsilon": 1.0}}
    assert with_privacy(tiny_study()) == tiny_study()


def test_a_study_without_privacy_needs_a_clip_norm_for_an_epsilon():
    with pytest.raises(ConsiliumError, match="--clip") as refused:
        with_privacy(tiny_study(), epsilon=3.0)
    assert refused.value.number == "E101"
    with pytest.raises(ConsiliumError, match="--epsilon"):
        with_privacy(tiny_study(), clip=1.0)
    made = with_privacy(tiny_study(), epsilon=3.0, clip=0.8).privacy.model_dump(exclude_unset=True)
    assert made == {"mode": "patient", "epsilon": 3.0, "delta": 1e-4, "max_grad_norm": 0.8}


def test_the_clip_of_hospital_level_privacy_is_that_of_an_update():
    training = STUDY.body()["training"]
    privacy = {"mode": "site", "epsilon": 8.0, "delta": 1e-3, "max_update_norm": 0.5}
    study = with_privacy(tiny_study(privacy=privacy, training=training), clip=0.25)
    assert study.privacy.model_dump(exclude_unset=True) == privacy | {"max_update_norm": 0.25}


def test_only_simulated_hospitals_are_spoken_for(tmp_path):
    """A hospital with patients of its own has to allow exact updates itself."""
    real = federation(tmp_path / "real", policy=POLICY | {"exact_updates": False})
    with pytest.raises(ConsiliumError, match="ash") as refused:
        allowing_exact_updates(real, tmp_path / "never")
    assert refused.value.number == "E304" and not (tmp_path / "never").exists()
    simulated = tmp_path / "simulated"
    simulated.mkdir()
    fields = SITE | {
        "source": {"connector": "synthetic", "patients": 500},
        "policy": POLICY | {"exact_updates": False},
    }
    (simulated / "ash.yaml").write_text(yaml.safe_dump(fields))
    allowed = allowing_exact_updates(simulated, tmp_path / "allowed")
    found = yaml.safe_load((allowed / "ash.yaml").read_text())
    assert found["policy"] == POLICY
    willing = federation(tmp_path / "willing")
    assert allowing_exact_updates(willing, tmp_path / "none") == willing


def test_a_refusal_of_the_command_is_an_object(tmp_path, monkeypatch):
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path))
    refused = CliRunner().invoke(app, ["heart-disease", "--epsilon", "3", "--runs", "2", "--json"])
    assert refused.exit_code == 1
    error = json.loads(refused.stdout)["error"]
    assert error["number"] == "E101" and "--clip" in error["detail"]
    assert not (tmp_path / "simulations").exists()


@pytest.mark.slow
def test_a_stopped_simulation_says_where_its_page_is(tmp_path):
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(STUDY.body()), encoding="utf-8")
    place = ["--federation", str(federation(tmp_path / "federation")), "--out", str(tmp_path / "out")]
    answer = CliRunner().invoke(app, [str(file), *place])
    assert answer.exit_code == 1 and "E601" in answer.output, answer.output
    said = next(line for line in answer.stdout.splitlines() if line.startswith("validation page: "))
    page = Path(said.removeprefix("validation page: "))
    assert "Stopped: an acceptance gate failed" in page.read_text(encoding="utf-8")
