"""A hospital's edge worker: confined, warmed, and started again when the coordinator was away.

`python -m consilium.site_worker SITE_HOME [--hide FOLDER]`, with the environment of
`airflow_home.site_environment`. What runs is Airflow's own `airflow edge worker`.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from consilium.confine import hide

PATIENCE_SECONDS = 2.0  # between attempts: a name is free 5 s after its last worker fell silent


def main() -> None:
    """Run the worker until it is asked to end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("home", type=Path)
    parser.add_argument("--hide", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    confine(arguments.home, arguments.hide)
    work(arguments.home)


def confine(home: Path, hidden: list[Path]) -> None:
    """Hide the given folders, all but the site's own home."""
    if hidden:
        way = hide(hidden, keep=[home])
        if way == "none":
            print("WARNING: this machine offers no way to hide the coordinator's folder from a site of the")
            print("WARNING: same user. Use separate users or machines for anything but a trial.")
        else:
            print(f"confined by {way}: {', '.join(map(str, hidden))} except {home}")


def work(home: Path) -> None:
    """Import Airflow (which warms this process by its local settings) and work until the worker drains."""
    site, url = os.environ["CONSILIUM_SITE"], os.environ["CONSILIUM_COORDINATOR_URL"]
    airflow: Callable[[], object] = importlib.import_module("airflow.__main__").main
    sys.argv = ["airflow", "edge", "worker", "--queues", site, "--edge-hostname", site]
    while True:
        wait_for_coordinator(url)
        # Left by a worker that was killed; that only one runs is looked after by who started us.
        (home / "airflow" / "edge-worker.pid").unlink(missing_ok=True)
        try:
            airflow()
            return
        except SystemExit as end:
            if end.code in (None, 0):
                return
            print(f"the worker ended: {end.code}; again in {PATIENCE_SECONDS:.0f} s")
        except Exception as error:
            print(f"the worker ended: {error!r}; again in {PATIENCE_SECONDS:.0f} s")
        time.sleep(PATIENCE_SECONDS)


def wait_for_coordinator(url: str) -> None:
    """Return when the coordinator's edge API answers."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with opener.open(f"{url}/edge_worker/v1/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)


if __name__ == "__main__":
    main()
