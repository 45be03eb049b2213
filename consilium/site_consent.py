"""`consilium site protocol`, `approve`, `pause`, `resume`, `withdraw`: the hospital decides on a study."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.output import Json, print_json, reporting_refusals, screen
from consilium.site_home import Home, Site, Study, StudyFile, find_site
from consilium.site_policy import all_verdicts, as_facts, verdict_table
from consilium.study import find_study
from contracts.study import load_study
from durable.files import write_atomic

if TYPE_CHECKING:
    from site_runtime.home import SiteHome

MaybeStudy = Annotated[str | None, typer.Argument(help="Name of the study; the hospital as a whole without.")]


def protocol(
    study: StudyFile,
    out: Annotated[
        Path | None, typer.Option(help="Where the page is written; the hospital's own folder.")
    ] = None,
    site: Site = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Write the page on which people approve: all that a study asks of this hospital, rule by rule."""
    with reporting_refusals(json):
        from consilium.site_page import asked_of, page
        from site_runtime.config import load_site
        from site_runtime.consent import approval_code

        found, asked = find_site(site, home), load_study(find_study(study))
        config = load_site(found)
        verdicts = all_verdicts(found, config, asked)
        code = approval_code(asked.hash, config.policy_digest)
        target = out or found.root / "pages" / f"{asked.study}-{asked.hash[:12]}.html"
        write_atomic(target, page(config, asked, verdicts, code).encode())
        if json:
            print_json(
                {
                    "site": config.site,
                    "study": asked.study,
                    "protocol_hash": asked.hash,
                    "policy": config.policy_digest,
                    "code": code,
                    "page": str(target),
                    "asks": [{"about": about, "says": says} for about, says in asked_of(asked)],
                    "rules": [as_facts(v) for v in verdicts],
                }
            )
            return
        for about, says in asked_of(asked):
            screen.print(f"{about}: {says}", highlight=False, markup=False)
        screen.print(verdict_table(f"What {config.site} says of it", verdicts))
        screen.print(f"protocol {asked.hash}", highlight=False, soft_wrap=True)
        screen.print(f"policy   {config.policy_digest}", highlight=False, soft_wrap=True)
        screen.print(f"page     {target}", highlight=False, soft_wrap=True)
        screen.print(f"Approval code: [bold]{code}[/]", highlight=False)


def approve(
    study: StudyFile,
    by: Annotated[str, typer.Option("--by", help="Your name, as in governance.approvers of site.yaml.")],
    code: Annotated[str, typer.Option("--code", help="The code on the page of `site protocol`.")],
    site: Site = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Approve exactly this version of a study. A second, different person has to do so too."""
    with reporting_refusals(json):
        from site_runtime.consent import approve as decide

        asked, found = load_study(find_study(study)), find_site(site, home)
        made = decide(found, asked, by, code)
        if json:
            print_json({"site": found.root.name, "study": asked.study, **made.model_dump(exclude={"code"})})
        elif made.state == "proposed":
            screen.print(
                f"{asked.study} is [bold]proposed[/] by {made.by}. This hospital takes no part until a "
                "second person has approved it."
            )
        else:
            _say(found, asked.study, json)


def pause(study: MaybeStudy = None, site: Site = None, home: Home = None, json: Json = False) -> None:
    """Take no part in a study until `resume`; without a study, in any."""
    with reporting_refusals(json):
        from site_runtime.consent import pause as decide

        decide(found := find_site(site, home), study)
        _say(found, study, json)


def resume(study: MaybeStudy = None, site: Site = None, home: Home = None, json: Json = False) -> None:
    """Take part in a paused study again; without a study, end the pause of the hospital as a whole."""
    with reporting_refusals(json):
        from site_runtime.consent import resume as decide

        decide(found := find_site(site, home), study)
        _say(found, study, json)


def withdraw(study: Study, site: Site = None, home: Home = None, json: Json = False) -> None:
    """Leave a study. What was sent stays sent, and its privacy stays spent."""
    with reporting_refusals(json):
        from site_runtime.consent import withdraw as decide

        decide(found := find_site(site, home), study)
        _say(found, study, json)


def add_to(app: typer.Typer) -> None:
    """Add the commands to `consilium site`."""
    for command in (protocol, approve, pause, resume, withdraw):
        app.command()(command)


def _say(home: SiteHome, study: str | None, as_json: bool) -> None:
    from site_runtime.config import load_site
    from site_runtime.decisions import load_consent

    consent, site = load_consent(home, study), load_site(home).site
    if consent is None:  # resumed without ever having paused
        state = {"state": "resumed"}
        print_json({"site": site, "study": study, **state}) if as_json else screen.print(
            f"{site}: not paused"
        )
        return
    last = consent.last
    if as_json:
        print_json({"site": site, "study": study, **last.model_dump(exclude={"code"})})
        return
    what = study or "this hospital as a whole"
    screen.print(f"{site}: {what} is [bold]{last.state}[/] since {last.time} ({consent.people})")
