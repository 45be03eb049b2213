"""A hospital's edge worker: confined, warmed, and started again when the coordinator was away.

    python -m consilium.site_worker --url URL [--hide FOLDER] [--keep FOLDER] [--run FOLDER] SITE_HOME...

What runs is Airflow's own `airflow edge worker`. Several hospitals of one machine (a demo, a test) share the
heavy imports: they are made once, then each hospital is forked off into a session, an environment, a
configuration and a confinement of its own, before Airflow or anything of a hospital is read.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import http.client
import importlib
import os
import ssl
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from consilium.airflow_home import site_environment
from consilium.confine import hide
from consilium.output import reporting_refusals
from consilium.processes import MARK, Part
from contracts.errors import ConsiliumError
from site_runtime.home import SiteHome
from site_runtime.warm import WARM, warm

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.3, 5.0  # while the coordinator does not answer
ANSWER_SECONDS = 30.0  # a busy coordinator is slow, not away
PATIENCE_SECONDS = 2.0  # between attempts: a name is free 5 s after its last worker fell silent

# What Airflow itself imports and what does not look at a configuration: half of its start.
BELOW_AIRFLOW = (
    "aiohttp",
    "fastapi",
    "libcst",
    "pendulum",
    "retryhttp",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "structlog",
    "tabulate",
)

# What Airflow imports in every task after the fork: half a second, once here instead.
OF_A_TASK = (
    "airflow.dag_processing.dagbag",
    "airflow.providers.common.compat.standard.operators",
    "airflow.providers.common.io.version_compat",
    "airflow.providers.standard.decorators.python",
    "airflow.providers.standard.hooks.package_index",
    "airflow.providers.standard.operators.hitl",
    "airflow.sdk.definitions.asset.metadata",
    "airflow.sdk.execution_time.schema.migrator",
    "airflow.sdk.execution_time.supervisor",
    "airflow.sdk.execution_time.task_runner",
    "airflow.sdk.execution_time.timeout",
    "airflow.sdk._shared.logging.factory",
    "airflow.sdk._shared.logging.remote",
    "airflow.sdk.definitions.connection",
    "airflow.serialization.serialized_objects",
    "airflow.version",
    "dags.steps",
    "dags.view",
    "jinja2.ext",
)


def main() -> None:
    """Run the workers until they are asked to end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("homes", type=Path, nargs="+", metavar="SITE_HOME")
    parser.add_argument("--url", required=True, help="where the coordinator answers")
    parser.add_argument("--hide", type=Path, action="append", default=[], help="out of reach of the site")
    parser.add_argument("--keep", type=Path, action="append", default=[], help="in reach all the same")
    parser.add_argument("--name", help="of the only site; else the name of its folder")
    parser.add_argument("--run", type=Path, help="folder of the records of supervised processes")
    given = parser.parse_args()
    if len(given.homes) == 1:
        with reporting_refusals():
            work(SiteHome(given.homes[0]), given)
    else:
        warm([*WARM, *BELOW_AIRFLOW])
        gc.freeze()  # what is shared now is not copied by a later collection
        for home in given.homes:
            fork(SiteHome(home), given)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()


def fork(home: SiteHome, given: argparse.Namespace) -> None:
    """Start one hospital as a process that leads a session of its own, and record it."""
    part = Part(f"site-{home.root.name}", given.run)
    ready, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        os.read(ready, 1)  # the session exists
        os.close(ready)
        part.adopt(pid)
        return
    os.setsid()
    with open(part.log, "ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.close(tell)
    try:
        work(home, given)
    finally:
        sys.stdout.flush()
        os._exit(0)


def work(home: SiteHome, given: argparse.Namespace) -> None:
    """Become the site, import Airflow (which warms this process) and work until the worker drains.

    Raises:
        ConsiliumError: E117, what answers is not the coordinator that this hospital trusts.
    """
    site, url = given.name or home.root.name, given.url
    environment = site_environment(home, site, url)
    if given.run is not None:
        environment[MARK] = Part(f"site-{site}", given.run).mark
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # decided again, inside this home
    os.chdir(home.root)
    confine(given.hide, [home.root, *given.keep])
    wait_for_coordinator(url)
    airflow: Callable[[], object] = importlib.import_module("airflow.__main__").main
    warm(OF_A_TASK)
    sys.argv = ["airflow", "edge", "worker", "--queues", site, "--edge-hostname", site]
    while True:
        # Left by a worker that was killed; that only one runs is looked after by who started us.
        (home.airflow / "airflow-edge-worker.pid").unlink(missing_ok=True)
        try:
            airflow()
            return
        except SystemExit as end:
            if end.code in (None, 0):
                return
            print(f"the worker ended: {end.code}; again in {PATIENCE_SECONDS:.0f} s", flush=True)
        except Exception as error:
            print(f"the worker ended: {error!r}; again in {PATIENCE_SECONDS:.0f} s", flush=True)
        time.sleep(PATIENCE_SECONDS)
        wait_for_coordinator(url)
        forget_key()


def forget_key() -> None:
    """Have the worker read its key again, which it holds for as long as it lives (edge3 5.1.0).

    So a hospital that changed its keys need not start its worker anew: the gate refuses the old one.
    """
    importlib.import_module("airflow.providers.edge3.cli.api_client").jwt_generator.cache_clear()


def confine(hidden: list[Path], kept: list[Path]) -> None:
    """Hide the given folders, all but the site's own home and what else is kept."""
    if hidden:
        way = hide(hidden, keep=kept)
        if way == "none":
            print("WARNING: this machine offers no way to hide the coordinator's folder from a site of the")
            print("WARNING: same user. Use separate users or machines for anything but a trial.", flush=True)
        else:
            print(
                f"confined by {way}: {', '.join(map(str, hidden))} except {', '.join(map(str, kept))}",
                flush=True,
            )


def wait_for_coordinator(url: str) -> None:
    """Return when the coordinator's edge API answers; say what it waits for when that changes.

    Raises:
        ConsiliumError: E117, the certificate that answers is not trusted: waiting would not help.
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    said, pause = "", FIRST_PAUSE_SECONDS
    while True:
        try:
            with opener.open(f"{url}/edge_worker/v1/health", timeout=ANSWER_SECONDS):
                return
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, ssl.SSLCertVerificationError):
                raise ConsiliumError("E117", f"{url}: {reason.verify_message}") from error
            if str(reason) != said:
                said = str(reason)
                print(f"waiting for the coordinator at {url}: {said}", flush=True)
        time.sleep(pause)
        pause = min(pause * 1.1, LONGEST_PAUSE_SECONDS)


if __name__ == "__main__":
    main()
