"""What a privacy officer decides about a ledger: charges without a plan, restoration, a new signing key."""

from __future__ import annotations

import shlex
from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from consilium.output import Json, Yes, print_json, reporting_refusals, screen
from consilium.site_home import Home, Officer, Reason, Site, find_site
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from privacy.accountant import Spend
    from privacy.ledger import Ledger
    from site_runtime.home import SiteHome

Lineage = Annotated[str | None, typer.Option(help="Which lineage, when the hospital has several.")]
Spends = Annotated[
    list[str] | None,
    typer.Option("--spend", metavar="RATE,SIGMA,STEPS", help="What to charge, e.g. 0.1,1.5,10; repeatable."),
]
OfStudy = Annotated[
    str | None, typer.Option("--study", help="The study that it was spent on, if it was one.")
]


def write_off(
    officer: Officer,
    reason: Reason,
    spend: Spends = None,
    study: OfStudy = None,
    site: Site = None,
    home: Home = None,
    lineage: Lineage = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Charge what no plan made, for ever: spent elsewhere, or in a trial done by hand."""
    with reporting_refusals(json):
        from contracts.signing import SigningKey
        from privacy.ledger import Ledger

        place = find_site(site, home)
        owner, name = _which(place, lineage)
        charges = _spends(spend)
        if not charges:
            raise ConsiliumError("E417", "nothing to charge, expected --spend RATE,SIGMA,STEPS")
        _ask(f"Charge {_words(charges)} to lineage {name}, for ever?", yes, json)
        ledger = Ledger(place.ledger(name), owner, name, SigningKey.load(owner, place.signing_key))
        ledger.write_off(*charges, officer=officer, reason=reason, study=study)
        _report(ledger, name, len(charges), json)


def restore(
    officer: Officer,
    reason: Reason,
    head: Annotated[str, typer.Option(help="The last head of this ledger that the coordinator has seen.")],
    spend: Spends = None,
    spend_found: Annotated[
        bool,
        typer.Option("--spend-found", help="Charge what signed lines behind the damage spent, besides."),
    ] = False,
    nothing_lost: Annotated[
        bool, typer.Option("--nothing-lost", help="State that the lost entries spent nothing.")
    ] = False,
    study: OfStudy = None,
    site: Site = None,
    home: Home = None,
    lineage: Lineage = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Make a ledger usable that lost entries, charging at least what they may have spent.

    Put the newest copy of the ledger and of its .head file back first, if there is one. What still verifies
    is kept; what is cut off stays beside it under another name. What is cut off and still readable must be
    charged: a refusal names it and the command that does.
    """
    with reporting_refusals(json):
        from privacy.ledger import Ledger
        from privacy.restoration import ChargesMissing
        from site_runtime.rotation import key_to_restore

        place = find_site(site, home)
        owner, name = _which(place, lineage)
        charges = _spends(spend)
        if (bool(charges) or spend_found) == nothing_lost:
            raise ConsiliumError(
                "E417",
                "expected --spend RATE,SIGMA,STEPS for what was lost, --spend-found for what can still be "
                "read, or --nothing-lost",
            )
        ledger = place.ledger(name), owner, name, key_to_restore(place, owner, name)
        loss = Ledger.loss(*ledger)
        told = [charge.spend for charge in (*loss.carried, *(loss.found if spend_found else ()))] + charges
        what = f"charge {_words(told)}" if told else "state that nothing that was spent is lost"
        _ask(f"Restore lineage {name} and {what}?", yes, json)
        try:
            restored = Ledger.restored(
                *ledger,
                lost_head=head,
                charges=charges,
                spend_found=spend_found,
                nothing_lost=nothing_lost,
                officer=officer,
                reason=reason,
                study=study,
            )
        except ChargesMissing as error:
            again = ["consilium", "ledger", "restore", "--head", head, *error.options]
            where = {"--lineage": lineage, "--site": site, "--home": home}
            given = {"--officer": officer, "--reason": reason, **where}
            again += [part for k, v in given.items() if v is not None for part in (k, str(v))]
            raise ConsiliumError("E417", f"{error.detail}. At least:\n{shlex.join(again)}") from error
        _report(restored, name, len(told) + 1, json)


def rotate(
    officer: Officer,
    reason: Reason,
    site: Site = None,
    home: Home = None,
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Draw a new signing key for this hospital and hand every ledger over to it. Run again if interrupted."""
    with reporting_refusals(json):
        from site_runtime.rotation import rotate_signing_key

        place = find_site(site, home)
        _ask("Replace this hospital's signing key?", yes, json)
        done = rotate_signing_key(place, officer=officer, reason=reason)
        facts = {
            "old_key": done.old_public,
            "new_key": done.new_public,
            "kept": done.kept,
            "rotation": done.document,
            "lineages": list(done.lineages),
        }
        if json:
            print_json(facts)
            return
        names = ", ".join(done.lineages) or "none"
        screen.print(f"[green]rotated[/] lineages: {names}; the old public key is kept in {done.kept}")
        screen.print(f"new public key: {done.new_public}", highlight=False)
        screen.print(
            "The coordinator knows the old key and refuses what the new one signs until it has learned the "
            "new one. Send it this file, which the old key signed, for `consilium federation rotate`:"
        )
        screen.print(str(done.document), highlight=False, soft_wrap=True)


def _which(home: SiteHome, lineage: str | None) -> tuple[str, str]:
    """Name of the site and of the lineage: the one that is given, or the site's own."""
    from site_runtime.config import load_site

    config = load_site(home)
    own = config.governance.lineage
    folder = home.ledger("any").parent
    # A head without its ledger is a ledger that was deleted.
    known = {own, *(path.stem for kind in ("jsonl", "head") for path in folder.glob(f"*.{kind}"))}
    if lineage is not None and lineage not in known:
        raise ConsiliumError("E417", f"lineage {lineage!r}, expected one of {', '.join(sorted(known))}")
    return config.site, lineage or own


def _spends(texts: list[str] | None) -> list[Spend]:
    from privacy.accountant import Spend

    found = []
    for text in texts or []:
        try:
            rate, noise, steps = text.split(",")
            found.append(Spend(float(rate), float(noise), int(steps)))
            if found[-1].steps > 2**40:
                raise ValueError(f"steps {steps}, expected at most 2**40")
        except ValueError as error:
            raise ConsiliumError("E417", f"--spend {text!r}, expected RATE,SIGMA,STEPS: {error}") from error
    return found


def _words(charges: list[Spend]) -> str:
    return "; ".join(
        (f"{n} times " if n > 1 else "")
        + f"rate {c.sample_rate:g}, noise {c.noise_multiplier:g}, {c.steps} steps"
        for c, n in Counter(charges).items()
    )


def _ask(question: str, yes: bool, as_json: bool) -> None:
    if yes:
        return
    if as_json:
        raise ConsiliumError("E417", "this cannot be taken back: --json needs --yes")
    try:
        confirmed = typer.confirm(question)
    except typer.Abort:  # no terminal, so that nobody can answer
        confirmed = False
    if not confirmed:
        raise ConsiliumError("E417", "nobody confirmed it; without a terminal it needs --yes")


def _report(ledger: Ledger, lineage: str, written: int, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "lineage": lineage,
        "head": ledger.head,
        "length": ledger.length,
        "entries": [signed.document for signed, _ in ledger.entries()[-written:]],
    }
    if as_json:
        print_json(facts)
        return
    for entry in facts["entries"]:
        screen.print(f"[green]written[/] {lineage} #{entry['sequence']}: {entry['kind']}")
    screen.print(f"head {ledger.head}; `consilium ledger show` says what is left", highlight=False)
