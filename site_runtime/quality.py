"""Data quality with Great Expectations: a suite from the protocol's schema, run on the site's raw records.

Great Expectations puts raw values into its results (`partial_unexpected_list`, and `observed_value` even when
no examples are asked for), so nothing of a result is copied into what may leave: a `Finding` takes the
verdict alone, and its `detail` is computed here and stays at the site. The full Data Docs page is kept in
the hospital's home.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, cast

import pandas as pd

from contracts.datasheet import QualityCheck
from contracts.errors import ConsiliumError
from contracts.study import CategoricalFeature, NumericFeature, StudyProtocol
from durable.files import write_atomic
from site_runtime.home import SiteHome

Check = Literal[
    "column", "type", "range", "levels", "missingness", "uniqueness", "label", "prevalence", "time"
]

# Over this many checks a data sheet names passed checks once and not per column, to stay under 256 kB.
_LISTED_IN_FULL = 1000

# What a hospital's data manager should look at first, when several checks fail.
_NUMBERS: tuple[tuple[Check, str], ...] = (
    ("column", "E202"),
    ("type", "E203"),
    ("uniqueness", "E206"),
    ("time", "E212"),
    ("range", "E209"),
    ("label", "E208"),
    ("levels", "E204"),
    ("missingness", "E204"),
    ("prevalence", "E204"),
)


@dataclass(frozen=True)
class Finding:
    """One check with its verdict. `detail` is for the hospital alone: it holds counts and values."""

    check: Check
    column: str | None
    severity: Literal["blocking", "warning"]
    passed: bool
    number: str
    detail: str = ""

    def public(self) -> QualityCheck:
        """The part of the finding that may leave."""
        return QualityCheck(check=self.check, column=self.column, severity=self.severity, passed=self.passed)


def first_blocking(findings: list[Finding]) -> ConsiliumError | None:
    """The numbered error of the most telling blocking check that failed, or None."""
    failed = [f for f in findings if f.severity == "blocking" and not f.passed]
    for check, _ in _NUMBERS:
        for finding in failed:
            if finding.check == check:
                return ConsiliumError(finding.number, finding.detail)
    return None


def public_checks(findings: list[Finding]) -> list[QualityCheck]:
    """What a data sheet says of the findings: no count, no value, no example."""
    if len(findings) <= _LISTED_IN_FULL:
        return [finding.public() for finding in findings]
    checks = [f.public() for f in findings if not f.passed]
    for check, _ in _NUMBERS:
        same = [f for f in findings if f.check == check]
        if same and all(f.passed for f in same):
            checks.append(same[0].public().model_copy(update={"column": None}))
    return checks


def run_quality(frame: pd.DataFrame, protocol: StudyProtocol, report: Path | None = None) -> list[Finding]:
    """Run the suite on raw records in the protocol's units and return one finding per check.

    Args:
        frame: as `site_runtime.connectors` describes it, units converted, ineligible records dropped.
        report: where to write Great Expectations' own page (HTML, with values: it stays at the site).
    """
    import great_expectations as gx

    # Its log lines may quote values of a column. Some of its loggers set a level of their own, so they are
    # cut off where they meet.
    logger = logging.getLogger("great_expectations")
    logger.propagate = False
    logger.handlers = [logging.NullHandler()]
    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = cast(Any, {"globally": False})
    # Made whole: the context would write the suite down again for each expectation that is added.
    suite = gx.ExpectationSuite(name=protocol.study, expectations=expectations(frame, protocol))
    batch = (
        context.data_sources.add_pandas("site")
        .add_dataframe_asset("records")
        .add_batch_definition_whole_dataframe("all")
    )
    result = batch.get_batch(batch_parameters={"dataframe": frame}).validate(suite)
    if report is not None:
        write_atomic(report, _page(result).encode())
    return _findings(result, frame, protocol)


def report_path(home: SiteHome, study: str) -> Path:
    """Where a study's Data Docs page lies in the hospital's home."""
    return home.root / "quality" / f"{study}.html"


def expectations(frame: pd.DataFrame, protocol: StudyProtocol) -> list[Any]:
    """The protocol's schema as Great Expectations; `meta` says which check each belongs to."""
    # Great Expectations declares no exports, so its names are looked up untyped.
    gxe: Any = import_module("great_expectations.expectations")
    mostly = 1 - protocol.quality.max_out_of_range
    suite: list[Any] = []
    for feature in protocol.features:
        name = feature.name
        suite.append(gxe.ExpectColumnToExist(column=name, meta=_meta("column", name)))
        suite.append(
            gxe.ExpectColumnValuesToBeInTypeList(
                column=name, type_list=["float64", "float32"], meta=_meta("type", name)
            )
        )
        suite.append(
            gxe.ExpectColumnValuesToNotBeNull(
                column=name, mostly=1 - feature.max_missing, meta=_meta("missingness", name)
            )
        )
        if isinstance(feature, CategoricalFeature):
            suite.append(
                gxe.ExpectColumnValuesToBeInSet(
                    column=name, value_set=list(feature.levels), meta=_meta("levels", name)
                )
            )
        else:
            low, high = feature.range
            suite.append(
                gxe.ExpectColumnValuesToBeBetween(
                    column=name, min_value=low, max_value=high, mostly=mostly, meta=_meta("range", name)
                )
            )
    suite.append(
        gxe.ExpectCompoundColumnsToBeUnique(column_list=["patient", "record"], meta=_meta("uniqueness"))
    )
    suite += _of_labels(gxe, frame, protocol)
    if "observed_until" in frame:
        suite.append(
            gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A="prediction_time",
                column_B="observed_until",
                or_equal=True,
                ignore_row_if="either_value_is_missing",
                meta=_meta("time"),
            )
        )
    return suite


