"""Each way through the code that clips is attacked: what its canaries are, and what the attack then finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from consilium.audit import attack_study, audited
from consilium.canary_models import canary_target
from contracts.study import StudyProtocol
from models.registry import MODELS
from privacy.accountant import Spend, epsilon
from privacy.audit import (
    LOUDNESS,
    PATHS,
    AttackPath,
    Fault,
    Verdict,
    judge,
    path_of,
    records_on,
    simulated_scores,
)
from privacy.canaries import ORDINARY_FEATURES, attack
from privacy.rows import MatrixRows
from tests.factories import tiny_study

pytestmark = pytest.mark.slow

CANARIES, DELTA, CLIP = 1000, 1e-5, 2.0
BRANCHING: list[AttackPath] = ["records", "perceptron", "recurrent", "convolution"]
WAYS = [(path, "flat") for path in PATHS] + [(path, "per-layer") for path in BRANCHING[1:]]


def short_study(path: AttackPath, clipping: str = "flat") -> StudyProtocol:
    """A study of 60 steps, whose patients have two records where that costs little."""
    return tiny_study(
        training={"steps": 20, "sample_rate": 0.1, "learning_rate": 0.5, "normalisation": "declared"},
        rounds=3,
        privacy={
            "mode": "patient",
            "epsilon": 3.0,
            "delta": DELTA,
            "max_grad_norm": CLIP,
            "clipping": clipping,
        },
        cohort={"max_records": 1 if path == "convolution" else 2},
    )


def verdict(fault: Fault, path: AttackPath, clipping: str = "flat") -> Verdict:
    """Attack a path once, with the noise and all steps of the short study, and judge what was seen."""
    study = short_study(path, clipping)
    seen = attack_study(study, CANARIES, fault, path=path)
    return judge(seen.scores, seen.included, claim=epsilon([audited(study)[1]], DELTA), delta=DELTA)


@pytest.mark.parametrize("path", PATHS)
def test_a_canary_is_loud_in_a_direction_that_no_other_patient_has(path: AttackPath) -> None:
    canaries = 101
    target = canary_target(path, canaries, CLIP, records=records_on(path, 2))
    kinds, (outputs, columns) = len(target.directions), target.weight.shape[:2]
    directions = torch.zeros(canaries, outputs, columns, target.directions.shape[2], dtype=torch.float64)
    for i in range(canaries):
        directions[i, :, i // kinds] = target.directions[i % kinds]

    def gradient(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        """One patient's gradient at the attacked layer, and its length over all layers."""
        loss = torch.nn.functional.softplus(target.model(x.expand(1, target.records, -1))).mean()
        gradients = torch.autograd.grad(loss, list(parameters.values()))
        found = dict(zip(parameters, gradients, strict=True))
        length = torch.cat([g.flatten() for g in found.values()]).double().norm()
        return found[target.name].double().reshape(directions.shape[1:]), float(length)

    parameters = dict(target.model.named_parameters())
    patients = torch.eye(canaries, canaries + ORDINARY_FEATURES)
    for i in (0, 1, 2, 3, 50, 100):
        own, length = gradient(patients[i])
        along = (directions * own).sum(dim=(1, 2, 3))
        assert along[i] >= 0.999 * LOUDNESS * CLIP and along[i] >= 0.999 * length
        assert along.abs().sum() - along[i] < 1e-9
    ordinary = torch.cat([torch.zeros(canaries), torch.linspace(-1.0, 1.0, ORDINARY_FEATURES)])
    assert (directions * gradient(ordinary)[0]).sum(dim=(1, 2, 3)).abs().max() < 1e-9


