"""docs/write-a-study.md names every field of a study with the default it really has, and no other."""

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from contracts import dossier, gates, privacy, strategy, validation_plan
from contracts import study as fields

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "write-a-study.md").read_text()

SECTIONS: dict[str, type[BaseModel]] = {
    "The study": fields.StudyProtocol,
    "`cohort`": fields.Cohort,
    "`features`: `kind: numeric`": fields.NumericFeature,
    "`features`: `kind: categorical`": fields.CategoricalFeature,
    "`label`": fields.Label,
    "`subgroups`": fields.Subgroup,
    "`quality`": fields.Quality,
    "`holdout`": fields.Holdout,
    "`model`": fields.Model,
    "`strategy`": strategy.Strategy,
    "`strategy`: `aggregation: norm_bound`": strategy.NormBound,
    "`strategy`: `aggregation: mean`": strategy.Mean,
    "`strategy`: `aggregation: median`": strategy.Median,
    "`strategy`: `aggregation: trimmed_mean`": strategy.TrimmedMean,
    "`strategy`: `aggregation: krum`": strategy.Krum,
    "`strategy`: `aggregation: secure`": strategy.Secure,
    "`training`": fields.Training,
    "`privacy`: `mode: patient`": privacy.PatientPrivacy,
    "`privacy`: `mode: site`": privacy.HospitalPrivacy,
    "`privacy`: `quantile`": privacy.Quantile,
    "`privacy`: `mode: none`": privacy.NoPrivacy,
    "`decision_threshold`": fields.ThresholdRule,
    "`gates`": gates.Gate,
    "`validation`": validation_plan.ValidationPlan,
    "`validation`: `net_benefit`": validation_plan.ThresholdRange,
    "`validation`: `reference`": validation_plan.ReferenceScore,
    "`validation`: `reference.terms`": validation_plan.ScoreTerm,
    "`validation`: `diagnostics`": validation_plan.Diagnostics,
    "`validation`: `error_budget`": validation_plan.ErrorBudget,
    "`sign_off`": validation_plan.SignOff,
    "`dossier`": dossier.Dossier,
}
# docs/dossier.md describes these.
ELSEWHERE = {
    dossier.ChangeControl,
    dossier.Control,
    dossier.Modification,
    dossier.Monitoring,
    dossier.Risk,
}


def rows(section: str) -> dict[str, list[str]]:
    """Cells of a section's table by field."""
    text = PAGE.split(f"\n## {section}\n")[1].split("\n## ")[0]
    lines = [line for line in text.splitlines() if re.match(r"\| `\w+` \|", line)]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0].strip("`"): row[1:] for row in cells}


def default_of(model: type[BaseModel], name: str) -> str:
    """How the page shows a default."""
    value = model.model_fields[name].get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "none"
    if isinstance(value, BaseModel):
        return "as below"
    if model is fields.Quality and name == "blocking":
        assert len(value) == 8
        return "all eight"
    if isinstance(value, str):
        return value or '""'
    return json.dumps(value)


def test_every_part_of_a_study_has_its_section() -> None:
    headings = re.findall(r"^## (.+)$", PAGE, flags=re.MULTILINE)
    assert headings == list(SECTIONS)
    models = {
        m
        for module in (fields, privacy, strategy, gates, validation_plan, dossier)
        for m in vars(module).values()
        if isinstance(m, type) and issubclass(m, fields.Contract)
    }
    assert models - {fields.Contract} == set(SECTIONS.values()) | ELSEWHERE


@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_names_every_field_with_meaning_and_default(section: str) -> None:
    model = SECTIONS[section]
    names = {field.alias or name: name for name, field in model.model_fields.items()}
    table = rows(section)
    assert list(table) == list(names)
    for shown, name in names.items():
        meaning, _, default = table[shown]
        assert len(meaning) > 3, shown
        assert default == default_of(model, name), shown


@pytest.mark.parametrize("metric", get_args(gates.Metric))
def test_every_metric_of_a_gate_is_named(metric: str) -> None:
    assert f"`{metric}`" in PAGE


@pytest.mark.parametrize("check", fields.Quality().blocking)
def test_every_check_is_named(check: str) -> None:
    assert f"`{check}`" in PAGE