def _of_labels(gxe: Any, frame: pd.DataFrame, protocol: StudyProtocol) -> list[Any]:
    """Both classes of the label; auxiliary labels may be unknown, of every patient too."""
    label = protocol.label.name
    suite = [
        gxe.ExpectColumnValuesToNotBeNull(column=label, meta=_meta("label", label)),
        gxe.ExpectColumnDistinctValuesToEqualSet(
            column=label, value_set=[0.0, 1.0], meta=_meta("label", label)
        ),
    ]
    for one in protocol.auxiliary_labels:
        suite.append(
            gxe.ExpectColumnValuesToBeInSet(
                column=one.name, value_set=[0.0, 1.0], meta=_meta("label", one.name)
            )
        )
    for one in (protocol.label, *protocol.auxiliary_labels):
        meta = _meta("prevalence", one.name)
        if one is protocol.label or frame[one.name].notna().any():
            low, high = one.prevalence
            suite.append(
                gxe.ExpectColumnMeanToBeBetween(column=one.name, min_value=low, max_value=high, meta=meta)
            )
        else:  # no mean, and no prevalence that is implausible
            suite.append(gxe.ExpectColumnValuesToBeNull(column=one.name, meta=meta))
    return suite


def _meta(check: Check, column: str | None = None) -> dict[str, Any]:
    return {"check": check, "column": column}


def _findings(result: Any, frame: pd.DataFrame, protocol: StudyProtocol) -> list[Finding]:
    """Join the verdicts of a validation by check and column; take nothing else from it."""
    verdicts: dict[tuple[Check, str | None], bool] = {}
    for one in result.results:
        meta = one.expectation_config.meta
        key: tuple[Check, str | None] = (meta["check"], meta["column"])
        verdicts[key] = verdicts.get(key, True) and one.success is True
    numbers = dict(_NUMBERS)
    findings = []
    for (check, column), passed in verdicts.items():
        blocking = check == "column" or check in protocol.quality.blocking
        number, detail = numbers[check], ""
        if not passed:
            detail = _detail(check, column, frame, protocol)
            if check == "label" and set(frame[column]) not in ({0.0}, {1.0}):
                number = "E204"  # not one class only, but something that is neither
        findings.append(
            Finding(
                check=check,
                column=column,
                severity="blocking" if blocking else "warning",
                passed=passed,
                number=number,
                detail=detail,
            )
        )
    return findings


def _detail(check: Check, column: str | None, frame: pd.DataFrame, protocol: StudyProtocol) -> str:
    """Say for the hospital's own eyes what failed, with numbers."""
    if check == "uniqueness":
        twice = frame[frame.duplicated(["patient", "record"], keep=False)]
        example = twice.iloc[0]
        return (
            f"{len(twice)} rows share patient and record with another, such as patient "
            f"{example['patient']!r}, record {example['record']!r}; expected each pair once"
        )
    if check == "time":
        late = int((frame["observed_until"] > frame["prediction_time"]).sum())
        return f"{late} records hold a value observed after their prediction time, expected none"
    assert column is not None
    values = frame[column]
    if check == "label":
        found = _some(values)
        expected = "both 0 and 1" if column == protocol.label.name else "0, 1 or missing"
        return f"label {column!r}: values {found}, {int(values.isna().sum())} missing; expected {expected}"
    if check == "prevalence":
        labels = (protocol.label, *protocol.auxiliary_labels)
        low, high = next(label.prevalence for label in labels if label.name == column)
        return f"label {column!r}: prevalence {values.mean():.3f}, expected {low:g} to {high:g}"
    feature = next(f for f in protocol.features if f.name == column)
    if check == "missingness":
        share = values.isna().mean()
        return f"feature {column!r}: {share:.1%} missing, expected at most {feature.max_missing:.1%}"
    if check == "levels" and isinstance(feature, CategoricalFeature):
        odd = _some(values[~values.isin(feature.levels)])
        return f"feature {column!r}: values {odd}, expected one of {list(feature.levels)}"
    if check == "range" and isinstance(feature, NumericFeature):
        present = values.dropna()
        low, high = feature.range
        share = (~present.between(low, high)).mean()
        return (
            f"feature {column!r}: {share:.1%} of the present values are outside {low:g} to {high:g} "
            f"{feature.unit} (median {present.median():g}), expected at most "
            f"{protocol.quality.max_out_of_range:.1%}; if the source stores another unit, declare "
            f"`units: {{{column}: {{from: ..., factor: ...}}}}` in site.yaml"
        )
    return f"feature {column!r}: stored as {values.dtype}, expected numbers"


def _some(values: pd.Series) -> list[float]:
    """Up to five different values, smallest first."""
    return [float(v) for v in sorted(values.dropna().unique())[:5]]


def _page(result: Any) -> str:
    """Render the Data Docs page so that opening it fetches nothing.

    The stock page loads scripts, styles and a counting image from other hosts, beside patients' values.
    """
    renderer: Any = import_module("great_expectations.render.renderer")
    page: str = _view().render(renderer.ValidationResultsPageRenderer().render(result))
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return page.replace("<head>", f'<head><meta http-equiv="Content-Security-Policy" content="{policy}">', 1)


@cache
def _view() -> Any:
    """What renders pages; it compiles its templates once."""
    view: Any = import_module("great_expectations.render.view")
    return view.DefaultJinjaPageView()
