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
    assert code == 0 and "E408" in output


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("{", "cases.json"),
        ("[]", "cases"),
        ({"cases": {}}, "cases"),
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
    assert code == 1 and json.loads(output)["error"]["number"] == "E409"


def test_hospital_privacy_is_planned_too(tmp_path: Path) -> None:
    training = study_fields()["training"] | {"normalisation": "declared"}
    privacy = {"mode": "site", "epsilon": 8.0, "delta": 1e-3, "max_update_norm": 1.0}
    code, output = run("plan", study_file(tmp_path, privacy=privacy, training=training), "--json")
    facts = json.loads(output)
    assert code == 0 and facts["mode"] == "site" and facts["noise_multiplier"]["statistics"] is None
    assert facts["epsilon_without_amplification"] == pytest.approx(facts["epsilon_planned"])
    code, output = run("plan", study_file(tmp_path, privacy=privacy, training=training))
    assert code == 0 and "one hospital" in output


def test_the_plot_is_svg_with_the_promise_and_every_cap(tmp_path: Path) -> None:
    sites = federation(tmp_path, ash=(500, 4.0), elm=(250, 3.0))
    plot = tmp_path / "plot.svg"
    code, output = run("plan", study_file(tmp_path), "--federation", sites, "--plot", plot)
    assert code == 0 and "plot.svg" in output.replace("\n", "")
    text = plot.read_text()
    assert text.startswith("<svg")
    for words in ("promised: 2", "cap of ash: 4", "cap of elm: 3", "at delta 0.001"):
        assert words in text


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
