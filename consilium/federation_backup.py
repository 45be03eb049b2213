"""`consilium federation backup` and `restore`: one file that holds the coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.output import Json, errors, home_folder, print_json, reporting_refusals, screen


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
    json: Json = False,
) -> None:
    """Verify a backup and put it into an empty home."""
    with reporting_refusals(json):
        from consilium.backup import digest_of, restore

        found = restore(file, home.absolute(), database)
        if json:
            print_json({"home": str(home), "digest": digest_of(found), **_states(found)})
            return
        screen.print(f"Restored {len(found.files)} files of {found.created} to {home}:", highlight=False)
        for study, state in found.studies.items():
            screen.print(f"  {study}: {state['status']}, round {state['round']}", highlight=False)
        screen.print(f"digest {digest_of(found)}", soft_wrap=True, highlight=False)
        errors.print("Rounds after the backup are made again: read docs/operations.md before `consilium up`.")


def _states(found: object) -> dict[str, object]:
    from consilium.backup import Backup

    assert isinstance(found, Backup)
    return {"created": found.created, "studies": found.studies}
