"""Enrolling hospitals that run on this machine: one person has all of them, and nobody has to ring up."""

from __future__ import annotations

from pathlib import Path

from site_runtime.config import load_site_file
from site_runtime.enrol import enrol_site
from site_runtime.home import SiteHome
from site_runtime.joining import follow_coordinator
from site_runtime.peers import follow_rotations, pin_peer
from tasks.federation import coordinator_key, enrol, load_federation
from tasks.home import CoordinatorHome
from tasks.membership import rotations


def enrol_together(coordinator: CoordinatorHome, sites: Path, files: list[Path]) -> list[SiteHome]:
    """Enrol the hospitals of these `site.yaml` files below `sites`, and have them pin each other's keys.

    A hospital that was revoked stays so: starting everything again is no decision of the coordinator's.

    Raises:
        ConsiliumError: E103, E107, E806, E810, E812 of the steps.
    """
    public = coordinator_key(coordinator).public
    revoked = {m.site for m in load_federation(coordinator).members if m.status == "revoked"}
    homes = []
    for file in files:
        name = load_site_file(file).site
        home = SiteHome(sites / name)
        homes.append(home)
        follow_coordinator(home, rotations(coordinator), public)
        card = enrol_site(home, file, public)
        if name not in revoked:
            enrol(coordinator, card.model_dump())
    changes, members = rotations(coordinator), load_federation(coordinator).active
    for home in homes:
        follow_rotations(home, changes)
        for member in members:
            if member.site != home.root.name:
                pin_peer(home, member.site, member.sign_key, replace=True)
    return homes
