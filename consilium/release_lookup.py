"""Releases of this home by name: `heart-disease@1.0.0`, or `heart-disease` for the one that is current."""

from __future__ import annotations

from pathlib import Path

from consilium.output import home_folder
from contracts.errors import ConsiliumError
from release.registry import RegisteredRelease, current, releases


def coordinator_folder() -> Path:
    """The home of this home's coordinator."""
    return home_folder() / "coordinator"


def published() -> list[RegisteredRelease]:
    """Every release of this home, by product and version."""
    return releases(coordinator_folder() / "releases")


def current_version(product: str) -> str | None:
    """The version of a product that is current in this home's registry."""
    return current(coordinator_folder() / "registry", product)


def release_named(product: str, version: str | None) -> RegisteredRelease:
    """Return a release of this home.

    Args:
        version: with or without `v`; None for the one that is current.

    Raises:
        ConsiliumError: E706, there is none.
    """
    found = [release for release in published() if release.manifest.product == product]
    wanted = version.removeprefix("v") if version is not None else current_version(product)
    if version is None and wanted is None and found:
        return found[-1]  # published, and not registered yet
    for release in found:
        if release.manifest.version == wanted:
            return release
    known = ", ".join(release.manifest.version for release in found) or "none"
    raise ConsiliumError("E706", f"no release {version or ''} of {product!r} here; versions: {known}")


def release_directory(named: str) -> Path:
    """Return the directory of a release given as a directory, as `product@version` or as `product`.

    Raises:
        ConsiliumError: E706, it is neither.
    """
    if Path(named).is_dir() or "/" in named:
        return Path(named)
    product, _, version = named.partition("@")
    return release_named(product, version or None).path
