"""`consilium release`: list, show, compare and verify releases. Light: no torch, Airflow, GX or DVC."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE
from rich.markup import escape
from rich.table import Table

from consilium import evidence, release_approval, release_diff, release_rollback, release_verify
from consilium.output import WIDE, Json, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError
from contracts.release import ReleaseManifest

app = typer.Typer(no_args_is_help=True, help="List, show, compare, approve and verify releases.")
app.add_typer(evidence.app, name="evidence")
app.command("regulatory")(evidence.regulatory)
release_approval.add_to(app)

Directory = Annotated[Path, typer.Argument(metavar="DIR", help="A release directory.")]


@app.command("list")
def list_releases(json: Json = False) -> None:
    """List the releases that this home's coordinator published."""
    from consilium.release_lookup import current_version, published

    with reporting_refusals(json):
        listed = published()
        current = {product: current_version(product) for product in {r.manifest.product for r in listed}}
        found = [
            _summary(r.path, r.manifest) | {"current": r.manifest.version == current[r.manifest.product]}
            for r in listed
        ]
        if json:
            print_json(found)
            return
        if not found:
            screen.print("No release yet. A study that finished and passed its gates makes one.")
            return
        table = Table(box=SIMPLE, pad_edge=False)
        # On a narrow terminal the date would be cut; `release show` has it.
        dated = ("created",) if screen.width >= WIDE else ()
        for name in ("product", "version", "change", "epsilon", "approved by", "status", *dated):
            least = 16 if name == "status" else None
            table.add_column(name, overflow="fold", no_wrap=name in ("version", "created"), min_width=least)
        for row in found:
            table.add_row(
                row["product"],
                f"[bold]{row['version']} *[/]" if row["current"] else row["version"],
                row["level"],
                "none" if row["epsilon"] is None else f"{row['epsilon']:.2f}",
                escape(row["approved_by"] or "-"),
                escape(row["regulatory_status"]),
                *([row["created"][:10]] if dated else []),
            )
        screen.print(table)
        screen.print(
            "* current: the version to use; `consilium release rollback` changes it", highlight=False
        )
        for row in found:
            screen.print(row["path"], soft_wrap=True, highlight=False)


@app.command()
def show(
    release: Annotated[
        str, typer.Argument(help="A release directory, product@version, or product for the current one.")
    ],
    json: Json = False,
) -> None:
    """Show what a release says of itself; `verify` says whether to believe it."""
    from consilium.release_lookup import release_directory
    from release.directory import read_manifest

    with reporting_refusals(json):
        directory = release_directory(release)
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
    product: Annotated[str, typer.Argument(help="Name of a product that this home released.")],
    target: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to create or replace.")],
    version: Annotated[str | None, typer.Option(help="Default: the current one.")] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="Also write the coordinator's public key, to hand over apart.")
    ] = None,
    json: Json = False,
) -> None:
    """Copy a release of this home, for handing it to a deployment team."""
    from consilium.release_lookup import release_named

    with reporting_refusals(json):
        found = release_named(product, version)
        if target.exists() and not (target / "manifest.json").exists():
            raise ConsiliumError("E707", f"{target} exists and is no release, so it is not replaced")
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(found.path, target)
        if key_file is not None:
            key_file.parent.mkdir(parents=True, exist_ok=True)
            key_file.write_text(release_verify.own_public_key().pem, encoding="ascii")
        if json:
            print_json(_summary(target, found.manifest))
        else:
            screen.print(f"{product} {found.manifest.version} -> {target}", highlight=False)


app.command("diff")(release_diff.diff)
app.command("rollback")(release_rollback.rollback)


app.command("verify")(release_verify.verify)
app.command("rotate-key")(release_verify.rotate_key)


def _summary(path: Path, manifest: ReleaseManifest) -> dict[str, Any]:
    return {
        "path": str(path.absolute()),
        "version": manifest.version,
        "product": manifest.product,
        "study": manifest.study,
        "level": manifest.change.level,
        "changed": list(manifest.change.changed),
        "regulatory_status": manifest.regulatory_status,
        "title": manifest.title,
        "created": manifest.created,
        "protocol_hash": manifest.protocol_hash,
        "sites": list(manifest.sites),
        "rounds": manifest.rounds,
        "epsilon": manifest.epsilon,
        "delta": manifest.delta,
        "approved_by": ", ".join(approval.approved_by for approval in manifest.approvals) or None,
        "candidate": manifest.candidate_digest,
    }


def _print_manifest(manifest: ReleaseManifest) -> None:
    facts = Table(show_header=False, title=f"{manifest.product} {manifest.version}", title_justify="left")
    private = "no differential privacy"
    if manifest.privacy_mode != "none":
        private = "not stated by every hospital" if manifest.epsilon is None else f"{manifest.epsilon:.3f}"
    if manifest.privacy_mode == "site":
        private += " (a hospital's, not a patient's)"
    change = manifest.change
    what = f"{change.level}"
    if change.since is not None:
        what += f" since {change.since}: {', '.join(change.changed) or 'nothing'} changed"
        what += f"; planned modification: {change.modification or 'open'}"
    facts.add_row("title", manifest.title)
    facts.add_row("study", manifest.study)
    facts.add_row("change", what)
    facts.add_row("regulatory status", manifest.regulatory_status)
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
