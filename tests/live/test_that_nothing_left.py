"""After whole studies and a release: what the coordinator holds knows nothing of the planted patients."""

from __future__ import annotations

import pandas as pd
import pytest

from consilium.platform import Platform
from tests.leaks import Planted, search

pytestmark = pytest.mark.live


def test_the_coordinator_holds_nothing_of_a_planted_patient(
    platform: Platform, planted: dict[str, Planted]
) -> None:
    for site, patient in planted.items():
        needles = patient.needles()
        assert search(platform.coordinator.root, needles) == [], site
        for log in (platform.home / "run").glob("*"):
            content = log.read_bytes()
            assert not [name for name, needle in needles.items() if needle in content], log.name


def test_each_planted_patient_is_in_its_own_hospitals_cohort_and_in_no_other(
    platform: Platform, planted: dict[str, Planted]
) -> None:
    """The control: the patients were trained on, so that finding nothing elsewhere says something."""
    for site, patient in planted.items():
        for other in platform.sites:
            cohorts = [
                pd.read_parquet(path)["chol"] for path in platform.site(other).data.glob("*/*.parquet")
            ]
            found = any(patient.number in set(cohort) for cohort in cohorts)
            assert cohorts and found == (other == site), (site, other)
