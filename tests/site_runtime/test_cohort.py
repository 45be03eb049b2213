"""The canonical cohort: a function of each patient's own rows, named by a digest that notices everything."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from site_runtime.cohort import (
    build_cohort,
    cohort_digest,
    convert_units,
    eligible,
    freeze,
    latest_first,
    load_cohort,
    split_cohort,
)
from site_runtime.config import load_site
from site_runtime.split import load_split_key
from tests.factories import enrolled_site, tiny_rows, tiny_study

KEY = bytes(range(32))
PROTOCOL = tiny_study()
AUXILIARY = [
    {"name": "ventilated", "positive": "ventilated"},
    {"name": "readmitted", "positive": "came back"},
]


def frame(rows) -> pd.DataFrame:
    made = pd.DataFrame(rows)
    made["lactate"] = pd.to_numeric(made["lactate"])
    return made.astype({"patient": str, "record": str, "age": float, "sex": float, "died": float})


@settings(max_examples=15, deadline=None)
@given(st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(random):
    rows = tiny_rows(12)
    expected = build_cohort(frame(rows), PROTOCOL, KEY, frozenset({"p1"}))
    random.shuffle(rows)
    shuffled = build_cohort(frame(rows), PROTOCOL, KEY, frozenset({"p1"}))
    assert cohort_digest(shuffled, PROTOCOL, KEY) == cohort_digest(expected, PROTOCOL, KEY)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 11))
def test_a_patient_touches_only_their_own_rows(index):
    rows = tiny_rows(12)
    gone = f"p{index}"
    without = build_cohort(frame([r for r in rows if r["patient"] != gone]), PROTOCOL, KEY, frozenset())
    everyone = build_cohort(frame(rows), PROTOCOL, KEY, frozenset())
    kept = everyone[everyone["patient"].isin(without["patient"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, without)


def test_the_digest_notices_any_change_and_any_other_key():
    cohort = build_cohort(frame(tiny_rows(12)), PROTOCOL, KEY, frozenset({"p1"}))
    digests = {cohort_digest(cohort, PROTOCOL, KEY), cohort_digest(cohort, PROTOCOL, bytes(32))}
    for column in cohort.columns:
        changed = cohort.copy()
        values = changed[column].tolist()
        values[3] = "0" * 32 if column == "patient" else not values[3]
        changed[column] = pd.Series(values).astype(cohort[column].dtype)
        digests.add(cohort_digest(changed, PROTOCOL, KEY))
    nothing = cohort.copy()
    nothing.loc[3, "age"] = np.nan
    digests |= {cohort_digest(nothing, PROTOCOL, KEY), cohort_digest(cohort[:-1], PROTOCOL, KEY)}
    assert len(digests) == 4 + len(cohort.columns)


def test_the_digest_of_a_cohort_without_auxiliary_labels_has_not_moved():
    """Golden: a hospital's frozen cohort stays valid when it takes a newer version of the code."""
    cohort = build_cohort(frame(tiny_rows(12)), PROTOCOL, KEY, frozenset({"p1"}))
    assert (
        cohort_digest(cohort, PROTOCOL, KEY)
        == "b1043693d67508c36e90814b76fc1c8693cffeaca8caff56746bd5d90a95d73f"
    )


def test_the_digest_notices_an_auxiliary_label():
    protocol = tiny_study(auxiliary_labels=AUXILIARY)
    cohorts = []
    for value in (0.0, 1.0, np.nan):
        rows = frame(tiny_rows(12)).assign(ventilated=0.0, readmitted=1.0)
        rows.loc[3, "ventilated"] = value
        cohorts.append(build_cohort(rows, protocol, KEY, frozenset()))
    assert len({cohort_digest(c, protocol, KEY) for c in cohorts}) == 3
    assert list(cohorts[0].columns)[-3:] == ["died", "ventilated", "readmitted"]


def test_the_most_recent_records_are_kept_latest_first():
    day = pd.to_datetime(["2024-01-01", "2024-03-01", "2024-02-01", None])
    one = pd.DataFrame({"patient": "p", "record": ["9", "1", "2", "3"], "prediction_time": day})
    assert list(latest_first(one)["record"]) == ["1", "2", "9", "3"]
    numbered = one.drop(columns="prediction_time").assign(record=["9", "10", "b", "a"])
    assert list(latest_first(numbered)["record"]) == ["10", "9", "b", "a"]


def test_units_are_converted_and_infinite_ones_refused(tmp_path):
    home = enrolled_site(tmp_path, units={"lactate": {"from": "mg/dL", "factor": 0.5, "offset": 1}})
    rows = frame(tiny_rows(3))
    converted = convert_units(rows, load_site(home), PROTOCOL)
    pd.testing.assert_series_equal(converted["lactate"], rows["lactate"] * 0.5 + 1)
    pd.testing.assert_series_equal(converted["age"], rows["age"])
    rows.loc[0, "lactate"] = np.inf
    with pytest.raises(ConsiliumError, match=r"E103.*lactate"):
        convert_units(rows, load_site(home), PROTOCOL)


