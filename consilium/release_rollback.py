"""`consilium release rollback`: make an earlier version of a product current again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.output import Json, print_json, reporting_refusals, screen


def rollback(
    product: Annotated[str, typer.Argument(help="Name of a product that this home released.")],
    version: Annotated[str, typer.Argument(help="The version to go back to, such as 1.0.0.")],
    reason: Annotated[str, typer.Option(help="Why. It is kept for ever.")],
    by: Annotated[str, typer.Option(help="Who decided it.")],
    json: Json = False,
) -> None:
    """Make an earlier release current again; nothing is deleted, and who, why and when is kept."""
    from consilium.release_lookup import coordinator_folder, release_named
    from consilium.release_verify import own_trust
    from release.registry import rollback as go_back
    from release.verify import verified, verify_release
    from tasks.head import now

    def verify(path: Path) -> None:
        checks = verify_release(path, *own_trust())
        if not verified(checks):
            next(check for check in checks if check.passed is False).require()

    with reporting_refusals(json):
        for option, text in (("--reason", reason), ("--by", by)):
            if not text.strip():
                raise typer.BadParameter(f"{option} is empty: a person's words are expected")
        release = release_named(product, version)
        registry = coordinator_folder() / "registry"
        done = go_back(registry, release, reason=reason, by=by, time=now(), verify=verify)
        if json:
            print_json(done.model_dump(mode="json") | {"product": product, "path": str(release.path)})
            return
        screen.print(
            f"{product}: [bold]{done.version}[/] is current instead of {done.instead_of}. Whoever runs "
            f"{done.instead_of} must be told: a registry changes nothing in a clinic.",
            highlight=False,
        )
