"""Airflow's metadata database: SQLite in the home for a demo, PostgreSQL where `settings.yaml` names one."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import ConsiliumError
from tasks.home import CoordinatorHome
from tasks.settings import load_settings

# psycopg 3 is both the blocking and the asynchronous driver, so one package serves all of Airflow.
DRIVER = "postgresql+psycopg"
SCHEMES = ("postgresql", DRIVER)
CONNECT_SECONDS = 10
# How long a process waits while another writes. SQLite's own 5 s pass on a busy machine, and Airflow's API
# then answers with status 500; a task's own request gives up after 30 s (`execution_api_timeout`), and may
# have to wait for one before it.
SQLITE_BUSY_SECONDS = 14


def sqlite_settings(airflow: Path) -> dict[str, object]:
    """Airflow's `[database]` for SQLite inside an AIRFLOW_HOME."""
    return {"sql_alchemy_conn": f"sqlite:///{airflow / 'airflow.db'}?timeout={SQLITE_BUSY_SECONDS}"}


def database_settings(home: CoordinatorHome) -> dict[str, object]:
    """Airflow's `[database]` of the coordinator.

    Raises:
        ConsiliumError: E112, the settings file; E118, the URL is not one of PostgreSQL.
    """
    url = postgres_url(home)
    if url is None:
        return sqlite_settings(home.airflow)
    driven = f"{DRIVER}://{url}"
    # A connection that the server closed (a restart, a failover) is noticed before it is used.
    return {"sql_alchemy_conn": driven, "sql_alchemy_conn_async": driven, "sql_alchemy_pool_pre_ping": True}


def postgres_url(home: CoordinatorHome) -> str | None:
    """What follows the scheme of the configured PostgreSQL URL; None for SQLite.

    Raises:
        ConsiliumError: E112, the settings file; E118, the URL is not one of PostgreSQL.
    """
    url = load_settings(home).database
    if url is None:
        return None
    scheme, found, rest = url.partition("://")
    if not found or scheme not in SCHEMES:
        raise ConsiliumError(
            "E118", f"field 'database' of {home.settings}: scheme {scheme!r}, expected postgresql://..."
        )
    return rest


def check_database(home: CoordinatorHome) -> None:
    """Check that the configured PostgreSQL answers; SQLite always does.

    Raises:
        ConsiliumError: E118, naming host and reason but no password.
    """
    url = postgres_url(home)
    if url is None:
        return
    import psycopg

    try:
        psycopg.connect(f"postgresql://{url}", connect_timeout=CONNECT_SECONDS).close()
    except psycopg.Error as error:
        raise ConsiliumError("E118", f"postgresql://{url.rpartition('@')[2]}: {error}") from error


def is_empty(home: CoordinatorHome) -> bool:
    """Say whether the configured PostgreSQL holds no table yet.

    Raises:
        ConsiliumError: E118, it does not answer.
    """
    check_database(home)
    import psycopg

    question = "select count(*) from pg_tables where schemaname not in ('pg_catalog', 'information_schema')"
    with psycopg.connect(f"postgresql://{postgres_url(home)}", connect_timeout=CONNECT_SECONDS) as connection:
        return connection.execute(question).fetchone() == (0,)
