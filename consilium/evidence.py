"""`consilium release evidence` and `release regulatory`: what people bring to the next release. Light."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from tasks.home import CoordinatorHome

app = typer.Typer(no_args_is_help=True, help="Bring test results, a vulnerability scan and VEX statements.")

File = Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False)]
Files = Annotated[list[Path], typer.Argument(metavar="FILE...", exists=True, dir_okay=False)]
Made = Annotated[
    str | None, typer.Option(metavar="TIME", help="When it was made (ISO 8601), where the file does not say.")
]


@app.command()
def tests(files: Files, made: Made = None, json: Json = False) -> None:
    """Bring JUnit reports of the tests; they replace those that were brought before."""
    from tasks.evidence import add_tests

    with reporting_refusals(json):
        kept = add_tests(_coordinator(), *(_read(file) for file in files), made=made)
        _say(json, {"time": kept.time, **_counted(kept.results)})


@app.command()
def scan(file: File, made: Made = None, json: Json = False) -> None:
    """Bring a vulnerability scan: CycloneDX JSON, or pip-audit's JSON with --made."""
    from tasks.evidence import add_scan

    with reporting_refusals(json):
        kept = add_scan(_coordinator(), _read(file), made=made)
        found = len(kept.document.get("vulnerabilities", []))
        _say(json, {"time": kept.time, "vulnerabilities": found})


@app.command()
def vex(file: File, json: Json = False) -> None:
    """Bring VEX statements (CycloneDX JSON); they replace those that were brought before."""
    from tasks.evidence import add_vex

    with reporting_refusals(json):
        kept = add_vex(_coordinator(), _read(file))
        _say(json, {"statements": len(kept.document["vulnerabilities"])})


@app.command()
def show(json: Json = False) -> None:
    """Show what was brought, and what the gate on vulnerabilities would say now."""
    from release.dossier.vulnerabilities import unanswered, verdict
    from tasks.evidence import load_evidence
    from tasks.head import now
    from tasks.lineage import components

    with reporting_refusals(json):
        evidence = load_evidence(_coordinator())
        state, left = unanswered(evidence, now())
        decided = verdict(evidence, now(), components())
        value: dict[str, Any] = {
            "tests": _counted(evidence.tests),
            "tests_time": evidence.tests_time,
            "scan_time": evidence.scan_time,
            "statements": len((evidence.vex or {}).get("vulnerabilities", [])),
            "vulnerabilities": {
                "state": state,
                "unanswered": [finding.title for finding in left],
                "passed": decided.passed,
                "detail": decided.detail,
            },
        }
        if json:
            print_json(value)
            return
        table = Table("evidence", "of", "what")
        counted = ", ".join(f"{number} {result}" for result, number in value["tests"].items())
        table.add_row("tests", evidence.tests_time or "open", counted or "open")
        table.add_row("scan", evidence.scan_time or "open", decided.detail)
        table.add_row("VEX", "-", f"{value['statements']} statements")
        screen.print(table)


def regulatory(
    product: Annotated[str, typer.Argument(help="Name of the product, as in its releases.")],
    status: Annotated[str, typer.Option(help="The status, as the release will state it.")],
    authority: Annotated[str, typer.Option(help="Who decided it.")],
    reference: Annotated[str, typer.Option(help="Where the decision can be looked up.")],
    name: Annotated[str, typer.Option(help="Your name.")],
    role: Annotated[str, typer.Option(help="Your role.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="Your Ed25519 key (PKCS #8 PEM).")],
    study: Annotated[str | None, typer.Option(help="Where several studies make the product.")] = None,
    json: Json = False,
) -> None:
    """State and sign the regulatory status of a product's next release: a decision of yours, not of this."""
    from pydantic import ValidationError

    from contracts.regulatory import RegulatoryStatement
    from contracts.signing import SigningKey, first_problem
    from tasks.head import now
    from tasks.regulatory import protocol_of, state_status

    with reporting_refusals(json):
        home = _coordinator()
        protocol = protocol_of(home, product, study)
        if not authority.strip() or not reference.strip():
            raise ConsiliumError("E715", "a statement needs the authority and its reference")
        try:
            statement = RegulatoryStatement(
                product=product,
                protocol_hash=protocol.hash,
                status=status,
                basis=f"{authority}: {reference}",
                name=name,
                role=role,
                time=now(),
            )
        except ValidationError as error:
            raise ConsiliumError("E715", first_problem(error)) from error
        signer = SigningKey.load(name, key)
        state_status(home, protocol, statement, signer)
        _say(
            json,
            {
                "product": product,
                "protocol_hash": protocol.hash,
                "status": status,
                "key": signer.public,
            },
        )


def _coordinator() -> CoordinatorHome:
    from tasks.home import CoordinatorHome

    home = CoordinatorHome(home_folder() / "coordinator")
    if not home.root.is_dir():
        raise ConsiliumError("E801", f"{home_folder()} has no coordinator")
    return home


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConsiliumError("E715", f"{file}: {error.strerror}") from error


def _counted(results: Any) -> dict[str, int]:
    return dict(sorted(Counter(results.values()).items()))


def _say(json: bool, value: dict[str, Any]) -> None:
    if json:
        print_json(value)
        return
    for name, found in value.items():
        screen.print(f"{name.replace('_', ' ')}: {found}", highlight=False, markup=False, soft_wrap=True)
