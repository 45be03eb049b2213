"""What the light install must be able to do, run by a bare interpreter: `python light.py`.

Imports every light module in this process, uses the accountant, the ledger and a noise stream, and prints as
JSON which heavy packages were imported on the way, and by which module first.
"""

import importlib
import json
import pkgutil
import sys
import tempfile
from pathlib import Path

HEAVY = ("torch", "opacus", "airflow", "great_expectations", "dvc")
MODULES = (
    "release.compare",
    "release.directory",
    "release.dossier.assemble",
    "release.rotation",
    "release.signature",
    "release.verify",
    "release.session",
    "release.versioning",
    "privacy.accountant",
    "privacy.audit",
    "privacy.calibration",
    "privacy.central",
    "privacy.ledger",
    "privacy.stream",
    "consilium.release",
    "consilium.release_verify",
    "consilium.audit",
    "consilium.evidence",
    "consilium.ledger",
    "consilium.privacy",
    "consilium.contracts",
    "consilium.__main__",
)


def light_modules() -> list[str]:
    """All of contracts, and the modules above."""
    import contracts

    return [f"contracts.{m.name}" for m in pkgutil.iter_modules(contracts.__path__)] + list(MODULES)


def use_privacy() -> dict[str, float]:
    """Calibrate a shipped study, reserve its statistics in a new ledger, draw noise: what a review needs."""
    import studies
    from contracts.signing import SigningKey
    from contracts.study import load_study
    from privacy.accountant import epsilon
    from privacy.calibration import calibrate, planned_spends
    from privacy.ledger import Ledger
    from privacy.stream import derive_stream

    protocol = load_study(Path(studies.__file__).parent / "icu-mortality-demo.yaml")
    noise = calibrate(protocol)
    spends = planned_spends(protocol, noise)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder) / "ash.jsonl", "ash", "ash", SigningKey.generate("ash"))
        plan = {"study": protocol.study, "plan": "0" * 64, "purpose": "statistics"}
        ledger.reserve(**plan, spend=spends[0], epsilon_cap=6.0, delta=1e-4)
        ledger.verify()
        length = ledger.length
    stream = derive_stream(bytes(32), plan="0" * 64, cohort="0" * 64, code_version="0.1.0", purpose="noise")
    return {
        "epsilon": epsilon(spends, 1e-4),
        "promised": noise.epsilon,
        "ledger": length,
        "noise": float(stream.normal((1000,)).std()),
    }


if __name__ == "__main__":
    heavy: dict[str, str] = {}
    for module in light_modules():
        importlib.import_module(module)
        heavy |= {name: module for name in HEAVY if name in sys.modules and name not in heavy}
    used = use_privacy()
    heavy |= {name: "use" for name in HEAVY if name in sys.modules and name not in heavy}
    print(json.dumps({**used, "heavy": heavy}))
