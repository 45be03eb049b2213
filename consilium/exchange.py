"""`consilium exchange`: what lies in the coordinator's exchange of tensors, and what may go."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError
from tasks.exchange_gc import Content, collect, contents
from tasks.home import CoordinatorHome
from tasks.settings import load_settings

app = typer.Typer(no_args_is_help=True)

_UNITS = ("bytes", "kB", "MB", "GB", "TB")


@app.callback()
def _group() -> None:
    """What lies in the coordinator's exchange of tensors."""


@app.command()
def show(json: Json = False) -> None:
    """Say how much the exchange holds: in use, begun, and free to go."""
    with reporting_refusals(json):
        home = _home()
        keep_days = load_settings(home).exchange.keep_days
        kinds: dict[str, list[Content]] = {
            "named by a document": [],
            "begun": [],
            "kept for now": [],
            "free": [],
        }
        for content in contents(home):
            kinds[_kind(content, keep_days)].append(content)
        if json:
            print_json(
                {
                    "keep_days": keep_days,
                    "contents": {
                        kind: {"files": len(those), "bytes": sum(content.size for content in those)}
                        for kind, those in kinds.items()
                    },
                }
            )
            return
        table = Table("what", "files", "size", box=None)
        for kind, those in kinds.items():
            table.add_row(kind, str(len(those)), _size(sum(content.size for content in those)))
        screen.print(table)
        screen.print(f"Free is what no document names and is older than {keep_days:g} days.", highlight=False)


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    keep_days: Annotated[
        float | None,
        typer.Option("--keep-days", min=0.0, help="Instead of `exchange.keep_days` in the settings."),
    ] = None,
    json: Json = False,
) -> None:
    """Throw away what no head, plan, record, answer or release names, once it is old enough."""
    with reporting_refusals(json):
        home = _home()
        days = load_settings(home).exchange.keep_days if keep_days is None else keep_days
        garbage = collect(home, days, dry_run=dry_run)
        total = sum(content.size for content in garbage)
        if json:
            names = [str(content.path.relative_to(home.exchange)) for content in garbage]
            print_json({"dry_run": dry_run, "keep_days": days, "bytes": total, "removed": names})
            return
        for content in garbage:
            screen.print(
                f"{content.path.name}  {_size(content.size)}, {content.days:.0f} days", highlight=False
            )
        what = "would be removed" if dry_run else "removed"
        screen.print(f"{len(garbage)} files {what}, {_size(total)}", highlight=False)


def _home() -> CoordinatorHome:
    home = CoordinatorHome(home_folder() / "coordinator")
    if not home.root.is_dir():
        raise ConsiliumError("E801", f"{home_folder()} has no coordinator")
    return home


def _kind(content: Content, keep_days: float) -> str:
    if content.is_garbage(keep_days):
        return "free"
    if not content.complete:
        return "begun"
    return "named by a document" if content.named else "kept for now"


def _size(count: float) -> str:
    """A size for people, in powers of 1000."""
    unit = 0
    while count >= 1000 and unit < len(_UNITS) - 1:
        count, unit = count / 1000, unit + 1
    return f"{count:.1f} {_UNITS[unit]}" if unit else f"{count:.0f} {_UNITS[0]}"
