"""What a planned study means at each hospital, from its `site.yaml` alone: no data, no torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import yaml
from pydantic import ValidationError

from contracts.errors import ConsiliumError
from contracts.privacy import HospitalPrivacy, PatientPrivacy
from contracts.signing import first_problem
from contracts.study import StudyProtocol, find_seed
from contracts.yaml_text import load_yaml
from privacy.calibration import StudyNoise
from site_runtime.config import Compute, SiteConfig, SitePart
from site_runtime.policy_terms import Policy

Facts = dict[str, Any]


class PlannedSite(SitePart):
    """What a plan needs of a `site.yaml`. The source's options stay unread: their connector may need more."""

    policy: Policy = Policy()
    compute: Compute = Compute()
    source: dict[str, Any] = {}

    @property
    def tells_patients_apart(self) -> bool:
        """As `site_runtime.connectors.csv.Options`: other connectors always do."""
        options = self.source
        told = options.get("patient") is not None or options.get("one_row_per_patient") is True
        return told or options.get("connector") != "csv"


def load_planned(path: Path) -> PlannedSite:
    """Read what a plan needs of a `site.yaml`.

    Raises:
        ConsiliumError: E103, naming field, value and what was expected; E405, a seed.
    """
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
        found = PlannedSite.model_validate(value)
    except ValidationError as error:
        raise ConsiliumError("E103", f"{path}: {first_problem(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConsiliumError("E103", f"{path}: {error}") from error
    seed = find_seed({name: part for name, part in value.items() if name != "source"})
    if seed is not None:
        raise ConsiliumError("E405", f"{path}: field {seed!r}, expected none")
    return found


def check_study(protocol: StudyProtocol) -> None:
    """Refuse what every hospital would: the sampler, the divisor, the strategy, a seed, and the layers.

    The layers are looked at only where torch is installed.

    Raises:
        ConsiliumError: E404, E405, E406, E414, E415.
    """
    from importlib.util import find_spec

    from privacy.promise import check_mechanism
    from site_runtime.preflight import check_layers, check_seed
    from strategies.registry import strategy_of

    check_mechanism(protocol)
    strategy_of(protocol)
    check_seed(os.environ)
    # A cnn alone can be written with batch normalisation: other models need no torch to be planned.
    if protocol.model.norm == "batch" and find_spec("torch") is not None:
        check_layers(protocol)


def patient_facts(protocol: StudyProtocol, noise: StudyNoise, site: PlannedSite) -> Facts:
    """A study of patient-level privacy at one site; `error` is the refusal that it would get there, or None.

    A cap holds for one patient added or removed, whatever the study's own adjacency, since a lineage holds
    studies of both; at the site's delta, or at the study's where that is smaller: see Budget.
    """
    from privacy.accountant import epsilon
    from privacy.calibration import planned_spends

    privacy, size = protocol.privacy, site.governance.declared_size
    assert isinstance(privacy, PatientPrivacy)
    batch = protocol.training.sample_rate * size
    at = min(site.budget.delta, privacy.delta)
    spent = epsilon(planned_spends(protocol, noise), at)

    def check_cap() -> None:
        if spent > site.budget.epsilon:
            detail = f"epsilon {spent:.4f} at delta {at:g}, expected at most {site.budget.epsilon:g}"
            raise ConsiliumError("E401", detail)

    least = protocol.cohort.minimum_patients
    return {
        "site": site.site,
        "declared_size": size,
        "expected_batch": batch,
        "noise_of_mean_gradient": noise.training * privacy.max_grad_norm / batch,
        "clip_over_noise": batch / noise.training,
        "delta_below": 1.0 / size,
        "epsilon_cap": site.budget.epsilon,
        "cap_delta": at,
        "cap_adjacency": "add-or-remove-one",
        "epsilon_at_cap_delta": spent,
        "warnings": [f"minimum_patients {least} is above the declared size of {size}: E205 if that is right"]
        if least > size
        else [],
        **_verdict(partial(_check_promise, protocol, site), check_cap),
    }


def hospital_facts(protocol: StudyProtocol, noise: StudyNoise, sites: list[PlannedSite]) -> list[Facts]:
    """A study of hospital-level privacy at every site: weight in the mean, and clip against noise.

    The noise on a coordinate of the mean update is noise multiplier x largest weight x clip / total weight.
    """

    def weight(site: PlannedSite) -> float:
        return site.governance.declared_size if protocol.strategy.weights == "declared" else 1.0

    weights = [weight(site) for site in sites]
    return [
        {
            "site": site.site,
            "declared_size": site.governance.declared_size,
            "weight": own / sum(weights),
            "clip_over_noise": own / (noise.training * max(weights)),
            "exact_updates": site.policy.lets_exact_leave(protocol),
            "warnings": [],
            **_verdict(partial(_check_promise, protocol, site), partial(_check_exact, protocol, site)),
        }
        for site, own in zip(sites, weights, strict=True)
    ]


def federation_facts(
    protocol: StudyProtocol, noise: StudyNoise, sites: list[PlannedSite], budget: tuple[float, float]
) -> Facts:
    """A study of hospital-level privacy at the coordinator; `error` is its refusal there, or None.

    Args:
        budget: epsilon and delta of the federation, over all its studies.
    """
    from privacy.accountant import epsilon
    from privacy.calibration import planned_spends

    privacy = protocol.privacy
    assert isinstance(privacy, HospitalPrivacy)
    cap, at = budget[0], min(budget[1], privacy.delta)
    spent = epsilon(planned_spends(protocol, noise), at)

    def check() -> None:
        if sites and len(sites) < protocol.min_sites:
            raise ConsiliumError("E506", f"{len(sites)} hospitals, at least {protocol.min_sites} needed")
        if privacy.delta * len(sites) >= 1.0:
            raise ConsiliumError("E425", f"delta {privacy.delta:g}, expected below 1/{len(sites)}")
        if spent > cap:
            raise ConsiliumError("E401", f"epsilon {spent:.4f} at delta {at:g}, expected at most {cap:g}")

    return {
        "hospitals": len(sites) or None,
        "min_sites": protocol.min_sites,
        "epsilon_cap": cap,
        "cap_delta": at,
        "cap_adjacency": "add-or-remove-one",
        "epsilon_at_cap_delta": spent,
        **_verdict(check),
    }


def _check_promise(protocol: StudyProtocol, site: PlannedSite) -> None:
    """What `site_runtime.preflight.check_promise` refuses by the site's own file."""
    from privacy.calibration import check_delta
    from site_runtime.preflight import check_compute

    check_delta(protocol, site.governance.declared_size)
    check_compute(cast(SiteConfig, site))  # which reads `compute` alone
    if not site.tells_patients_apart:
        raise ConsiliumError("E413", "field 'source.patient': not set, nor one_row_per_patient: true")


def _check_exact(protocol: StudyProtocol, site: PlannedSite) -> None:
    if not site.policy.lets_exact_leave(protocol):
        raise ConsiliumError("E304", "policy.exact_updates: false, and the coordinator adds the noise")


def _verdict(*checks: Callable[[], None]) -> Facts:
    try:
        for check in checks:
            check()
    except ConsiliumError as refusal:
        return {"fits": False, "error": {"number": refusal.number, "detail": refusal.detail}}
    return {"fits": True, "error": None}
