"""`consilium federation certificate`: what a hospital shows where the federation asks for certificates."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.output import Json, file_to_write, home_folder, print_json, reporting_refusals, screen, writing


def certificate(
    site: Annotated[str, typer.Argument(help="Name of an enrolled hospital.")],
    out: Annotated[
        Path | None, typer.Option(help="File to write.", callback=file_to_write(".pem", ".crt"))
    ] = None,
    json: Json = False,
) -> None:
    """Certify a hospital's edge key, which the registry holds already. The file is not secret.

    Certificates of keys that are no longer a member's are revoked at the same time.
    """
    from consilium.certificates import issue_client, write_crl
    from consilium.nginx import reload
    from tasks.home import CoordinatorHome

    with reporting_refusals(json):
        home = CoordinatorHome(home_folder() / "coordinator")
        text = issue_client(home, site)
        target = out or Path(f"{site}.crt.pem")
        with writing(target):
            target.write_text(text)
        revoked = write_crl(home)
        reload(home.nginx)
        if json:
            print_json({"site": site, "certificate": str(target), "revoked": revoked})
            return
        screen.print(f"Certificate of {site}: {target}", soft_wrap=True, highlight=False)
        screen.print(f"There: consilium site tunnel --certificate {target.name}", highlight=False)
