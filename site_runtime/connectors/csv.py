"""Connector `csv`: one delimited text file, one row per record."""

from __future__ import annotations

import csv
import math
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, model_validator

from contracts.errors import ConsiliumError
from contracts.fields import FeatureName, Finite
from site_runtime.connectors import Source

if TYPE_CHECKING:
    from contracts.study import StudyProtocol

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)


class LabelRule(BaseModel):
    """How a column becomes a label: above a number, or by the texts of the two classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    column: str
    positive_above: Finite | None = None
    positive: list[str] = []
    negative: list[str] = []

    @model_validator(mode="after")
    def _one_rule(self) -> LabelRule:
        by_text = bool(self.positive) and bool(self.negative)
        if by_text == (self.positive_above is not None):
            raise ValueError("a label needs either positive_above, or both positive and negative")
        return self


class Times(BaseModel):
    """Columns with the time of prediction and the times of observation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prediction: str
    observed: Annotated[list[str], Field(min_length=1)]
    format: str | None = None  # strptime; ISO 8601 when not given


class Options(Source):
    """Options of the `csv` connector.

    Without `patient` the line number is the patient (line 1 is the first line of the file), and a study with
    differential privacy needs `one_row_per_patient: true`: the hospital's word that it is so. Without
    `record` a patient has one record, and a second row of the same patient is a duplicate.
    """

    connector: Literal["csv"]
    path: Path
    columns: list[str] | None = None  # names of the columns of a file that has no header
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    decimal: Literal[".", ","] = "."
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    missing: list[str] = [""]
    patient: str | None = None
    one_row_per_patient: bool = False
    record: str | None = None
    rename: dict[FeatureName, str] = {}  # feature: column
    codes: dict[FeatureName, dict[str, Finite]] = {}  # feature: {text: number}
    label: LabelRule | None = None  # without: a column with the label's name, holding 0 and 1
    auxiliary: dict[FeatureName, LabelRule] = {}  # the same for auxiliary labels
    times: Times | None = None

    @property
    def tells_patients_apart(self) -> bool:
        """Whether the records of one patient are known to be one patient's."""
        return self.patient is not None or self.one_row_per_patient


