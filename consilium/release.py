"""`consilium release`: list, show and verify releases. Light: no torch, Airflow, GX or DVC."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from consilium import evidence
from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest
from contracts.signing import SigningKey

app = typer.Typer(no_args_is_help=True, help="List, show and verify releases.")
app.add_typer(evidence.app, name="evidence")
app.command("regulatory")(evidence.regulatory)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A release directory.")]


@app.command("list")
def list_releases(json: Json = False) -> None:
    """List the releases that this home's coordinator published."""
    from release.registry import releases

    with reporting_refusals(json):
        found = [_summary(r.path, r.manifest) for r in releases(home_folder() / "coordinator" / "releases")]
        if json:
            print_json(found)
            return
        if not found:
            screen.print("No release yet. A study that finished and passed its gates makes one.")
            return
        table = Table("study", "version", "epsilon", "approved by", "created")
        for row in found:
            epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}"
            approved_by = row["approved_by"] or "-"
            table.add_row(row["study"], row["version"], epsilon, approved_by, row["created"])
        screen.print(table)
        for row in found:
            screen.print(row["path"], soft_wrap=True, highlight=False)


@app.command()
def show(directory: Directory, json: Json = False) -> None:
    """Show what a release says of itself; `verify` says whether to believe it."""
    from release.directory import read_manifest

    with reporting_refusals(json):
        manifest = read_manifest(directory)
        if json:
            print_json(manifest.model_dump(mode="json") | {"path": str(directory.absolute())})
            return
        _print_manifest(manifest)
        screen.print(
            "\nRead validation.html and dp_statement.md beside it. Not verified: use `release verify`."
        )


@app.command()
def copy(
    study: Annotated[str, typer.Argument(help="Name of a study that this home released.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create or replace.")],
    version: Annotated[str | None, typer.Option(help="Default: the latest.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Also write the coordinator's public key, to hand over apart.")
    ] = None,
    json: Json = False,
) -> None:
    """Copy a release of this home, for handing it to a deployment team."""
    from release.registry import releases

    with reporting_refusals(json):
        found = [
            r
            for r in releases(home_folder() / "coordinator" / "releases")
            if r.manifest.study == study and version in (None, r.manifest.version)
        ]
        if not found:
            raise ConsiliumError("E706", f"no release {version or ''} of {study!r} in {home_folder()}")
        if target.exists() and not (target / "manifest.json").exists():
            raise ConsiliumError("E707", f"{target} exists and is no release, so it is not replaced")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(found[-1].path, target)
        if key_file is not None:
            key_file.parent.mkdir(parents=True, exist_ok=True)
            key_file.write_text(_trusted_key(None, target) + "\n", encoding="utf-8")
        if json:
            print_json(_summary(target, found[-1].manifest))
        else:
            screen.print(f"{study} {found[-1].manifest.version} -> {target}", highlight=False)


@app.command()
def verify(
    directory: Directory,
    key: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|TEXT",
            help="The coordinator's public key. Default: the coordinator of this home. Never one in DIR.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Verify a release offline: exit code 0 only if every check passed."""
    from release.verify import verified, verify_release

    with reporting_refusals(json):
        trusted = _trusted_key(key, directory)
        checks = verify_release(directory, trusted)
        good = verified(checks)
        if json:
            print_json(
                {
                    "path": str(directory.absolute()),
                    "verified": good,
                    "trusted_key": trusted,
                    "checks": [
                        {"name": c.name, "passed": c.passed, "detail": c.detail, "number": c.number}
                        for c in checks
                    ],
                }
            )
            raise typer.Exit(0 if good else 1)
        table = Table("check", "result", "detail")
        marks = {True: "[green]passed[/]", False: "[bold red]failed[/]", None: "[yellow]not checked[/]"}
        for check in checks:
            number = f"{check.number}: " if check.passed is False else ""
            table.add_row(check.name, marks[check.passed], f"{number}{check.detail}")
        screen.print(table)
        if good:
            screen.print(f"[bold green]Verified.[/] {directory}")
            return
        # The first failure is the reason: what follows it may only be its consequence.
        next(check for check in checks if check.passed is False).require()


def _summary(path: Path, manifest: ReleaseManifest) -> dict[str, Any]:
    approval = manifest.approvals[0] if manifest.approvals else None
    return {
        "path": str(path.absolute()),
        "version": manifest.version,
        "study": manifest.study,
        "title": manifest.title,
        "created": manifest.created,
        "protocol_hash": manifest.protocol_hash,
        "sites": list(manifest.sites),
        "rounds": manifest.rounds,
        "epsilon": manifest.epsilon,
        "delta": manifest.delta,
        "approved_by": approval.approved_by if approval else None,
        "candidate": manifest.candidate_digest,
    }


def _print_manifest(manifest: ReleaseManifest) -> None:
    facts = Table(show_header=False, title=f"{manifest.study} {manifest.version}", title_justify="left")
    private = "no differential privacy"
    if manifest.privacy_mode != "none":
        private = "not stated by every hospital" if manifest.epsilon is None else f"{manifest.epsilon:.3f}"
    if manifest.privacy_mode == "site":
        private += " (a hospital's, not a patient's)"
    facts.add_row("title", manifest.title)
    facts.add_row("intended use", manifest.intended_use)
    facts.add_row("hospitals", ", ".join(manifest.sites))
    facts.add_row("rounds", str(manifest.rounds))
    facts.add_row("epsilon (largest)", private)
    if manifest.delta is not None:
        facts.add_row("delta", f"{manifest.delta:g}")
    facts.add_row("threshold", f"{manifest.decision_threshold:g}")
    for approval in manifest.approvals:
        facts.add_row("approved by", f"{approval.approved_by} ({approval.role}), {approval.time}")
    facts.add_row("created", manifest.created)
    screen.print(facts)
    gates = Table("gate", "result", "found", title="Acceptance gates", title_justify="left")
    marks = {True: "[green]passed[/]", False: "[bold red]failed[/]", None: "[yellow]not testable[/]"}
    for gate in manifest.gates:
        gates.add_row(gate.gate, marks[gate.passed], gate.detail)
    screen.print(gates)
    files = Table("file", "bytes", title="Files", title_justify="left")
    files.add_column("SHA-256", overflow="fold")
    for file in manifest.files:
        files.add_row(file.path, str(file.size), file.sha256)
    screen.print(files)


def _trusted_key(given: str | None, directory: Path) -> str:
    """The key to trust: the one given, or that of this home's coordinator; never one from the release.

    Raises:
        ConsiliumError: E801.
    """
    if given is None:
        private = home_folder() / "coordinator" / "keys" / "sign.pem"
        if not private.exists():
            raise ConsiliumError("E801", "this home has no coordinator; give its public key with --key")
        return SigningKey.load("coordinator", private).public
    file = Path(given)
    if len(given) != 43 or file.exists():
        if file.resolve().is_relative_to(directory.resolve()):
            raise ConsiliumError("E801", f"{given} is inside the release: it proves nothing")
        try:
            given = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConsiliumError("E801", f"{file}: {error}") from error
    if re.fullmatch(r"[A-Za-z0-9_-]{43}", given) is None:
        raise ConsiliumError("E801", f"{given[:60]!r} is no public key, expected 43 base64url characters")
    return given
