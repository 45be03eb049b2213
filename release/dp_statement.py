"""The privacy statement of a release: what is promised to whom, and what is not (design section 5).

`statement` is made from the protocol and the ledgers' excerpts; `dp_statement.json` is that value, and
`dp_statement.md` says the same for a reader.
"""

from __future__ import annotations

from typing import Any

from contracts.privacy import HospitalPrivacy, NoPrivacy, PatientPrivacy
from contracts.study import StudyProtocol
from privacy.calibration import models_trained
from release.dp_statement_central import hospital_statement
from release.dp_statement_replay import caution, ledger_command, paragraph, replay_section
from release.facts import ReleaseFacts
from release.ledgers import Replayed, keeper, replay, steps_of

NOT_COVERED = (
    "holdout patients: protected by suppression, not by epsilon",
    "of each holdout, exact: three bits before its report is opened (enough events, prevalence, missing "
    "values), one whether the exported model agrees, and which comparisons were withheld",
    "a model, baseline or export that was made to mark a patient of the holdout: a hospital answers once for "
    "each",
    "the data-quality verdicts of intake: one bit per check, exact",
    "timing, sizes of messages, and whether a hospital answered or refused",
    "the declared size of a hospital, rounded to two significant figures when it enrolled",
    "in the ledgers: number, order and size of what was spent on other studies",
    "floating point: on a GPU gradients of one patient may round differently beside other patients",
    "what a hospital or a clinician publishes elsewhere",
)


def replayed_ledgers(facts: ReleaseFacts) -> dict[str, Replayed]:
    """The accounts of the hospitals whose ledger the release holds, by name."""
    found = {}
    for privacy in facts.site_privacy:
        data = facts.ledgers.get(keeper(facts.protocol, privacy.site))
        if data is not None and privacy.ledger_key is not None:
            found[privacy.site] = replay(facts.protocol, data, privacy.ledger_key)
    return found


def statement(facts: ReleaseFacts) -> dict[str, Any]:
    """Return `dp_statement.json`: every number of the privacy statement, from the ledgers where they are."""
    protocol, privacy = facts.protocol, facts.protocol.privacy
    common: dict[str, Any] = {
        "study": protocol.study,
        "version": facts.version,
        "protocol_hash": protocol.hash,
        "mode": privacy.mode,
        "not_covered": list(NOT_COVERED),
    }
    if isinstance(privacy, NoPrivacy):
        return common | {"epsilon": None, "statement": "no differential privacy: no epsilon may be claimed"}
    accounts = replayed_ledgers(facts)
    unamplified = [account.epsilon_without_amplification for account in accounts.values()]
    common |= {
        "epsilon": facts.epsilon,
        "delta": privacy.delta,
        "epsilon_planned": privacy.epsilon,
        "epsilon_without_amplification": max(unamplified) if unamplified else None,
        "hospitals": [_hospital(facts, p.site, accounts.get(p.site)) for p in facts.site_privacy],
        "replay": {
            "everything": "consilium release verify DIR --key COORDINATOR_PUBLIC_KEY",
            "one_ledger": ledger_command(protocol),
            "at_the_keeper": f"consilium ledger verify{' --coordinator' * (privacy.mode == 'site')}",
        },
        "caution": caution(privacy.epsilon if facts.epsilon is None else facts.epsilon),
        "cap": "the hospital's own cap is not shown"
        if privacy.mode == "patient"
        else "the federation's own budget is not shown",
    }
    if isinstance(privacy, HospitalPrivacy):
        return common | {
            "unit": "one hospital with all its training patients",
            "adjacency": "add-or-remove-one",
            "protected_from": ["the other hospitals", "whoever holds this release"],
            "not_protected_from": ["the coordinator"],
            "mechanism": _central_mechanism(facts, privacy),
        }
    return common | {
        "unit": "one patient",
        "records_per_step": protocol.cohort.max_records,
        "adjacency": privacy.adjacency,
        "protected_from": ["the coordinator", "the other hospitals", "whoever holds this release"],
        "not_protected_from": ["the patient's own hospital"],
        "mechanism": _mechanism_facts(facts, privacy),
    }


