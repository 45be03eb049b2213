"""A hospital's new signing key: a crash at any moment leaves a home that the same command completes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts.enrolment import open_rotation
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from privacy.accountant import Spend
from privacy.ledger import Ledger
from site_runtime.home import SiteHome
from site_runtime.rotation import rotate_signing_key

SITE = """
site: ash
source: {connector: csv, path: rows.csv, patient: id}
governance: {institution: Ash, contact: c, lineage: everyone, declared_size: 500, approved_by: officer}
budget: {epsilon: 4.0}
"""
SPEND = Spend(0.1, 1.5, 10)
WHO = {"officer": "Dr. A. Smith", "reason": "yearly"}
LINEAGES = ("children", "everyone")
FORK = multiprocessing.get_context("fork")
# Every effect on the disk passes one of these.
EFFECTS = ("write", "pwrite", "fsync", "fdatasync", "replace", "ftruncate", "unlink")


def made(root: Path) -> SiteHome:
    home = SiteHome(root)
    key = SigningKey.generate("ash")
    key.save(home.signing_key)
    SigningKey.generate("ash").save(home.edge_key)
    home.config.write_text(SITE)
    for lineage in LINEAGES:
        ledger = Ledger(home.ledger(lineage), "ash", lineage, key)
        plan = {"study": "demo", "plan": "1" * 64, "purpose": "training"}
        ledger.reserve(**plan, spend=SPEND, epsilon_cap=9.0, delta=1e-4)
    return home


def opens(home: SiteHome, lineage: str, key: SigningKey) -> bool:
    try:
        return Ledger(home.ledger(lineage), "ash", lineage, key).spends() == [SPEND]
    except ConsiliumError as error:
        assert error.number == "E402"
        return False


def die_before(effect: int) -> Callable[[], int]:
    """End this process before its n-th effect on the disk; return the counter of effects."""
    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            nonlocal count
            count += 1
            if count == effect:
                os._exit(9)
            return real(*arguments, **keywords)

        return call

    for name in EFFECTS:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: count


def _rotate(home: SiteHome, effect: int) -> None:
    die_before(effect)
    rotate_signing_key(home, **WHO)


def test_all_ledgers_are_handed_over_and_the_old_public_key_is_kept(tmp_path: Path) -> None:
    home = made(tmp_path / "ash")
    publics = [SigningKey.load("ash", home.signing_key).public]
    for number in (1, 2):
        done = rotate_signing_key(home, **WHO)
        assert done.old_public == publics[-1] and done.lineages == LINEAGES
        publics.append(SigningKey.load("ash", home.signing_key).public)
        assert done.new_public == publics[-1] and len(set(publics)) == number + 1
        assert done.kept == home.root / "keys" / f"sign-{number}.pub"
        assert done.kept.read_text().strip() == publics[-2]
    assert home.signing_key.stat().st_mode & 0o077 == 0
    assert sorted(p.name for p in home.signing_key.parent.glob("[!.]*")) == [
        *("edge.pem", "sign-1.json", "sign-1.pub", "sign-2.json", "sign-2.pub", "sign.pem")
    ]
    key = SigningKey.load("ash", home.signing_key)
    assert all(opens(home, lineage, key) for lineage in LINEAGES)


@pytest.mark.slow
def test_a_crash_at_any_moment_leaves_what_the_same_command_completes(tmp_path: Path) -> None:
    completed = False
    for effect in range(1, 200):
        home = made(tmp_path / str(effect))
        old = SigningKey.load("ash", home.signing_key)
        process = FORK.Process(target=_rotate, args=(home, effect))
        process.start()
        process.join(60)
        assert process.exitcode in (0, 9)
        if process.exitcode == 0:
            completed = True
            break
        now = SigningKey.load("ash", home.signing_key)
        waiting = home.root / "keys" / "sign-next.pem"
        keys = [now, SigningKey.load("ash", waiting)] if waiting.exists() else [now]
        for lineage in LINEAGES:  # exactly one of the keys that are there is in force
            assert [opens(home, lineage, key) for key in keys].count(True) == 1, effect
        done = rotate_signing_key(home, **WHO)
        final = SigningKey.load("ash", home.signing_key)
        assert final.public == done.new_public != old.public and not waiting.exists()
        change = open_rotation(done.document.read_bytes())
        assert change.new_key == final.public, effect
        assert SigningKey.load("ash", home.edge_key).public == change.edge_key, effect
        assert all(opens(home, lineage, final) for lineage in LINEAGES), effect
        kept = [p.read_text().strip() for p in sorted((home.root / "keys").glob("sign-*.pub"))]
        assert {old.public, change.old_key} <= set(kept) and len(kept) == len(set(kept))
    assert completed and effect > 10


@pytest.mark.parametrize("damage", ["changed", "head deleted"])
def test_a_ledger_that_does_not_verify_keeps_the_key(tmp_path: Path, damage: str) -> None:
    home = made(tmp_path / "ash")
    before = home.signing_key.read_bytes()
    path = home.ledger("everyone")
    if damage == "changed":
        path.write_bytes(path.read_bytes().replace(b'"steps":10', b'"steps":1'))
    else:
        path.with_suffix(".head").unlink()
    with pytest.raises(ConsiliumError) as error:
        rotate_signing_key(home, **WHO)
    assert error.value.number == "E402" and home.signing_key.read_bytes() == before
