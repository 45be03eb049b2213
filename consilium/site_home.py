"""Which hospital a command is about: the options that every `consilium site` command shares."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.output import home_folder
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from site_runtime.home import SiteHome

Study = Annotated[str, typer.Argument(help="Name of the study.")]
StudyFile = Annotated[
    str, typer.Argument(metavar="STUDY", help="A study file, or the name of one that ships.")
]
Site = Annotated[str | None, typer.Option("--site", help="Which hospital, when this home holds several.")]
Home = Annotated[Path | None, typer.Option("--home", help="The hospital's own folder, wherever it lies.")]
_OFFICER = typer.Option(help="Who decides; stays at the hospital.")
_REASON = typer.Option(help="Why, in a sentence; stays at the hospital.")
Officer = Annotated[str, _OFFICER]
MaybeOfficer = Annotated[str | None, _OFFICER]
Reason = Annotated[str, _REASON]
MaybeReason = Annotated[str | None, _REASON]


def find_site(site: str | None, home: Path | None) -> SiteHome:
    """Return the home of an enrolled site.

    Raises:
        ConsiliumError: E806, there is none, or several and none was named.
    """
    from site_runtime.home import SiteHome

    if home is not None:
        found = [home]
    else:
        sites = home_folder() / "sites"
        found = [sites / site] if site else sorted(p.parent for p in sites.glob("*/site.yaml"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConsiliumError("E806", f"sites in {home_folder()}: {names}; name one with --site")
    if not (found[0] / "site.yaml").exists():
        raise ConsiliumError("E806", f"{found[0]} holds no site.yaml")
    return SiteHome(found[0])
