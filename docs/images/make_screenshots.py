"""Make this folder's screenshots of the validation page, from a study that is really simulated.

    .venv/bin/python docs/images/make_screenshots.py [PAGE]

Without PAGE (the validation.html of a release) it simulates icu-mortality-demo first, which takes a minute or
two. Needs the `dev` extra and Chromium (`make debian`).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

STUDY = "icu-mortality-demo"
HERE = Path(__file__).parent
COLOURS = 96  # of the palette: text stays sharp, files stay small


def simulated(folder: Path) -> Path:
    """Simulate the study and return the page of its release."""
    command = [sys.executable, "-m", "consilium", "simulate", STUDY, "--out", str(folder)]
    subprocess.run(command, check=True, cwd=HERE.parents[1])
    return folder / "coordinator" / "releases" / STUDY / "1.0.0" / "validation.html"


def shoot(
    browser: Browser, page: Path, target: Path, *, width: int, height: int, theme: str, at: str = ""
) -> None:
    """Save what a reader sees of the page from the section `at` on."""
    view = browser.new_page(
        viewport={"width": width, "height": height},
        color_scheme=theme,  # type: ignore[arg-type]
        device_scale_factor=2 if width < 500 else 1,
    )
    view.goto(page.absolute().as_uri() + at)
    view.screenshot(path=target)
    view.close()
    Image.open(target).convert("RGB").quantize(COLOURS).save(target, optimize=True)


def main() -> None:
    """Make both pictures."""
    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("no chromium on this machine: `make debian` installs it")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        page = Path(sys.argv[1]) if len(sys.argv) > 1 else simulated(Path(folder) / "out")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        desktop, phone = HERE / "validation-desktop.png", HERE / "validation-phone-dark.png"
        shoot(browser, page, desktop, width=1280, height=1800, theme="light")
        shoot(browser, page, phone, width=390, height=1250, theme="dark", at="#discrimination")
        browser.close()


if __name__ == "__main__":
    main()
