"""What others published for a study's data: `studies/published/<study>.yaml`."""

from __future__ import annotations

from consilium.study import SHIPPED
from contracts.fields import Contract, LongText, Probability, Text
from contracts.yaml_text import load_yaml


class PublishedRow(Contract):
    """Accuracy of one way to train: over all test patients, and at each hospital, as far as published."""

    method: Text
    pooled: Probability | None = None
    sites: list[Probability] = []


class PrivateRow(Contract):
    """Accuracy at the epsilon that was claimed; None is without privacy."""

    claimed_epsilon: float | None
    accuracy: Probability


class PublishedPrivacy(Contract):
    """A published run with differential privacy: accuracy is the unweighted mean over the hospitals."""

    source: LongText
    delta: float
    rows: list[PrivateRow]
    note: LongText


class Published(Contract):
    """Published accuracies; `sites` names the hospitals in the order of the rows."""

    source: LongText
    sites: list[Text]
    rows: list[PublishedRow]
    note: LongText
    privacy: PublishedPrivacy | None = None


def published_results(study: str) -> Published | None:
    """Return what ships of published results for a study, if anything does."""
    path = SHIPPED / "published" / f"{study}.yaml"
    return Published.model_validate(load_yaml(path.read_text())) if path.exists() else None