def _hospital(facts: ReleaseFacts, site: str, account: Replayed | None) -> dict[str, Any]:
    stated = next(p for p in facts.site_privacy if p.site == site)
    line: dict[str, Any] = {
        "site": site,
        "declared_size": stated.declared_size,
        "epsilon": stated.epsilon_study,
        "epsilon_lineage": stated.epsilon_lineage,
        "ledger_head": stated.ledger_head,
        "ledger_key": stated.ledger_key,
        "ledger": None,
    }
    if account is None:
        return line
    excerpt = account.excerpt
    return line | {
        "replay": ledger_command(facts.protocol, site, stated.ledger_key),
        "ledger": f"ledgers/{keeper(facts.protocol, site)}.jsonl",
        "entries": excerpt.length,
        "epsilon_without_amplification": account.epsilon_without_amplification,
        "epsilon_beside_this_study": account.epsilon_other,
        "by_purpose": {
            purpose: {"releases": steps_of(spends), "epsilon": account.by_purpose[purpose]}
            for purpose, spends in sorted(excerpt.by_purpose.items())
        },
        "restores": excerpt.restores,
        "write_offs": excerpt.write_offs,
        "rotations": excerpt.rotations,
    }


def _mechanism_facts(facts: ReleaseFacts, privacy: PatientPrivacy) -> dict[str, Any]:
    training = facts.protocol.training
    return {
        "algorithm": "DP-SGD: subsampled Gaussian mechanism on clipped gradients of patients",
        "sampling": "Poisson over patients",
        "sample_rate": training.sample_rate,
        "clipping": privacy.clipping,
        "max_grad_norm": privacy.max_grad_norm,
        "quantile": privacy.quantile.model_dump() if privacy.clipping == "adaptive" else None,
        "noise_multiplier": facts.training_noise,
        "steps_per_round": training.steps,
        "rounds": facts.rounds,
        "steps": training.steps * facts.rounds,
        "models_trained": models_trained(facts.protocol),
        "local_model": facts.protocol.validation.local_model,
        "leave_one_site_out": facts.protocol.validation.leave_one_site_out,
        "normaliser": "sample rate x declared size",
        "statistics_noise_multiplier": facts.statistics_noise,
        "histogram_noise_multiplier": facts.histogram_noise,
        "randomness": "ChaCha20 keyed by HKDF(site noise key, plan, cohort, code version)",
        "accountant": "PRV composition, cross-checked with RDP",
    }


def _central_mechanism(facts: ReleaseFacts, privacy: HospitalPrivacy) -> dict[str, Any]:
    return {
        "algorithm": "DP-FedAvg: clipped updates, weighted sum noised at the coordinator",
        "sampling": "none",
        "clipping": privacy.clipping,
        "max_update_norm": privacy.max_update_norm,
        "quantile": privacy.quantile.model_dump() if privacy.clipping == "adaptive" else None,
        "noise_multiplier": facts.training_noise,
        "rounds": facts.rounds,
        "normaliser": "total weight of the roster",
        "weights": facts.protocol.strategy.weights,
    }


def dp_statement(facts: ReleaseFacts, value: dict[str, Any] | None = None) -> str:
    """Return the Markdown statement for a release.

    Args:
        value: `statement(facts)` where it was made before: it replays every ledger.
    """
    privacy = facts.protocol.privacy
    parts = [f"# Privacy statement: {facts.protocol.study} {facts.version}\n"]
    if isinstance(privacy, PatientPrivacy):
        value = statement(facts) if value is None else value
        parts += [_holdout(facts.protocol), _promise(facts, privacy, value), _mechanism(facts, privacy)]
        parts += [
            _spent(facts, privacy, value),
            _tuning(value),
            _not_covered(),
            replay_section(facts, privacy),
        ]
    elif isinstance(privacy, HospitalPrivacy):
        parts += [_holdout(facts.protocol), *hospital_statement(facts, privacy), _not_covered()]
    else:
        parts += [_none(facts), _holdout(facts.protocol), _not_covered()]
    return "\n".join(parts)


def _none(facts: ReleaseFacts) -> str:
    return f"""\
## No differential privacy

**This model was trained without differential privacy (`privacy: none`). No epsilon is stated and none may
be claimed.** The hospitals ({", ".join(facts.sites)}) sent exact model updates{_exact_statistics(facts)} to
the coordinator. No patient record left a hospital, but an update or the released model may allow
conclusions about a single patient in training (membership inference, reconstruction).
"""


