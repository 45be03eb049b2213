"""The validation report: `validation.json`, and one HTML page that a clinician can read, print and keep."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from contracts.release import GateResult
from release import glossary, statements
from release.events import check_events, frozen_cohorts
from release.facts import ReleaseFacts
from release.forest import Forest, Row, forest
from release.markup import Html, joined
from release.numbers import NEW_SITE, Numbers
from release.panels import DecisionAxes, calibration_panels, decision_panel, hundred_patients, roc_panels
from release.templating import TEMPLATES, rendered

_AT_THRESHOLD = (
    ("sensitivity", "Sensitivity", "percent"),
    ("specificity", "Specificity", "percent"),
    ("ppv", "PPV", "percent"),
    ("npv", "NPV", "percent"),
    ("alert_rate", "Alerts per 100", "hundred"),
    ("accuracy", "Accuracy", "percent"),
)
_CALIBRATION = (
    ("observed_expected", "O:E", "short"),
    ("calibration_slope", "Slope", "short"),
    ("calibration_intercept", "Intercept", "signed"),
    ("ece", "ECE", "number"),
    ("brier", "Brier", "number"),
)
_RANKING = (
    ("auroc", "AUROC", "number"),
    ("auprc", "AUPRC", "number"),
    ("net_benefit", "Net benefit gained", "signed"),
)
_ORDER = {False: 0, None: 1, True: 2}  # what stops a release is read first


def validation_document(facts: ReleaseFacts) -> dict[str, Any]:
    """Return `validation.json`: `pooled` and every hospital's name at the top, as in `consilium simulate`.

    What is not a hospital's stands under keys with a leading underscore, which no hospital's name can have:
    `_study`, `_gates` (in the protocol's order), `_parity` and `_diagnostics` (by hospital; `frozen`: its
    holdout is the one before the first exchange), `_change` (since
    the release before), `_approvals_asked` (roles), `_method` (how each number was made) and
    `_achievable_auroc` (simulated cohorts only).
    """
    return {
        **facts.metrics,
        "_study": {
            "study": facts.protocol.study,
            "product": facts.product,
            "version": facts.version,
            "regulatory_status": facts.regulatory,
            "protocol_hash": facts.protocol.hash,
            "model": facts.model,
            "decision_threshold": facts.decision_threshold,
            "decision_threshold_source": facts.threshold_source,
            "created": facts.created,
        },
        "_gates": [gate.model_dump() for gate in facts.gates],
        "_parity": {r.site: r.parity.model_dump() for r in facts.verification if r.parity},
        "_diagnostics": _diagnostics(facts),
        "_change": facts.change.model_dump(mode="json"),
        "_approvals_asked": list(facts.protocol.sign_off.roles),
        "_method": dict(glossary.METHOD),
        "_achievable_auroc": dict(facts.achievable_auroc),
    }


def _diagnostics(facts: ReleaseFacts) -> dict[str, dict[str, bool]]:
    """What each hospital's holdout says of itself, and whether it is that before its first exchange."""
    frozen = frozen_cohorts(check_events(facts.events, None))
    evaluated = {report.site: report.cohort for report in facts.evaluation}
    return {
        site: found.model_dump() | {"frozen": site in evaluated and evaluated[site] == frozen.get(site)}
        for site, found in sorted(facts.diagnostics.items())
    }


def validation_page(facts: ReleaseFacts) -> str:
    """Return `validation.html`: self-contained, no script, no request to anywhere; prints on A4.

    Every number of the report is a `<data>` with the JSON pointer of its place in `validation.json`. Light or
    dark follows the reader's setting.
    """
    page = Page(facts)
    styles = [TEMPLATES / "validation.css"]
    return rendered("validation.html", styles, facts=facts, protocol=facts.protocol, page=page)


