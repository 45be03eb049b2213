"""What is refused before any data are touched: settings under which a stated epsilon would not be true.

Every check reads the protocol, `site.yaml`, the ledger and the environment alone, so that its outcome tells
nothing of a patient. They run before an intake and before every answer to a plan, and those that do not ask
the ledger when a study is approved.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Mapping

from contracts.errors import ConsiliumError
from contracts.privacy import NoPrivacy, PatientPrivacy
from contracts.signing import SigningKey
from contracts.study import StudyProtocol
from privacy.accountant import Spend, epsilon
from privacy.calibration import calibrate, check_delta, planned_spends
from privacy.ledger import Ledger
from privacy.promise import check_mechanism
from site_runtime.config import SiteConfig
from site_runtime.home import SiteHome
from strategies.registry import strategy_of

SPARE_BYTES = 64 << 20  # of the disk that holds a site's home: more than an update of this project's models


def check_promise(
    config: SiteConfig, protocol: StudyProtocol, environment: Mapping[str, str] = os.environ
) -> None:
    """Refuse a private study whose promise this site could not keep; a study without privacy passes.

    Raises:
        ConsiliumError: E403 delta, E405 a seed, E406 the strategy, E412 the hardware, E413 patients that the
            source does not tell apart, E414 the sampler, E415 the divisor.
    """
    if isinstance(protocol.privacy, NoPrivacy):
        return
    check_mechanism(protocol)
    strategy_of(protocol)
    check_seed(environment)
    check_delta(protocol, config.governance.declared_size)
    check_compute(config)
    if not config.source.tells_patients_apart:
        raise ConsiliumError(
            "E413",
            "field 'source.patient': not set, expected the column that names the patient, or "
            "one_row_per_patient: true where the source holds one row of each",
        )


def check_space(home: SiteHome) -> None:
    """Refuse while there is still room to say so: ledger, outbox and the record of what left come first.

    Raises:
        ConsiliumError: E122.
    """
    free = shutil.disk_usage(home.root).free
    if free < SPARE_BYTES:
        raise ConsiliumError("E122", f"{home.root}: {free >> 20} MB free, expected {SPARE_BYTES >> 20} MB")


def check_budget(home: SiteHome, config: SiteConfig, protocol: StudyProtocol) -> None:
    """Refuse a study whose plan does not fit beside what the lineage has spent on others.

    Whoever trains asks the ledger again, which also knows what failed attempts of this study cost.

    Raises:
        ConsiliumError: E401; E402, the ledger cannot be used; E409, no noise meets the study's epsilon.
    """
    privacy = protocol.privacy
    if not isinstance(privacy, PatientPrivacy):
        return
    lineage, others = config.governance.lineage, Counter[Spend]()
    if home.ledger(lineage).exists():
        key = SigningKey.load(config.site, home.signing_key)
        ledger = Ledger(home.ledger(lineage), config.site, lineage, key)
        others = Counter(ledger.spends()) - Counter(ledger.spends(protocol.study))
    planned = planned_spends(protocol, calibrate(protocol))
    delta, cap = min(privacy.delta, config.budget.delta), config.budget.epsilon
    total = epsilon([*others.elements(), *planned], delta)
    if not total <= cap:
        raise ConsiliumError(
            "E401",
            f"with this study the lineage would come to epsilon {total:.4f} at delta {delta:g}, "
            f"expected at most {cap:g}",
        )


def check_layers(protocol: StudyProtocol) -> None:
    """Refuse a model that couples patients, under a promise to each of them.

    Raises:
        ConsiliumError: E404, with what to use instead.
    """
    if protocol.privacy.mode == "patient":
        from models.registry import build_model  # torch
        from privacy.gradients import check_layers as refuse_layers

        refuse_layers(build_model(protocol))


def check_seed(environment: Mapping[str, str]) -> None:
    """Refuse a process whose generators were seeded: by Lightning's `seed_everything`, which also logs it.

    Raises:
        ConsiliumError: E405.
    """
    seed = environment.get("PL_GLOBAL_SEED")
    if seed is not None:
        raise ConsiliumError("E405", f"environment variable PL_GLOBAL_SEED is {seed!r}, expected none")


def check_compute(config: SiteConfig) -> None:
    """Refuse hardware settings under which DP-SGD is no longer what the ledger says.

    Several devices draw a batch each; 16-bit precision with loss scaling skips a step, noise and all, when a
    gradient overflows, which depends on the data.

    Raises:
        ConsiliumError: E412.
    """
    compute = config.compute
    if compute.accelerator == "mps":
        raise ConsiliumError("E412", "compute.accelerator 'mps' has no float64, expected cpu, gpu or auto")
    if compute.devices != 1:
        raise ConsiliumError("E412", f"compute.devices {compute.devices}, expected 1")
    if compute.precision == "16-mixed":
        raise ConsiliumError("E412", "compute.precision '16-mixed', expected 32-true, 64-true or bf16-mixed")
