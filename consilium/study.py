"""`consilium study`: check a study file, amend a study, show where it stands, replay a finished one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from consilium.output import (
    Json,
    file_to_write,
    home_folder,
    print_json,
    reporting_refusals,
    screen,
    writing,
)
from contracts.errors import ConsiliumError
from contracts.privacy import HospitalPrivacy, PatientPrivacy
from contracts.study import StudyProtocol, load_study

app = typer.Typer(no_args_is_help=True)

SHIPPED = Path(__file__).resolve().parent.parent / "studies"


def find_study(name: str) -> Path:
    """Return the file of a study given by path or name: the user's own first, then those that ship.

    Raises:
        ConsiliumError: E102.
    """
    if name.endswith((".yaml", ".yml", ".json")):
        return Path(name)
    for folder in (home_folder() / "studies", SHIPPED):
        if (folder / f"{name}.yaml").exists():
            return folder / f"{name}.yaml"
    shipped = sorted(path.stem for path in SHIPPED.glob("*.yaml"))
    raise ConsiliumError("E102", f"study {name!r}; shipped: {', '.join(shipped)}")


def find_federation(study: str, folder: Path | None) -> Path:
    """Return the folder of `site.yaml` files for a study: the one given, or the shipped one.

    Raises:
        ConsiliumError: E107, there is none.
    """
    found = folder or SHIPPED / "federations" / study
    if not found.is_dir():
        raise ConsiliumError("E107", f"{found} is no folder; name one with --federation")
    return found


@app.command()
def check(
    file: Annotated[str, typer.Argument(help="A study file, or the name of a study that ships.")],
    json: Json = False,
) -> None:
    """Validate a study and say what it commits its sites to."""
    with reporting_refusals(json):
        from models.registry import build_model, parameter_names
        from privacy.promise import check_mechanism
        from site_runtime.preflight import check_layers
        from strategies.registry import strategy_of

        protocol = load_study(find_study(file))
        check_mechanism(protocol)
        strategy_of(protocol)
        check_layers(protocol)
        model = build_model(protocol)
        state = dict(model.named_parameters())
        parameters = sum(state[name].numel() for name in parameter_names(model))
        facts = {
            "study": protocol.study,
            "title": protocol.title,
            "protocol_hash": protocol.hash,
            "features": len(protocol.features),
            "model": protocol.model.name,
            "parameters": parameters,
            "strategy": protocol.strategy.name,
            "rounds": protocol.rounds,
            "min_sites": protocol.min_sites,
            "gates": [gate.title for gate in protocol.gates],
            "privacy": privacy_facts(protocol),
        }
        if json:
            print_json(facts)
            return
        table = Table(title=f"{protocol.title}", show_header=False)
        for key, value in facts.items():
            shown = "\n".join(map(str, value)) if isinstance(value, list) else value
            if isinstance(value, dict):
                shown = "\n".join(
                    f"{k}: {v:.4f}" if k == "epsilon_composed" else f"{k}: {v}" for k, v in value.items()
                )
            table.add_row(key, str(shown))
        screen.print(table)


def privacy_facts(protocol: StudyProtocol) -> dict[str, object]:
    """What a study promises about privacy, with its calibrated noise."""
    if isinstance(protocol.privacy, HospitalPrivacy):
        from privacy.calibration import calibrate

        found = calibrate(protocol)
        return {
            "mode": "site",
            "statement": "a hospital is protected from the others, not from the coordinator",
            "epsilon": protocol.privacy.epsilon,
            "delta": protocol.privacy.delta,
            "max_update_norm": protocol.privacy.max_update_norm,
            "clipping": protocol.privacy.clipping,
            "noise_multiplier": found.training,
            "epsilon_composed": found.epsilon,
        }
    if not isinstance(protocol.privacy, PatientPrivacy):
        return {"mode": "none", "statement": "no differential privacy: exact updates leave the hospitals"}
    from privacy.calibration import calibrate

    noise = calibrate(protocol)
    beside = {"statistics": noise.statistics, "histogram": noise.histogram}
    return {
        "mode": "patient",
        "epsilon": protocol.privacy.epsilon,
        "delta": protocol.privacy.delta,
        "adjacency": protocol.privacy.adjacency,
        "max_grad_norm": protocol.privacy.max_grad_norm,
        "clipping": protocol.privacy.clipping,
        "noise_multiplier": noise.training,
        **{f"noise_multiplier_{kind}": sigma for kind, sigma in beside.items() if sigma is not None},
        "epsilon_composed": noise.epsilon,
    }


@app.command()
def amend(
    study: Annotated[str, typer.Argument(help="The study to amend: registered here, that ships, or a file.")],
    new: Annotated[str, typer.Argument(help="Name of the new study.")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="PATH=VALUE", help="Such as training.steps=3; may be repeated."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(callback=file_to_write(), help="File to write. Default: print it.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a study that amends another one: the next release of its product."""
    from consilium.amendment import amendment_of, as_yaml
    from tasks.head import load_protocol, registered_studies
    from tasks.home import CoordinatorHome

    with reporting_refusals(json):
        home = CoordinatorHome(home_folder() / "coordinator")
        # What is registered counts: its file may have been run with other numbers of rounds or epsilon.
        registered = study in registered_studies(home)
        base = load_protocol(home, study) if registered else load_study(find_study(study))
        amendment = amendment_of(base, new, changes or [])
        text = as_yaml(amendment)
        if out is not None:
            with writing(out):
                out.write_text(text, encoding="utf-8")
        if json:
            facts = {"study": new, "product": amendment.product_name, "amends": amendment.amends}
            shown = {"protocol_hash": amendment.hash, "path": str(out.absolute()) if out else None}
            print_json(facts | shown | {"protocol": amendment.body()})
        elif out is None:
            typer.echo(text, nl=False)
        else:
            screen.print(f"{out}: {new} amends {base.study} {base.hash[:12]}", highlight=False)


@app.command()
def replay(study: str, json: Json = False) -> None:
    """Recompute every closed round from the stored updates and compare with the records."""
    with reporting_refusals(json):
        from tasks.home import CoordinatorHome
        from tasks.replay import replay as rounds

        home = CoordinatorHome(home_folder() / "coordinator")
        replayed = []
        for found in rounds(home, study):
            replayed.append(found)
            if not json:
                mark = "[green]same[/]" if found.matches else "[bold red]DIFFERENT[/]"
                screen.print(f"round {found.round}: {found.recorded[:16]} {mark}")
        if json:
            print_json(
                [
                    {
                        "round": r.round,
                        "recorded": r.recorded,
                        "recomputed": r.recomputed,
                        "matches": r.matches,
                    }
                    for r in replayed
                ]
            )
        wrong = [r.round for r in replayed if not r.matches]
        if wrong:
            raise ConsiliumError("E510", f"rounds {wrong}")


@app.command()
def page(
    study: Annotated[str, typer.Argument(help="A study that is registered here.")],
    out: Annotated[
        Path | None,
        typer.Option(callback=file_to_write(".html"), help="File to write. Default: STUDY.html."),
    ] = None,
    json: Json = False,
) -> None:
    """Write the study's page: who did what in every round, what went wrong, and what to do about it."""
    with reporting_refusals(json):
        from tasks.home import CoordinatorHome
        from tasks.study_page import study_page

        text = study_page(CoordinatorHome(home_folder() / "coordinator"), study)
        path = out or Path(f"{study}.html")
        with writing(path):
            path.write_text(text, encoding="utf-8")
        if json:
            print_json({"study": study, "path": str(path.absolute())})
        else:
            screen.print(f"{path.absolute()}", soft_wrap=True, highlight=False)
