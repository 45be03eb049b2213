"""A patient's place in the split is theirs for good."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contracts.errors import ConsiliumError
from site_runtime.split import holdout_patients, in_holdout, pseudonym, read_holdout_list
from tests.factories import tiny_study

KEY = bytes(range(32))
IDS = st.lists(st.text(min_size=1, max_size=12), unique=True, max_size=40)


@settings(max_examples=40, deadline=None)
@given(IDS, IDS)
def test_a_patient_stays_where_they_are_when_others_come_and_go(some, others):
    protocol = tiny_study()
    alone = holdout_patients(KEY, protocol, some, None)
    together = holdout_patients(KEY, protocol, [*others, *some], None)
    assert alone == together & set(some)


@given(st.text(min_size=1), st.floats(0.01, 0.89), st.floats(0.01, 0.89))
def test_a_larger_fraction_only_adds_to_the_holdout(patient, a, b):
    low, high = sorted((a, b))
    assert in_holdout(KEY, "tiny", high, patient) or not in_holdout(KEY, "tiny", low, patient)


def test_the_fraction_is_met_and_depends_on_key_and_study():
    patients = [f"p{i}" for i in range(20_000)]
    held = {p for p in patients if in_holdout(KEY, "tiny", 0.25, p)}
    assert len(held) / len(patients) == pytest.approx(0.25, abs=0.012)  # four standard errors
    for other in (
        {p for p in patients if in_holdout(bytes(32), "tiny", 0.25, p)},
        {p for p in patients if in_holdout(KEY, "other", 0.25, p)},
    ):
        assert len(held & other) / len(held) == pytest.approx(0.25, abs=0.03)


def test_pseudonyms_need_the_key_and_differ_between_studies():
    names = {pseudonym(KEY, "tiny", "p1"), pseudonym(bytes(32), "tiny", "p1"), pseudonym(KEY, "other", "p1")}
    assert len(names) == 3


def test_a_list_is_the_declared_exception(tmp_path):
    path = tmp_path / "list.csv"
    path.write_text("# from elsewhere\n3\n 5 # a comment\n\n99\n")
    assert read_holdout_list(path) == {"3", "5", "99"}
    protocol = tiny_study(holdout={"method": "list"})
    assert holdout_patients(KEY, protocol, ["1", "3", "5"], path) == {"3", "5"}
    with pytest.raises(ConsiliumError, match="E103"):
        holdout_patients(KEY, protocol, ["1"], None)
    with pytest.raises(ConsiliumError, match="E201"):
        holdout_patients(KEY, protocol, ["1"], tmp_path / "absent.csv")


def test_an_amendment_holds_out_the_patients_that_the_study_before_held_out():
    patients = [f"p{i}" for i in range(500)]
    first = tiny_study()
    amended = tiny_study(study="tiny-2", product="tiny", amends=first.hash)
    held = holdout_patients(KEY, first, patients, None)
    assert holdout_patients(KEY, amended, patients, None) == held
    assert holdout_patients(KEY, tiny_study(study="tiny-2"), patients, None) != held
