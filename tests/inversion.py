"""Gradient inversion: what one hospital's update gives away of the patient's image it was trained on.

The images are the 8 x 8 digits of scikit-learn; the label is whether the digit is odd. Every update comes
from the trainer that runs at hospitals. `python -m tests.inversion FILE.png` draws what the attacks see.
"""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from contracts.plan import RoundPlan
from contracts.study import StudyProtocol, parse_study
from contracts.version import CODE_VERSION
from models.registry import build_model, initial_state, load_state
from privacy.calibration import calibrate
from privacy.canaries import one_thread
from privacy.dpsgd import PatientBatches, patient_loss
from privacy.stream import NoiseStream, derive_stream
from site_runtime.cohort import CohortArrays
from site_runtime.config import Compute
from site_runtime.trainer import SiteTrainer
from strategies.registry import strategy_of

Images = NDArray[np.float32]

SIDE, PATIENTS, STEPS_IN_ALL, LEARNING_RATE = 8, 200, 100, 0.5
EXACT = {"mode": "none"}
PRIVATE = {"mode": "patient", "epsilon": 3.0, "delta": 1e-3, "max_grad_norm": 1.0}


def study(privacy: dict, batch: int) -> StudyProtocol:
    """A multilayer perceptron over pixels; one step a round, `batch` patients in it on average."""
    pixels = [{"name": f"p{i}", "kind": "numeric", "unit": "1", "range": [0, 16]} for i in range(SIDE * SIDE)]
    return parse_study(
        {
            "schema": "consilium/study/1",
            "study": "digits",
            "title": "Digits",
            "intended_use": "Tests.",
            "cohort": {},
            "features": pixels,
            "label": {"name": "odd", "positive": "odd"},
            "model": {"name": "mlp", "hidden": [32]},
            "training": {
                "steps": 1,
                "sample_rate": batch / PATIENTS,
                "learning_rate": LEARNING_RATE,
                "normalisation": "declared",
            },
            "privacy": privacy,
            "rounds": STEPS_IN_ALL,
            "min_sites": 1,
        }
    )


def digits() -> tuple[Images, NDArray[np.float32]]:
    """The cohort: images float32 [PATIENTS, 64] in 0..16, labels [PATIENTS]."""
    images, digit = load_digits(return_X_y=True)
    return images[:PATIENTS].astype(np.float32), (digit[:PATIENTS] % 2).astype(np.float32)


@dataclass(frozen=True)
class Update:
    """What left the hospital, and whom it was trained on.

    Attributes:
        gradient: minus the change of each parameter over the learning rate.
        victims: images float32 [B, 64] that were in the batch.
        labels: float32 [B].
    """

    protocol: StudyProtocol
    gradient: dict[str, Tensor]
    victims: Images
    labels: NDArray[np.float32]


def update(privacy: dict, batch: int, number: int = 0, noise_multiplier: float | None = None) -> Update:
    """Train one round through the real trainer and strategy on a batch of exactly `batch` patients.

    The noise is the one that the whole study is calibrated to, unless another is given.
    """
    protocol = study(privacy, batch)
    images, labels = digits()

    def stream(attempt: int, purpose: str) -> NoiseStream:
        name = {"plan": f"{number}/{attempt}", "cohort": "digits", "code_version": CODE_VERSION}
        return derive_stream(bytes(32), purpose=purpose, **name)

    def drawn(attempt: int) -> list[int]:
        rate = protocol.training.sample_rate
        return next(iter(PatientBatches(PATIENTS, rate, 1, stream(attempt, "sampling"))))

    attempt = next(i for i in itertools.count() if len(drawn(i)) == batch)
    trainer = SiteTrainer(
        protocol=protocol,
        plan=plan_of(protocol, noise_multiplier),
        cohort=CohortArrays(
            x=images[:, None],
            mask=np.ones((PATIENTS, 1), dtype=bool),
            y=labels[:, None],
            auxiliary=np.zeros((PATIENTS, 1, 0), dtype=np.float32),
            digest="0" * 64,
        ),
        declared_size=PATIENTS,
        compute=Compute(accelerator="cpu"),
        sampling=stream(attempt, "sampling"),
        noise=stream(attempt, "noise"),
        steps=protocol.training.steps,
    )
    sent = strategy_of(protocol).site(protocol, initial_state(protocol), {}, trainer).sent
    gradient = {name: torch.from_numpy(-change / LEARNING_RATE) for name, change in sent.items()}
    return Update(protocol, gradient, images[drawn(attempt)], labels[drawn(attempt)])


def plan_of(protocol: StudyProtocol, noise_multiplier: float | None) -> RoundPlan:
    """The plan of the first round."""
    if protocol.privacy.mode == "patient" and noise_multiplier is None:
        noise_multiplier = calibrate(protocol).training
    return RoundPlan(
        study=protocol.study,
        protocol_hash=protocol.hash,
        kind="training",
        round=1,
        rounds=protocol.rounds,
        roster=[{"site": "ash", "data_sheet": "0" * 64, "declared_size": PATIENTS}],
        code_versions=[CODE_VERSION],
        noise_multiplier=noise_multiplier,
        deadline_seconds=60,
        created="2026-01-01T00:00:00Z",
    )


