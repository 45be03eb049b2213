"""`consilium ledger`: a hospital's privacy ledger, shown and verified. Needs no torch and no coordinator."""

from __future__ import annotations

import json as jsonlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from consilium.output import Json, print_json, reporting_refusals, screen
from consilium.site import Home, Site, find_site
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from privacy.chain import Record
    from site_runtime.home import SiteHome

app = typer.Typer(no_args_is_help=True)

_DEFAULT_DELTA = 1e-5


@dataclass(frozen=True)
class LineageFile:
    """One ledger of a site, and the public key that signed it."""

    lineage: str
    path: Path
    public: str


@app.command()
def show(
    site: Site = None,
    home: Home = None,
    delta: Annotated[
        float | None, typer.Option(help="Delta of epsilon; else the smallest of the approved studies.")
    ] = None,
    json: Json = False,
) -> None:
    """Show every entry, and epsilon of everything spent up to it, against the cap of the lineage."""
    with reporting_refusals(json):
        place = find_site(site, home)
        at = delta if delta is not None else _smallest_delta(place)
        cap = _cap(place)
        facts = [_facts(ledger, at, cap) for ledger in _ledgers(place)]
        if json:
            print_json(facts)
            return
        if not facts:
            screen.print("No ledger here: nothing was ever spent.")
        for each in facts:
            _print_table(each)


