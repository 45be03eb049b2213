"""The signed plan of one exchange: who does what, from which model, under which noise."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from contracts.fields import Contract, Digest, Finite, Key, SiteName, StudyName, Timestamp, Version
from contracts.masking import MaskKey


class RosterEntry(Contract):
    """A site that the plan expects, with the data sheet it was admitted on."""

    site: SiteName
    data_sheet: Digest
    declared_size: Annotated[int, Field(ge=1)]
    ledger_head: Digest | None = None  # last head of the site's ledger that the coordinator has seen
    mask: MaskKey | None = None  # secure aggregation: the site's ephemeral key for this exchange


class RoundPlan(Contract):
    """One plan = one reservation = one noise stream = at most one update (design section 5).

    `kind` says what the roster does: `statistics` (round 0, one Gaussian release of clipped sums),
    `training`, `histogram` (after the last round: one Gaussian release of the training patients' risks, from
    which the decision threshold is read), `local` (each hospital trains a model of its own and keeps it),
    `evaluation` (of `base_model` on the holdout, sealed to `seal_key`) or `verification` (of the exported
    model). A training plan with `fold` belongs to the model that this hospital has no part in.
    """

    study: StudyName
    protocol_hash: Digest
    kind: Literal["statistics", "training", "histogram", "local", "evaluation", "verification"]
    round: Annotated[int, Field(ge=0)]
    attempt: Annotated[int, Field(ge=1)] = 1  # above 1 when a round had to be planned anew
    rounds: Annotated[int, Field(ge=1)]  # planned for the whole study
    base_model: Digest | None = None  # safetensors in the exchange; None for statistics
    artefact: Digest | None = None  # verification: the ONNX file in the exchange
    roster: Annotated[list[RosterEntry], Field(min_length=1, max_length=1000)]
    code_versions: Annotated[list[Version], Field(min_length=1, max_length=16)]
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None  # of this exchange
    expected_epsilon: Finite | None = None  # of the whole planned study, at the protocol's delta
    decision_threshold: Annotated[float, Field(gt=0, lt=1)] | None = None  # locked; evaluation, verification
    fold: SiteName | None = None  # training for leave-one-site-out: the hospital that is left out
    seal_key: Key | None = None  # X25519, evaluation: to whom reports are sealed
    # Evaluation: earlier releases of the product (ONNX in the exchange), and the models of the folds.
    baselines: Annotated[dict[Literal["previous", "first"], Digest], Field(max_length=2)] = {}
    folds: Annotated[dict[SiteName, Digest], Field(max_length=100)] = {}
    deadline_seconds: Annotated[int, Field(ge=1)]
    created: Timestamp

    @property
    def purpose(self) -> str:
        """What the exchange is for, as schedule and ledgers name it: the kind, or `fold`."""
        return "fold" if self.kind == "training" and self.fold is not None else self.kind

    def entry(self, site: str) -> RosterEntry | None:
        """The roster's entry for `site`, or None."""
        return next((e for e in self.roster if e.site == site), None)