@pytest.mark.parametrize(
    ("path", "records", "branch"),
    [
        ("logistic", 1, "one row"),
        ("records", 2, "whole"),
        ("records", 4, "whole"),
        ("perceptron", 1, "one row"),
        ("perceptron", 2, "inner products"),
        ("perceptron", 4, "inner products"),
        ("recurrent", 1, "inner products"),
        ("recurrent", 4, "inner products"),
        ("convolution", 1, "inner products"),
    ],
)
def test_a_path_goes_through_its_branch_of_the_code_that_finds_norms(
    path: AttackPath, records: int, branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = canary_target(path, CANARIES, CLIP, records=records)
    sound, taken = MatrixRows.squared_norms, set()

    def watched(self: MatrixRows) -> torch.Tensor:
        found = sound(self)
        if any(weight is target.weight for weight, _ in self.weights):
            assert self.b is not None
            rows, width, height = *self.a.shape[1:], self.b.shape[2]
            few = rows * (width + height) <= width * height
            assert (self._whole is None) == (rows == 1 or few)
            taken.add("one row" if rows == 1 else "inner products" if few else "whole")
        return found

    monkeypatch.setattr(MatrixRows, "squared_norms", watched)
    attack(target, Spend(1.0, 1.0, 1), max_grad_norm=CLIP)
    assert taken == {branch}


def test_every_registered_model_is_attacked_on_a_path_like_it() -> None:
    assert {name: path_of(name, 1) for name in MODELS} == {
        "cnn": "convolution",
        "logistic": "logistic",
        "lstm": "recurrent",
        "mlp": "perceptron",
        "multitask": "perceptron",
    }
    assert path_of("logistic", 2) == "records" and path_of("mlp", 2) == "perceptron"
    assert [records_on(path, 64) for path in PATHS] == [1, 4, 4, 4, 4]
    assert [records_on(path, 1) for path in PATHS] == [1, 2, 1, 1, 1]


@pytest.mark.parametrize("path", BRANCHING)
def test_clipping_that_misses_patients_of_several_rows_is_refuted(
    path: AttackPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = MatrixRows.squared_norms

    def broken(self: MatrixRows) -> torch.Tensor:
        found = sound(self)
        return found if self.a.shape[1] == 1 else torch.zeros_like(found)

    monkeypatch.setattr(MatrixRows, "squared_norms", broken)
    assert verdict("none", path).refuted
    assert not verdict("none", "logistic").refuted  # which does not see it


@pytest.mark.parametrize(("path", "clipping"), WAYS)
def test_on_every_path_scores_have_the_distribution_that_the_power_was_simulated_from(
    path: AttackPath, clipping: str
) -> None:
    """Under per-layer clipping, a canary keeps what its own layer is given of the clip norm."""
    layers = {"perceptron": 2, "recurrent": 2, "convolution": 5} if clipping == "per-layer" else {}
    study = short_study(path, clipping)
    seen = attack_study(study, CANARIES, "noise-tenth", path=path)
    expected = simulated_scores(
        audited(study)[1],
        "noise-tenth",
        seen.included,
        np.random.default_rng(),
        layers.get(path, 1) ** -0.5,
    )
    for group in (seen.included, ~seen.included):
        n = int(group.sum())
        # Bounds of norms are above the norms by what float32 may lose: most where positive and negative meet.
        deviation = expected[group].std() + 1e-3
        allowed = 7 * deviation / math.sqrt(n) + 0.02 * abs(expected[group].mean())
        assert abs(seen.scores[group].mean() - expected[group].mean()) < allowed
        assert seen.scores[group].std() == pytest.approx(expected[group].std(), rel=0.3, abs=1e-3)


@pytest.mark.parametrize("path", BRANCHING)
def test_the_sound_mechanism_stays_under_its_claim_on_every_path(path: AttackPath) -> None:
    verdicts = [verdict("none", path) for _ in range(5)]
    assert not any(v.refuted for v in verdicts), verdicts
    assert np.mean([v.lower_bound for v in verdicts]) > 0.3


@pytest.mark.parametrize("path", BRANCHING)
@pytest.mark.parametrize("fault", ["noise-off", "noise-tenth", "clip-off"])
def test_a_broken_mechanism_is_refuted_on_every_path(path: AttackPath, fault: Fault) -> None:
    verdicts = [verdict(fault, path) for _ in range(5)]
    assert all(v.refuted for v in verdicts), verdicts


@pytest.mark.parametrize("path", BRANCHING[1:])
@pytest.mark.parametrize("clipping", ["per-layer", "adaptive"])
def test_the_other_ways_of_clipping_are_attacked_on_every_path(path: AttackPath, clipping: str) -> None:
    assert not verdict("none", path, clipping).refuted
    assert verdict("clip-off", path, clipping).refuted
    assert verdict("noise-off", path, clipping).refuted
