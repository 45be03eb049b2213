"""What a hospital refuses before any data are touched, whatever it was asked to sign."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol, parse_study
from site_runtime.config import SiteConfig, load_site_file
from site_runtime.consent import check_study
from site_runtime.preflight import check_layers, check_promise
from strategies.fedavg import FedAvg
from strategies.registry import STRATEGIES
from tests.factories import PRIVACY, SITE, private_study, study_fields, tiny_study, write_site
from tests.model_zoo import zoo

TRAINING = {"steps": 3, "sample_rate": 0.2, "learning_rate": 0.5}


def site(folder: Path, **changes: Any) -> SiteConfig:
    return load_site_file(write_site(folder, **changes))


def number_of(config: SiteConfig, protocol: StudyProtocol, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConsiliumError) as error:
        check_promise(config, protocol, environment or {})
    assert error.value.detail  # names what it is about
    return error.value.number


def test_a_study_that_can_be_kept_passes(tmp_path: Path) -> None:
    check_promise(site(tmp_path), private_study(), {})
    for protocol in zoo().values():
        check_layers(protocol)


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"training": TRAINING | {"sampling": "shuffled"}}, "E414"),
        ({"training": TRAINING | {"normaliser": "cohort"}}, "E415"),
        ({"privacy": PRIVACY | {"delta": 0.009}, "declared": 200}, "E403"),
    ],
)
def test_a_mechanism_that_the_accountant_does_not_describe_is_refused(
    tmp_path: Path, changes: dict[str, Any], number: str
) -> None:
    governance = SITE["governance"] | {"declared_size": changes.pop("declared", 90)}
    config = site(tmp_path, governance=governance)
    assert number_of(config, private_study(**changes)) == number
    with pytest.raises(ConsiliumError, match=number):
        check_study(config, private_study(**changes))
    check_promise(config, tiny_study(**{k: v for k, v in changes.items() if k != "privacy"}), {})


def test_a_seed_is_refused_wherever_it_is_configured(tmp_path: Path) -> None:
    assert number_of(site(tmp_path), private_study(), {"PL_GLOBAL_SEED": "1"}) == "E405"
    check_promise(site(tmp_path), tiny_study(), {"PL_GLOBAL_SEED": "1"})
    for fields in (
        {"seed": 1},
        {"training": TRAINING | {"seed": 1}},
        {"privacy": PRIVACY | {"noise_seed": 3}},
    ):
        with pytest.raises(ConsiliumError, match=r"E405.*seed"):
            parse_study(study_fields(**({"privacy": PRIVACY} | fields)))
    with pytest.raises(ConsiliumError, match="E101"):
        parse_study(study_fields(seed=1))  # without privacy it is an unknown field like any other
    file = write_site(tmp_path / "seeded", compute={"devices": 1})
    value = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(value | {"compute": {"seed": 7}}))
    with pytest.raises(ConsiliumError, match=r"E405.*compute.seed"):
        load_site_file(file)


def test_patients_that_the_source_does_not_tell_apart_are_refused(tmp_path: Path) -> None:
    source = {"connector": "csv", "path": "data.csv"}
    assert number_of(site(tmp_path / "a", source=source), private_study()) == "E413"
    check_promise(site(tmp_path / "b", source=source), tiny_study(), {})
    check_promise(site(tmp_path / "c", source=source | {"one_row_per_patient": True}), private_study(), {})


def test_a_strategy_that_couples_patients_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Coupling(FedAvg):
        name = "coupling"
        dp = "none"

    monkeypatch.setitem(STRATEGIES, "coupling", Coupling())
    assert number_of(site(tmp_path), private_study(strategy={"name": "coupling"})) == "E406"
    check_promise(site(tmp_path), tiny_study(strategy={"name": "coupling"}), {})


def test_a_model_with_batchnorm_is_refused_under_privacy_only() -> None:
    fields = {"name": "cnn", "image": [8, 8], "hidden": [4, 6], "norm": "batch"}
    with pytest.raises(ConsiliumError, match=r"E404.*GroupNorm"):
        check_layers(zoo(model=fields)["cnn"])
    check_layers(zoo(model=fields, privacy={"mode": "none"})["cnn"])
