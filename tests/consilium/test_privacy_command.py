"""`consilium privacy`: a study's cost before it begins, and epsilon of files of compositions."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from consilium.privacy import app
from privacy.accountant import Spend, epsilon, epsilon_rdp
from tests.factories import study_fields

DATA = Path(os.environ.get("CONSILIUM_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
GOLDEN = DATA / "published" / "dp_accounting_golden.json"


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    return result.exit_code, result.output


def written(tmp_path: Path, value: Any) -> Path:
    path = tmp_path / "cases.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def case(**changes: Any) -> dict[str, Any]:
    step = {"sample_rate": 0.1, "noise_multiplier": 1.5, "steps": 10}
    return {"steps": [step | changes.pop("step", {})], "delta": 1e-5, **changes}


@pytest.mark.skipif(not GOLDEN.exists(), reason=f"no published golden file at {GOLDEN}: set CONSILIUM_DATA")
def test_the_golden_file_comes_back_in_order_with_both_epsilons() -> None:
    code, output = run("epsilon", GOLDEN, "--json")
    assert code == 0
    given, found = json.loads(GOLDEN.read_text())["cases"], json.loads(output)["cases"]
    assert len(found) == len(given) >= 10
    for before, after in zip(given, found, strict=True):
        assert before | {k: after[k] for k in ("epsilon_prv", "epsilon_rdp")} == after
        assert after["epsilon_prv"] == pytest.approx(before["epsilon_pld"], abs=0.01)
        assert after["epsilon_prv"] <= after["epsilon_rdp"]
    code, output = run("epsilon", GOLDEN)
    assert code == 0 and "PLD" in output and "5.9127" in output


def test_own_fields_adjacency_and_what_cannot_be_stated(tmp_path: Path) -> None:
    cases = [
        case(name="mine", nested={"a": [1]}),
        case(adjacency="replace-one"),
        case(step={"noise_multiplier": 0.01}, note="no noise"),
        {"steps": [], "delta": 0.5},
    ]
    code, output = run("epsilon", written(tmp_path, {"cases": cases, "source": "s"}), "--json")
    assert code == 0
    one, replaced, impossible, nothing = json.loads(output)["cases"]
    spends = [Spend(0.1, 1.5, 10)]
    assert one["name"] == "mine" and one["nested"] == {"a": [1]} and "error" not in one
    assert one["epsilon_prv"] == epsilon(spends, 1e-5) and one["epsilon_rdp"] == epsilon_rdp(spends, 1e-5)
    assert replaced["epsilon_prv"] == epsilon(spends, 1e-5, "replace-one") > one["epsilon_prv"]
    assert impossible["epsilon_prv"] is None and impossible["epsilon_rdp"] is None
    assert impossible["error"] == "E408" and impossible["note"] == "no noise"
    assert nothing["epsilon_prv"] == nothing["epsilon_rdp"] == 0.0
    code, output = run("epsilon", written(tmp_path, {"cases": cases}))
    assert code == 0 and "E408: The privacy accountants disagree" in output


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("{", "cases.json"),
        ("[]", "cases"),
        ({"cases": {}}, "cases"),
        ({"cases": []}, "at least one case"),
        ({"cases": [case(step={"rate": 0.1})]}, 'case 1: steps[0] ["rate"]'),
        ({"cases": [case(step={"noise_multiplier": 1e308})]}, "at most 1e+300"),
        ({"cases": [case(), []]}, "case 2"),
        ({"cases": [{"delta": 1e-5}]}, "case 1: steps null"),
        ({"cases": [case(), case(delta=1.0)]}, "case 2: delta 1.0"),
        ({"cases": [case(delta="1e-5")]}, 'case 1: delta "1e-5"'),
        ('{"cases": [{"steps": [], "delta": NaN}]}', "NaN"),
        ({"cases": [case(step={"sample_rate": 0})]}, "case 1: steps[0].sample_rate 0"),
        ({"cases": [case(step={"sample_rate": 1.5})]}, "case 1: steps[0].sample_rate 1.5"),
        ({"cases": [case(step={"sample_rate": True})]}, "case 1: steps[0].sample_rate true"),
        ({"cases": [case(step={"noise_multiplier": -1})]}, "case 1: steps[0].noise_multiplier -1"),
        ('{"cases": [{"steps": [{"sample_rate": 1, "noise_multiplier": 1e999}]}]}', "noise_multiplier"),
        ({"cases": [case(step={"steps": 1.5})]}, "case 1: steps[0].steps 1.5"),
        ({"cases": [case(step={"steps": 10**30})]}, "case 1: steps[0].steps 1000"),
        ({"cases": [case(adjacency="zero-out")]}, 'case 1: adjacency "zero-out"'),
    ],
)
def test_a_malformed_file_is_refused_by_case_field_and_value_and_nothing_is_printed(
    tmp_path: Path, value: Any, named: str
) -> None:
    code, output = run("epsilon", written(tmp_path, value), "--json")
    found = json.loads(output)  # one object: no half of the answers before it
    assert code == 1 and set(found) == {"error"} and found["error"]["number"] == "E802"
    assert named in found["error"]["detail"]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    code, output = run("epsilon", tmp_path / "none.json", "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E802"


def study_file(tmp_path: Path, **changes: Any) -> Path:
    value = study_fields() | {
        "rounds": 40,
        "privacy": {"mode": "patient", "epsilon": 2.0, "delta": 1e-3, "max_grad_norm": 0.5},
    }
    path = tmp_path / "planned.yaml"
    path.write_text(yaml.safe_dump(value | changes))
    return path


def federation(tmp_path: Path, **sites: tuple[int, float]) -> Path:
    """Sites with a declared size and a cap; their connector is one that does not exist."""
    folder = tmp_path / "federation"
    folder.mkdir()
    for name, (size, cap) in sites.items():
        value = {
            "site": name,
            "source": {"connector": "not-installed-here"},
            "governance": {
                "institution": name,
                "contact": "c",
                "lineage": "all",
                "declared_size": size,
                "approved_by": "o",
            },
            "budget": {"epsilon": cap, "delta": 1e-3},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(value))
    return folder


def test_a_plan_says_what_the_study_means_at_every_site(tmp_path: Path) -> None:
    study = study_file(tmp_path)
    arguments = ("plan", study, "--federation", federation(tmp_path, ash=(500, 4.0), elm=(250, 2.0)))
    code, output = run(*arguments, "--json")
    facts = json.loads(output)
    assert code == 0
    rate = study_fields()["training"]["sample_rate"]
    sigma = facts["noise_multiplier"]["training"]
    for site in facts["sites"]:
        batch = rate * site["declared_size"]
        assert site["expected_batch"] == pytest.approx(batch)
        assert site["noise_of_mean_gradient"] == pytest.approx(sigma * 0.5 / batch)
        assert site["fits"] and site["epsilon_at_cap_delta"] == facts["epsilon_planned"] <= 2.0
    rising = [point["epsilon"] for point in facts["projection"]]
    assert rising == sorted(rising) and rising[-1] == facts["epsilon_planned"]
    assert facts["epsilon_without_amplification"] > facts["epsilon_planned"]
    code, output = run(*arguments)
    lines = output.splitlines()
    assert code == 0 and sum("round " in line for line in lines) <= 20
    assert any(line.split()[:2] == ["round", "40"] for line in lines)  # the last is always there
    assert f"{facts['epsilon_planned']:.3f}" in output


def test_a_site_that_would_refuse_is_named_and_the_others_are_still_shown(tmp_path: Path) -> None:
    sites = federation(tmp_path, ash=(500, 4.0), big=(1000, 4.0), poor=(500, 1.0))
    code, output = run("plan", study_file(tmp_path), "--federation", sites, "--json")
    found = {site["site"]: site for site in json.loads(output)["sites"]}
    assert code == 1 and found["ash"]["fits"]
    assert found["big"]["error"]["number"] == "E403" and "1/1000" in found["big"]["error"]["detail"]
    assert found["poor"]["error"]["number"] == "E401"
    code, output = run("plan", study_file(tmp_path), "--federation", sites)
    assert code == 1 and "E403" in output and "E401" in output and "ash" in output


def test_a_study_without_a_federation_and_one_without_privacy(tmp_path: Path) -> None:
    code, output = run("plan", study_file(tmp_path), "--json")
    assert code == 0 and json.loads(output)["sites"] == []
    code, output = run("plan", study_file(tmp_path, privacy={"mode": "none"}), "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E422"


def test_a_plan_shows_what_validation_trains_beside_the_model(tmp_path: Path) -> None:
    """A hospital's own model, and the folds that it takes part in: one fewer than hospitals may come."""
    further = study_file(tmp_path, rounds=2, validation={"local_model": True, "leave_one_site_out": 3})
    code, output = run("plan", further, "--json")
    facts = json.loads(output)
    sigma = facts["noise_multiplier"]
    assert code == 0 and sigma["local"] == sigma["fold"] == sigma["training"]
    assert facts["projection"][-1]["epsilon"] == facts["epsilon_planned"] <= 2.0
    code, output = run("plan", further)
    rows = [" ".join(line.split()[:4]) for line in output.splitlines()]
    for name in ("round 2", "local", "fold 1 round 1", "fold 2 round 2"):
        assert any(row.startswith(name) for row in rows), name
    assert "fold 3" not in output
    plain = json.loads(run("plan", study_file(tmp_path, rounds=2), "--json")[1])["noise_multiplier"]
    assert plain["local"] is None and plain["fold"] is None and plain["training"] < sigma["training"]


