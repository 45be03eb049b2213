"""`consilium release verify` and `rotate-key`: who signs releases, which may be installed. Light."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from consilium.output import Json, home_folder, plain, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError
from release.signature import PublicKey, ReleaseKey

if TYPE_CHECKING:
    from release.rotation import Rotation
    from release.verify import Check

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A release directory.")]


def verify(
    directory: Directory,
    key: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The coordinator's public release key (PEM). Default: of this home. Never one in DIR.",
        ),
    ] = None,
    fingerprint: Annotated[
        str | None,
        typer.Option(metavar="HEX", help="SHA-256 that the key's file must have, as you were told it."),
    ] = None,
    rotations: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The coordinator's rotations.jsonl: successors of the key count too."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Verify a release offline: exit code 0 only if every check passed."""
    from release.rotation import read_rotations
    from release.verify import verified, verify_release

    with reporting_refusals(json):
        trusted, followed = own_trust() if key is None else (PublicKey.read(_apart(key, directory)), [])
        _require_fingerprint(trusted, fingerprint)
        if rotations is not None:
            followed = read_rotations(_apart(rotations, directory).read_bytes())
        checks = verify_release(directory, trusted, followed)
        good = verified(checks)
        if json:
            print_json(
                {
                    "path": str(directory.absolute()),
                    "verified": good,
                    "trusted_key": trusted.fingerprint,
                    "checks": [
                        {"name": c.name, "passed": c.passed, "detail": c.detail, "number": c.number}
                        for c in checks
                    ],
                }
            )
            raise typer.Exit(0 if good else 1)
        screen.print(_table(checks))
        if good:
            screen.print(f"[bold green]Verified.[/] {directory}")
            return
        # The first failure is the reason: what follows it may only be its consequence.
        next(check for check in checks if check.passed is False).require()


def rotate_key(
    reason: Annotated[str, typer.Option(help="Why; kept in the public record of the rotation.")],
    json: Json = False,
) -> None:
    """Replace this home's release key; the old key signs the new one, and is then gone from here."""
    from tasks.head import now
    from tasks.home import CoordinatorHome
    from tasks.release_key import rotate_release_key

    with reporting_refusals(json):
        home = CoordinatorHome(home_folder() / "coordinator")
        done = rotate_release_key(home, now(), reason)
        old, new = PublicKey.parse(done.old), PublicKey.parse(done.new)
        kept = home.release_key.with_name(f"release-{old.fingerprint[:12]}.pub.pem")
        kept.write_text(old.pem, encoding="ascii")
        if json:
            found = {"old": old.fingerprint, "new": new.fingerprint, "pem": new.pem}
            print_json(found | {"rotations": str(home.rotations), "old_public": str(kept)})
            return
        screen.print(f"old key {old.fingerprint}, its public half: {kept}", highlight=False, soft_wrap=True)
        screen.print(f"new key {new.fingerprint}", highlight=False, soft_wrap=True)
        screen.print(f"hand out {home.rotations} and the new public key:", highlight=False, soft_wrap=True)
        screen.print(new.pem, highlight=False)


def own_public_key() -> PublicKey:
    """The public release key of this home's coordinator.

    Raises:
        ConsiliumError: E801, this home has none.
    """
    private = home_folder() / "coordinator" / "keys" / "release.pem"
    if not private.exists():
        raise ConsiliumError("E801", "this home has no release key; give the coordinator's with --key")
    return ReleaseKey.load(private).public


def own_trust() -> tuple[PublicKey, list[Rotation]]:
    """This home's first release key and its rotations: what it released under any of its keys verifies.

    Raises:
        ConsiliumError: E801, this home has no release key; E802, E803, its record of rotations is damaged.
    """
    from release.rotation import read_rotations, trusted_keys

    present = own_public_key()
    record = home_folder() / "coordinator" / "keys" / "rotations.jsonl"
    rotations = read_rotations(record.read_bytes()) if record.exists() else []
    if not rotations:
        return present, []
    first = PublicKey.parse(rotations[0].old, str(record))
    if trusted_keys(first, rotations)[-1].key != present:
        raise ConsiliumError("E803", f"{record} does not lead to this home's release key")
    return first, rotations


def _require_fingerprint(key: PublicKey, told: str | None) -> None:
    """Compare a key with the fingerprint that was told by another way, however it is spaced (E801)."""
    if told is not None and re.sub(r"[\s:]", "", told).lower() != key.fingerprint:
        raise ConsiliumError("E801", f"the key's fingerprint is {key.fingerprint}, not {told!r}")


def _apart(file: Path, directory: Path) -> Path:
    """A file that is not inside the release: what comes with it proves nothing."""
    if file.resolve().is_relative_to(directory.resolve()):
        raise ConsiliumError("E801", f"{file} is inside the release: it proves nothing")
    if not file.is_file():
        raise ConsiliumError("E801", f"{file}: no such file")
    return file


def _table(checks: Sequence[Check]) -> Table:
    table = Table("check", "result", "detail")
    marks = {True: "[green]passed[/]", False: "[bold red]failed[/]", None: "[yellow]not checked[/]"}
    for check in checks:
        number = f"{check.number}: " if check.passed is False else ""
        table.add_row(check.name, marks[check.passed], escape(plain(f"{number}{check.detail}")))
    return table
