"""More than a hundred ways to change a release, each refused by its own check, with its number and reason.

Some are made without the key (a file is changed on the way), some with it (a careless or dishonest
coordinator signs something wrong): there the content itself must be refused.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from release.directory import read_manifest
from release.signature import ReleaseKey
from release.verify import Check, verified, verify_release
from tests.full_release import Sealed, full_facts, full_release
from tests.release.mutations import conformance, documents, models, on_the_way, origins, promised, signed_off
from tests.release.mutations.documents import statement
from tests.release.mutations.world import FILES, MUTATIONS, Mutation, World

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sealed, ReleaseKey, Sealed]:
    root = tmp_path_factory.mktemp("mutations")
    it = full_release(root / "it")
    older = full_release(root / "older", full_facts(version="0.9.0"), it.key)
    return it, ReleaseKey.make(root / "stranger.pem"), older


def first_failure(release: Sealed) -> Check | None:
    checks = verify_release(release.folder, release.key.public)
    return next((check for check in checks if check.passed is False), None)


SOURCES = (documents, models, on_the_way, origins, promised, signed_off)
SOURCES += (conformance,) if conformance.WRITTEN else ()


def test_there_are_more_than_a_hundred_and_no_two_are_alike() -> None:
    assert len(MUTATIONS) >= 100
    assert all(any(one.do.__module__ == source.__name__ for one in MUTATIONS) for source in SOURCES)
    assert len({one.name for one in MUTATIONS}) == len(MUTATIONS)


def test_the_release_itself_verifies_and_so_does_one_that_is_signed_anew(
    made: tuple[Sealed, ReleaseKey, Sealed], tmp_path: Path
) -> None:
    it, _, older = made
    assert first_failure(it) is None and first_failure(older) is None
    again = Sealed(shutil.copytree(it.folder, tmp_path / "1.0.0"), it.key)
    again.rewrite({"README.txt": b"Another text.\n"})
    assert first_failure(again) is None
    files = {file.path for file in read_manifest(it.folder).files}
    assert files >= set(FILES)


def test_a_status_that_a_person_stated_is_accepted(
    made: tuple[Sealed, ReleaseKey, Sealed], tmp_path: Path
) -> None:
    again = Sealed(shutil.copytree(made[0].folder, tmp_path / "1.0.0"), made[0].key)
    again.rewrite({"regulatory.json": statement()}, regulatory_status="cleared")
    checks = {c.name: c for c in verify_release(again.folder, again.key.public)}
    assert verified(list(checks.values())) and "R. Test" in checks["regulatory status"].detail


@pytest.mark.parametrize("one", MUTATIONS, ids=lambda one: one.name)
def test_a_changed_release_is_refused_for_its_own_reason(
    one: Mutation, made: tuple[Sealed, ReleaseKey, Sealed], tmp_path: Path
) -> None:
    it, stranger, older = made
    copy = Sealed(shutil.copytree(it.folder, tmp_path / "1.0.0"), it.key)
    one.do(World(copy, stranger, older))
    failed = first_failure(copy)
    assert failed is not None, "accepted"
    assert (failed.name, failed.number) == (one.check, one.number), failed.detail
    assert any(part in failed.detail for part in one.reason.split("|")), failed.detail
