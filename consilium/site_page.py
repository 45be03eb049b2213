"""The page on which two people approve a study: what it asks in words, and what the policy says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from contracts.privacy import HospitalPrivacy, PatientPrivacy
from contracts.schedule import longest_deadline, most_exchanges
from contracts.study import CategoricalFeature, StudyProtocol
from release.markup import Html, element, joined

if TYPE_CHECKING:
    from site_runtime.config import SiteConfig
    from site_runtime.policy_rules import Verdict

AGGREGATION = {
    "mean": "the weighted mean of the updates; the coordinator sees every update",
    "norm_bound": "the weighted mean, updates that stand out scaled down; the coordinator sees every update",
    "median": "the median of every coordinate; the coordinator sees every update",
    "trimmed_mean": "the mean without the extremes of every coordinate; the coordinator sees every update",
    "krum": "the updates that lie closest to each other; the coordinator sees every update",
    "secure": "secure aggregation; the coordinator sees the sum over the hospitals and no single update",
}
_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#111}"
    "table{border-collapse:collapse;width:100%;margin:1rem 0}td,th{border:1px solid #999;padding:.3rem .6rem;"
    "text-align:left;vertical-align:top;overflow-wrap:break-word}"
    "td:first-child{white-space:nowrap}.refuse{background:#fdd}.pass{background:#dfd}"
    ".code{font:bold 1.6rem monospace}code{overflow-wrap:anywhere}"
)


def asked_of(protocol: StudyProtocol) -> list[tuple[str, str]]:
    """Everything that a study asks of a hospital, subject by subject, in plain words."""
    cohort, training, plan = protocol.cohort, protocol.training, protocol.validation
    asked = [
        ("Question", f"{protocol.title}: {protocol.intended_use}"),
        (
            "Patients",
            f"{cohort.description.rstrip('.') or 'as the source holds them'}; at least "
            f"{cohort.minimum_patients} in training, at most {cohort.max_records} records of each",
        ),
        ("Outcome", f"{protocol.label.name}: {protocol.label.positive}"),
        (
            "Held out",
            f"{protocol.holdout.fraction:.0%} of the patients, by a key of this hospital; training never "
            "sees them"
            if protocol.holdout.method == "keyed"
            else "the patients on a list at this hospital",
        ),
        (
            "Model",
            f"{protocol.model.name}, trained by {protocol.strategy.name} in {protocol.rounds} rounds of "
            f"{training.steps} steps; {most_exchanges(protocol)} exchanges in all",
        ),
        ("Combined by", AGGREGATION[protocol.strategy.aggregation.method]),
        ("Privacy", _privacy(protocol)),
        ("Leaves this hospital", _leaves(protocol)),
        ("Time", f"at most {longest_deadline(protocol)} seconds for one task"),
        ("Hospitals", f"at least {protocol.min_sites} take part in a round"),
    ]
    if protocol.auxiliary_labels:
        named = ", ".join(label.name for label in protocol.auxiliary_labels)
        asked.append(("Further outcomes", f"{named}, for training alone"))
    if plan.leave_one_site_out:
        asked.append(
            ("Trained again", f"without each hospital in turn, for up to {plan.leave_one_site_out} of them")
        )
    if protocol.amends:
        asked.append(("Amends", f"the study with protocol {protocol.amends}"))
    return asked


def _privacy(protocol: StudyProtocol) -> str:
    privacy = protocol.privacy
    if isinstance(privacy, PatientPrivacy):
        unit = "replaced" if privacy.public_n else "added or removed"
        return (
            f"noise is added here, before anything leaves: epsilon {privacy.epsilon:g} at delta "
            f"{privacy.delta:g} over the whole study, for one patient {unit}"
        )
    if isinstance(privacy, HospitalPrivacy):
        return (
            f"exact updates leave, and the coordinator adds the noise: epsilon {privacy.epsilon:g} at delta "
            f"{privacy.delta:g} for one hospital"
        )
    return "none: exact updates leave, and no epsilon is promised"


def _leaves(protocol: StudyProtocol) -> str:
    from site_runtime.policy_rules import outputs_of, study_purposes

    words = {
        "updates": "a model update in every round",
        "sums": "sums over patients",
        "evaluation": f"an evaluation on held-out patients, no count under {protocol.cohort.minimum_cell}",
        "ledger": "the entries of the privacy ledger on this study",
    }
    found = dict.fromkeys(o for p in study_purposes(protocol) for o in outputs_of(protocol, p))
    return "; ".join(
        ["a data sheet with the verdict of each data check", *(words[output] for output in found)]
    )


def page(config: SiteConfig, protocol: StudyProtocol, verdicts: list[Verdict], code: str) -> str:
    """Return the page: complete in itself, without scripts, and asking nobody for anything."""
    refused = [v for v in verdicts if v.error is not None and v.rule not in ("approval", "hours")]
    command = f'consilium site approve {protocol.study} --by "YOUR NAME" --code {code}'
    people = ", ".join(config.governance.approvers) or config.governance.approved_by
    number = "Two different people" if config.policy.require_two_approvals else "One person"
    body = [
        element("h1", f"{protocol.study} at {config.governance.institution}"),
        element(
            "p", f"{len(refused)} rules of this hospital refuse the study; it cannot be approved as it is."
        )
        if refused
        else element("p", "Every rule of this hospital allows the study."),
        element("h2", "What the study asks"),
        _table([("subject", "in words"), *asked_of(protocol)]),
        element("h2", "Columns that it reads"),
        _table([("column", "kind", "unit", "values", "meaning"), *_columns(protocol)]),
        element("h2", "What this hospital's policy says"),
        _verdicts([v for v in verdicts if v.rule != "approval"]),
        element("h2", "Approve"),
        element("p", f"{number} of: {people}. Each runs, with the code of this page:"),
        element("p", element("code", command)),
        element("p", code, class_="code"),
        _table(
            [
                ("what the code stands for", ""),
                ("protocol hash", protocol.hash),
                ("policy digest", config.policy_digest),
            ]
        ),
    ]
    head = joined(
        [
            Html('<meta charset="utf-8">'),
            Html(
                '<meta http-equiv="Content-Security-Policy" '
                "content=\"default-src 'none'; style-src 'unsafe-inline'\">"
            ),
            element("title", f"{protocol.study}: approval"),
            element("style", Html(_STYLE)),
        ]
    )
    document = element("html", element("head", head), element("body", *body), lang="en")
    return f"<!doctype html>\n{document}\n"


def _columns(protocol: StudyProtocol) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for feature in protocol.features:
        if isinstance(feature, CategoricalFeature):
            values = ", ".join(f"{level:g}" for level in feature.levels)
        else:
            values = f"{feature.range[0]:g} to {feature.range[1]:g}"
        rows.append((feature.name, feature.kind, feature.unit, values, feature.description))
    rows += [
        (label.name, "outcome", "0 or 1", "", label.positive)
        for label in (protocol.label, *protocol.auxiliary_labels)
    ]
    return rows


def _table(rows: list[tuple[str, ...]]) -> Html:
    first, *others = rows
    lines = [element("tr", *(element("th", cell) for cell in first))]
    lines += [element("tr", *(element("td", cell) for cell in row)) for row in others]
    return element("table", *lines)


def _verdicts(verdicts: list[Verdict]) -> Html:
    names = ("rule", "the study asks", "this hospital allows", "verdict")
    lines = [element("tr", *(element("th", name) for name in names))]
    for v in verdicts:
        said = "allowed" if v.error is None else f"refused: {v.error}"
        cells = [element("td", cell) for cell in (v.rule, v.asked, v.allowed, said)]
        lines.append(element("tr", *cells, class_="pass" if v.error is None else "refuse"))
    return element("table", *lines)
