"""Enrolment: a hospital's keys are drawn here, once, and its request to the coordinator is made."""

from __future__ import annotations

import os
from pathlib import Path

from contracts.enrolment import make_request
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Key, SiteName
from contracts.signing import SigningKey
from durable.clock import now
from durable.files import locked, write_atomic
from site_runtime.config import SiteConfig, dump_site, load_site, load_site_file
from site_runtime.egress import send
from site_runtime.home import SiteHome


class SiteCard(Contract):
    """What the coordinator's registry holds of a hospital: public keys and its nominal size."""

    site: SiteName
    sign_key: Key
    edge_key: Key
    declared_size: int


def enrol_site(home: SiteHome, config_file: Path, coordinator_public: str | None = None) -> SiteCard:
    """Make (or complete) the home of a site and return its card. Enrolling again changes no key.

    The configuration is copied with its paths made absolute; a fixed holdout list is copied into the home,
    so that it is frozen too.

    Args:
        coordinator_public: the coordinator's Ed25519 public key (base64url), pinned from now on; a hospital
            elsewhere pins it when it takes its startup kit (`site_runtime.joining`).

    Raises:
        ConsiliumError: E103 for an invalid site file, or one that changes what enrolment froze (name,
            lineage, declared size); E806 when the site is enrolled with another coordinator.
    """
    config = load_site_file(config_file)
    with locked(home.root / ".enrol.lock"):
        if home.config.exists():
            _check_frozen(load_site(home), config)
        if coordinator_public is None:
            pass
        elif home.coordinator_key.exists():
            if home.coordinator_key.read_text().strip() != coordinator_public:
                raise ConsiliumError("E806", f"site {config.site!r} is enrolled with another coordinator")
        else:
            write_atomic(home.coordinator_key, coordinator_public.encode())
        home.signing_key.parent.mkdir(parents=True, exist_ok=True)
        os.chmod(home.signing_key.parent, 0o700)
        _write_config(home, config)
        for path in (home.signing_key, home.edge_key):
            if not path.exists():
                SigningKey.generate(config.site).save(path)
        for path in (home.noise_key, home.split_key, home.consent_key):
            if not path.exists():
                write_atomic(path, os.urandom(32))
    return site_card(home)


def join_request(home: SiteHome) -> str:
    """Return the signed request of an enrolled site to be a member, and log it among what left.

    Raises:
        ConsiliumError: E103, E801.
    """
    config = load_site(home)
    sign, edge = (SigningKey.load(config.site, path) for path in (home.signing_key, home.edge_key))
    return send(home, config, make_request(sign, edge, config.governance.declared_size, now()))


def site_card(home: SiteHome) -> SiteCard:
    """Return the card of an enrolled site.

    Raises:
        ConsiliumError: E103, E801.
    """
    config = load_site(home)
    return SiteCard(
        site=config.site,
        sign_key=SigningKey.load(config.site, home.signing_key).public,
        edge_key=SigningKey.load(config.site, home.edge_key).public,
        declared_size=config.governance.declared_size,
    )


def _check_frozen(old: SiteConfig, new: SiteConfig) -> None:
    for field, before, after in (
        ("site", old.site, new.site),
        ("governance.lineage", old.governance.lineage, new.governance.lineage),
        ("governance.declared_size", old.governance.declared_size, new.governance.declared_size),
    ):
        if before != after:
            raise ConsiliumError(
                "E103", f"field {field!r}: {after!r}, expected {before!r} as frozen at enrolment"
            )


def _write_config(home: SiteHome, config: SiteConfig) -> None:
    if config.holdout is not None:
        target = home.root / "holdout.csv"
        if config.holdout != target.resolve():
            try:
                given = config.holdout.read_bytes()
            except OSError as error:
                raise ConsiliumError("E103", f"field 'holdout': {error}") from error
            if target.exists() and target.read_bytes() != given:
                # Held-out patients would move into training, and trained ones be evaluated on.
                raise ConsiliumError("E103", "field 'holdout': another list, expected the one of enrolment")
            write_atomic(target, given)
        config = config.model_copy(update={"holdout": Path(target.name)})
    write_atomic(home.config, dump_site(config).encode())
