"""`consilium release`: list, show and verify releases. Light: no torch, Airflow, GX or DVC."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from consilium import release_verify
from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest

app = typer.Typer(no_args_is_help=True, help="List, show and verify releases.")

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
            key_file.write_text(release_verify.own_public_key().pem, encoding="ascii")
        if json:
            print_json(_summary(target, found[-1].manifest))
        else:
            screen.print(f"{study} {found[-1].manifest.version} -> {target}", highlight=False)


app.command("verify")(release_verify.verify)
app.command("rotate-key")(release_verify.rotate_key)


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
