"""The published score is computed as the protocol writes it down."""

from __future__ import annotations

import numpy as np
import pytest

from tests.factories import tiny_study
from validation.reference import reference_risk

SCORE = {
    "name": "Tiny score",
    "source": "A paper",
    "intercept": -4.0,
    "terms": [
        {"feature": "age", "coefficient": 0.05, "missing": 60},
        {"feature": "lactate", "coefficient": 0.2},
        {"feature": "sex", "levels": {"1": 0.7}, "missing": 0.3},
    ],
}


@pytest.mark.parametrize(
    ("row", "logit"),
    [
        ([50, 2, 1], -4 + 2.5 + 0.4 + 0.7),
        ([50, 2, 0], -4 + 2.5 + 0.4),  # a level that is not named adds nothing
        ([np.nan, 2, 0], -4 + 3.0 + 0.4),
        ([50, np.nan, np.nan], -4 + 2.5 + 0.3),
        ([130, -3, 1], -4 + 5.0 + 0.7),  # clamped to 0-100 years, 0-20 mmol/L
    ],
)
def test_a_patients_risk_is_that_of_the_formula(row, logit):
    study = tiny_study(validation={"reference": SCORE})
    found = reference_risk(study.validation.reference, np.array([row], dtype=np.float32), study)
    assert found == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-6)


def test_an_extreme_score_is_a_probability():
    score = SCORE | {"terms": [{"feature": "age", "coefficient": 1e6}]}
    study = tiny_study(validation={"reference": score})
    found = reference_risk(study.validation.reference, np.array([[90, 1, 1], [0, 1, 1]], np.float32), study)
    assert found[0] == 1 and 0 < found[1] < 1


def test_a_level_is_found_in_float32():
    score = SCORE | {"terms": [{"feature": "lactate", "levels": {"0.1": 1.0}}]}
    study = tiny_study(validation={"reference": score})
    found = reference_risk(study.validation.reference, np.array([[50, 0.1, 0]], np.float32), study)
    assert found == pytest.approx(1 / (1 + np.exp(3.0)))
