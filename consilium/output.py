"""How every command speaks: rich for people, JSON for machines, a number and a sentence for refusals."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from contracts.errors import ConsiliumError

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of tables.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]

WIDE = 100  # columns from which wide tables show all they have
NARROW = 80  # columns of a terminal below which tables leave out what can be spared

screen = Console()
errors = Console(stderr=True)


def home_folder() -> Path:
    """The folder that holds everything that runs: `$CONSILIUM_HOME`, or `.consilium` here."""
    return Path(os.environ.get("CONSILIUM_HOME", ".consilium")).absolute()


def print_json(value: Any) -> None:
    """Print a value as JSON on standard output, and nothing else."""
    sys.stdout.write(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")


def plain(text: str) -> str:
    """What a file or a name says of itself, without what would steer the terminal or cannot be printed."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)


def above_0_below_1(value: float | None) -> float | None:
    """Refuse an option that is no number between 0 and 1, such as a delta of 2: a usage error."""
    if value is not None and not 0.0 < value < 1.0:
        raise typer.BadParameter(f"{value:g}, expected a number above 0 and below 1")
    return value


def file_to_write(*endings: str) -> Callable[[Path | None], Path | None]:
    """Return what refuses, before anything is computed, a file whose folder is not there: a usage error.

    Args:
        endings: that its name may have, such as `.svg`; any when none is given.
    """

    def check(value: Path | None) -> Path | None:
        if value is None:
            return None
        if endings and value.suffix not in endings:
            raise typer.BadParameter(f"{value}, expected a name that ends in {' or '.join(endings)}")
        if value.is_dir() or not value.absolute().parent.is_dir():
            raise typer.BadParameter(f"{value}, expected a file in a folder that exists")
        return value

    return check


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A file that cannot be written is a usage error, as above."""
    try:
        yield
    except OSError as error:
        raise typer.BadParameter(f"{path}: {error.strerror}") from error


def neighbours(adjacency: str, unit: str = "patient") -> str:
    """Say whom an epsilon protects: `one patient added or removed`."""
    return f"one {unit} {'replaced' if adjacency == 'replace-one' else 'added or removed'}"


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
                errors.print(plain(error.detail), highlight=False, markup=False)
        raise typer.Exit(1) from None