class _Table:
    """The cells of the file as text, by column, with the line each row began on."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.missing = {m.strip() for m in options.missing} | {""}
        self.lines: list[int] = []
        rows: list[list[str]] = []
        try:
            encoding = "utf-8-sig" if options.encoding == "utf-8" else options.encoding
            with open(options.path, encoding=encoding, newline="") as file:
                reader = csv.reader(file, delimiter=options.delimiter, strict=True)
                header = options.columns or [name.strip() for name in next(reader, [])]
                if not header:
                    raise ConsiliumError("E201", f"{options.path}: the file is empty, expected a header")
                twice = sorted({name for name in header if header.count(name) > 1})
                if twice:
                    raise ConsiliumError("E201", f"{options.path}: column {twice[0]!r} appears twice")
                start = reader.line_num + 1
                for row in reader:
                    line, start = start, reader.line_num + 1
                    if not any(cell.strip() for cell in row):
                        continue
                    if len(row) != len(header):
                        raise ConsiliumError(
                            "E201",
                            f"{options.path}, line {line}: {len(row)} cells, expected {len(header)}",
                        )
                    rows.append([cell.strip() for cell in row])
                    self.lines.append(line)
        except (OSError, UnicodeDecodeError, csv.Error) as error:
            raise ConsiliumError("E201", f"{options.path}: {error}") from error
        self.cells = {name: [row[i] for row in rows] for i, name in enumerate(header)}

    def text(self, column: str, needed_for: str) -> list[str]:
        """Cells of a column as text."""
        if column not in self.cells:
            raise ConsiliumError(
                "E202",
                f"{self.options.path}: no column {column!r} (needed for {needed_for}); "
                f"there are {', '.join(self.cells)}",
            )
        return self.cells[column]

    def wrong(self, row: int, column: str, value: str, expected: str) -> ConsiliumError:
        """The error for a cell that cannot be read."""
        place = f"{self.options.path}, line {self.lines[row]}, column {column!r}"
        return ConsiliumError("E203", f"{place}: {value!r}, expected {expected}")

    def number(self, row: int, column: str, value: str) -> float:
        """One cell as a number; a missing marker is NaN."""
        if value in self.missing:
            return math.nan
        plain = value.replace(",", ".") if self.options.decimal == "," else value
        if not _NUMBER.fullmatch(plain) or not math.isfinite(float(plain)):
            raise self.wrong(row, column, value, "a number or one of the missing markers")
        return float(plain)

    def numbers(self, column: str, needed_for: str) -> list[float]:
        """A column of numbers."""
        return [self.number(i, column, v) for i, v in enumerate(self.text(column, needed_for))]

    def coded(self, column: str, needed_for: str, codes: dict[str, float]) -> list[float]:
        """A column of codes as the numbers that `codes` gives them."""
        values = []
        for row, value in enumerate(self.text(column, needed_for)):
            if value in codes:
                values.append(codes[value])
            elif value in self.missing:
                values.append(math.nan)
            else:
                raise self.wrong(row, column, value, f"one of the codes {', '.join(map(repr, codes))}")
        return values

    def identifiers(self, column: str, needed_for: str) -> list[str]:
        """A column of identifiers; none may be missing."""
        values = self.text(column, needed_for)
        for row, value in enumerate(values):
            if value in self.missing:
                raise self.wrong(row, column, value, f"an identifier of the {needed_for}")
        return values

    def times(self, column: str, form: str | None) -> list[datetime | None]:
        """A column of times."""
        values: list[datetime | None] = []
        for row, value in enumerate(self.text(column, "times")):
            if value in self.missing:
                values.append(None)
                continue
            try:
                moment = datetime.strptime(value, form) if form else datetime.fromisoformat(value)
            except ValueError as error:
                raise self.wrong(row, column, value, f"a time ({form or 'ISO 8601'})") from error
            if moment.tzinfo is not None:
                raise self.wrong(row, column, value, "a local time without zone")
            values.append(moment)
        return values


def read(options: Options, protocol: StudyProtocol) -> pd.DataFrame:
    """Read the file (see `site_runtime.connectors` for the columns that are returned).

    Raises:
        ConsiliumError: E103, no patient column for a keyed split; E201, E202, E203, naming file, line,
            column, value and what was expected.
    """
    if options.patient is None and protocol.holdout.method == "keyed":
        raise ConsiliumError(
            "E103",
            "field 'source.patient' is not set: line numbers change when a file is exported again, and with "
            "them who is held out; expected the column that identifies a patient",
        )
    table = _Table(options)
    columns: dict[str, object] = {
        "patient": (
            table.identifiers(options.patient, "patient")
            if options.patient
            else [str(line) for line in table.lines]
        ),
        "record": (
            table.identifiers(options.record, "record") if options.record else ["1"] * len(table.lines)
        ),
    }
    for name in protocol.feature_names:
        column = options.rename.get(name, name)
        codes = options.codes.get(name)
        columns[name] = table.numbers(column, name) if codes is None else table.coded(column, name, codes)
    rules = {label.name: options.auxiliary.get(label.name) for label in protocol.auxiliary_labels}
    for name, rule in {protocol.label.name: options.label, **rules}.items():
        columns[name] = _label(table, options, name, rule)
    frame = pd.DataFrame(columns)
    for name in [*protocol.feature_names, protocol.label.name, *rules]:
        frame[name] = frame[name].astype("float64")
    if options.times is not None:
        times = options.times
        # Microseconds, because nanoseconds cannot hold a year before 1678 and a typing error can.
        observed = {
            column: pd.Series(table.times(column, times.format), dtype="datetime64[us]")
            for column in [times.prediction, *times.observed]
        }
        frame["prediction_time"] = observed[times.prediction]
        frame["observed_until"] = pd.DataFrame({c: observed[c] for c in times.observed}).max(axis=1)
    return frame


def _label(table: _Table, options: Options, name: str, rule: LabelRule | None) -> list[float]:
    if rule is None:
        return table.numbers(options.rename.get(name, name), f"the label {name}")
    if rule.positive_above is not None:
        above = rule.positive_above
        values = table.numbers(rule.column, f"the label {name}")
        return [math.nan if math.isnan(v) else float(v > above) for v in values]
    codes = {text: 1.0 for text in rule.positive} | {text: 0.0 for text in rule.negative}
    return table.coded(rule.column, f"the label {name}", codes)
