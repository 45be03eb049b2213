"""Chaos at one hospital: killed at any moment of training, it ends with the same bytes, charged once."""

from __future__ import annotations

import multiprocessing
import random
import shutil
import time
from pathlib import Path

import pytest

from consilium.simulation import Simulation
from contracts.signing import SigningKey, parse_signed
from privacy.ledger import Ledger
from site_runtime.home import SiteHome
from site_runtime.steps import train
from site_runtime.trainer import SiteTrainer
from site_runtime.training import make_update
from tasks.exchange import DirectoryExchange
from tests.factories import PRIVACY, opened_plan, private_study, tiny_simulation

pytestmark = pytest.mark.soak

KILLS = 50
# A forked child has torch already; the parent never runs a tensor operation (design section 6).
FORK = multiprocessing.get_context("fork")


def attempt(home: SiteHome, plan: str, exchange: Path, answer: Path) -> None:
    """What a hospital's worker does, in a process of its own."""
    answer.write_text(train(home, plan, DirectoryExchange(exchange)))


def run(home: SiteHome, plan: str, folder: Path, seconds: float | None = None) -> str | None:
    """Run one attempt, killed after `seconds`; return its answer if it came so far."""
    answer = folder / "answer"
    answer.unlink(missing_ok=True)
    worker = FORK.Process(target=attempt, args=(home, plan, folder / "exchange", answer))
    worker.start()
    worker.join(seconds)
    worker.kill()
    worker.join()
    return answer.read_text() if answer.exists() and answer.stat().st_size else None


def open_plan(simulation: Simulation, target: Path) -> None:
    """Open the next round; in a process of its own, since the first model is made of tensors."""
    target.write_text(opened_plan(simulation))


TRAINING = {"steps": 60, "sample_rate": 0.2, "learning_rate": 0.1, "normalisation": "declared"}
STUDIES = {
    "statistics": private_study(),
    "training": private_study(training=TRAINING, model={"name": "mlp", "hidden": [64]}),
    "adaptive": private_study(training=TRAINING, privacy=PRIVACY | {"clipping": "adaptive"}),
}


@pytest.mark.parametrize("kind", sorted(STUDIES))
def test_killed_at_fifty_moments_the_update_is_the_same_and_is_charged_once(
    tmp_path: Path, kind: str
) -> None:
    # Imported here, so that a child does not spend its life importing.
    assert make_update is not None and SiteTrainer is not None
    simulation = tiny_simulation(tmp_path, STUDIES[kind])
    opening = FORK.Process(target=open_plan, args=(simulation, tmp_path / "plan"))
    opening.start()
    opening.join()
    plan = (tmp_path / "plan").read_text()
    site, models = simulation.sites["ash"], simulation.coordinator.exchange

    def copy(name: str) -> tuple[SiteHome, Path]:
        folder = tmp_path / name
        shutil.copytree(site.root, folder / "ash", symlinks=True)
        if models.exists():
            shutil.copytree(models, folder / "exchange")
        return SiteHome(folder / "ash"), folder

    home, folder = copy("reference")
    started = time.monotonic()
    reference = run(home, plan, folder)
    whole = time.monotonic() - started
    assert reference is not None
    moments = random.Random(7)
    cut = 0
    for number in range(KILLS):
        home, folder = copy(f"killed-{number}")
        cut += run(home, plan, folder, moments.uniform(0, whole)) is None
        # Never less spent than released: what lies in the outbox or the exchange was reserved before.
        sent = digests(folder / "exchange") - digests(models)
        assert (1 if sent or any(home.outbox("").glob("[0-9a-f]*")) else 0) <= spent(home) <= 1
        assert sent <= {parse_signed(reference).document["tensors"]}
        answer = run(home, plan, folder)
        assert answer is not None
        assert parse_signed(answer).document["tensors"] == parse_signed(reference).document["tensors"]
        assert spent(home) == 1
        shutil.rmtree(folder)
    assert cut > KILLS // 2  # most kills did come in the middle


def digests(exchange: Path) -> set[str]:
    """Names of what lies whole in an exchange."""
    return {path.name for path in exchange.rglob("*") if path.is_file() and len(path.name) == 64}


def spent(home: SiteHome) -> int:
    """Verify the ledger from its first entry and count what was reserved."""
    ledger = Ledger(home.ledger("ash"), "ash", "ash", SigningKey.load("ash", home.signing_key))
    ledger.verify()
    return len(ledger.spends())
