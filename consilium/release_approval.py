"""`consilium release keygen` and `approve`: a person's own signature beside their answer in Airflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey


def keygen(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private key is written, once.")],
    json: Json = False,
) -> None:
    """Make a personal signing key (Ed25519). Keep the file to yourself; hand over the public key."""
    with reporting_refusals(json):
        key = SigningKey.generate("person")
        try:
            key.save(file)
        except FileExistsError as error:
            raise ConsiliumError("E801", f"{file} exists, and a key is never replaced") from error
        except OSError as error:
            raise ConsiliumError("E801", f"{file}: {error.strerror}") from error
        if json:
            print_json({"file": str(file), "public": key.public})
        else:
            screen.print(f"Private key in {file}, readable by you alone.", highlight=False)
            screen.print(f"Public key: {key.public}", highlight=False)


def approve(
    study: Annotated[str, typer.Argument(help="A study whose candidate waits for its sign-off.")],
    key: Annotated[Path, typer.Option(metavar="FILE", help="Your private key, from `release keygen`.")],
    role: Annotated[str, typer.Option(help="The role of the protocol's sign_off in which you approve.")],
    name: Annotated[str, typer.Option(help="Your name, as you give it in Airflow.")],
    reason: Annotated[str, typer.Option(help="Why the candidate may be released.")],
    json: Json = False,
) -> None:
    """Sign the waiting candidate personally. It counts beside your answer in Airflow, never in its place."""
    from tasks.approvals import sign_personally
    from tasks.home import CoordinatorHome

    with reporting_refusals(json):
        home = CoordinatorHome(home_folder() / "coordinator")
        signed = sign_personally(
            home, study, SigningKey.load("person", key), role=role, name=name, reason=reason
        )
        if json:
            print_json(signed.model_dump(mode="json"))
            return
        screen.print(f"Signed candidate {signed.candidate}", highlight=False, soft_wrap=True)
        screen.print(
            f"as {role} with key {signed.key}. Now answer in Airflow as user {role}, under the same name.",
            highlight=False,
            soft_wrap=True,
        )


def add_to(app: typer.Typer) -> None:
    """Add both commands to `consilium release`."""
    app.command()(keygen)
    app.command()(approve)
