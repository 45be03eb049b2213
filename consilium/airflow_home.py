"""The AIRFLOW_HOME of the coordinator and of each site: settings that were measured (design section 6)."""

from __future__ import annotations

import base64
import configparser
import io
import json
import os
import secrets
from pathlib import Path

from consilium.address import parse_address, require_protected
from consilium.certificate_forms import covers, load
from consilium.certificates import TlsFiles
from consilium.database import database_settings, sqlite_settings
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey
from durable.files import write_atomic
from site_runtime.home import SiteHome
from tasks.gate_key import GATE_AUDIENCE, TASK_AUDIENCE, gate_key
from tasks.head import load_protocol, registered_studies
from tasks.home import LOCAL_QUEUE, CoordinatorHome
from tasks.settings import load_settings

OPERATOR = "operator"  # administers Airflow
CLINICIAN = "clinician"  # signs off a release where a protocol names no other role; no administrator may
HEARTBEAT_SECONDS = 5
LOST_SECONDS = 30  # a running task whose supervisor was silent for so long is lost
OUTAGE_SECONDS = 3600  # a coordinator may be away for so long before anybody gives up
RETRY_SECONDS = 5.0  # longest pause between two attempts to reach it; the shortest is one second
_NOTICED_SECONDS = 15  # until the scheduler has seen and settled a lost task

_PROXIES = {"HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"}

Settings = dict[str, dict[str, object]]


