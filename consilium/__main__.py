"""The `consilium` command: one file per noun, imported only when its noun is used."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from consilium.output import reporting_refusals
from contracts.errors import ConsiliumError

# noun -> (module, attribute, help). An attribute is a typer app (a group of verbs) or one command.
NOUNS: dict[str, tuple[str, str, str]] = {
    "demo": ("consilium.demo", "app", "Run the main job end to end in Airflow: four hospitals, one release."),
    "up": ("consilium.up", "up_app", "Start the coordinator and the local hospitals."),
    "down": ("consilium.up", "down_app", "Stop everything that `up` started."),
    "status": (
        "consilium.status",
        "app",
        "Which round, who is waited for, who refused and why, epsilon left.",
    ),
    "run": ("consilium.run", "app", "Run a study in Airflow and follow it."),
    "simulate": ("consilium.simulate", "app", "Run a study in this process, without Airflow."),
    "study": ("consilium.study", "app", "Check or amend a study file; replay a finished study."),
    "site": ("consilium.site", "app", "A hospital's own view: check, enrol, join, show, pause, withdraw."),
    "federation": (
        "consilium.federation",
        "app",
        "The coordinator's members: init, approve, list, revoke, rotate; backup and restore.",
    ),
    "data": ("consilium.data", "app", "Fetch public data sets."),
    "privacy": ("consilium.privacy", "app", "Plan a study's privacy; epsilon of any composition."),
    "ledger": ("consilium.ledger", "app", "A hospital's privacy ledger: show, verify, export, decide."),
    "audit": ("consilium.audit", "app", "Attack the privacy mechanism and compare with its claim."),
    "release": ("consilium.release", "app", "List, show, compare, verify and roll back releases."),
    "exchange": ("consilium.exchange", "app", "The coordinator's exchange of tensors: show, throw away."),
    "contracts": ("consilium.contracts", "app", "Print the JSON Schema of everything that may cross."),
}


class LazyNouns(TyperGroup):
    """Loads a noun's module when the noun is called, so that light commands stay light."""

    _called = False  # a noun is being called; otherwise the nouns are only listed

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the noun that is called."""
        self._called = True
        try:
            return super().resolve_command(ctx, args)
        finally:
            self._called = False

    def list_commands(self, ctx: Any) -> list[str]:
        """All nouns in the order of the table."""
        return list(NOUNS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import one noun."""
        if cmd_name not in NOUNS:
            return None
        module, attribute, summary = NOUNS[cmd_name]
        if not self._called:
            found = typer.Typer()  # the list of nouns needs no module of theirs
            found.command()(lambda: None)
        else:
            found = getattr(importlib.import_module(module), attribute)
        command = get_command(found)
        command.name, command.short_help = cmd_name, summary
        return command


# A module that a light install lacks -> the extra that brings it.
EXTRAS = {
    **dict.fromkeys(("onnxruntime",), "verify"),
    **dict.fromkeys(("torch", "pandas", "pyarrow", "safetensors", "opacus", "httpx", "jwt", "dvc"), "site"),
    **dict.fromkeys(("airflow", "great_expectations", "onnx", "psutil", "pytorch_lightning"), "site"),
    **dict.fromkeys(("matplotlib",), "site"),
    **dict.fromkeys(("jinja2", "gto", "psycopg"), "coordinator"),
    **dict.fromkeys(("matplotlib", "fsspec"), "site"),
    **dict.fromkeys(("jinja2", "gto"), "coordinator"),
}


@contextmanager
def naming_missing_extras() -> Iterator[None]:
    """Name the extra to install instead of printing a traceback."""
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        with suppress(typer.Exit), reporting_refusals("--json" in sys.argv):
            detail = f"no module {error.name!r}: install consilium[{extra}]"
            raise ConsiliumError("E110", detail) from error
        raise SystemExit(1) from None


app = typer.Typer(cls=LazyNouns, no_args_is_help=True, help="Federated MLOps for hospitals, run by Airflow.")


@app.callback()
def _root() -> None:
    """Hospitals train one clinical model together; no patient record leaves any of them."""


def main() -> None:
    """Entry point of the `consilium` script."""
    with naming_missing_extras():
        app()


if __name__ == "__main__":
    main()