def test_hospital_privacy_is_planned_too(tmp_path: Path) -> None:
    training = study_fields()["training"] | {"normalisation": "declared"}
    privacy = {"mode": "site", "epsilon": 8.0, "delta": 1e-3, "max_update_norm": 1.0}
    code, output = run("plan", study_file(tmp_path, privacy=privacy, training=training), "--json")
    facts = json.loads(output)
    assert code == 0 and facts["mode"] == "site" and facts["noise_multiplier"]["statistics"] is None
    assert facts["epsilon_without_amplification"] == pytest.approx(facts["epsilon_planned"])
    code, output = run("plan", study_file(tmp_path, privacy=privacy, training=training))
    assert code == 0 and "one hospital" in output


def test_the_cap_is_counted_by_adding_or_removing_whatever_the_study_promises(tmp_path: Path) -> None:
    privacy = {"mode": "patient", "epsilon": 2.0, "delta": 1e-3, "max_grad_norm": 0.5, "public_n": True}
    sites = federation(tmp_path, ash=(500, 1.9))
    code, output = run("plan", study_file(tmp_path, privacy=privacy), "--federation", sites, "--json")
    facts = json.loads(output)
    (ash,) = facts["sites"]
    sigma, training = facts["noise_multiplier"], study_fields()["training"]
    steps = training["steps"] * facts["rounds"]
    spends = [Spend(1.0, sigma["statistics"], 1), Spend(training["sample_rate"], sigma["training"], steps)]
    assert code == 0 and ash["fits"] and ash["cap_adjacency"] == "add-or-remove-one"
    # What the ledger of that hospital will compose to, and refuse by.
    assert ash["epsilon_at_cap_delta"] == pytest.approx(epsilon(spends, 1e-3), abs=1e-6)
    assert ash["epsilon_at_cap_delta"] < 1.9 < facts["epsilon_planned"]
    assert facts["epsilon_planned"] == pytest.approx(epsilon(spends, 1e-3, "replace-one"), abs=1e-6)


