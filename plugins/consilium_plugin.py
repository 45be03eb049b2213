"""The Airflow plugin (entry point `airflow.plugins`): the gate before the API server, the exchange behind it.

Airflow leaves a plugin out silently when its import fails, and the API server would run without its gate:
a failure here therefore ends the server. Were the plugin not loaded at all, Airflow would refuse every
hospital and every task (`plugins.passes`).
"""

from __future__ import annotations

import os
import sys
from typing import Any
from urllib.parse import urlsplit

from airflow.plugins_manager import AirflowPlugin

# Tasks and schedulers load plugins too; only the API server needs the rest of this package.
_ON_API_SERVER = len(sys.argv) > 1 and sys.argv[1] == "api-server" and "CONSILIUM_HOME" in os.environ


def _check_settings() -> bool:
    """Check that Airflow is set up for the gate; return whether the server ends TLS itself.

    Raises:
        ConsiliumError: E816.
    """
    import multiprocessing

    from airflow.configuration import conf

    from contracts.errors import ConsiliumError
    from plugins.identity import coordinator_home
    from tasks.gate_key import GATE_AUDIENCE

    expected = {
        ("edge", "trusted_jwks_url"): str(coordinator_home().gate_jwks),
        ("edge", "jwt_verifier"): "plugins.passes.may_work",
        ("execution_api", "jwt_audience"): GATE_AUDIENCE,
        ("api", "workers"): "1",  # replays and rates are counted in one process
    }
    for (section, option), value in expected.items():
        found = conf.get(section, option, fallback=None)
        if found != value:
            raise ConsiliumError("E816", f"[{section}] {option} is {found!r}, expected {value!r}")
    if urlsplit(conf.get("api", "base_url", fallback="") or "").path not in ("", "/"):
        # Airflow would then answer under the prefix too, where the gate decides nothing.
        raise ConsiliumError("E816", f"[api] base_url is {conf.get('api', 'base_url')!r}, expected no path")
    if multiprocessing.parent_process() is not None:
        raise ConsiliumError("E816", "the API server has several processes, expected one (--workers 1)")
    return bool(conf.get("api", "ssl_cert", fallback=None))


def _parts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        from plugins.evidence import PREFIX, evidence_app
        from plugins.exchange import exchange_app
        from plugins.gate import SiteGate
        from plugins.identity import coordinator_home
        from plugins.probe import Probe

        https = _check_settings()
        home = coordinator_home()
        apps = [
            {"name": "Consilium exchange", "app": exchange_app(home), "url_prefix": "/consilium"},
            {"name": "Consilium evidence", "app": evidence_app(home), "url_prefix": PREFIX},
        ]
        gate = {"probe": lambda home: Probe(home, https=https)}
    except BaseException as error:
        raise SystemExit(f"no gate, no server: {error!r}") from error
    return apps, [{"middleware": SiteGate, "name": "Consilium gate", "kwargs": gate}]


class ConsiliumPlugin(AirflowPlugin):
    """Registers what the coordinator's API server needs."""

    name = "consilium"
    if _ON_API_SERVER:
        fastapi_apps, fastapi_root_middlewares = _parts()
