"""Intake end to end on a CSV: what is accepted, what is not and why, and that nothing else leaves."""

import base64
import json
import re
import socket
import struct
import subprocess

import numpy as np
import pytest

from contracts.errors import ConsiliumError
from site_runtime.cohort import load_cohort, read_frozen
from site_runtime.config import load_site
from site_runtime.egress import send
from site_runtime.intake import run_intake, take_in
from tests.factories import SITE, enrolled_site, tiny_rows, tiny_study, write_csv

PROTOCOL = tiny_study()


def changed(change) -> list[dict]:
    rows = tiny_rows()
    change(rows)
    return rows


def every(**values):
    return lambda rows: [row.update(values) for row in rows]


def first(**values):
    return lambda rows: rows[0].update(values)


def scale_lactate(rows):
    for row in rows:
        if row["lactate"]:
            row["lactate"] = str(float(row["lactate"]) * 9.01)


def test_a_good_cohort_is_frozen_versioned_and_accepted(tmp_path):
    home = enrolled_site(tmp_path)
    sheet = run_intake(home, "tiny", PROTOCOL)
    assert sheet.accepted and all(check.passed for check in sheet.checks)
    assert (
        sheet.cohort
        == read_frozen(home, PROTOCOL).digest
        == load_cohort(home, load_site(home), PROTOCOL).digest
    )
    head = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=home.data, capture_output=True, text=True, check=True
    ).stdout.strip()
    assert sheet.data_version == head


def test_the_same_data_again_are_the_same_version_whatever_their_order(tmp_path):
    home = enrolled_site(tmp_path)
    before = run_intake(home, "tiny", PROTOCOL)
    write_csv(tmp_path / "source" / "data.csv", tiny_rows()[::-1])
    after = run_intake(home, "tiny", PROTOCOL)
    assert (before.cohort, before.data_version) == (after.cohort, after.data_version)


def test_new_patients_move_nobody_between_training_and_holdout(tmp_path):
    home = enrolled_site(tmp_path)

    def parts():
        import pandas as pd

        run_intake(home, "tiny", PROTOCOL)
        cohort = pd.read_parquet(home.cohort("tiny") / "cohort.parquet")
        return dict(zip(cohort["patient"], cohort["holdout"], strict=True))

    before = parts()
    write_csv(tmp_path / "source" / "data.csv", tiny_rows(180))
    after = parts()
    assert len(after) > len(before)
    assert {patient: after[patient] for patient in before} == before


@pytest.mark.parametrize(
    ("change", "number", "check", "column"),
    [
        (lambda rows: rows.append(dict(rows[0])), "E206", "uniqueness", None),
        (scale_lactate, "E209", "range", "lactate"),
        (every(died=0), "E208", "label", "died"),
        (first(died=2), "E204", "label", "died"),
        (first(died=""), "E204", "label", "died"),
        (first(sex=3), "E204", "levels", "sex"),
        (every(lactate=""), "E204", "missingness", "lactate"),
    ],
    ids=["duplicate", "unit", "one class", "label of 2", "label missing", "level", "missing"],
)
def test_a_failed_blocking_check_crosses_as_a_verdict_and_stays_as_a_number(
    tmp_path, change, number, check, column
):
    home = enrolled_site(tmp_path, changed(change))
    done = take_in(home, load_site(home), PROTOCOL)
    assert not done.sheet.accepted
    assert (check, column) in {(c.check, c.column) for c in done.sheet.checks if not c.passed}
    assert done.error is not None and done.error.number == number
    assert column is None or column in done.error.detail
    assert done.sheet.data_version is None and not home.cohort("tiny").exists()
    run_intake(home, "tiny", PROTOCOL)
    assert number in home.log.read_text()


MULTITASK = tiny_study(
    model={"name": "multitask"},
    auxiliary_labels=[
        {"name": "ventilated", "positive": "ventilated", "prevalence": [0.2, 0.8]},
        {"name": "readmitted", "positive": "came back"},
    ],
)


def with_auxiliary(rows, **first):
    for i, row in enumerate(rows):
        row.update(ventilated=i % 2, readmitted="")
    rows[0].update(first)
    return rows