@pytest.mark.parametrize(
    ("changes", "number"),
    [({"sampling": "shuffled"}, "E414"), ({"normaliser": "cohort"}, "E415"), ({"seed": 1}, "E405")],
)
def test_a_plan_refuses_what_every_hospital_would(
    tmp_path: Path, changes: dict[str, Any], number: str
) -> None:
    training = study_fields()["training"] | changes
    code, output = run("plan", study_file(tmp_path, training=training), "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == number


def test_a_seeded_process_and_a_model_that_couples_patients_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = [{"name": f"p{i}", "kind": "numeric", "unit": "1", "range": [0, 1]} for i in range(64)]
    model = {"name": "cnn", "image": [8, 8], "norm": "batch"}
    study = study_file(tmp_path, features=image, model=model, subgroups=[])
    code, output = run("plan", study, "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E404"
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    code, output = run("plan", study_file(tmp_path), "--json")
    assert code == 1 and json.loads(output)["error"]["number"] == "E405"


def edited(folder: Path, site: str, **changes: Any) -> None:
    path = folder / f"{site}.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))


def test_what_a_site_would_refuse_by_its_own_file_is_planned(tmp_path: Path) -> None:
    sites = federation(tmp_path, ash=(500, 4.0), elm=(500, 4.0), fir=(500, 4.0), oak=(20, 4.0))
    edited(sites, "ash", source={"connector": "csv", "path": "a.csv"})
    edited(sites, "elm", source={"connector": "csv", "path": "a.csv", "one_row_per_patient": True})
    edited(sites, "fir", compute={"devices": 2})
    cohort = study_fields()["cohort"] | {"minimum_patients": 100}
    arguments = ("plan", study_file(tmp_path, cohort=cohort), "--federation", sites)
    code, output = run(*arguments, "--json")
    found = {site["site"]: site for site in json.loads(output)["sites"]}
    refused = {name: site["error"]["number"] for name, site in found.items() if site["error"]}
    assert code == 1 and refused == {"ash": "E413", "fir": "E412"}
    assert {name for name, site in found.items() if site["warnings"]} == {"oak"}
    assert "minimum_patients 100" in run(*arguments)[1]


@pytest.mark.parametrize("options", [{"patient": "pid"}, {"one_row_per_patient": True}, {}])
def test_a_plan_and_the_connector_agree_on_who_tells_patients_apart(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    from consilium.plan_sites import load_planned
    from site_runtime.connectors import parse_source

    source = {"connector": "csv", "path": "a.csv", **options}
    sites = federation(tmp_path, ash=(500, 4.0))
    edited(sites, "ash", source=source)
    told = parse_source(source).tells_patients_apart
    assert load_planned(sites / "ash.yaml").tells_patients_apart == told


def test_hospital_privacy_is_planned_against_the_budget_the_quorum_and_every_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSILIUM_HOME", str(tmp_path / "home"))
    training = study_fields()["training"] | {"normalisation": "declared"}
    privacy = {"mode": "site", "epsilon": 8.0, "delta": 1e-2, "max_update_norm": 1.0}
    sites = federation(tmp_path, ash=(500, 4.0), elm=(100, 4.0))
    edited(sites, "ash", policy={"exact_updates": True})

    def plan(**changes: Any) -> tuple[int, dict[str, Any]]:
        study = study_file(tmp_path, **{"privacy": privacy, "training": training} | changes)
        code, output = run("plan", study, "--federation", sites, "--json")
        return code, json.loads(output)

    code, facts = plan()
    ash, elm = facts["sites"]
    assert code == 1 and ash["fits"] and elm["error"]["number"] == "E304"
    assert ash["weight"] == pytest.approx(5 / 6) and ash["clip_over_noise"] == 5 * elm["clip_over_noise"]
    at = facts["federation"]
    assert (at["fits"], at["epsilon_cap"], at["cap_delta"]) == (True, 50.0, 1e-3)  # the default
    assert at["epsilon_at_cap_delta"] > facts["epsilon_planned"]
    edited(sites, "elm", policy={"exact_updates": True})
    assert plan()[0] == 0
    assert plan(min_sites=3)[1]["federation"]["error"]["number"] == "E506"
    budget = tmp_path / "home" / "coordinator" / "budget.json"
    budget.parent.mkdir(parents=True)
    budget.write_text(json.dumps({"epsilon": 8.0, "delta": 1e-3}))
    code, facts = plan()
    assert code == 1 and facts["federation"]["error"]["number"] == "E401"
    code, output = run("plan", tmp_path / "planned.yaml", "--federation", sites)
    assert code == 1 and "E401" in output and "at each hospital" in output


@pytest.mark.parametrize("width", [60, 80])
def test_no_number_is_cut_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    from consilium.output import screen

    monkeypatch.setattr(screen, "_width", width)
    sites = federation(tmp_path, ash=(500, 4.0), a_long_name_of_a_site=(250, 2.0))
    code, output = run("plan", study_file(tmp_path), "--federation", sites)
    assert code == 0 and "…" not in output and "statistics" in output


def test_the_plot_is_svg_with_the_promise_and_every_cap(tmp_path: Path) -> None:
    sites = federation(tmp_path, ash=(500, 4.0), elm=(250, 3.0))
    plot = tmp_path / "plot.svg"
    code, output = run("plan", study_file(tmp_path), "--federation", sites, "--plot", plot)
    assert code == 0 and "plot.svg" in output.replace("\n", "")
    text = plot.read_text()
    assert text.startswith("<svg")
    for words in ("promised: 2", "cap of ash: 4", "cap of elm: 3", "at delta 0.001"):
        assert words in text


@pytest.mark.parametrize("name", ["plot.png", "none/plot.svg", "plot"])
def test_a_plot_that_could_not_be_written_is_a_usage_error(tmp_path: Path, name: str) -> None:
    assert run("plan", study_file(tmp_path), "--plot", tmp_path / name)[0] == 2


def test_planning_imports_nothing_heavy(tmp_path: Path) -> None:
    sites = federation(tmp_path, ash=(500, 4.0))
    heavy = ("torch", "opacus", "airflow", "great_expectations", "dvc", "pandas", "matplotlib", "safetensors")
    arguments = ["plan", str(study_file(tmp_path)), "--federation", str(sites)]
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom consilium.privacy import app\n"
        f"done = CliRunner().invoke(app, {arguments!r})\n"
        f"print(done.exit_code, [m for m in {heavy!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "0 []\n", done.stdout + done.stderr


def test_no_number_in_json_is_infinite(tmp_path: Path) -> None:
    cases = [case(step={"noise_multiplier": 1e-90, "sample_rate": 1}), case(step={"noise_multiplier": 0.04})]
    code, output = run("epsilon", written(tmp_path, {"cases": cases}), "--json")

    def refuse(name: str) -> float:
        raise AssertionError(name)

    for found in json.loads(output, parse_constant=refuse)["cases"]:
        assert found["epsilon_prv"] is None or math.isfinite(found["epsilon_prv"])
    assert code == 0