class Page:
    """What the template shows, computed from the facts; a part that a study lacks is empty or None."""

    def __init__(self, facts: ReleaseFacts):
        self.facts = facts
        self.document = validation_document(facts)
        self.numbers = Numbers(self.document)
        self.pooled: Mapping[str, Any] = facts.metrics["pooled"]
        self.sites = {name: tree for name, tree in facts.metrics.items() if name != "pooled"}
        self.withheld = {name: tree["reason"] for name, tree in self.sites.items() if tree.get("suppressed")}
        self.cell = facts.protocol.cohort.minimum_cell
        self.verdict = statements.verdict_of(facts.gates)
        self.stopped = self.verdict in ("failed", "untestable")
        self.verdict_title, self.verdict_meaning = statements.VERDICTS[self.verdict]
        self.show, self.interval = self.numbers.show, self.numbers.interval
        self.glossary = glossary.WORDS
        self.stated = statements.regulatory_words(facts)

    @cached_property
    def gates(self) -> list[tuple[GateResult, str, Html]]:
        """(gate, its line, how far from its limit): what stops a release first, then the protocol's order."""
        lines = [
            (gate, statements.gate_name(gate.gate), statements.missed_by(gate, i, self.numbers))
            for i, gate in enumerate(self.facts.gates)
        ]
        return sorted(lines, key=lambda line: _ORDER[line[0].passed])

    @property
    def stopping(self) -> list[tuple[GateResult, str, Html]]:
        """The gates that stop the release."""
        return [line for line in self.gates if not line[0].passed]

    def tally(self, passed: bool | None) -> int:
        """Count the gates with this result."""
        return sum(gate.passed is passed for gate in self.facts.gates)

    def columns(self, group: str) -> list[tuple[str, str, str]]:
        """(metric, heading, form) of a table, without the metrics that nobody shows."""
        wanted = {"threshold": _AT_THRESHOLD, "calibration": _CALIBRATION, "ranking": _RANKING}[group]
        return [column for column in wanted if any(column[0] in tree for tree in self.facts.metrics.values())]

    def at_worst(self, columns: Sequence[tuple[str, str, str]]) -> list[str]:
        """Name the hospitals of which a metric of these columns is the worst of a range."""
        return [
            name
            for name in self.sites
            if any(self.numbers.at(name, key, "at_worst") for key, _, _ in columns)
        ]

    @cached_property
    def auroc(self) -> Html:
        """Forest plot of AUROC by hospital, pooled, and at a new hospital."""
        rows = self._by_hospital("auroc")
        return self._forest("AUROC by hospital", "AUROC", rows, reference=0.5, span=(0.5, 1.0))

    @cached_property
    def observed_expected(self) -> Html | None:
        """Forest plot of observed to expected events by hospital."""
        if "observed_expected" not in self.pooled:
            return None
        rows = self._by_hospital("observed_expected")
        label = "observed / expected events"
        return self._forest(
            "Observed to expected events by hospital", label, rows,
            reference=1.0, logarithmic=True, form="short", span=(0.8, 1.25),
        )  # fmt: skip

    def _by_hospital(self, metric: str) -> list[Row]:
        largest = max([tree.get("n") or 0 for tree in self.sites.values()], default=0) or 1
        rows = [
            Row(
                name,
                (name, metric),
                "withheld (minimum cell)" if name in self.withheld else "not estimable",
                self._patients(name),
                (tree.get("n") or 0) / largest,
            )
            for name, tree in self.sites.items()
        ]
        rows.append(
            Row("Pooled", ("pooled", metric), "not estimable", self._patients("pooled"), kind="pooled")
        )
        new = ("pooled", "heterogeneity", metric)
        if all(self.numbers.at(*new, end) is not None for end in NEW_SITE):
            rows.append(Row("New hospital", new, note="predicted", kind="prediction"))
        return rows

    def _patients(self, name: str) -> Html:
        """`n = 900`, or nothing where that is withheld."""
        shown = self.numbers.at(name, "n") is not None
        return joined(["n = ", self.show(name, "n", form="count")]) if shown else Html("")

    def _forest(self, caption: str, label: str, rows: list[Row], **options: Any) -> Html:
        return forest(Forest(caption, label, rows, **options), self.numbers)

    @cached_property
    def roc(self) -> tuple[Html, dict[str, Html]] | None:
        """Background and a panel per hospital, or None when no hospital shows a curve."""
        curves = {name: tree["roc"] for name, tree in self.sites.items() if tree.get("roc")}
        operating = {
            name: (1 - tree["specificity"]["value"], tree["sensitivity"]["value"])
            for name, tree in self.sites.items()
            if "specificity" in tree and "sensitivity" in tree
        }
        return roc_panels(curves, operating) if curves else None

    @cached_property
    def calibration(self) -> tuple[Html, dict[str, Html]] | None:
        """Background and a panel per hospital, or None when no hospital shows a curve."""
        curves = {name: tree["calibration"] for name, tree in self.sites.items() if tree.get("calibration")}
        return calibration_panels(curves) if curves else None

    @cached_property
    def decision(self) -> tuple[Html | None, dict[str, Html]] | None:
        """The pooled decision curve and a panel per hospital, or None when no range was declared."""
        planned, cut = self.facts.protocol.validation.net_benefit, self.facts.decision_threshold
        pooled = self.pooled.get("decision_curve") or []
        curves = {name: c for name, tree in self.sites.items() if (c := tree.get("decision_curve"))}
        if planned is None or not curves:
            return None
        span = (planned.low, planned.high)
        axes = DecisionAxes.over(curves.values(), span)
        sites = {name: decision_panel(name, curve, cut, axes) for name, curve in curves.items()}
        if len(pooled) < 2:  # a point is no curve
            return None, sites
        return decision_panel("pooled", pooled, cut, DecisionAxes.over([pooled], span), large=True), sites

    @cached_property
    def hundred(self) -> tuple[Html, tuple[int, int, int]] | None:
        """One hundred patients as a picture, with right alerts, needless alerts and missed outcomes."""
        counts = statements.of_hundred(self.numbers)
        return (hundred_patients(*counts), counts) if counts else None

    @cached_property
    def comparisons(self) -> list[tuple[str, list[Html], Html]]:
        """(baseline in words, statements, forest plot of the differences) for each one that is shown."""
        shown = []
        for baseline in statements.BASELINES:
            paths = {name: (name, "comparisons", baseline, "differences", "auroc") for name in self.sites}
            rows = [
                Row(name, path, note=self._patients(name))
                for name, path in paths.items()
                if self.numbers.at(*path) is not None
            ]
            pooled = ("pooled", "comparisons", baseline, "auroc")
            if not rows and self.numbers.at(*pooled) is None:
                continue
            if self.numbers.at(*pooled) is not None:
                rows.append(Row("Pooled", pooled, kind="pooled"))
            name = statements.baseline_name(baseline, self.facts)
            said = statements.compared(baseline, self.facts, self.numbers)
            plot = self._forest(
                f"Difference in AUROC from {name}", "AUROC, model minus baseline", rows,
                reference=0.0, form="signed", span=(-0.02, 0.02),
            )  # fmt: skip
            shown.append((name[:1].upper() + name[1:], said, plot))
        return shown

    @cached_property
    def subgroups(self) -> list[tuple[str, Html | None, Html, list[str]]]:
        """(subgroup, its largest gap in words, forest plot, what its levels mean)."""
        shown = []
        for subgroup, groups in self.pooled.get("subgroups", {}).items():
            path = ("pooled", "subgroups", subgroup)
            rows = [
                Row(
                    statements.group_name(subgroup, g),
                    (*path, g, "auroc"),
                    "withheld (minimum cell)",
                    self._size(subgroup, g),
                )
                for g in groups
            ]
            rows.append(Row("Everybody", ("pooled", "auroc"), "not estimable", kind="pooled"))
            plot = self._forest(
                f"Pooled AUROC by {subgroup}", "AUROC", rows, reference=0.5, span=(0.5, 1.0), head="Group"
            )
            gap = statements.worst_gap(subgroup, self.numbers)
            shown.append((subgroup, gap, plot, self._levels(subgroup)))
        return shown

    def _size(self, subgroup: str, group: str) -> str:
        """How many patients of a group the hospitals show, and how many events."""
        trees = [tree.get("subgroups", {}).get(subgroup, {}).get(group) or {} for tree in self.sites.values()]
        counted = [tree for tree in trees if tree.get("n") is not None]
        if not counted:
            return "n withheld"
        atleast = "≥ " if len(counted) < len(trees) else ""
        n, events = sum(t["n"] for t in counted), sum(t.get("events") or 0 for t in counted)
        return f"n {atleast or '= '}{n}, {atleast}{events} events"

    def _levels(self, subgroup: str) -> list[str]:
        feature = next(s.feature for s in self.facts.protocol.subgroups if s.name == subgroup)
        return [
            f.description
            for f in self.facts.protocol.features
            if f.name == feature and f.kind == "categorical" and f.description
        ]

    @property
    def heterogeneity(self) -> list[Html]:
        """How much hospitals differ, in sentences."""
        return statements.heterogeneity(self.numbers)

    @cached_property
    def rounds(self) -> dict[str, int]:
        """How many closed exchanges of each kind."""
        kinds = [r.kind if r.fold is None else f"{r.kind} (left out)" for r in self.facts.lineage.rounds]
        return {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