def test_auxiliary_labels_reach_the_frozen_cohort_and_all_may_be_unknown(tmp_path):
    home = enrolled_site(tmp_path, with_auxiliary(tiny_rows(), ventilated=""))
    sheet = run_intake(home, "tiny", MULTITASK)
    assert sheet.accepted and all(check.passed for check in sheet.checks)
    assert {("label", "ventilated"), ("label", "readmitted")} <= {(c.check, c.column) for c in sheet.checks}
    config = load_site(home)
    arrays = [load_cohort(home, config, MULTITASK, part) for part in ("training", "holdout")]
    assert all(np.isnan(a.auxiliary[..., 1]).all() for a in arrays)
    known = np.concatenate([a.auxiliary[a.mask][:, 0] for a in arrays])
    assert set(known[~np.isnan(known)]) == {0.0, 1.0}


@pytest.mark.parametrize(
    ("change", "number", "check", "column"),
    [
        ({"readmitted": 2}, "E204", "label", "readmitted"),
        ({"readmitted": 2, "died": 0}, "E204", "label", "readmitted"),
        ({"ventilated": 1}, "E204", "prevalence", "ventilated"),
    ],
    ids=["neither", "neither, and one class of the label", "all positive"],
)
def test_an_auxiliary_label_that_cannot_be_keeps_a_cohort_out(tmp_path, change, number, check, column):
    home = enrolled_site(tmp_path, [row | change for row in with_auxiliary(tiny_rows())])
    done = take_in(home, load_site(home), MULTITASK)
    failed = {(f.check, f.column): f for f in done.findings if not f.passed}
    assert failed[check, column].number == number and column in failed[check, column].detail
    assert not done.sheet.accepted


@pytest.mark.parametrize(
    ("change", "number"),
    [
        (lambda rows: [row.pop("lactate") for row in rows], "E202"),
        (first(age="fifty"), "E203"),
        (lambda rows: rows.__delitem__(slice(8, None)), "E205"),
    ],
    ids=["column", "text", "few"],
)
def test_what_cannot_be_a_cohort_is_refused(tmp_path, change, number):
    home = enrolled_site(tmp_path, changed(change))
    with pytest.raises(ConsiliumError) as refused:
        run_intake(home, "tiny", PROTOCOL)
    assert refused.value.number == number


def test_a_holdout_that_is_too_small_is_refused(tmp_path):
    home = enrolled_site(tmp_path)  # 120 patients, of whom one is expected to be held out
    with pytest.raises(ConsiliumError, match="E207"):
        run_intake(home, "tiny", tiny_study(holdout={"fraction": 0.01}))


def test_an_empty_holdout_list_is_refused(tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "held.csv").write_text("# nobody\n")
    home = enrolled_site(tmp_path, holdout="held.csv")
    with pytest.raises(ConsiliumError, match="E207"):
        run_intake(home, "tiny", tiny_study(holdout={"method": "list"}))


def test_a_duplicate_patient_without_record_column_is_refused(tmp_path):
    source = {k: v for k, v in SITE["source"].items() if k != "record"}
    done = take_in(*_site(enrolled_site(tmp_path, source=source)))
    assert done.error is not None and done.error.number == "E206"


def _site(home):
    return home, load_site(home), PROTOCOL


def with_times(rows, late: bool):
    for row in rows:
        row["predicted"] = "2024-05-02T08:00"
        row["measured"] = "2024-05-01T20:00"
    if late:
        rows[3]["measured"] = "2024-05-02T08:01"
    return rows


@pytest.mark.parametrize(("late", "number"), [(False, None), (True, "E212")])
def test_values_from_after_the_prediction_time(tmp_path, late, number):
    source = {**SITE["source"], "times": {"prediction": "predicted", "observed": ["measured"]}}
    done = take_in(*_site(enrolled_site(tmp_path, with_times(tiny_rows(), late), source=source)))
    assert (done.error.number if done.error else None) == number


def test_a_declared_conversion_repairs_a_unit(tmp_path):
    right = enrolled_site(tmp_path / "right")
    units = {"lactate": {"from": "mg/dL", "factor": 1 / 9.01}}
    home = enrolled_site(tmp_path / "mg", changed(scale_lactate), units=units)
    assert run_intake(home, "tiny", PROTOCOL).accepted
    run_intake(right, "tiny", PROTOCOL)
    here, there = (load_cohort(h, load_site(h), PROTOCOL) for h in (home, right))
    assert here.digest != there.digest  # each site's own key: equal cohorts cannot be recognised