def _exact_statistics(facts: ReleaseFacts) -> str:
    said = []
    if facts.protocol.training.normalisation == "federated":
        said.append("exact normalisation statistics")
    if facts.protocol.threshold_rule is not None:
        said.append("an exact histogram of the training patients' risks by outcome")
    return "".join(f" and {each}" for each in said)


def _holdout(protocol: StudyProtocol) -> str:
    cell = protocol.cohort.minimum_cell
    return f"""\
## Holdout patients: suppression, not epsilon

The patients of the holdout were not used in training. **They are protected by suppression, not by
epsilon.** Each hospital computed the metrics from its own scores and sent only metrics with standard
errors (of the model, of its subgroups, and of the baselines it is compared with), class totals, and
calibration bins and points of the decision curve merged to at least {cell} patients of each class (more where
the hospital's own policy asks for more), and the bits named under *Not covered*. A count of decisions under
{cell} was sent as a range. A hospital with fewer than {2 * cell} patients in a class sent the number of
patients and its accuracy as a range only; a subgroup with fewer than {cell} in a class was withheld, with the
counts of others from which it could be computed. These numbers are exact functions of the holdout: someone
who already knows all other holdout patients of a hospital could learn something of the last one.
"""


def _promise(facts: ReleaseFacts, privacy: PatientPrivacy, value: dict[str, Any]) -> str:
    # Without a stated epsilon this file must not read as if there were one.
    bound = (
        f"at most {facts.epsilon:.3f}" if facts.epsilon is not None else "**not stated by every hospital**"
    )
    bare = value["epsilon_without_amplification"]
    neighbours = (
        "replace one patient; the protocol declares that cohort sizes are public"
        if privacy.public_n
        else "add or remove one patient"
    )
    return f"""\
## What is promised to a patient in training

| | |
|---|---|
| unit of protection | one patient with all records (at most {facts.protocol.cohort.max_records} in a step) |
| neighbouring data sets | {neighbours} |
| epsilon of this study, largest over hospitals | {bound} (planned: {privacy.epsilon:g}) |
| delta | {privacy.delta:g} |
| the same without amplification by sampling | {_number(bare)} |
| protected from | the coordinator, the other hospitals, and whoever holds this release, together |
| not protected from | the patient's own hospital, which holds the record |

The epsilon counts on nobody knowing which patients were sampled in which step; what holds against somebody
who does is stated without amplification. Patients of different hospitals are taken as different people. A
patient treated at two hospitals is protected by the sum of what the two spent.
{paragraph(caution(privacy.epsilon if facts.epsilon is None else facts.epsilon))}"""


def _mechanism(facts: ReleaseFacts, privacy: PatientPrivacy) -> str:
    training = facts.protocol.training
    sigma = _multiplier(facts.training_noise)
    statistics = "none: centre and scale are constants of the protocol"
    if training.normalisation == "federated":
        counted = ", share of positive labels" if training.class_weights == "balanced" else ""
        statistics = (
            f"one Gaussian release of clipped sums, squares and missing counts{counted}, before training "
            f"(rate 1, one step, noise multiplier {_multiplier(facts.statistics_noise)}, planned "
            f"{privacy.statistics_fraction:.0%} of epsilon)"
        )
    threshold = "fixed in the protocol"
    if facts.protocol.threshold_rule is not None:
        threshold = (
            "from one Gaussian release of a histogram of the training patients' risks, after training "
            f"(noise multiplier {_multiplier(facts.histogram_noise)}, planned "
            f"{privacy.threshold_fraction:.0%} of epsilon), locked before any holdout was read"
        )
    return f"""\
## Mechanism

| | |
|---|---|
| algorithm | DP-SGD: subsampled Gaussian mechanism, per-patient gradients clipped |
| sampling | Poisson over patients, rate {training.sample_rate:g} |
| clip (max_grad_norm) | {_clip(privacy)} |
| noise multiplier (sigma) | {sigma} |
| steps | {training.steps} a round x {facts.rounds} rounds = {training.steps * facts.rounds} |
| further models | {_further(facts.protocol)} |
| normaliser of the noisy sum | rate x declared size (frozen at enrolment), never a count of the cohort |
| normalisation statistics | {statistics} |
| imputation | a missing value becomes the centre above: no statistic of its own |
| decision threshold | {threshold} |
| sampling and noise from | ChaCha20 keyed by HKDF(site noise key, plan, cohort, code version) |
| floating point | every normal is the sum of four draws; sums and noise are added in float64 |
| accountant | PRV composition over all plans of the hospital's lineage, cross-checked with RDP |
"""


