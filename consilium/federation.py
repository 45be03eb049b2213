"""`consilium federation`: the coordinator's view of its members: who is in, since when, by which keys."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from consilium.federation_backup import backup_command, restore_command
from consilium.federation_certificate import certificate
from consilium.federation_init import init
from consilium.output import (
    Json,
    Yes,
    file_to_write,
    home_folder,
    plain,
    print_json,
    reporting_refusals,
    screen,
)
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from tasks.federation import Member
    from tasks.home import CoordinatorHome

app = typer.Typer(no_args_is_help=True)

app.command("init")(init)
app.command("certificate")(certificate)
app.command("backup")(backup_command)
app.command("restore")(restore_command)

Name = Annotated[str, typer.Argument(metavar="SITE", help="Name of the hospital.")]
File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)]
Out = Annotated[
    Path | None,
    typer.Option(help="File of the kit; <site>.kit.json here.", callback=file_to_write()),
]
By = Annotated[str, typer.Option("--by", help="Who decides, for the log of decisions.")]
OPERATOR = "operator"


@app.command()
def approve(
    file: File,
    out: Out = None,
    given: Annotated[
        str | None, typer.Option("--fingerprint", help="What the hospital read out; nothing is asked then.")
    ] = None,
    by: By = OPERATOR,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Admit the hospital whose request this is, and write its startup kit."""
    from contracts.enrolment import check_fingerprint, fingerprint, open_request
    from tasks import membership

    with reporting_refusals(json):
        home, text = _coordinator(), file.read_bytes().strip()
        request, _ = open_request(text)
        if not json:
            screen.print(f"[bold]{request.site}[/] asks to join with {request.declared_size} patients.")
            _print_fingerprint("signing key", request.sign_key)
            _print_fingerprint("edge key", request.edge_key)
        if given is not None:
            check_fingerprint(given, request.sign_key)
        else:
            _ask("Is this the signing key's fingerprint that the hospital read out to you?", yes, json)
        membership.startup_kit(home)  # before anybody is admitted: can a kit be made?
        member = membership.approve(home, text, by)
        kit = _write_kit(home, out or Path(f"{member.site}.kit.json"))
        if json:
            print_json({**_facts(home, member), **kit})
            return
        screen.print(f"[green]admitted[/] {member.site}; its startup kit is {kit['kit']}", highlight=False)
        _print_fingerprint("the coordinator's key, to be read out", kit["coordinator_key"])
        own = fingerprint(kit["coordinator_key"])
        screen.print(
            f'There: consilium site join {Path(kit["kit"]).name} --fingerprint "{own}"', soft_wrap=True
        )


@app.command()
def kit(out: Out = None, json: Json = False) -> None:
    """Write the startup kit as it is now: the same for every member, and no secret."""
    with reporting_refusals(json):
        facts = _write_kit(_coordinator(), out or Path("federation.kit.json"))
        if json:
            print_json(facts)
            return
        screen.print(f"{facts['kit']} names {', '.join(facts['members']) or 'no member'}.", highlight=False)
        _print_fingerprint("the coordinator's key", facts["coordinator_key"])


@app.command()
def rotate(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", exists=True, dir_okay=False, help="What `site rotate` wrote."),
    ] = None,
    coordinator: Annotated[
        bool, typer.Option("--coordinator", help="Change the coordinator's own signing key.")
    ] = False,
    officer: Annotated[str | None, typer.Option(help="Who decides; with --coordinator.")] = None,
    reason: Annotated[str | None, typer.Option(help="Why, in a sentence; with --coordinator.")] = None,
    out: Out = None,
    by: By = OPERATOR,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Put a hospital's new keys in force by its signed change, or make a new key for the coordinator."""
    from tasks import membership

    with reporting_refusals(json):
        if (file is not None) == coordinator:
            raise typer.BadParameter("expected a file, or --coordinator")
        home = _coordinator()
        if file is not None:
            member = membership.rotate(home, file.read_bytes().strip(), by)
            _refuse_certificates(home)
            facts = {**_facts(home, member), **_write_kit(home, out or Path(f"{member.site}.kit.json"))}
            said = f"[green]rotated[/] {member.site}: its old keys open nothing any more"
        else:
            if officer is None or reason is None:
                raise typer.BadParameter("--coordinator needs --officer and --reason")
            _ask("Replace the coordinator's signing key?", yes, json)
            membership.rotate_coordinator(home, officer=officer, reason=reason)
            facts = _write_kit(home, out or Path("federation.kit.json"))
            said = "[green]rotated[/] the coordinator: hospitals refuse its plans until they took the new kit"
        if json:
            print_json(facts)
            return
        screen.print(said, highlight=False)
        screen.print(f"There: consilium site join {Path(facts['kit']).name}", highlight=False)