def analytic(seen: Update) -> Images:
    """Reconstruct the one patient of a batch from the first layer alone: float32 [64].

    For one patient the weights' gradient is b x^T and the intercepts' is b, so that x is their quotient
    (Phong et al. 2018, Privacy-preserving deep learning via additively homomorphic encryption). Over all
    units it is taken by least squares.
    """
    weight, bias = (seen.gradient[f"network.0.{name}"].double() for name in ("weight", "bias"))
    return pixels((bias @ weight / bias.square().sum()).float())


@one_thread()
def optimised(seen: Update, steps: int = 600, starts: int = 4, smooth: float = 1e-3) -> Images:
    """Reconstruct the patients of a batch by search: float32 [B, 64].

    Minimises 1 - cos(gradient of the guess, what was seen) + `smooth` x total variation with Adam, from
    several starts, of which the best fit counts (Geiping et al. 2020, Inverting gradients, arXiv:2003.14053,
    equation 4). The attacker knows the labels.
    """
    model = build_model(seen.protocol)
    load_state(model, initial_state(seen.protocol))
    target = torch.cat([seen.gradient[name].flatten() for name, _ in model.named_parameters()])
    labels = torch.from_numpy(seen.labels)[:, None]
    mask = torch.ones_like(labels, dtype=torch.bool)

    def misfit(guess: Tensor) -> Tensor:
        loss = patient_loss(model.network(guess), labels, mask)
        parts = torch.autograd.grad(loss, list(model.parameters()), create_graph=True)
        found = torch.cat([part.flatten() for part in parts])
        image = guess.view(-1, SIDE, SIDE)
        variation = image.diff(dim=1).abs().mean() + image.diff(dim=2).abs().mean()
        return 1.0 - nn.functional.cosine_similarity(found, target, dim=0) + smooth * variation

    draws = np.random.default_rng(0)
    results = []
    for _ in range(starts):
        start = draws.normal(0.0, 0.5, (len(labels), SIDE * SIDE)).astype(np.float32)
        guess = nn.Parameter(torch.from_numpy(start))
        adam = torch.optim.Adam([guess], lr=0.1)
        schedule = torch.optim.lr_scheduler.MultiStepLR(adam, [steps // 2, steps * 3 // 4], gamma=0.2)
        for _ in range(steps):
            adam.zero_grad()
            misfit(guess).backward()
            adam.step()
            schedule.step()
            with torch.no_grad():
                guess.clamp_(-2.0, 2.0)  # the range of a pixel after preprocessing
        results.append((float(misfit(guess)), guess.detach()))
    return pixels(min(results, key=lambda result: result[0])[1])


def pixels(standardised: Tensor) -> Images:
    """Undo the preprocessing: middle and a quarter of the range."""
    return (standardised * 4.0 + 8.0).numpy()


def likeness(image: Images, other: Images) -> float:
    """Correlation of two images."""
    return float(np.corrcoef(image, other)[0, 1])


def best_likeness(images: Images, victims: Images) -> float:
    """Mean over victims of the correlation with the image that is most like them."""
    return float(np.mean([max(likeness(image, victim) for image in images) for victim in victims]))


def psnr(image: Images, other: Images) -> float:
    """Peak signal-to-noise ratio in decibels, the peak being 16; never above 100."""
    error = float(np.mean((np.clip(image, 0.0, 16.0) - other) ** 2))
    return 10.0 * float(np.log10(16.0**2 / max(error, 16.0**2 * 1e-10)))


def untrained_guess() -> Images:
    """The mean of images that are not in the cohort: what an attacker guesses who has seen no update."""
    images, _ = load_digits(return_X_y=True)
    return images[PATIENTS:].mean(axis=0).astype(np.float32)


def draw(path: str, columns: int = 6) -> None:
    """Draw originals, and what both attacks reconstruct of them from exact and from private updates."""
    from matplotlib.figure import Figure

    rows: dict[str, list[Images]] = {"original": []}
    for number in range(columns):
        for privacy, state in ((EXACT, "no DP"), (PRIVATE, "epsilon 3")):
            seen = update(privacy, 1, number)
            for attack, found in (("quotient", analytic(seen)), ("search", optimised(seen)[0])):
                rows.setdefault(f"{state}, {attack}", []).append(found)
        rows["original"].append(seen.victims[0])
    names = ["original", *(f"{s}, {a}" for s in ("no DP", "epsilon 3") for a in ("quotient", "search"))]
    figure = Figure(figsize=(1.0 * columns + 1.6, 1.0 * len(names)), layout="constrained")
    axes = figure.subplots(len(names), columns)
    for line, name in zip(axes, names, strict=True):
        for axis, image in zip(line, rows[name], strict=True):
            axis.imshow(image.reshape(SIDE, SIDE), cmap="gray_r", vmin=0.0, vmax=16.0)
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    draw(sys.argv[1])
