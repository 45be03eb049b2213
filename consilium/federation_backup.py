"""`consilium federation backup` and `restore`: one file that holds the coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from consilium.output import Json, errors, home_folder, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from consilium.restored import Standing


def backup_command(
    file: Annotated[Path, typer.Argument(help="A new .tar; nothing is overwritten.")], json: Json = False
) -> None:
    """Save the coordinator's folder and Airflow's database to one file, also while rounds go on."""
    with reporting_refusals(json):
        from consilium.backup import backup, digest_of
        from tasks.home import CoordinatorHome

        found = backup(CoordinatorHome(home_folder() / "coordinator"), file.absolute())
        digest = digest_of(found)
        if json:
            print_json({"file": str(file), "digest": digest, "files": len(found.files), **_states(found)})
            return
        screen.print(f"Saved {len(found.files)} files of {found.created} to {file}, digest", highlight=False)
        screen.print(digest, soft_wrap=True, highlight=False)
        errors.print("The file holds the coordinator's private keys: keep it encrypted and apart.")


def restore_command(
    file: Annotated[Path, typer.Argument(help="A file made by `consilium federation backup`.")],
    home: Annotated[Path, typer.Option(help="A home without a coordinator.")],
    database: Annotated[
        str | None, typer.Option(help="URL of an empty PostgreSQL database; as saved when left out.")
    ] = None,
    kit: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="The newest startup kit, to compare members with."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Let these members in; do not ask.")] = False,
    json: Json = False,
) -> None:
    """Verify a backup and put it into an empty home, when the members that it lets in again are confirmed."""
    with reporting_refusals(json):
        from consilium.backup import Backup, digest_of, restore
        from consilium.restored import standing
        from tasks.home import CoordinatorHome

        who: list[Standing] = []

        def look(found: Backup, restored: CoordinatorHome) -> None:
            who.append(standing(restored, kit))
            if not json:
                _show(found.created, who[0])
            _confirm(yes, json)

        found = restore(file, home.absolute(), database, look)
        if json:
            said = {"members": [member.site for member in who[0].members], "missing": who[0].missing}
            digest = digest_of(found)
            print_json({"home": str(home), "digest": digest, **said, **_states(found)})
            return
        screen.print(f"Restored {len(found.files)} files of {found.created} to {home}:", highlight=False)
        for study, state in found.studies.items():
            screen.print(f"  {study}: {state['status']}, round {state['round']}", highlight=False)
        screen.print(f"digest {digest_of(found)}", soft_wrap=True, highlight=False)
        errors.print("Rounds after the backup are made again: read docs/operations.md before `consilium up`.")


def _show(created: str, who: Standing) -> None:
    """Say whom the registry lets in again, and what it cannot know."""
    from contracts.enrolment import fingerprint

    screen.print(f"By the backup of {created} these are members, by these signing keys:", highlight=False)
    for member in who.members:
        screen.print(f"  {member.site}  {fingerprint(member.sign_key)}", highlight=False, soft_wrap=True)
    if who.missing is None:
        last = f"after {who.last}" if who.last else "on members"
        errors.print(
            f"Decisions {last} are not in it: who was revoked since, or changed keys that were stolen, is "
            "let in again. A startup kit of later shows it: --kit FILE."
        )
    elif who.missing:
        errors.print("By the kit, which is of later or of another course:")
        for line in who.missing:
            errors.print(f"  {line}", highlight=False, markup=False)
        errors.print("Decide so again, before `consilium up`: docs/operations.md.")
    else:
        screen.print("The kit names the same last decision.", highlight=False)


def _confirm(yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json:
        raise ConsiliumError("E121", "--json needs --yes: the members in the backup are let in again")
    try:
        confirmed = typer.confirm("Let these members in again?")
    except typer.Abort:  # no terminal, so that nobody can answer
        confirmed = False
    if not confirmed:
        raise ConsiliumError("E121", "nobody confirmed the members; without a terminal it needs --yes")


def _states(found: object) -> dict[str, object]:
    from consilium.backup import Backup

    assert isinstance(found, Backup)
    return {"created": found.created, "studies": found.studies}
