"""One hospital's update gives its patients' images away without differential privacy, and not with it."""

from __future__ import annotations

import numpy as np
import pytest

from tests.inversion import (
    EXACT,
    PRIVATE,
    Images,
    Update,
    analytic,
    best_likeness,
    likeness,
    optimised,
    psnr,
    untrained_guess,
    update,
)

VICTIMS = 20


def seen(privacy: dict) -> list[tuple[Images, Images]]:
    """Reconstruction and original of victims who were alone in a batch."""
    updates = [update(privacy, 1, number) for number in range(VICTIMS)]
    return [(analytic(each), each.victims[0]) for each in updates]


def test_an_exact_update_of_one_patient_is_their_image() -> None:
    for image, victim in seen(EXACT):
        assert likeness(image, victim) > 0.99 and psnr(image, victim) > 40.0


def test_a_private_update_tells_less_than_having_seen_no_update_at_all() -> None:
    guess = untrained_guess()
    found = seen(PRIVATE)
    assert abs(np.mean([likeness(image, victim) for image, victim in found])) < 0.15
    for image, victim in found:
        assert likeness(image, victim) < likeness(guess, victim)
        assert psnr(image, victim) < psnr(guess, victim)


def test_it_is_the_noise_that_protects_and_not_the_clipping() -> None:
    """The control of the test above: same code, clipped as much, with noise too small to matter."""
    clipped = update(PRIVATE, 1, noise_multiplier=1e-9)
    assert likeness(analytic(clipped), clipped.victims[0]) > 0.99


def searched(each: Update) -> tuple[float, float]:
    """Likeness to the victims of what a search finds, and of what a guess without an update gives."""
    guess = untrained_guess()[None]
    return best_likeness(optimised(each), each.victims), best_likeness(guess, each.victims)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 2])
def test_a_search_finds_the_patients_of_an_exact_update_and_not_of_a_private_one(batch: int) -> None:
    found, guessed = searched(update(EXACT, batch))
    assert found > 0.99 > guessed
    found, guessed = searched(update(PRIVATE, batch))
    assert found < guessed
