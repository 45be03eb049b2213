"""A refusal as it crosses the boundary: a number and one fixed sentence, so that it is no oracle."""

from __future__ import annotations

from typing import Annotated

from pydantic import StringConstraints, model_validator

from contracts.errors import SENTENCES, ConsiliumError
from contracts.fields import Contract, Digest, SiteName, StudyName, Text
from contracts.masking import MaskKey


class Refusal(Contract):
    """What a site sends instead of a result: never a count, a value or a trace."""

    study: StudyName
    site: SiteName
    stage: Annotated[str, StringConstraints(pattern=r"^(intake|train|unmask|evaluate|verify)$")]
    plan: Digest | None = None
    number: Annotated[str, StringConstraints(pattern=r"^E\d{3}$")]
    sentence: Text
    next_mask: MaskKey | None = None  # secure aggregation: a new key, where the plan came too late

    @model_validator(mode="after")
    def _fixed_sentence(self) -> Refusal:
        if self.number not in SENTENCES or SENTENCES[self.number][1] != self.sentence:
            raise ValueError("a refusal carries a known number with its own sentence")
        return self

    @classmethod
    def of(
        cls,
        error: ConsiliumError,
        *,
        study: str,
        site: str,
        stage: str,
        plan: str | None = None,
        next_mask: MaskKey | None = None,
    ) -> Refusal:
        """Make the refusal for an error, dropping its detail."""
        return cls(
            study=study,
            site=site,
            stage=stage,
            plan=plan,
            number=error.number,
            sentence=error.sentence,
            next_mask=next_mask,
        )
