"""`consilium ledger`: a privacy ledger, shown, verified, decided upon. A hospital's needs no coordinator."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from consilium.ledger_keeper import Keeper, LineageFile, coordinator, hospital
from consilium.ledger_officer import Lineage, restore, rotate, write_off
from consilium.ledger_view import facts_of, print_elsewhere, print_facts, read_ledger, unit_of
from consilium.output import (
    Json,
    above_0_below_1,
    file_to_write,
    home_folder,
    neighbours,
    print_json,
    reporting_refusals,
    screen,
    writing,
)
from consilium.site_home import Home, Site, find_site
from contracts.errors import ConsiliumError
from contracts.privacy import Adjacency

app = typer.Typer(no_args_is_help=True)

_DEFAULT_DELTA = 1e-5

OfCoordinator = Annotated[
    bool,
    typer.Option(
        "--coordinator", help="The coordinator's ledger, of privacy per hospital; not a hospital's."
    ),
]


def _keeper(site: str | None, home: Path | None, of_coordinator: bool, lineage: str | None = None) -> Keeper:
    """Whose ledgers are meant."""
    if not of_coordinator:
        return hospital(find_site(site, home), lineage)
    if site is not None:
        raise typer.BadParameter("--coordinator and --site exclude each other")
    return coordinator(home or home_folder(), lineage)


@app.command()
def show(
    site: Site = None,
    home: Home = None,
    of_coordinator: OfCoordinator = False,
    lineage: Lineage = None,
    delta: Annotated[
        float | None,
        typer.Option(
            help="Delta of epsilon; else the smallest of the cap and of the approved studies.",
            callback=above_0_below_1,
        ),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every entry, however long the ledger; else by study.")
    ] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Also draw epsilon over time with the cap: an .svg or .png file.",
            callback=file_to_write(".svg", ".png"),
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what was spent, who decided what, and epsilon over time against the cap of the lineage."""
    with reporting_refusals(json):
        keeper = _keeper(site, home, of_coordinator, lineage)
        at = delta if delta is not None else keeper.delta
        facts = [facts_of(ledger, at, keeper.cap_at(at)) for ledger in keeper.ledgers]
        if plot is not None and facts:
            from consilium.ledger_plot import epsilon_plot

            with writing(plot):
                plot.write_bytes(epsilon_plot(facts, plot.suffix[1:]))
        if json:
            print_json(facts)
            return
        if not facts:
            screen.print("No ledger here: nothing was ever spent.")
        for each in facts:
            print_facts(each, every=every)
        print_elsewhere(keeper)


@app.command()
def verify(
    site: Site = None,
    home: Home = None,
    of_coordinator: OfCoordinator = False,
    file: Annotated[Path | None, typer.Option(help="A ledger that was handed over; needs --public.")] = None,
    public: Annotated[
        str | None,
        typer.Option(help="A public key of the site (43 characters): its first or its present one."),
    ] = None,
    excerpt: Annotated[
        bool, typer.Option("--excerpt", help="The file is an excerpt: say what its study spent, too.")
    ] = False,
    head: Annotated[str | None, typer.Option(help="A digest that the ledger must contain.")] = None,
    delta: Annotated[float | None, typer.Option(help="Delta of epsilon.", callback=above_0_below_1)] = None,
    adjacency: Annotated[
        str,
        typer.Option(help=f"Of epsilon: {' or '.join(get_args(Adjacency))}. A cap holds for the first."),
    ] = "add-or-remove-one",
    json: Json = False,
) -> None:
    """Replay the chain from its triples: every signature, link and commitment, and epsilon anew."""
    with reporting_refusals(json):
        neighbouring = _adjacency(adjacency)
        if file is not None:
            if public is None:
                raise ConsiliumError("E801", "--file needs the site's public key: --public")
            ledgers, at = [LineageFile(file.stem, file, public)], delta or _DEFAULT_DELTA
        elif excerpt:
            raise typer.BadParameter("--excerpt needs --file and --public")
        else:
            keeper = _keeper(site, home, of_coordinator)
            ledgers, at = keeper.ledgers, delta if delta is not None else keeper.delta
        if head is not None and not ledgers:
            raise ConsiliumError("E407", f"no ledger here, expected one with {head}")
        results = [_verified(ledger, head, at, neighbouring, own=file is None) for ledger in ledgers]
        if excerpt:
            results = [
                result | _of_study(ledger, at, neighbouring)
                for ledger, result in zip(ledgers, results, strict=True)
            ]
        if json:
            print_json(results)
            return
        if not results:
            screen.print("No ledger here: nothing was ever spent.")
        for result in results:
            _print_verified(result)


def _adjacency(value: str) -> Adjacency:
    for known in get_args(Adjacency):
        if value == known:
            return known  # type: ignore[no-any-return]
    raise typer.BadParameter(f"{value!r}, expected {' or '.join(get_args(Adjacency))}")


