"""A site file is accepted as its author meant it, or refused with field, value and expectation."""

from pathlib import Path

import pytest
import yaml

from contracts.errors import ConsiliumError
from site_runtime.config import dump_site, load_site_file
from tests.factories import SITE, site_fields, write_site


def write(tmp_path: Path, **changes) -> Path:
    path = tmp_path / "site.yaml"
    path.write_text(yaml.safe_dump(site_fields(**changes)))
    return path


@pytest.mark.parametrize(
    ("changes", "field", "value"),
    [
        ({"surprise": 1}, "surprise", "1"),
        ({"site": "Not A Name"}, "site", "Not A Name"),
        ({"source": {"connector": "fax"}}, "source", "fax"),
        ({"source": {"connector": "csv"}}, "path", "csv"),
        ({"source": {**SITE["source"], "colums": []}}, "colums", "[]"),
        ({"source": {**SITE["source"], "label": {"column": "x"}}}, "label", "positive_above"),
        ({"governance": {**SITE["governance"], "declared_size": 1234}}, "governance.declared_size", "1234"),
        ({"budget": {"epsilon": -1}}, "budget.epsilon", "-1"),
        ({"policy": {"minimum_cell": 1}}, "policy.minimum_cell", "1"),
        ({"compute": {"precision": "8"}}, "compute.precision", "8"),
        ({"units": {"lactate": {"from": "mg/dL", "factor": 0}}}, "units.lactate.factor", "0"),
    ],
)
def test_a_mistake_is_named(tmp_path, changes, field, value):
    with pytest.raises(ConsiliumError) as refused:
        load_site_file(write(tmp_path, **changes))
    assert refused.value.number == "E103"
    assert field in refused.value.detail and value in refused.value.detail


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "", "\x00"])
def test_what_is_no_mapping_is_refused(tmp_path, text):
    path = tmp_path / "site.yaml"
    path.write_text(text)
    with pytest.raises(ConsiliumError, match="E103"):
        load_site_file(path)


@pytest.mark.parametrize("size", [1, 85, 170, 4300, 100000])
def test_two_significant_figures_are_enough(tmp_path, size):
    path = write(tmp_path, governance={**SITE["governance"], "declared_size": size})
    assert load_site_file(path).governance.declared_size == size


def test_paths_are_relative_to_the_site_file(tmp_path, monkeypatch):
    path = write_site(tmp_path / "ash")
    monkeypatch.chdir(tmp_path.parent)
    assert load_site_file(path).source.path == tmp_path / "ash" / "data.csv"


def test_variables_are_expanded_or_named(tmp_path, monkeypatch):
    monkeypatch.setenv("WARD", str(tmp_path / "ward"))
    path = write(tmp_path, source={**SITE["source"], "path": "${WARD}/x.csv"})
    assert load_site_file(path).source.path == tmp_path / "ward" / "x.csv"
    monkeypatch.delenv("WARD")
    with pytest.raises(ConsiliumError, match=r"E103.*WARD"):
        load_site_file(path)


def test_a_written_configuration_reads_back_equal(tmp_path):
    path = write(tmp_path, units={"lactate": {"from": "mg/dL", "factor": 0.111}}, holdout="list.csv")
    config = load_site_file(path)
    again = tmp_path / "elsewhere" / "site.yaml"
    again.parent.mkdir()
    again.write_text(dump_site(config))
    assert load_site_file(again) == config