def queue_timeout(deadline_seconds: int) -> int:
    """Seconds that a task may wait for its worker, such that a round closes within its deadline.

    A worker that dies with a task costs `LOST_SECONDS` and a little, then its retry waits in the queue.
    A living worker fetches within a second, and a plan names only sites that were there.
    """
    return max(LOST_SECONDS // 2, deadline_seconds - LOST_SECONDS - _NOTICED_SECONDS)


def dags_folder() -> Path:
    """Folder of the DAG files, the same at the coordinator and at every site."""
    import dags

    return Path(dags.__path__[0]).resolve()


def base_url(port: int) -> str:
    """Where the coordinator of this machine answers."""
    return f"http://127.0.0.1:{port}"


def inside_url(home: CoordinatorHome, port: int) -> str:
    """Where the coordinator's own processes and commands reach it: loopback, with TLS where it speaks that.

    Where a certificate of one's own is not for loopback, it is the URL of the hospitals.

    Raises:
        ConsiliumError: E112, E113, E116.
    """
    settings = load_settings(home)
    if settings.tls.mode != "server":
        return base_url(port)
    loopback = covers(load(TlsFiles(home.tls).certificate), "127.0.0.1")
    return f"https://127.0.0.1:{port}" if loopback else parse_address(settings.url or "").url


def _common(airflow: Path, url: str) -> Settings:
    """Settings that both sides share, by section and option."""
    return {
        "core": {
            "dags_folder": dags_folder(),
            "plugins_folder": airflow / "plugins",  # stays empty: the plugin comes by its entry point
            "load_examples": False,
            "executor": "LocalExecutor,airflow.providers.edge3.executors.EdgeExecutor",
            "execution_api_server_url": f"{url}/execution/",
            "fernet_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "dags_are_paused_at_creation": False,
            "test_connection": "Disabled",
        },
        "operators": {"default_queue": LOCAL_QUEUE},
        "edge": {
            "api_url": f"{url}/edge_worker/v1/rpcapi",
            "job_poll_interval": 1,
            "heartbeat_interval": HEARTBEAT_SECONDS,
            "push_logs": False,
        },
        "logging": {
            "base_log_folder": airflow / "logs",
            "dag_processor_child_process_log_directory": airflow / "logs" / "dag_processor",
            "colored_console_log": False,
            "uvicorn_logging_level": "WARNING",
            "namespace_levels": "http.access=WARNING airflow.api_fastapi=WARNING",
        },
        "workers": {
            "execution_api_timeout": 30,  # seconds; the default of 5 is short on a busy machine
            # A supervisor notices the end of its task at its next heartbeat only, and holds its slot until
            # then; failed heartbeats are counted, so that more of them make up the same half minute.
            "min_heartbeat_interval": 1,
            "max_failed_heartbeats": 30,
            # Airflow's own pauses grow to 90 s, and it gives up after five attempts: a training that outlived
            # a restart of the API server would be thrown away, and a worker would be late when it is back.
            "execution_api_retries": OUTAGE_SECONDS,
            "execution_api_retry_wait_max": RETRY_SECONDS,
        },
        "usage_data_collection": {"enabled": False},
        "scheduler": {"catchup_by_default": False},
        "database": sqlite_settings(airflow),
    }


def coordinator_settings(home: CoordinatorHome, port: int, deadline_seconds: int, sites: int) -> Settings:
    """Settings of the coordinator's Airflow, listening on `port`.

    Args:
        deadline_seconds: the longest deadline of the registered studies.
        sites: number of enrolled sites.

    Raises:
        ConsiliumError: E112, E113, E116.
    """
    own = load_settings(home)
    url = inside_url(home, port)
    settings = _common(home.airflow, url)
    settings["database"] = database_settings(home)
    settings["core"] |= {
        # Edge tasks name their executor by its class; all others run in the first.
        "executor": "consilium.own_executor.OwnExecutor,airflow.providers.edge3.executors.EdgeExecutor",
        # Tasks at once, of all executors and studies together. A site's task holds its slot for a moment
        # after its end, and a round whose hospitals do not all start together loses its deadline.
        "parallelism": max(4, 2 * sites),
        "default_pool_task_slot_count": 10_000,  # no second limit; of a new database
        "hostname_callable": "consilium.airflow_home.coordinator_host_name",
        "simple_auth_manager_users": ",".join(
            [f"{OPERATOR}:admin", *(f"{role}:op" for role in sign_off_roles(home))]
        ),
        "simple_auth_manager_passwords_file": passwords_file(home),
        "min_serialized_dag_update_interval": 5,
    }
    settings["edge"] |= {
        "api_enabled": True,
        # Only what the gate has signed anew: a request that did not pass it is refused by Airflow itself.
        "trusted_jwks_url": home.gate_jwks,
        "jwt_audience": "api",
        "jwt_algorithm": "EdDSA",
        "jwt_issuer": "gate",
        "jwt_verifier": "plugins.passes.may_work",
        "jwt_leeway": 10,
    }
    # The API server takes task tokens of this audience only, which the gate alone writes into one.
    settings["execution_api"] = {"jwt_audience": GATE_AUDIENCE}
    settings["api"] = {
        "host": "127.0.0.1",
        "port": port,
        "base_url": own.url or url,
        "workers": 1,
        "secret_key": secrets.token_urlsafe(32),
        "expose_config": False,
        "enable_swagger_ui": False,
        "instance_name": "Consilium",
    }
    if own.tls.mode == "server":
        files = TlsFiles(home.tls)
        host, _ = own.tls.listens_at(port)
        settings["api"] |= {"host": host, "ssl_cert": files.certificate, "ssl_key": files.key}
        if files.ca.exists():  # for the coordinator's own tasks
            settings["api"] |= {"ssl_ca_file": files.ca, "client_use_public_certs": False}
    settings["api_auth"] = {
        "jwt_private_key_path": home.api_key,
        "jwt_issuer": "coordinator",
        # No jwt_kid: Airflow 3.3 checks these tokens against a set made from the key alone, without it.
        "jwt_secret": secrets.token_urlsafe(32),
    }
    settings["scheduler"] |= {
        "scheduler_idle_sleep_time": 0.1,
        "num_stuck_in_queued_retries": 0,
        "task_queued_timeout": queue_timeout(deadline_seconds),
        "task_queued_timeout_check_interval": 2,
        "task_instance_heartbeat_timeout": LOST_SECONDS,
        "task_instance_heartbeat_timeout_detection_interval": 5,
    }
    settings["dag_processor"] = {"parsing_processes": 1, "refresh_interval": 30}
    return settings


def site_settings(home: SiteHome, site: str, url: str) -> Settings:
    """Settings of a site's edge worker, which talks to the coordinator at `url`.

    Raises:
        ConsiliumError: E113; E115, plain HTTP to another machine.
    """
    require_protected(parse_address(url))
    settings = _common(home.airflow, url)
    if home.ca.exists():  # the authority that was pinned, and no public one beside it
        settings["api"] = {"ssl_ca_file": home.ca, "client_use_public_certs": False}
    settings["core"]["hostname_callable"] = "consilium.airflow_home.site_host_name"
    settings["edge"]["worker_concurrency"] = 4  # a supervisor lingers 5 s after its task
    settings["api_auth"] = {
        "jwt_private_key_path": home.edge_key,
        "jwt_kid": site,
        "jwt_issuer": site,
        "jwt_secret": "",
    }
    return settings


def coordinator_host_name() -> str:
    """`[core] hostname_callable` of the coordinator: nothing of the machine travels or is shown."""
    return "coordinator"


def site_host_name() -> str:
    """`[core] hostname_callable` of a site: its name in the federation, not its machine's."""
    return os.environ["CONSILIUM_SITE"]


def sign_off_roles(home: CoordinatorHome) -> list[str]:
    """Roles that sign off releases here, each an Airflow user of that name: of all registered studies.

    Raises:
        ConsiliumError: E101, a study gives a role the name of the administrator, who may sign off nothing.
    """
    roles = {CLINICIAN}
    for study in registered_studies(home):
        asked = load_protocol(home, study).sign_off.roles
        if OPERATOR in asked:
            raise ConsiliumError("E101", f"study {study!r}: role {OPERATOR!r} administers Airflow")
        roles |= set(asked)
    return sorted(roles)


def passwords_file(home: CoordinatorHome) -> Path:
    """Passwords of the users of this home's Airflow, by name; readable by their owner only."""
    return home.root / "keys" / "passwords.json"


def password(home: CoordinatorHome, user: str) -> str:
    """Password of `operator`, or of the user of a role."""
    return str(json.loads(passwords_file(home).read_text())[user])


def make_api_key(home: CoordinatorHome) -> None:
    """Draw the key of Airflow's own tokens, once."""
    if not home.api_key.exists():
        SigningKey.generate("coordinator").save(home.api_key)


def write_coordinator(home: CoordinatorHome, port: int, deadline_seconds: int, sites: int) -> None:
    """Write configuration, keys and passwords of the coordinator's Airflow; keys and passwords are kept."""
    make_api_key(home)
    gate_key(home)
    known = json.loads(passwords_file(home).read_text()) if passwords_file(home).exists() else {}
    users = (OPERATOR, *sign_off_roles(home))
    if set(users) - set(known):
        known |= {user: secrets.token_urlsafe(18) for user in users if user not in known}
        _write_private(passwords_file(home), json.dumps(known).encode())
    _write_config(home.airflow, coordinator_settings(home, port, deadline_seconds, sites))
    write_atomic(home.airflow / "config" / "airflow_local_settings.py", _COORDINATOR_SETTINGS.encode())


def write_site(home: SiteHome, site: str, url: str) -> None:
    """Write configuration of a site's worker and the module that warms it."""
    _write_config(home.airflow, site_settings(home, site, url))
    write_atomic(home.airflow / "config" / "airflow_local_settings.py", _LOCAL_SETTINGS.encode())


def coordinator_environment(home: CoordinatorHome) -> dict[str, str]:
    """Environment of the coordinator's processes."""
    return _environment(home.root, home.airflow) | {"CONSILIUM_HOME": str(home.root.parent)}


def site_environment(home: SiteHome, site: str, url: str) -> dict[str, str]:
    """Environment of a site's worker: it names this site alone, and no user or host of the machine."""
    threads = os.environ.get("OMP_NUM_THREADS", "1")
    environment = {
        name: value
        for name, value in _environment(home.root, home.airflow).items()
        if name.upper() not in _PROXIES  # the one way out is the one configured
    }
    if home.ca.exists():
        # aiohttp (the edge client) and urllib read OpenSSL's variables: one authority, no folder beside it.
        environment |= {"SSL_CERT_FILE": str(home.ca), "SSL_CERT_DIR": os.devnull}
    return environment | {
        "CONSILIUM_SITE_HOME": str(home.root),
        "CONSILIUM_SITE": site,
        "CONSILIUM_COORDINATOR_URL": url,
        "HOSTNAME": site,
        "LOGNAME": site,  # the user name that Airflow reports with a task
        "USER": site,
        "OMP_NUM_THREADS": threads,
        # Of the edge client, which reads them from the environment alone (edge3 5.1.0).
        "AIRFLOW__EDGE__API_RETRIES": str(OUTAGE_SECONDS),
        "AIRFLOW__EDGE__API_RETRY_WAIT_MAX": str(RETRY_SECONDS),
        "OPENBLAS_NUM_THREADS": "1",
    }


def _environment(root: Path, airflow: Path) -> dict[str, str]:
    """The caller's environment without what would reach into Airflow or into another home."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("AIRFLOW", "_AIRFLOW", "CONSILIUM"))
    }
    temporary = root / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    return kept | {
        "AIRFLOW_HOME": str(airflow),
        "TMPDIR": str(temporary),  # inside the home: no record ever lies in a shared folder
        "SCARF_ANALYTICS": "false",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _write_config(airflow: Path, settings: Settings) -> None:
    parser = configparser.RawConfigParser()
    for section, options in settings.items():
        parser.add_section(section)
        for name, value in options.items():
            parser.set(section, name, str(value).replace("%", "%%"))
    text = io.StringIO()
    parser.write(text)
    airflow.mkdir(parents=True, exist_ok=True)
    _write_private(airflow / "airflow.cfg", text.getvalue().encode())


def _write_private(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, data)  # mkstemp: readable and writable by its owner only


_COORDINATOR_SETTINGS = f'''"""Run by Airflow at start: the scheduler imports once what its tasks need.

It gives tasks tokens of an audience that the API server takes from the gate only.
"""

import os
import sys

if sys.argv[1:2] == ["scheduler"]:
    os.environ["AIRFLOW__EXECUTION_API__JWT_AUDIENCE"] = "{TASK_AUDIENCE}"

    import safetensors.numpy
    import scipy.stats
    import tasks.rounds
'''

_LOCAL_SETTINGS = '''"""Run by Airflow when the worker starts, before it forks a process for each task."""

from site_runtime.warm import warm

warm()
'''
