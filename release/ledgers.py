"""The ledgers in a release: excerpts that open this study alone, from which its epsilon is composed anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from contracts.errors import ConsiliumError
from contracts.privacy import NoPrivacy
from contracts.release import RoundLineage, SitePrivacy
from contracts.study import StudyProtocol
from privacy.accountant import Spend, epsilon, epsilon_without_amplification
from privacy.calibration import adjacency_of, spend_of
from privacy.excerpt import Excerpt, read_excerpt

FOLDER = "ledgers"
COORDINATOR = "coordinator"

_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Replayed:
    """One hospital's account, composed from its excerpt alone.

    Attributes:
        epsilon_study: everything reserved for the study, at its delta.
        epsilon_lineage: everything ever spent on the population.
        epsilon_other: what was spent on it beside this study: other studies, trials of settings, write-offs.
        epsilon_without_amplification: of the study, against somebody who knows who was sampled.
    """

    excerpt: Excerpt
    epsilon_study: float
    epsilon_lineage: float
    epsilon_other: float
    epsilon_without_amplification: float
    by_purpose: Mapping[str, float]


def keeper(protocol: StudyProtocol, site: str) -> str:
    """Who keeps the ledger that speaks for a hospital: itself, or the coordinator in mode `site`."""
    return COORDINATOR if protocol.privacy.mode == "site" else site


def replay(protocol: StudyProtocol, data: bytes, public: str) -> Replayed:
    """Verify an excerpt with its keeper's key and compose every epsilon from its triples.

    Raises:
        ConsiliumError: E402, E418, it does not verify; E408, the accountants disagree.
    """
    privacy = protocol.privacy
    assert not isinstance(privacy, NoPrivacy)
    found, delta, adjacency = read_excerpt(data, public), privacy.delta, adjacency_of(protocol)
    if found.study not in (None, protocol.study):
        raise ConsiliumError("E402", f"the ledger of {found.site!r} opens study {found.study!r}")
    other = Counter(found.spends) - Counter(found.study_spends)
    return Replayed(
        excerpt=found,
        epsilon_study=epsilon(found.study_spends, delta, adjacency),
        epsilon_lineage=epsilon(found.spends, delta, adjacency),
        epsilon_other=epsilon(other.elements(), delta, adjacency),
        epsilon_without_amplification=epsilon_without_amplification(found.study_spends, delta, adjacency),
        by_purpose={name: epsilon(spends, delta, adjacency) for name, spends in found.by_purpose.items()},
    )


def check_replay(protocol: StudyProtocol, stated: SitePrivacy, data: bytes) -> Replayed:
    """Replay the ledger that speaks for a hospital, and check that it gives what the manifest states.

    Raises:
        ConsiliumError: E402, E418, it does not verify; E407, it ends in another head than the one stated;
            E408, it composes to another epsilon.
    """
    if stated.ledger_key is None:
        raise ConsiliumError("E402", f"no key is stated for the ledger of {stated.site!r}")
    found = replay(protocol, data, stated.ledger_key)
    if found.excerpt.site != keeper(protocol, stated.site):
        raise ConsiliumError("E402", f"the ledger of {found.excerpt.site!r} in the place of {stated.site!r}")
    if found.excerpt.head != stated.ledger_head:
        raise ConsiliumError(
            "E407", f"{stated.site!r}: head {found.excerpt.head}, stated {stated.ledger_head}"
        )
    pairs = (
        (stated.epsilon_study, found.epsilon_study),
        (stated.epsilon_lineage, found.epsilon_lineage),
    )
    for value, composed in pairs:
        if value is None or abs(value - composed) > _TOLERANCE * max(1.0, composed):
            raise ConsiliumError("E408", f"{stated.site!r}: stated {value}, its ledger gives {composed:.6f}")
    return found


def check_exchanges(
    protocol: StudyProtocol, replayed: Sequence[Replayed], closed: Sequence[RoundLineage] = ()
) -> None:
    """Check that enough entries are opened for the model: one left unopened would state less epsilon.

    Every exchange of the study closed with the quorum, so all hospitals together reserved each kind of it as
    often as `least_reservations` says, or more. Under secure aggregation a round of training may have been
    lost, so there the updates of those that closed are counted. Noise is not compared: it is in the epsilon.

    Args:
        replayed: the account of every hospital that was ever on a roster of the study.
        closed: the exchanges whose updates went into a model.

    Raises:
        ConsiliumError: E408, fewer reservations are opened than the study must have made.
    """
    accounts = _distinct(replayed)
    charged = [s for a in accounts for s in a.excerpt.by_purpose.get("write-off", ())]  # again by a restore
    owed = least_reservations(protocol)
    if protocol.secure is not None:
        counted: Counter[str] = Counter()
        for exchange in closed:
            counted["fold" if exchange.fold is not None else exchange.kind] += len(exchange.updates)
        owed |= {purpose: counted[purpose] for purpose in ("training", "fold") if purpose in owed}
    for purpose, least in owed.items():
        shape = spend_of(protocol, "training" if purpose == "aggregate" else purpose, 1.0)
        found = [r.spend for a in accounts for r in a.excerpt.reservations if r.purpose == purpose]
        made = sum(_same_shape(spend, shape) for spend in found)
        # A write-off stands for one reservation and not for one of each purpose.
        instead = [spend for spend in charged if _same_shape(spend, shape)][: max(least - made, 0)]
        for spend in instead:
            charged.remove(spend)
        if made + len(instead) < least:
            raise ConsiliumError(
                "E408",
                f"{made + len(instead)} reservations for {purpose} are opened, expected {least} or more",
            )


def least_reservations(protocol: StudyProtocol) -> dict[str, int]:
    """How many reservations of each purpose all hospitals together made at least, in a study that finished.

    Every exchange had its quorum. As many hospitals are left out in turn as were in the last round of
    training, and each of their folds had one fewer than the quorum.
    """
    quorum, rounds = protocol.min_sites, protocol.rounds
    if protocol.privacy.mode == "site":
        return {"aggregate": rounds}
    least = {"training": rounds * quorum}
    if protocol.training.normalisation == "federated":
        least["statistics"] = quorum
    if protocol.threshold_rule is not None:
        least["histogram"] = quorum
    if protocol.validation.local_model:
        least["local"] = quorum
    if protocol.validation.leave_one_site_out is not None:
        least["fold"] = rounds * quorum * (quorum - 1)
    return least


def _same_shape(spend: Spend, other: Spend) -> bool:
    return (spend.sample_rate, spend.steps) == (other.sample_rate, other.steps)


def _distinct(replayed: Sequence[Replayed]) -> list[Replayed]:
    """One account of each ledger: with hospital-level privacy all hospitals are spoken for by the same."""
    return list({account.excerpt.head: account for account in replayed}.values())


def steps_of(spends: tuple[Spend, ...]) -> int:
    """Number of noised releases in some spends."""
    return sum(spend.steps for spend in spends)
