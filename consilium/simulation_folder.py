"""The folder of a simulation: whose it is, and when it may be emptied. Ledgers lie in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from consilium.output import home_folder
from contracts.errors import ConsiliumError

MARKER = ".consilium-simulation"  # names of the studies that ran here, one a line


def fresh_folder(out: Path | None, study: str) -> Path:
    """Return an empty folder for a simulation; an earlier one of the same study is replaced, nothing else is.

    Raises:
        ConsiliumError: E107, the folder holds something else, or what another study spent.
    """
    folder = out or home_folder() / "simulations" / study
    if _filled(folder):
        others = sorted(_studies(folder) - {study})
        if others:
            raise ConsiliumError(
                "E107",
                f"--out {folder} holds {', '.join(others)} with its ledgers; --continue runs {study} on the "
                "same hospitals, another folder on new ones",
            )
        shutil.rmtree(folder)
    return _marked(folder, {study})


def kept_folder(out: Path | None, study: str, product: str | None = None) -> Path:
    """Return the folder of an earlier simulation as it is, so that a study runs on its hospitals and ledgers.

    Without `out` it is the folder of the product's first study.

    Raises:
        ConsiliumError: E107, no simulation of one run lies there.
    """
    folder = out or home_folder() / "simulations" / (product or study)
    if not _filled(folder):
        raise ConsiliumError("E107", f"{folder} holds no simulation that could be continued")
    studies = _studies(folder)
    if not (folder / "coordinator").is_dir():
        raise ConsiliumError("E107", f"{folder} holds several runs (--runs, --compare), expected one")
    return _marked(folder, {*studies, study})


def _filled(folder: Path) -> bool:
    return folder.exists() and any(folder.iterdir())


def _studies(folder: Path) -> set[str]:
    if not (folder / MARKER).is_file():
        raise ConsiliumError("E107", f"--out {folder} is not empty and no earlier simulation")
    return set((folder / MARKER).read_text(encoding="utf-8").split())


def _marked(folder: Path, studies: set[str]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("".join(f"{name}\n" for name in sorted(studies)), encoding="utf-8")
    return folder.absolute()