def test_complete_cases_only_when_the_study_says_so():
    rows = frame(tiny_rows(14))
    assert len(eligible(rows, PROTOCOL)) == len(rows)
    complete = tiny_study(cohort={**PROTOCOL.cohort.model_dump(), "complete_cases": True})
    assert eligible(rows, complete)["lactate"].notna().all()


@pytest.fixture
def frozen_home(tmp_path):
    home = enrolled_site(tmp_path)
    key = load_split_key(home)
    cohort = split_cohort(frame(tiny_rows(120)), PROTOCOL, load_site(home), key)
    freeze(home, cohort, PROTOCOL, key)
    return home


def test_arrays_hold_every_record_once_and_the_parts_share_no_patient(frozen_home):
    config = load_site(frozen_home)
    training = load_cohort(frozen_home, config, PROTOCOL, "training")
    holdout = load_cohort(frozen_home, config, PROTOCOL, "holdout")
    assert training.x.shape[1:] == (2, 3) and holdout.x.shape[1:] == (1, 3)
    assert training.patients + holdout.patients == 120
    assert training.x.dtype == training.y.dtype == np.float32
    assert holdout.mask.all() and training.mask[:, 0].all()
    assert not training.x[~training.mask].any() and not training.y[~training.mask].any()
    assert np.isnan(training.x[training.mask]).any()
    assert training.digest == holdout.digest
    cohort = pd.read_parquet(frozen_home.cohort("tiny") / "cohort.parquet")
    assert cohort.groupby("patient")["holdout"].nunique().max() == 1
    # The latest record (position 0) is the one the holdout is judged on.
    latest = cohort[cohort["holdout"] & (cohort["position"] == 0)]
    np.testing.assert_array_equal(holdout.x[:, 0], latest[PROTOCOL.feature_names].to_numpy(np.float32))


def test_auxiliary_labels_stand_beside_the_label_and_unknown_stays_unknown(tmp_path):
    protocol = tiny_study(
        auxiliary_labels=AUXILIARY, cohort={**PROTOCOL.cohort.model_dump(), "complete_cases": True}
    )
    home = enrolled_site(tmp_path)
    key = load_split_key(home)
    rows = frame(tiny_rows(120))
    rows["ventilated"], rows["readmitted"] = 1 - rows["died"], np.nan
    rows.loc[rows["age"] > 60, "readmitted"] = 1.0
    kept = eligible(rows, protocol)  # a record is complete without its auxiliary labels
    assert len(kept) == rows["lactate"].notna().sum()
    freeze(home, split_cohort(kept, protocol, load_site(home), key), protocol, key)
    for part in ("training", "holdout"):
        arrays = load_cohort(home, load_site(home), protocol, part)
        assert arrays.auxiliary.shape == (*arrays.y.shape, 2) and arrays.auxiliary.dtype == np.float32
        assert np.isnan(arrays.auxiliary[~arrays.mask]).all()
        ventilated, readmitted = arrays.auxiliary[arrays.mask].T
        np.testing.assert_array_equal(ventilated, 1 - arrays.y[arrays.mask])
        np.testing.assert_array_equal(np.isnan(readmitted), arrays.x[arrays.mask][:, 0] <= 60)


def test_without_auxiliary_labels_there_is_an_empty_array(frozen_home):
    arrays = load_cohort(frozen_home, load_site(frozen_home), PROTOCOL)
    assert arrays.auxiliary.shape == (*arrays.y.shape, 0)


def test_no_identifier_of_the_source_is_in_the_frozen_cohort(frozen_home):
    cohort = pd.read_parquet(frozen_home.cohort("tiny") / "cohort.parquet")
    assert not set(cohort["patient"]) & {f"p{i}" for i in range(120)}


def test_a_cohort_that_changed_after_intake_is_refused(frozen_home):
    path = frozen_home.cohort("tiny") / "cohort.parquet"
    cohort = pd.read_parquet(path)
    cohort.loc[0, "age"] += 1
    cohort.to_parquet(path, index=False)
    with pytest.raises(ConsiliumError, match="E210"):
        load_cohort(frozen_home, load_site(frozen_home), PROTOCOL)


@pytest.mark.parametrize("damage", [b"", b"PAR1", None])
def test_a_damaged_or_missing_file_is_refused(frozen_home, damage):
    path = frozen_home.cohort("tiny") / "cohort.parquet"
    path.unlink()
    if damage is not None:
        path.write_bytes(damage)
    with pytest.raises(ConsiliumError, match="E210"):
        load_cohort(frozen_home, load_site(frozen_home), PROTOCOL)


def test_without_intake_or_for_another_version_there_is_no_cohort(frozen_home, tmp_path):
    other = tiny_study(title="Tiny, amended")
    with pytest.raises(ConsiliumError, match="E211"):
        load_cohort(frozen_home, load_site(frozen_home), other)
    fresh = enrolled_site(tmp_path / "fresh")
    with pytest.raises(ConsiliumError, match="E211"):
        load_cohort(fresh, load_site(fresh), PROTOCOL)
