"""Enrolment draws each key once, keeps it private, and freezes what the federation was told."""

import pytest
import yaml

from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from site_runtime.config import load_site
from site_runtime.enrol import enrol_site, site_card
from site_runtime.home import SiteHome
from tests.factories import SITE, site_fields, write_site

COORDINATOR = SigningKey.generate("coordinator").public


def test_enrolling_twice_changes_nothing(tmp_path):
    home, file = SiteHome(tmp_path / "home"), write_site(tmp_path / "source")
    first = enrol_site(home, file, COORDINATOR)
    keys = {path: path.read_bytes() for path in (home.root / "keys").iterdir()}
    assert enrol_site(home, file, COORDINATOR) == first == site_card(home)
    assert keys == {path: path.read_bytes() for path in (home.root / "keys").iterdir()}


def test_keys_are_private_and_differ(tmp_path):
    homes = [SiteHome(tmp_path / name) for name in ("a", "b")]
    for home in homes:
        enrol_site(home, write_site(tmp_path / "source"), COORDINATOR)
        for path in (home.signing_key, home.edge_key, home.noise_key, home.split_key):
            assert path.stat().st_mode & 0o077 == 0
        assert home.signing_key.parent.stat().st_mode & 0o077 == 0
    secrets = [
        path.read_bytes()
        for home in homes
        for path in (home.signing_key, home.edge_key, home.noise_key, home.split_key)
    ]
    assert len(set(secrets)) == 8
    assert len(homes[0].noise_key.read_bytes()) == 32


def test_the_copied_configuration_works_from_anywhere(tmp_path, monkeypatch):
    home = SiteHome(tmp_path / "home")
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "held.csv").write_text("p1\n")
    enrol_site(home, write_site(tmp_path / "source", holdout="held.csv"), COORDINATOR)
    monkeypatch.chdir("/")
    (tmp_path / "source" / "held.csv").unlink()
    config = load_site(home)
    assert config.source.path == tmp_path / "source" / "data.csv"
    assert config.holdout.read_text() == "p1\n"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"site": "oak"}, "site"),
        ({"governance": {**SITE["governance"], "lineage": "fresh"}}, "governance.lineage"),
        ({"governance": {**SITE["governance"], "declared_size": 46}}, "governance.declared_size"),
    ],
)
def test_what_enrolment_froze_cannot_be_changed(tmp_path, changes, field):
    home, file = SiteHome(tmp_path / "home"), write_site(tmp_path / "source")
    enrol_site(home, file, COORDINATOR)
    file.write_text(yaml.safe_dump(site_fields(**changes)))
    with pytest.raises(ConsiliumError) as refused:
        enrol_site(home, file, COORDINATOR)
    assert refused.value.number == "E103" and repr(field) in refused.value.detail


def test_another_coordinator_is_refused(tmp_path):
    home, file = SiteHome(tmp_path / "home"), write_site(tmp_path / "source")
    enrol_site(home, file, COORDINATOR)
    with pytest.raises(ConsiliumError, match="E806"):
        enrol_site(home, file, SigningKey.generate("coordinator").public)


def test_a_holdout_list_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConsiliumError, match=r"E103.*'holdout'"):
        enrol_site(SiteHome(tmp_path / "home"), write_site(tmp_path, holdout="absent.csv"), COORDINATOR)
