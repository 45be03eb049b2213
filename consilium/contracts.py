"""`consilium contracts`: the JSON Schema of everything that may cross the boundary."""

from __future__ import annotations

from typing import Annotated

import typer

from consilium.output import print_json
from contracts.schemas import json_schemas

app = typer.Typer()


@app.command()
def contracts(
    name: Annotated[
        str | None, typer.Argument(help="One contract, such as RoundPlan; all when left out.")
    ] = None,
) -> None:
    """Print the JSON Schema of every contract, or of one."""
    schemas = json_schemas()
    if name is not None and name not in schemas:
        raise typer.BadParameter(f"{name!r}, expected one of {', '.join(schemas)}")
    print_json(schemas if name is None else schemas[name])
