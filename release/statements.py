"""What the numbers of a validation mean, in sentences a clinician can act on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from contracts.release import GateResult
from release.facts import ReleaseFacts
from release.markup import Html, joined
from release.numbers import NEW_SITE, Numbers

BASELINES = ("local", "reference", "previous", "first", "left_out")


def baseline_name(baseline: str, facts: ReleaseFacts) -> str:
    """Name a baseline in words, as part of a sentence."""
    reference = facts.protocol.validation.reference
    before = facts.previous
    return {
        "local": "each hospital's own model",
        "reference": reference.name if reference else "the reference score",
        "previous": f"the release before ({before.version})" if before else "the release before",
        "first": "the product's first release",
        "left_out": "a model trained without the hospital",
    }[baseline]


def regulatory_words(facts: ReleaseFacts) -> str | None:
    """Say who stated the regulatory status and on which basis; None while it is the default."""
    if facts.regulatory_statement is None:
        return None
    said = json.loads(facts.regulatory_statement)["document"]
    return (
        f"{said['basis']}. Stated and signed by {said['name']} ({said['role']}), {said['time']}; "
        "the signed statement is regulatory.json."
    )


def verdict_of(gates: Sequence[GateResult]) -> str:
    """Return `passed`, `failed`, `untestable` or, without any gate, `undeclared`."""
    if any(gate.passed is False for gate in gates):
        return "failed"
    if any(gate.passed is None for gate in gates):
        return "untestable"
    return "passed" if gates else "undeclared"


VERDICTS: Mapping[str, tuple[str, str]] = {
    "passed": (
        "Every acceptance gate passed",
        "The model met every criterion that was fixed before training. It may be used only when the people "
        "named below have signed this candidate, and within its intended use.",
    ),
    "failed": (
        "Stopped: an acceptance gate failed",
        "The model missed a criterion that was fixed before training. It is not released and must not be "
        "used.",
    ),
    "untestable": (
        "Stopped: an acceptance gate could not be decided",
        "The data of the holdouts cannot decide a criterion that was fixed before training. That is not a "
        "pass: the model is not released and must not be used.",
    ),
    "undeclared": (
        "No acceptance gate was declared",
        "The protocol fixed no criterion before training, so nothing here was tested against one.",
    ),
}


def compared(baseline: str, facts: ReleaseFacts, numbers: Numbers) -> list[Html]:
    """Say how the model compares with a baseline, from the pooled difference and its interval."""
    path = ("pooled", "comparisons", baseline)
    name = baseline_name(baseline, facts)
    said = list(_pooled_difference(path, name, numbers))
    if baseline == "local":
        said += _best_hospital(path, numbers)
    said += _own_auroc(path, name, facts, numbers)
    there, worst = (*path, "worst_auroc"), numbers.at(*path, "worst_site")
    if worst is not None and numbers.at(*path, "sites") != 1:
        size, interval = numbers.show(*there, form="signed"), _bracketed(there, numbers)
        said.append(joined([f"Least favourable hospital: {worst}, difference ", size, *interval, "."]))
    said += _net_benefit(path, name, facts.sites, numbers)
    said += [joined([text]) for text in _non_inferiority(baseline, name, facts)]
    return said


def _pooled_difference(path: tuple[str, ...], name: str, numbers: Numbers) -> Iterator[Html]:
    there = (*path, "auroc")
    found = numbers.at(*there)
    if not isinstance(found, Mapping):
        return
    lower, upper = found.get("lower"), found.get("upper")
    size, difference = (numbers.show(*there, form=form) for form in ("size", "signed"))
    inside = _bracketed(there, numbers)
    if lower is None or upper is None:
        yield joined([f"Compared with {name}, AUROC differs by ", difference, "."])
    elif lower > 0:
        yield joined([f"Better than {name}: AUROC higher by ", size, *inside, "."])
    elif upper < 0:
        yield joined([f"Worse than {name}: AUROC lower by ", size, *inside, "."])
    else:
        bound = numbers.show(*there, "lower", form="size")
        words = [f"No clear difference from {name}: AUROC ", difference, *inside]
        yield joined([*words, ". It could be lower by up to ", bound, "."])


def _best_hospital(path: tuple[str, ...], numbers: Numbers) -> Iterator[Html]:
    """Compare with the hospital whose own model is best, on that hospital's patients."""
    best = (*path, "best_baseline")
    found = numbers.at(*best, "difference")
    if not isinstance(found, Mapping):
        return
    verb = "better by " if found["value"] > 0 else "worse by " if found["value"] < 0 else "different by "
    unclear = found.get("lower", -1.0) <= 0 <= found.get("upper", 1.0)
    yield joined([
        f"The best single hospital's own model is that of {numbers.at(*best, 'site')} (AUROC ",
        numbers.show(*best, "auroc"), "). On the same patients the shared model is ", verb,
        numbers.show(*best, "difference", form="size"), *_bracketed((*best, "difference"), numbers),
        ", which may be chance." if unclear else ".",
    ])  # fmt: skip