def _verified(
    ledger: LineageFile, head: str | None, delta: float, adjacency: Adjacency, *, own: bool
) -> dict[str, Any]:
    from privacy.accountant import epsilon

    history = read_ledger(ledger, own=own)
    if head is not None and not history.knows(head):
        raise ConsiliumError("E407", f"{ledger.path}: {len(history.records)} entries, none of them {head}")
    kinds = [record.entry.kind for record in history.records]
    return {
        "lineage": history.lineage,
        "site": history.site,
        "entries": len(history.records),
        "head": history.head(),
        "keys": history.keys,
        "rotations": kinds.count("rotate"),
        "restores": kinds.count("restore"),
        "write_offs": kinds.count("write-off"),
        "delta": delta,
        "adjacency": adjacency,
        "unit": unit_of(history),
        "epsilon": epsilon(history.pooled(), delta, adjacency),
    }


def _of_study(ledger: LineageFile, delta: float, adjacency: Adjacency) -> dict[str, Any]:
    from privacy.accountant import epsilon
    from privacy.excerpt import read_excerpt

    found = read_excerpt(ledger.path.read_bytes(), ledger.public)
    return {
        "study": found.study,
        "epsilon_study": epsilon(found.study_spends, delta, adjacency),
        "epsilon_by_purpose": {name: epsilon(s, delta, adjacency) for name, s in found.by_purpose.items()},
        "plans": [reservation.plan for reservation in found.reservations],
    }


def _print_verified(result: dict[str, Any]) -> None:
    screen.print(
        f"[green]verified[/] {result['lineage']}: {result['entries']} entries, "
        f"epsilon {result['epsilon']:.4f} at delta {result['delta']:g} "
        f"for {neighbours(result['adjacency'], result['unit'])}, head {result['head']}"
    )
    decisions = [
        f"{result[name]} {name.replace('_', '-')}" for name in ("rotations", "restores", "write_offs")
    ]
    if any(result[name] for name in ("rotations", "restores", "write_offs")):
        screen.print(f"with {', '.join(decisions)}; key in force {result['keys'][-1]}", highlight=False)
    if "study" in result:
        parts = ", ".join(f"{name} {value:.4f}" for name, value in result["epsilon_by_purpose"].items())
        screen.print(f"study {result['study']}: epsilon {result['epsilon_study']:.4f} ({parts or 'nothing'})")


@app.command()
def export(
    study: Annotated[str, typer.Argument(help="The study whose entries are opened.")],
    out: Annotated[
        Path,
        typer.Option("--out", help="File to write: one line of JSON per entry.", callback=file_to_write()),
    ],
    site: Site = None,
    home: Home = None,
    of_coordinator: OfCoordinator = False,
    lineage: Lineage = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    json: Json = False,
) -> None:
    """Write an excerpt: every entry's triple and signature, and what it was for where it was this study."""
    with reporting_refusals(json):
        from durable.files import write_atomic
        from privacy.excerpt import excerpt_of

        keeper = _keeper(site, home, of_coordinator, lineage)
        found = _with_study(keeper, study)
        data = excerpt_of(found.records, study)
        if out.exists() and not force:
            raise ConsiliumError("E417", f"{out} exists, expected --force to replace it")
        with writing(out):
            write_atomic(out, data)
        command = _replaying(keeper, study, out, found.keys[-1])
        facts = {"study": study, "lineage": found.lineage, "head": found.head(), "bytes": len(data)}
        if json:
            print_json({**facts, "entries": len(found.records), "file": out, "verify": command})
            return
        screen.print(f"{out}: {len(found.records)} entries of lineage {found.lineage}, {len(data)} bytes")
        screen.print(command, highlight=False, soft_wrap=True)


def _replaying(keeper: Keeper, study: str, out: Path, public: str) -> str:
    """The command by which whoever gets the excerpt comes to the epsilon that the study states."""
    delta, adjacency = keeper.promise(study)
    command = f"consilium ledger verify --file {out} --excerpt --public {public} --delta {delta!r}"
    return command + (f" --adjacency {adjacency}" if adjacency == "replace-one" else "")


def _with_study(keeper: Keeper, study: str) -> Any:
    """The ledger that holds entries of a study."""
    histories = [read_ledger(ledger, own=True) for ledger in keeper.ledgers]
    found = [
        h for h in histories if any(r.opening is not None and r.opening.study == study for r in h.records)
    ]
    if not found:
        raise ConsiliumError("E102", f"no ledger here has an entry of study {study!r}")
    if len(found) > 1:
        names = ", ".join(str(h.lineage) for h in found)
        raise ConsiliumError(
            "E417", f"study {study!r} is in several lineages: {names}; name one by --lineage"
        )
    return found[0]


app.command()(restore)
app.command("write-off")(write_off)
app.command()(rotate)
