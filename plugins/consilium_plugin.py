"""The Airflow plugin (entry point `airflow.plugins`): the gate before the API server, the exchange behind it.

Airflow leaves a plugin out silently when its import fails, and the API server would run without its gate:
a failure here therefore ends the server.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from airflow.plugins_manager import AirflowPlugin

# Tasks and schedulers load plugins too; only the API server needs the rest of this package.
_ON_API_SERVER = len(sys.argv) > 1 and sys.argv[1] == "api-server" and "CONSILIUM_HOME" in os.environ


def _parts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    try:
        from plugins.evidence import PREFIX, evidence_app
        from plugins.exchange import exchange_app
        from plugins.gate import SiteGate
        from plugins.identity import coordinator_home

        home = coordinator_home()
        apps = [
            {"name": "Consilium exchange", "app": exchange_app(home), "url_prefix": "/consilium"},
            {"name": "Consilium evidence", "app": evidence_app(home), "url_prefix": PREFIX},
        ]
    except Exception as error:
        raise SystemExit(f"no gate, no server: {error!r}") from error
    return apps, [{"middleware": SiteGate, "name": "Consilium gate"}]


class ConsiliumPlugin(AirflowPlugin):
    """Registers what the coordinator's API server needs."""

    name = "consilium"
    if _ON_API_SERVER:
        fastapi_apps, fastapi_root_middlewares = _parts()
