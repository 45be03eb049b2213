"""The contract every connector keeps, and what is particular to each."""

import math

import numpy as np
import pytest
import yaml

from contracts.errors import ConsiliumError
from site_runtime.config import load_site_file
from site_runtime.connectors import CONNECTORS, read
from site_runtime.connectors.synthetic import FEATURES, Options, achievable_auroc, expected_auroc, simulate
from tests.factories import site_fields, study_fields, tiny_rows, tiny_study, write_csv, write_site

ICU = [
    {"name": "age", "kind": "numeric", "unit": "years", "range": [0, 120]},
    {"name": "lactate", "kind": "numeric", "unit": "mmol/L", "range": [0, 30]},
    {"name": "sex", "kind": "categorical", "levels": [0, 1]},
]
AUXILIARY = [
    {"name": "ventilated", "positive": "ventilated"},
    {"name": "readmitted", "positive": "came back"},
]


def csv_source(tmp_path):
    rows = [
        {**row, "ventilated": i % 2, "readmitted": ["", "0", "1"][i % 3]} for i, row in enumerate(tiny_rows())
    ]
    return load_site_file(write_site(tmp_path, rows)).source


def synthetic_source(tmp_path):
    return Options(connector="synthetic", seed=3, patients=80)


SOURCES = {"csv": csv_source, "synthetic": synthetic_source}


def test_every_connector_is_under_contract():
    assert set(SOURCES) == set(CONNECTORS)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
class TestContract:
    def test_columns_and_types(self, make, tmp_path):
        protocol = tiny_study(features=ICU)
        frame = read(make(tmp_path), protocol)
        assert {"patient", "record", "died", *protocol.feature_names} <= set(frame.columns)
        for name in [*protocol.feature_names, "died"]:
            assert frame[name].dtype == np.float64
        assert set(frame["died"].dropna()) <= {0.0, 1.0}
        assert all(isinstance(v, str) and v for v in [*frame["patient"], *frame["record"]])
        assert not frame.duplicated(["patient", "record"]).any()

    def test_auxiliary_labels_beside_the_label_change_nothing_else(self, make, tmp_path):
        source = make(tmp_path)
        plain = read(source, tiny_study(features=ICU))
        frame = read(source, tiny_study(features=ICU, auxiliary_labels=AUXILIARY))
        for label in ("ventilated", "readmitted"):
            assert frame[label].dtype == np.float64
            assert set(frame[label].dropna()) == {0.0, 1.0}
        assert frame["readmitted"].isna().any()
        assert frame.drop(columns=["ventilated", "readmitted"]).equals(plain)
        one = read(source, tiny_study(features=ICU, auxiliary_labels=AUXILIARY[1:]))
        assert one["readmitted"].equals(frame["readmitted"]) and "ventilated" not in one

    def test_nothing_but_what_the_study_asks_for(self, make, tmp_path):
        frame = read(make(tmp_path), tiny_study(features=ICU[:1], subgroups=[]))
        allowed = {"patient", "record", "age", "died", "prediction_time", "observed_until"}
        assert set(frame.columns) <= allowed

    def test_reading_twice_is_reading_once(self, make, tmp_path):
        protocol = tiny_study(features=ICU)
        source = make(tmp_path)
        assert read(source, protocol).equals(read(source, protocol))

    def test_a_feature_that_is_not_there(self, make, tmp_path):
        absent = {"name": "shoe_size", "kind": "numeric", "unit": "cm", "range": [1, 50]}
        with pytest.raises(ConsiliumError, match=r"E202.*shoe_size"):
            read(make(tmp_path), tiny_study(features=[*ICU, absent]))


def csv_frame(tmp_path, rows, protocol=None, **source):
    fields = site_fields()
    fields["source"].update(source)
    path = write_site(tmp_path, rows, source=fields["source"])
    return read(load_site_file(path).source, protocol or tiny_study())