def test_what_a_study_does_not_block_is_a_warning(tmp_path):
    lenient = tiny_study(quality={"blocking": ["type"]})
    home = enrolled_site(tmp_path, changed(scale_lactate))
    sheet = run_intake(home, "tiny", lenient)
    assert sheet.accepted
    assert [(c.check, c.severity) for c in sheet.checks if not c.passed] == [("range", "warning")]


def test_a_rejected_intake_leaves_the_earlier_cohort_as_it_was(tmp_path):
    home = enrolled_site(tmp_path)
    before = run_intake(home, "tiny", PROTOCOL)
    write_csv(tmp_path / "source" / "data.csv", changed(every(died=0)))
    rejected = run_intake(home, "tiny", PROTOCOL)
    assert not rejected.accepted and rejected.cohort != before.cohort
    assert load_cohort(home, load_site(home), PROTOCOL).digest == before.cohort


IDENTIFIER, DAY, NUMBER, NOTE = "MRN-77310-ZQ", "1987-03-19", 17.8125, "fell from a ladder in Kilkenny"


def canaries() -> list[bytes]:
    """Every form in which the planted patient could be found."""
    texts = [IDENTIFIER, DAY, DAY.replace("-", ""), str(NUMBER), NOTE, NOTE.split()[-1]]
    forms = [text.encode() for text in texts]
    forms += [struct.pack(code, NUMBER) for code in ("<f", "<d", ">f", ">d")]
    return forms + [base64.b64encode(form)[: len(form)] for form in forms]


@pytest.mark.parametrize("fault", [None, "range", "duplicate", "text"])
def test_nothing_of_a_planted_patient_leaves(tmp_path, fault, capfd):
    rows = [{**row, "birth": "1950-01-01", "note": "well"} for row in tiny_rows()]
    planted = {"patient": IDENTIFIER, "birth": DAY, "lactate": str(NUMBER), "note": NOTE}
    rows[5].update(planted)
    if fault == "range":
        for row in rows[:30]:
            row["lactate"] = "900"
    if fault == "duplicate":
        rows.append(dict(rows[5]))
    if fault == "text":
        rows[5]["lactate"] = NOTE
    source = {**SITE["source"], "times": {"prediction": "birth", "observed": ["birth"]}}
    home = enrolled_site(tmp_path, rows, source=source)
    from site_runtime.consent import approve_by_scripts
    from site_runtime.steps import SiteRefused, intake

    approve_by_scripts(home, PROTOCOL)
    try:
        text = intake(home, "tiny")
    except SiteRefused as refused:
        text = refused.document
    assert (json.loads(text)["type"] == "Refusal") == (fault == "text")
    printed = "".join(capfd.readouterr())  # an Airflow worker would upload it
    for form in canaries():
        assert form not in text.encode() and form not in printed.encode()
    assert not re.search(r"\d{4,}-\d\d-\d\d(?!T)", text)
    # The search can fail: the hospital's own page does show what it saw.
    if fault == "duplicate":
        assert IDENTIFIER in (home.root / "quality" / "tiny.html").read_text()


def test_the_hospitals_page_loads_nothing_from_elsewhere(tmp_path):
    home = enrolled_site(tmp_path)
    run_intake(home, "tiny", PROTOCOL)
    page = (home.root / "quality" / "tiny.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy and "default-src 'none'" in policy[1] and "http" not in policy[1]
    assert page.index("Content-Security-Policy") < page.index("<script")


def test_intake_opens_no_connection_and_writes_only_in_its_home(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("HOME", str(tmp_path / "nobody"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "nobody"))
    home = enrolled_site(tmp_path / "somebody")
    send(home, load_site(home), run_intake(home, "tiny", PROTOCOL))
    assert not (tmp_path / "nobody").exists()


def test_a_remote_of_the_hospital_gets_the_data_and_stays_out_of_git(tmp_path):
    remote = tmp_path / "vault"
    home = enrolled_site(tmp_path, data_remote=str(remote))
    run_intake(home, "tiny", PROTOCOL)
    assert any(path.is_file() for path in remote.rglob("*"))
    tracked = subprocess.run(
        ["git", "grep", "-l", str(remote), "HEAD"], cwd=home.data, capture_output=True, text=True
    )
    assert tracked.stdout == ""
