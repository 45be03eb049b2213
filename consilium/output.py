"""How every command speaks: rich for people, JSON for machines, a number and a sentence for refusals."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from contracts.errors import ConsiliumError

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]

screen = Console()
errors = Console(stderr=True)


def home_folder() -> Path:
    """The folder that holds everything that runs: `$CONSILIUM_HOME`, or `.consilium` here."""
    return Path(os.environ.get("CONSILIUM_HOME", ".consilium")).absolute()


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


@contextmanager
def reporting_refusals(as_json: bool = False) -> Iterator[None]:
    """End the command with exit code 1 and the refusal's number, sentence and detail.

    With `--json` the refusal is an object on standard output with the keys number, name, sentence, detail.
    """
    try:
        yield
    except ConsiliumError as error:
        if as_json:
            print_json(
                {
                    "error": {
                        "number": error.number,
                        "name": error.name,
                        "sentence": error.sentence,
                        "detail": error.detail,
                    }
                }
            )
        else:
            errors.print(f"[bold red]{error.number} {error.name}[/] {error.sentence}", highlight=False)
            if error.detail:
                errors.print(error.detail, highlight=False, markup=False)
        raise typer.Exit(1) from None