def _own_auroc(path: tuple[str, ...], name: str, facts: ReleaseFacts, numbers: Numbers) -> Iterator[Html]:
    """Show how good the baseline is by itself: to be better than a coin is no praise."""
    places = {site: (site, *path[1:], "metrics", "auroc") for site in facts.metrics if site != "pooled"}
    shown = [joined([f"{s} ", numbers.show(*at)]) for s, at in places.items() if numbers.at(*at) is not None]
    if shown:
        yield joined([f"AUROC of {name}: ", Html(", ".join(shown)), "."])


def _net_benefit(path: tuple[str, ...], name: str, sites: Sequence[str], numbers: Numbers) -> Iterator[Html]:
    """Compare net benefit; where it rests on fewer hospitals than the AUROC, say on which."""
    there, baseline = (*path, "net_benefit"), path[-1]
    found = numbers.at(*there)
    if not isinstance(found, Mapping):
        return
    shown = {s: numbers.at(s, "comparisons", baseline, "differences") or {} for s in sites}
    showing = [site for site, differences in shown.items() if "net_benefit" in differences]
    fewer = len(showing) < sum("auroc" in differences for differences in shown.values())
    where = f" (shown by {', '.join(showing)} alone)" if fewer else ""
    each = round(1000 * abs(found["value"]))
    more = "more" if found["value"] > 0 else "fewer"
    worth = f"{each} {more} found per 1000 patients than" if each else "as many found as"
    unclear = found.get("lower", -1.0) <= 0 <= found.get("upper", 1.0)
    yield joined([
        f"Difference in net benefit at the threshold{where}: ", numbers.show(*there, form="signed"),
        *_bracketed(there, numbers),
        f". That is worth {worth} with {name}, at as many needless alerts",
        "; it may be chance." if unclear and each else ".",
    ])  # fmt: skip


def _non_inferiority(baseline: str, name: str, facts: ReleaseFacts) -> Iterator[str]:
    decided = {result.gate: result for result in facts.gates}
    for gate in facts.protocol.gates:
        if gate.metric != "non_inferiority" or gate.against != baseline or gate.title not in decided:
            continue
        margin = f"{gate.margin:g}"
        passed = decided[gate.title].passed
        if passed:
            yield f"Not worse than {name} by {margin} or more, at this release's share of the error."
        elif passed is None:
            yield f"Whether it is worse than {name} by {margin} or more could not be tested."
        else:
            yield f"It could not be shown that it is not worse than {name} by {margin} or more."


