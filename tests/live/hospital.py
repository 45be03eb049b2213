"""One hospital as a process of its own, in an environment and on a link that the test decides."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from consilium.airflow_home import base_url, write_site
from consilium.platform import Platform, run_folder
from consilium.processes import Part, end, wait_until
from site_runtime.home import SiteHome

START_SECONDS = 300.0  # a hospital alone makes all its imports itself
SKEW = Path(__file__).with_name("skew.c")


@contextlib.contextmanager
def worker_of(home: SiteHome, run: Path, prefix: tuple[str, ...] = ()) -> Iterator[Part]:
    """Run `consilium site start` for a home, as its people would, and end it with all it started.

    Args:
        run: folder of the process's record and log.
        prefix: what the command is run by, such as `ip netns exec`.
    """
    part = Part(f"site-{home.root.name}", run)
    command = [*prefix, sys.executable, "-m", "consilium", "site", "start", "--home", str(home.root)]
    part.start(command, dict(os.environ), run)
    try:
        yield part
    finally:
        end([part])


def present(platform: Platform, part: Part, site: str) -> None:
    """Wait until the coordinator hears of a hospital anew.

    Raises:
        AssertionError: its process ended, or was not heard of in time; with its log.
    """

    since = time.time()

    def heard() -> bool:
        assert part.alive(), part.tail()
        return heard_since(platform, since, site)

    assert wait_until(heard, START_SECONDS, interval=0.5), part.tail()


def heard_since(platform: Platform, since: float, *sites: str) -> bool:
    """Say whether each of these hospitals sent a request that the gate let through after a moment."""
    notes = [platform.coordinator.presence / site for site in sites]
    return all(note.exists() and note.stat().st_mtime > since for note in notes)


@contextlib.contextmanager
def moved(
    platform: Platform, site: str, port: int | None = None, environment: dict[str, str] | None = None
) -> Iterator[None]:
    """Stop one of the platform's hospitals and run it with another address or environment for the block.

    Args:
        port: of loopback, where this hospital finds the coordinator; as before when None.
    """
    home, part = platform.site(site), platform.part(f"site-{site}")
    command = [sys.executable, "-m", "consilium.site_worker", "--run", str(run_folder(platform.home))]
    url = platform.url if port is None else base_url(port)
    platform.stop_site(site)
    write_site(home, site, url)
    part.start([*command, "--url", url, str(home.root)], os.environ | (environment or {}), platform.home)
    try:
        yield
    finally:
        platform.stop_site(site)
        write_site(home, site, platform.url)
        platform.start_site(site)


def skewed(folder: Path, seconds: int) -> dict[str, str]:
    """Environment of a process whose wall clock is `seconds` off."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no gcc here to build the clock: `make debian` installs it")
    library = folder / "skew.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(SKEW), "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"LD_PRELOAD": str(library), "SKEW_SECONDS": str(seconds)}