@app.command()
def verify(
    site: Site = None,
    home: Home = None,
    file: Annotated[Path | None, typer.Option(help="A ledger that was handed over; needs --public.")] = None,
    public: Annotated[str | None, typer.Option(help="The site's public key (43 characters).")] = None,
    head: Annotated[str | None, typer.Option(help="A digest that the ledger must contain.")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta of epsilon.")] = None,
    json: Json = False,
) -> None:
    """Replay the chain from its triples: every signature, link and commitment, and epsilon anew."""
    with reporting_refusals(json):
        if file is not None:
            if public is None:
                raise ConsiliumError("E801", "--file needs the site's public key: --public")
            ledgers, at = [LineageFile(file.stem, file, public)], delta or _DEFAULT_DELTA
        else:
            place = find_site(site, home)
            ledgers, at = _ledgers(place), delta if delta is not None else _smallest_delta(place)
        if head is not None and not ledgers:
            raise ConsiliumError("E407", f"no ledger here, expected one with {head}")
        results = [_verified(ledger, head, at, own=file is None) for ledger in ledgers]
        if json:
            print_json(results)
            return
        if not results:
            screen.print("No ledger here: nothing was ever spent.")
        for result in results:
            screen.print(
                f"[green]verified[/] {result['lineage']}: {result['entries']} entries, "
                f"epsilon {result['epsilon']:.4f} at delta {at:g}, head {result['head']}"
            )


def _ledgers(home: SiteHome) -> list[LineageFile]:
    from contracts.signing import SigningKey

    folder = home.ledger("any").parent
    # A head without its ledger is a ledger that was deleted, so both kinds of file name a lineage.
    names = sorted({p.stem for suffix in ("jsonl", "head") for p in folder.glob(f"*.{suffix}")})
    public = SigningKey.load("site", home.signing_key).public
    return [LineageFile(name, home.ledger(name), public) for name in names]


def _records(ledger: LineageFile, *, own: bool) -> list[Record]:
    """Replay a ledger without writing to it. At the site itself its head must agree."""
    from privacy.chain import replay

    try:
        data = ledger.path.read_bytes()
        records, _ = replay(data, ledger.public)
        if own:
            marked = jsonlib.loads(ledger.path.with_suffix(".head").read_bytes())
            length, head = int(marked["length"]), str(marked["head"])
            if length > len(records) or (length and records[length - 1].digest != head):
                raise ConsiliumError("E402", f"{ledger.path} has lost entries: {length} were acknowledged")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConsiliumError("E402", f"{ledger.path}: {error}") from error
    return records


def _verified(ledger: LineageFile, head: str | None, delta: float, *, own: bool) -> dict[str, Any]:
    from privacy.accountant import epsilon
    from privacy.ledger import spend_of_entry

    records = _records(ledger, own=own)
    if head is not None and all(record.digest != head for record in records):
        raise ConsiliumError("E407", f"{ledger.path}: {len(records)} entries, none of them {head}")
    spends = [spend for record in records if (spend := spend_of_entry(record.entry)) is not None]
    return {
        "lineage": records[0].entry.lineage,
        "site": records[0].entry.site,
        "entries": len(records),
        "head": records[-1].digest,
        "delta": delta,
        "epsilon": epsilon(spends, delta),
    }


def _facts(ledger: LineageFile, delta: float, cap: float | None) -> dict[str, Any]:
    from privacy.accountant import epsilon
    from privacy.ledger import spend_of_entry

    records = _records(ledger, own=True)
    committed = {r.opening.plan for r in records if r.entry.kind == "commit" and r.opening}
    entries: list[dict[str, Any]] = []
    spends = []
    for record in records:
        spend = spend_of_entry(record.entry)
        if spend is None:
            continue
        spends.append(spend)
        opening = record.opening
        entries.append(
            {
                "sequence": record.entry.sequence,
                "time": opening.time if opening else None,
                "study": opening.study if opening else None,
                "purpose": opening.purpose if opening else None,
                "plan": opening.plan if opening else None,
                "sample_rate": spend.sample_rate,
                "noise_multiplier": spend.noise_multiplier,
                "steps": spend.steps,
                "epsilon_so_far": epsilon(spends, delta),
                "delivered": opening is not None and opening.plan in committed,
            }
        )
    spent = entries[-1]["epsilon_so_far"] if entries else 0.0
    return {
        "lineage": ledger.lineage,
        "site": records[0].entry.site,
        "entries": entries,
        "length": len(records),
        "head": records[-1].digest,
        "delta": delta,
        "epsilon": spent,
        "epsilon_cap": cap,
        "epsilon_left": None if cap is None else cap - spent,
    }


def _print_table(facts: dict[str, Any]) -> None:
    cap = facts["epsilon_cap"]
    table = Table(title=f"{facts['site']}: lineage {facts['lineage']}")
    numbers = ("#", "rate", "noise", "steps", "epsilon", "of cap")
    for name in ("#", "time", "study", "purpose", *numbers[1:], "sent"):
        table.add_column(name, justify="right" if name in numbers else "left", no_wrap=name != "study")
    for entry in facts["entries"]:
        table.add_row(
            str(entry["sequence"]),
            (entry["time"] or "")[:16].replace("T", " "),
            entry["study"] or "",
            entry["purpose"] or "",
            f"{entry['sample_rate']:g}",
            f"{entry['noise_multiplier']:g}",
            str(entry["steps"]),
            f"{entry['epsilon_so_far']:.3f}",
            f"{entry['epsilon_so_far'] / cap:.0%}" if cap else "",
            "yes" if entry["delivered"] else "no",
        )
    screen.print(table)
    of = "" if cap is None else f" of {cap:g}, {facts['epsilon_left']:.3f} left"
    at = f"at delta {facts['delta']:g}; head {facts['head'][:16]}"
    screen.print(f"epsilon {facts['epsilon']:.3f}{of}, {at}")


def _smallest_delta(home: SiteHome) -> float:
    """The strictest delta of the studies that this hospital approved."""
    deltas = []
    for path in home.approval("any").parent.glob("*.json"):
        try:
            privacy = jsonlib.loads(path.read_bytes()).get("privacy", {})
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(privacy, dict) and isinstance(privacy.get("delta"), float):
            deltas.append(privacy["delta"])
    return min(deltas, default=_DEFAULT_DELTA)


def _cap(home: SiteHome) -> float | None:
    """The site's own cap. None where only the light install is there, which cannot read connectors."""
    from site_runtime.config import load_site

    try:
        return load_site(home).budget.epsilon
    except ImportError:
        return None