def heterogeneity(numbers: Numbers) -> list[Html]:
    """Explain how much hospitals differ, and what a new one may expect."""
    said = []
    for metric, name in (("auroc", "AUROC"), ("observed_expected", "O:E")):
        path = ("pooled", "heterogeneity", metric)
        found = numbers.at(*path)
        if not isinstance(found, Mapping):
            continue
        parts: list[str] = [f"{name}: "]
        if found.get("i2") is not None:
            share = numbers.show(*path, "i2", form="share")
            parts += ["about ", share, " of the variation between hospitals is real, not chance (I²)"]
        if all(found.get(end) is not None for end in NEW_SITE):
            low, high = (numbers.show(*path, end) for end in NEW_SITE)
            parts += ["; at a new hospital expect ", low, " to ", high, " (95 % prediction interval)"]
        parts.append(".")
        if found.get("prior"):
            prior = found["prior"]
            parts.append(f" With so few hospitals their spread is hardly known; a prior was used: {prior}.")
        said.append(joined(parts))
    return said


def of_hundred(numbers: Numbers) -> tuple[int, int, int] | None:
    """Return right alerts, needless alerts and missed outcomes among 100 patients, or None.

    From the pooled alert rate, PPV and NPV, each rounded so that they add up to whole patients.
    """
    rates = [numbers.at("pooled", name, "value") for name in ("alert_rate", "ppv", "npv")]
    if any(rate is None for rate in rates):
        return None
    alert_rate, ppv, npv = rates
    alerts = round(100 * alert_rate)
    right = min(alerts, round(100 * alert_rate * ppv))
    missed = min(100 - alerts, round(100 * (1 - alert_rate) * (1 - npv)))
    return right, alerts - right, missed


def worst_gap(subgroup: str, numbers: Numbers) -> Html | None:
    """Say which two groups of a subgroup differ most in pooled AUROC; None with fewer than two shown."""
    groups = numbers.at("pooled", "subgroups", subgroup) or {}
    shown = {name: tree["auroc"]["value"] for name, tree in groups.items() if "auroc" in tree}
    if len(shown) < 2:
        return None
    low, high = min(shown, key=lambda g: shown[g]), max(shown, key=lambda g: shown[g])
    path = ("pooled", "subgroups", subgroup)
    return joined([
        f"Largest gap in {subgroup}: {shown[high] - shown[low]:.3f}, between {group_name(subgroup, high)} (",
        numbers.show(*path, high, "auroc"), f") and {group_name(subgroup, low)} (",
        numbers.show(*path, low, "auroc"), ").",
    ])  # fmt: skip


def group_name(subgroup: str, group: str) -> str:
    """Write a group as people do: its bounds, or its level with the subgroup's name."""
    if group.replace(".", "", 1).lstrip("-").isdigit():
        return f"{subgroup} {group}"
    for sign, written in (("<=", "≤ "), (">=", "≥ "), ("<", "< "), (">", "> ")):
        if group.startswith(sign):
            return written + group.removeprefix(sign)
    return group


_SPACED = ("alert_rate", "net_benefit", "subgroup_gap", "calibration_slope", "calibration_intercept")
_WORDS: Mapping[str, str] = {
    **{name: name.upper() for name in ("auroc", "auprc", "ppv", "npv", "ece")},
    **{name: name.replace("_", " ") for name in _SPACED},
    "brier": "Brier score",
    "observed_expected": "O:E",
    "site's": "hospital's",
    ">=": "≥",
    "<=": "≤",
}


def gate_name(gate: str) -> str:
    """Write a gate's line as people do."""
    text = " ".join(_WORDS.get(word, word) for word in gate.split(" "))
    return text[:1].upper() + text[1:]


def missed_by(gate: GateResult, number: int, numbers: Numbers) -> Html:
    """Say how far inside its limit a gate was passed, or by how much it was missed."""
    if gate.margin is None:
        return Html("")
    size = numbers.show("_gates", number, "margin", form="size")
    words = {True: "inside by ", False: "missed by ", None: "inside by " if gate.margin >= 0 else "short by "}
    return joined([words[gate.passed], size])


def _bracketed(path: tuple[str, ...], numbers: Numbers) -> list[Html]:
    interval = numbers.interval(*path, form="signed")
    return [Html(" (95 % "), interval, Html(")")] if interval else []