@pytest.mark.parametrize("text", ["high", "1_000", "inf", "nan", "0x10", "1,5", "NULL", "٣"])
def test_text_in_a_number_is_refused_with_its_place(tmp_path, text):
    rows = tiny_rows()
    rows[4]["lactate"] = text
    with pytest.raises(ConsiliumError) as refused:
        csv_frame(tmp_path, rows)
    assert refused.value.number == "E203"
    assert "line 6" in refused.value.detail and "'lactate'" in refused.value.detail
    assert repr(text) in refused.value.detail


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"patient,record,age,lactate,sex,died\np1,0,50\n",
        b"patient,record,age,lactate,sex,died\np1,0,50,1,0,0,0\n",
        b"patient,record,age,age,lactate,sex,died\n",
        b'patient,record,age,lactate,sex,died\n"p1,0,50,1,0,0\n',
        None,
    ],
    ids=["empty", "binary", "short row", "long row", "column twice", "open quote", "no file"],
)
def test_a_source_that_cannot_be_read(tmp_path, content):
    path = write_site(tmp_path)
    (tmp_path / "data.csv").unlink()
    if content is not None:
        (tmp_path / "data.csv").write_bytes(content)
    with pytest.raises(ConsiliumError, match="E201"):
        read(load_site_file(path).source, tiny_study())


def test_a_patient_without_identifier_is_refused(tmp_path):
    rows = tiny_rows()
    rows[0]["patient"] = ""
    with pytest.raises(ConsiliumError, match=r"E203.*line 2.*'patient'"):
        csv_frame(tmp_path, rows)


def test_a_german_export_reads_like_an_english_one(tmp_path):
    rows = tiny_rows()
    english = csv_frame(tmp_path / "english", rows)
    path = write_site(tmp_path / "german", rows)
    text = (tmp_path / "german" / "data.csv").read_text()
    german = text.replace(",", ";").replace(".", ",").encode("utf-8-sig")
    (tmp_path / "german" / "data.csv").write_bytes(german)
    fields = yaml.safe_load(path.read_text())
    fields["source"].update(delimiter=";", decimal=",")
    path.write_text(yaml.safe_dump(fields))
    assert read(load_site_file(path).source, tiny_study()).equals(english)


def test_names_codes_labels_and_missing_markers(tmp_path):
    rows = [
        {"patient": "a", "record": 1, "AGE": 50, "lactate": "?", "gender": "F", "end": "dead"},
        {"patient": "b", "record": 1, "AGE": 60, "lactate": "2.5", "gender": "M", "end": "home"},
    ]
    frame = csv_frame(
        tmp_path,
        rows,
        rename={"age": "AGE", "sex": "gender"},
        codes={"sex": {"M": 0, "F": 1}},
        missing=["?"],
        label={"column": "end", "positive": ["dead"], "negative": ["home"]},
    )
    assert list(frame["sex"]) == [1, 0] and list(frame["died"]) == [1, 0]
    assert math.isnan(frame["lactate"][0]) and frame["lactate"][1] == 2.5


def test_a_code_nobody_declared_is_refused(tmp_path):
    rows = tiny_rows()
    rows[0]["sex"] = "X"
    with pytest.raises(ConsiliumError, match=r"E203.*'X'"):
        csv_frame(tmp_path, rows, codes={"sex": {"0": 0, "1": 1}})


def test_label_above_a_number(tmp_path):
    rows = [{**row, "died": row["died"] * 3} for row in tiny_rows()]
    frame = csv_frame(tmp_path, rows, label={"column": "died", "positive_above": 0})
    assert list(frame["died"]) == [float(row["died"] > 0) for row in rows]


def test_an_auxiliary_label_has_a_rule_of_its_own(tmp_path):
    rows = [{**row, "days": "" if i == 3 else i} for i, row in enumerate(tiny_rows())]
    protocol = tiny_study(auxiliary_labels=[{"name": "long_stay", "positive": "over a week"}])
    rule = {"column": "days", "positive_above": 7}
    other = {"column": "absent", "positive": ["yes"], "negative": ["no"]}  # of another study
    frame = csv_frame(tmp_path / "rule", rows, protocol, auxiliary={"long_stay": rule, "other": other})
    expected = [math.nan if i == 3 else float(i > 7) for i in range(len(rows))]
    np.testing.assert_array_equal(frame["long_stay"], expected)
    with pytest.raises(ConsiliumError, match=r"E202.*the label long_stay"):
        csv_frame(tmp_path / "no rule", rows, protocol)


