"""`consilium release diff`: two releases side by side, readable on 100 columns."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from consilium.output import WIDE, Json, print_json, reporting_refusals, screen

HEADLINE = (
    "auroc", "sensitivity", "specificity", "ppv", "npv", "brier", "calibration_slope", "observed_expected",
    "net_benefit",
)  # fmt: skip

Named = Annotated[str, typer.Argument(help="A release directory, product@version, or product.")]


def diff(
    a: Named,
    b: Named,
    every: Annotated[bool, typer.Option("--all", help="Every metric, not the main ones alone.")] = False,
    json: Json = False,
) -> None:
    """Show two releases side by side: performance at each hospital, and what changed. Verifies nothing."""
    from consilium.release_lookup import release_directory
    from release.compare import compare, read_release

    with reporting_refusals(json):
        found = compare(read_release(release_directory(a)), read_release(release_directory(b)))
        if json:
            print_json(found)
            return
        show(found, every)


def show(found: dict[str, Any], every: bool = False) -> None:
    """Print a comparison as tables."""
    change = found["change"]
    what = ", ".join(change["changed"]) or "nothing"
    screen.print(
        f"[bold]A[/] {found['a']['release']} ({found['a']['study']}, {found['a']['created']})\n"
        f"[bold]B[/] {found['b']['release']} ({found['b']['study']}, {found['b']['created']})\n"
        f"From A to B: [bold]{change['level']}[/]; changed: {what}",
        highlight=False,
    )
    if change["level"] != "none":
        screen.print(f"planned modification: {change['modification'] or 'open'}", highlight=False)
    _metrics(found, every)
    _paired(found)
    _pairs("Acceptance gates", "gate", [(g["gate"], _gate(g["a"]), _gate(g["b"])) for g in found["gates"]])
    _pairs("Epsilon by hospital (study; all studies)", "hospital", _epsilons(found["privacy"]))
    for name, text in (("added", "hospitals added"), ("removed", "hospitals removed")):
        if found["sites"][name]:
            screen.print(f"{text}: {', '.join(found['sites'][name])}", highlight=False)
    _pairs("Facts that differ", "fact", [(f["name"], f["a"], f["b"]) for f in found["facts"]])
    _pairs("Protocol fields that differ", "field", [(f["field"], f["a"], f["b"]) for f in found["protocol"]])
    _pairs("Model inputs that differ", "input", [(i["input"], i["a"], i["b"]) for i in found["inputs"]])
    _data(found)
    lineage = found["lineage"].items()
    _pairs("Lineage", "part", [(name.replace("_", " "), v["a"], v["b"]) for name, v in lineage])
    files = found["files"]
    for name in ("added", "removed", "changed"):
        if files[name]:
            screen.print(f"files {name}: {', '.join(files[name])}", highlight=False)
    screen.print(f"files the same: {len(files['same'])}", highlight=False)


def _metrics(found: dict[str, Any], every: bool) -> None:
    table = _table("Performance with 95 % intervals", "hospital", "metric")
    for heading in ("A", "B", "B - A"):
        table.add_column(heading, justify="right", no_wrap=True)
    rows = [row for row in found["metrics"] if every or row["metric"] in HEADLINE]
    last = None
    for row in rows:
        if last not in (None, row["hospital"]):
            table.add_section()
        shown = "" if row["hospital"] == last else row["hospital"]
        last = row["hospital"]
        difference = "-" if row["difference"] is None else f"{row['difference']:+.3f}"
        metric = row["metric"].replace("_", " ")
        table.add_row(shown, metric, _interval(row["a"]), _interval(row["b"]), difference)
    screen.print(table)


def _paired(found: dict[str, Any]) -> None:
    if not found["paired"]:
        return
    table = _table("B - A on the same patients, as each hospital computed it", "hospital", "metric")
    table.add_column("difference", justify="right", no_wrap=True)
    for row in found["paired"]:
        metric = row["metric"].replace("_", " ")
        table.add_row(row["hospital"], metric, _interval(row["difference"], "+.3f"))
    screen.print(table)


def _data(found: dict[str, Any]) -> None:
    if not found["data"]:
        return
    table = _table(
        "Data of the hospitals", "hospital", "same cohort", "same policy", "version in its DVC: A", "B"
    )
    for row in found["data"]:
        table.add_row(
            row["hospital"],
            _yes(row["same_cohort"]),
            _yes(row["same_policy"]),
            _short(row["data_version_a"]),
            _short(row["data_version_b"]),
        )
    screen.print(table)


def _pairs(title: str, name: str, rows: list[tuple[str, Any, Any]]) -> None:
    """A table of what A and B say, where there is anything to say."""
    if not rows:
        return
    table = _table(title, name, "A", "B")
    for label, old, new in rows:
        table.add_row(escape(label), _text(old), _text(new))
    screen.print(table)


def _table(title: str, *columns: str) -> Table:
    screen.print(f"\n[bold]{title}[/]")  # a title of its own would be broken to the width of a narrow table
    table = Table(box=SIMPLE, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _epsilons(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    shown = []
    for row in rows:
        pair = [
            "none"
            if row[f"study_{x}"] is None
            else f"{row[f'study_{x}']:.3f}; {_number(row[f'lineage_{x}'])}"
            for x in "ab"
        ]
        if pair != ["none", "none"]:
            shown.append((row["hospital"], pair[0], pair[1]))
    return shown


def _gate(gate: dict[str, Any] | None) -> str:
    if gate is None:
        return "not asked"
    mark = {True: "passed", False: "FAILED", None: "not testable"}[gate["passed"]]
    return mark + ("" if gate["value"] is None else f" ({gate['value']:.3f})")


def _interval(estimate: dict[str, float] | None, form: str = ".3f") -> str:
    if estimate is None:
        return "-"
    value = format(estimate["value"], form)
    if estimate.get("lower") is None or estimate.get("upper") is None:
        return value
    apart = " " if screen.width >= WIDE else "\n"  # two intervals side by side would break the other columns
    return f"{value}{apart}({estimate['lower']:{form}} to {estimate['upper']:{form}})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(value: str | None) -> str:
    return "-" if value is None else value[:12]


def _text(value: Any) -> str:
    """A value for a table; of a digest its first 16 characters, since `--json` has it whole."""
    text = "-" if value is None else str(value)
    return text[:16] if re.fullmatch(r"[0-9a-f]{64}", text) else escape(text)


def _yes(value: bool | None) -> str:
    return {True: "yes", False: "[bold]no[/]", None: "-"}[value]
