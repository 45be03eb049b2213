"""Which settings of a study its privacy does not cover: refused wherever the study is read or run."""

from __future__ import annotations

from contracts.errors import ConsiliumError
from contracts.privacy import PatientPrivacy
from contracts.study import StudyProtocol


def check_mechanism(protocol: StudyProtocol) -> None:
    """Refuse a sampler or a divisor under which the accountant's epsilon would not hold.

    The accountant composes Poisson samples: batches of equal size by reshuffling are another mechanism, whose
    epsilon is larger (Chua et al. 2024, arXiv:2403.17673). A divisor counted from the cohort changes with
    every patient: the update would tell its size exactly.

    Raises:
        ConsiliumError: E414, E415.
    """
    training = protocol.training
    if not isinstance(protocol.privacy, PatientPrivacy):
        return
    if training.sampling != "poisson":
        raise ConsiliumError("E414", f"field 'training.sampling': {training.sampling!r}, expected 'poisson'")
    if training.normaliser != "declared":
        raise ConsiliumError(
            "E415", f"field 'training.normaliser': {training.normaliser!r}, expected 'declared'"
        )