def test_simulated_auxiliary_labels_follow_the_risk_and_are_not_the_label(tmp_path):
    options = Options(connector="synthetic", seed=3, patients=4000)
    frame = read(options, tiny_study(features=ICU, auxiliary_labels=AUXILIARY))
    risk = simulate(options).risk
    for label in ("ventilated", "readmitted"):
        assert risk[frame[label] == 1].mean() > 1.5 * risk[frame[label] == 0].mean()
        assert (frame[label] != frame["died"]).mean() > 0.1
    assert not frame["ventilated"].equals(frame["readmitted"])


def test_without_a_patient_column_the_line_is_the_patient(tmp_path):
    write_csv(tmp_path / "data.csv", tiny_rows(4))
    fields = site_fields(source={"connector": "csv", "path": "data.csv"})
    (tmp_path / "site.yaml").write_text(yaml.safe_dump(fields))
    source = load_site_file(tmp_path / "site.yaml").source
    with pytest.raises(ConsiliumError, match=r"E103.*'source\.patient'"):
        read(source, tiny_study())  # a keyed split needs an identity that a new export keeps
    frame = read(source, tiny_study(holdout={"method": "list"}))
    assert list(frame["patient"]) == [str(line) for line in range(2, 2 + len(frame))]


def test_the_expected_auroc_is_that_of_all_pairs():
    risk = np.round(np.random.default_rng(0).random(60), 1)  # with ties
    won = total = 0.0
    for i, p in enumerate(risk):
        for j, q in enumerate(risk):
            if i != j:
                weight = p * (1 - q)
                total += weight
                won += weight * ((p > q) + 0.5 * (p == q))
    assert expected_auroc(risk) == pytest.approx(won / total, abs=1e-12)


def test_a_model_can_come_close_to_the_achievable_auroc_and_not_above():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    options = Options(connector="synthetic", seed=9, patients=5000, missing=0.0)
    stays = simulate(options)
    x = stays.frame[list(FEATURES)].assign(lactate=np.log(stays.frame["lactate"]))
    x = ((x - x.mean()) / x.std()).to_numpy()
    y = stays.frame["died"].to_numpy()
    half = len(y) // 2
    model = LogisticRegression().fit(x[:half], y[:half])
    reached = roc_auc_score(y[half:], model.predict_proba(x[half:])[:, 1])
    assert 0.8 < achievable_auroc({"ash": options})["pooled"] < 0.9
    assert reached == pytest.approx(roc_auc_score(y[half:], stays.risk[half:]), abs=0.02)


def test_flipped_labels_and_attenuation_cost_what_they_should():
    honest = {"connector": "synthetic", "seed": 9, "patients": 3000}
    flipped = simulate(Options(**honest, label_flips=0.45))
    straight = simulate(Options(**honest))
    assert np.array_equal(straight.risk, flipped.risk)
    assert (straight.frame["died"] != flipped.frame["died"]).mean() == pytest.approx(0.45, abs=0.03)
    served_badly = Options(**honest, attenuated={"feature": "sex", "level": 1, "slope": 0.1})
    stays = simulate(served_badly)
    women = (stays.frame["sex"] == 1).to_numpy()
    assert expected_auroc(stays.risk[women]) < 0.65 < 0.8 < expected_auroc(stays.risk[~women])


def test_a_study_on_the_simulator_may_call_its_label_as_it_likes(tmp_path):
    fields = study_fields(features=ICU, label={"name": "outcome", "positive": "died"})
    from contracts.study import parse_study

    assert "outcome" in read(synthetic_source(tmp_path), parse_study(fields)).columns