@app.command()
def revoke(
    site: Name,
    reason: Annotated[str, typer.Option(help="Why, in a sentence; stays in the registry and the log.")],
    by: By = OPERATOR,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """End a hospital's membership at once. What it sent before stays verifiable."""
    from tasks import membership
    from tasks.federation import load_federation

    with reporting_refusals(json):
        home = _coordinator()
        load_federation(home).known(site)
        _ask(f"Revoke {site}? It can come back with new keys only.", yes, json)
        member = membership.revoke(home, site, reason, by)
        _refuse_certificates(home)
        if json:
            print_json(_facts(home, member))
        else:
            screen.print(f"[green]revoked[/] {site}: nothing of it is let through any more", highlight=False)


@app.command()
def remove(site: Name, by: By = OPERATOR, yes: Yes = False, json: Json = False) -> None:
    """Forget a member that never took part in a study, such as one approved by mistake."""
    from tasks import membership
    from tasks.federation import load_federation

    with reporting_refusals(json):
        home = _coordinator()
        load_federation(home).known(site)
        _ask(f"Remove {site} from the registry?", yes, json)
        membership.remove(home, site, by)
        if json:
            print_json({"removed": site})
        else:
            screen.print(f"[green]removed[/] {site}", highlight=False)


@app.command("list")
def list_command(json: Json = False) -> None:
    """List the members: name, status, since, last seen, declared size, fingerprint."""
    from tasks.federation import load_federation

    with reporting_refusals(json):
        home = _coordinator()
        found = [_facts(home, member) for member in load_federation(home).members]
        if json:
            print_json(found)
            return
        if not found:
            screen.print(f"Nobody is enrolled in {home.root}.", highlight=False)
            return
        table = Table(title="Members of the federation", title_justify="left")
        for column in ("hospital", "status", "since", "last seen", "size", "signing key"):
            table.add_column(column, overflow="fold")
        for one in found:
            colour = "green" if one["status"] == "active" else "red"
            status = f"[{colour}]{one['status']}[/]"
            short = f"{one['fingerprints']['sign_key'][:19]} ..."
            seen = one["last_seen"] or "never"
            table.add_row(one["site"], status, one["since"] or "", seen, str(one["declared_size"]), short)
        screen.print(table)


@app.command()
def show(site: Name, json: Json = False) -> None:
    """Show one member with every key that it ever had."""
    from contracts.enrolment import fingerprint
    from tasks.federation import load_federation

    with reporting_refusals(json):
        home = _coordinator()
        member = load_federation(home).known(site)
        facts = _facts(home, member)
        facts["former"] = [
            {"sign_key": fingerprint(f.sign_key), "until": f.until, "ended": f.ended} for f in member.former
        ]
        if json:
            print_json(facts)
            return
        screen.print(
            f"[bold]{site}[/] {member.status} since {member.since or 'version 0.1'}", highlight=False
        )
        if member.reason:
            screen.print(f"reason: {plain(member.reason)}", highlight=False, markup=False)
        seen = facts["last_seen"] or "never"
        screen.print(f"declared size {member.declared_size}; last seen {seen}", highlight=False)
        _print_fingerprint("signing key", member.sign_key)
        _print_fingerprint("edge key", member.edge_key)
        for former in member.former:
            _print_fingerprint(f"signing key until {former.until} ({former.ended})", former.sign_key)


@app.command()
def log(json: Json = False) -> None:
    """Verify and show the log of decisions: who was admitted, rotated, revoked and removed when."""
    from tasks.decisions import decisions_head, read_decisions
    from tasks.federation import coordinator_key

    with reporting_refusals(json):
        home = _coordinator()
        found = read_decisions(home, coordinator_key(home).public)
        if json:
            decisions = [decision.model_dump(mode="json") for decision in found]
            print_json({"head": decisions_head(home), "decisions": decisions})
            return
        table = Table(title="Decisions on members", title_justify="left")
        for column in ("time", "hospital", "decision", "by", "reason"):
            table.add_column(column, overflow="fold")
        for one in found:
            said = [plain(str(one.details.get(name, ""))).replace("[", r"\[") for name in ("by", "reason")]
            table.add_row(one.time, one.site, one.decision, *said)
        screen.print(table)
        screen.print(f"verified; head {decisions_head(home)}", highlight=False, soft_wrap=True)


def _refuse_certificates(home: CoordinatorHome) -> None:
    """Put the certificates of keys that no longer count on nginx's list, where hospitals have any."""
    from consilium.certificates import write_crl
    from consilium.nginx import reload

    if write_crl(home):
        reload(home.nginx)


def _coordinator() -> CoordinatorHome:
    from tasks.home import CoordinatorHome

    return CoordinatorHome(home_folder() / "coordinator")


def _facts(home: CoordinatorHome, member: Member) -> dict[str, Any]:
    """What `list` says of one member."""
    from contracts.enrolment import fingerprint

    seen = home.presence / member.site  # touched by the gate at every request
    last = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seen.stat().st_mtime)) if seen.exists() else None
    return {
        "site": member.site,
        "status": member.status,
        "since": member.since,
        "reason": member.reason,
        "last_seen": last,
        "declared_size": member.declared_size,
        "fingerprints": {"sign_key": fingerprint(member.sign_key), "edge_key": fingerprint(member.edge_key)},
    }


def _write_kit(home: CoordinatorHome, path: Path) -> dict[str, Any]:
    """Write the kit of now and say what is in it."""
    from contracts.enrolment import open_kit
    from durable.files import write_atomic
    from tasks.membership import startup_kit

    text = startup_kit(home)
    write_atomic(path.absolute(), text.encode())
    made = open_kit(text)
    return {
        "kit": str(path),
        "federation": made.federation,
        "url": made.url,
        "exchange": made.exchange,
        "coordinator_key": made.coordinator_key,
        "members": [card.site for card in made.members],
    }


def _print_fingerprint(what: str, key: str) -> None:
    from contracts.enrolment import fingerprint

    screen.print(f"{what}:", highlight=False)
    screen.print(f"  {fingerprint(key)}", highlight=False, soft_wrap=True)


def _ask(question: str, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json:
        raise ConsiliumError("E810", "--json needs --yes, or the fingerprint where there is one")
    try:
        confirmed = typer.confirm(question)
    except typer.Abort:  # no terminal, so that nobody can answer
        confirmed = False
    if not confirmed:
        raise ConsiliumError("E810", "nobody confirmed it; without a terminal it needs --yes")
