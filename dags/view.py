"""What this process may see: all studies and sites at the coordinator, itself alone at a site.

The same DAG files lie at the coordinator and at every site, with the same DAG and task names; only the
studies and the sites that they loop over differ.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol

OWN_TASKS = 16  # Airflow's default for a DAG without hospitals


@dataclass(frozen=True)
class View:
    """Studies and sites that the DAG files lay out here."""

    studies: list[StudyProtocol]
    sites: list[str]
    coordinator: bool

    @property
    def tasks_at_once(self) -> int:
        """`max_active_tasks` of a DAG: every hospital in the same step, beside the coordinator's own tasks.

        With Airflow's default of 16 a seventeenth hospital would wait until one of the others is done.
        """
        return len(self.sites) + OWN_TASKS


def current_view() -> View:
    """Read the view from the home that the environment names; without one there is nothing to see."""
    if site_home := os.environ.get("CONSILIUM_SITE_HOME"):
        return site_view(Path(site_home))
    if home := os.environ.get("CONSILIUM_HOME"):
        return coordinator_view(Path(home) / "coordinator")
    return View(studies=[], sites=[], coordinator=False)


def coordinator_view(root: Path) -> View:
    """Every registered study, every enrolled site."""
    from tasks.federation import load_federation
    from tasks.head import load_protocol, registered_studies
    from tasks.home import CoordinatorHome

    home = CoordinatorHome(root)
    studies = [load_protocol(home, study) for study in registered_studies(home)]
    return View(studies=studies, sites=load_federation(home).sites, coordinator=True)


def site_view(root: Path) -> View:
    """The studies that this hospital approved, with itself as the only site."""
    from site_runtime.consent import load_approved
    from site_runtime.home import SiteHome

    home = SiteHome(root)
    studies = []
    for path in sorted((root / "studies").glob("*.json")):
        if path.stem.endswith(".consent"):
            continue
        try:
            studies.append(load_approved(home, path.stem))
        except ConsiliumError:
            continue  # its own task will refuse with the number
    # Its folder may have any name; the worker's environment says the one of the federation.
    return View(studies=studies, sites=[os.environ.get("CONSILIUM_SITE", root.name)], coordinator=False)