def _further(protocol: StudyProtocol) -> str:
    """What validation trains on the same patients, and how often a hospital's steps count because of it."""
    planned, folds = [], protocol.validation.leave_one_site_out
    if protocol.validation.local_model:
        planned.append("each hospital's own model, which stays there")
    if folds is not None:
        planned.append(f"one without each hospital, planned for at most {folds}")
    if not planned:
        return "none"
    return (
        f"{'; '.join(planned)}: with the same noise and as many steps each, at most "
        f"{models_trained(protocol)} models in all on a patient's data, within the planned epsilon"
    )


def _clip(privacy: PatientPrivacy) -> str:
    if privacy.clipping == "per-layer":
        return f"{privacy.max_grad_norm:g} over all, each of k layers to {privacy.max_grad_norm:g} / sqrt(k)"
    if privacy.clipping == "adaptive":
        quantile = privacy.quantile
        return (
            f"adaptive: starts at {privacy.max_grad_norm:g}, which it never exceeds, and follows the "
            f"{quantile.target:g} quantile of the norms by a noised count in every step, which takes "
            f"{quantile.share:.0%} of the precision of the noise"
        )
    return f"{privacy.max_grad_norm:g} over all parameters"


def _spent(facts: ReleaseFacts, privacy: PatientPrivacy, value: dict[str, Any]) -> str:
    rows = []
    for line in value["hospitals"]:
        parts = line.get("by_purpose", {})
        made = ", ".join(f"{name} {part['releases']}" for name, part in parts.items()) or "not shown"
        rows.append(
            f"| {line['site']} | {line['declared_size']} | {_number(line['epsilon'])} "
            f"| {_number(line['epsilon_lineage'])} | {privacy.delta:g} "
            f"| {_number(line.get('epsilon_without_amplification'))} | {made} "
            f"| `{line['ledger_head'] or 'not stated'}` |"
        )
    table = "\n".join(rows)
    neighbours = "one patient replaced" if privacy.public_n else "one patient added or removed"
    return f"""\
## Spent, by each hospital's own ledger

| hospital | declared size | epsilon, this study | epsilon, whole lineage | delta | without amplification \
| noised releases | head of its ledger |
|---|---|---|---|---|---|---|---|
{table}

*Lineage*: the same source population over all studies and all time. A reservation counts even if its update
never arrived. A hospital that showed no ledger is charged for every plan that named it. Every epsilon of this
table is at this delta and for {neighbours}. A hospital's own cap is not shown: it is private to the
hospital, which holds it to what its ledger gives for one patient added or removed.
"""


def _tuning(value: dict[str, Any]) -> str:
    lines = []
    for line in value["hospitals"]:
        if "epsilon_beside_this_study" not in line:
            continue
        more = f", {line['write_offs']} write-offs" if line["write_offs"] else ""
        more += f", {line['restores']} restores after loss" if line["restores"] else ""
        lines.append(f"- {line['site']}: epsilon {line['epsilon_beside_this_study']:.3f}{more}")
    listed = "\n".join(lines) or "- not shown"
    return f"""\
## What tuning cost

Every run on these patients spends from the same ledger: trials of other settings, studies that led to no
release, and earlier studies on the population. Beside this study the ledgers hold, over all time:

{listed}

Rounds of this study that failed and were planned anew are part of its epsilon above. Settings that were
chosen on public or simulated data cost nothing.
"""


def _not_covered() -> str:
    listed = "\n".join(f"- {item[0].upper()}{item[1:]}." for item in NOT_COVERED)
    return f"""\
## Not covered

{listed}
"""


def _multiplier(value: float | None) -> str:
    return "see the ledgers" if value is None else f"{value:.4f}"


def _number(value: float | None) -> str:
    return "not stated" if value is None else f"{value:.3f}"
