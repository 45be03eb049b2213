"""`consilium data`: fetch public data sets from their official source, checked byte for byte."""

from __future__ import annotations

import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated

import typer

from consilium.output import Json, home_folder, print_json, reporting_refusals, screen
from contracts.canonical import sha256
from contracts.errors import ConsiliumError

app = typer.Typer(no_args_is_help=True)

UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases/heart-disease"

# Data set -> (base URL, folder, {file: SHA-256}).
DATA_SETS: dict[str, tuple[str, str, dict[str, str]]] = {
    "heart-disease": (
        UCI,
        "heart_disease",
        {
            "processed.cleveland.data": "a74b7efa387bc9d108d7d0115d831fe9b414b29ae7124f331b622b4efa0427c8",
            "processed.hungarian.data": "d1ad108f785768cd3d7e82dc522e6f5a61eea93cccfb3a46ee8076f73fc3d796",
            "processed.switzerland.data": "834a405ccf5b66ab4056bb77794adc8df0b7125186454c0a1d002d33c6c3b314",
            "processed.va.data": "e7c93d8d0d2acdadfa4c5e8de768e2191e7f618b952e29623f1f0d5949ff6b8f",
            "heart-disease.names": "ec7ed5aa4ed8321097808f47b836301c2a0c36f3bb09c40b8b43b622363e6b61",
        },
    ),
}
MAX_BYTES = 16 * 1024 * 1024


@app.callback()
def _group() -> None:
    """Fetch public data sets from their official source."""


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="The data set: heart-disease.")],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Where to; `data` in the home by default.")
    ] = None,
    source: Annotated[str | None, typer.Option("--from", metavar="URL", help="A mirror to use.")] = None,
    json: Json = False,
) -> None:
    """Fetch a data set and check every file's SHA-256. Files that are there and right are kept."""
    with reporting_refusals(json):
        files = fetch_data(name, to or home_folder() / "data", source)
        if json:
            print_json({"data_set": name, "files": [str(path) for path in files]})
            return
        for path in files:
            screen.print(f"[green]verified[/] {path}", highlight=False)


def fetch_data(name: str, to: Path, source: str | None = None) -> list[Path]:
    """Fetch a data set into a folder of its own under `to` and return its files.

    Args:
        source: base URL of a mirror; the checksums stay those of the official files.

    Raises:
        ConsiliumError: E108, unknown data set, unreachable source, or a file with another SHA-256. A file
            that fails its check is not written.
    """
    if name not in DATA_SETS:
        raise ConsiliumError("E108", f"data set {name!r}; there are {', '.join(DATA_SETS)}")
    base, folder, files = DATA_SETS[name]
    paths = []
    for file, expected in files.items():
        path = to / folder / file
        if not (path.exists() and sha256(path.read_bytes()) == expected):
            data = _download(f"{(source or base).rstrip('/')}/{file}")
            found = sha256(data)
            if found != expected:
                raise ConsiliumError("E108", f"{file}: SHA-256 {found}, expected {expected}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        paths.append(path)
    return paths


def _download(url: str) -> bytes:
    if not url.startswith(("https://", "http://")):
        raise ConsiliumError("E108", f"{url}: expected an https:// address")
    try:
        with urllib.request.urlopen(url, timeout=60) as response:
            data: bytes = response.read(MAX_BYTES + 1)
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ConsiliumError("E108", f"{url}: {error}") from error
    if len(data) > MAX_BYTES:
        raise ConsiliumError("E108", f"{url}: over {MAX_BYTES} bytes")
    return data
