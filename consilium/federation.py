"""`consilium federation`: the coordinator's view of its federation."""

from __future__ import annotations

import typer

from consilium.federation_certificate import certificate
from consilium.federation_init import init

app = typer.Typer(no_args_is_help=True)
app.command("init")(init)
app.command("certificate")(certificate)
