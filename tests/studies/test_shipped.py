"""The studies that ship: valid, with hospitals whose data their own intake accepts."""

import csv
from pathlib import Path

import numpy as np
import pytest

import studies
from contracts.study import load_study
from site_runtime.cohort import split_cohort
from site_runtime.config import SiteConfig, data_folder, load_site_file
from site_runtime.connectors.synthetic import achievable_auroc, simulate
from site_runtime.intake import read_records
from site_runtime.quality import first_blocking, run_quality

pytestmark = pytest.mark.slow

ROOT = Path(studies.__file__).parent
FEDERATIONS = sorted(ROOT.glob("federations/*/*.yaml"))
KEY = bytes(range(32))
HEART = data_folder() / "heart_disease"


def configs(study: str) -> list[SiteConfig]:
    return [load_site_file(path) for path in sorted((ROOT / "federations" / study).glob("*.yaml"))]


@pytest.mark.parametrize("path", FEDERATIONS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_hospital_is_accepted_and_declares_its_size(path):
    config, protocol = load_site_file(path), load_study(ROOT / f"{path.parent.name}.yaml")
    assert config.site == path.stem
    if config.source.connector == "csv" and not HEART.exists():
        pytest.skip(f"{HEART} is not here: `consilium data fetch heart-disease`")
    records = read_records(config, protocol)
    assert first_blocking(run_quality(records, protocol)) is None
    cohort = split_cohort(records, protocol, config, KEY)
    training = cohort.loc[~cohort["holdout"], "patient"].nunique()
    assert config.governance.declared_size == pytest.approx(training, rel=0.06)


def test_no_two_shipped_hospitals_share_a_lineage():
    lineages = [load_site_file(path).governance.lineage for path in FEDERATIONS]
    assert len(set(lineages)) == len(lineages)


def test_the_demo_is_learnable_and_its_hospitals_differ():
    sites = configs("icu-mortality-demo")
    achievable = achievable_auroc({c.site: c.source for c in sites})
    assert 0.8 <= achievable["pooled"] <= 0.9 and min(achievable.values()) > 0.75
    assert len(sites) >= 4 and all(400 <= c.source.patients <= 5000 for c in sites)
    frames = [simulate(c.source).frame for c in sites]
    prevalence = [f["died"].mean() for f in frames]
    missing = [f["lactate"].isna().mean() for f in frames]
    assert max(prevalence) > 1.5 * min(prevalence) and max(missing) > 2 * min(missing)
    assert any(c.units for c in sites)


def test_a_conversion_left_out_of_a_demo_hospital_is_noticed():
    protocol = load_study(ROOT / "icu-mortality-demo.yaml")
    for config in configs("icu-mortality-demo"):
        if config.units:
            forgotten = config.model_copy(update={"units": {}})
            error = first_blocking(run_quality(read_records(forgotten, protocol), protocol))
            assert error is not None and error.number == "E209"


def test_the_stopped_study_hides_its_faults_from_data_quality():
    faults = {c.site: c.source.label_flips for c in configs("icu-mortality-stopped")}
    assert [site for site, flips in faults.items() if flips] == ["oak"]
    assert all(c.source.attenuated for c in configs("icu-mortality-stopped"))


@pytest.mark.skipif(not HEART.exists(), reason=f"{HEART} is not here: consilium data fetch heart-disease")
def test_the_heart_disease_split_is_flambys():
    split_file = HEART / "flamby_split.csv"
    if not split_file.exists():
        pytest.skip(f"{split_file} is not here")
    protocol = load_study(ROOT / "heart-disease.yaml")
    with open(split_file, newline="") as file:
        rows = list(csv.DictReader(file))
    for number, name in enumerate(("cleveland", "hungarian", "switzerland", "va")):
        config = next(c for c in configs("heart-disease") if c.site == name)
        records = read_records(config, protocol)
        flamby = [row for row in rows if row["site"] == str(number)]
        assert len(records) == len(flamby)
        values = np.array([[float(row[str(c)]) for c in range(10)] for row in flamby])
        np.testing.assert_array_equal(records[protocol.feature_names].to_numpy(), values)
        label = [float(float(row["13"]) > 0) for row in flamby]
        assert list(records["disease"]) == label
        cohort = split_cohort(records, protocol, config, KEY)
        from site_runtime.split import pseudonym

        held = dict(zip(cohort["patient"], cohort["holdout"], strict=True))
        here = [held[pseudonym(KEY, "heart-disease", p)] for p in records["patient"]]
        assert here == [row["test"] == "True" for row in flamby]
