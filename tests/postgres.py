"""A PostgreSQL of a test's own: a private cluster on a loopback port, run as the user `postgres`."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from consilium.processes import wait_until

USER = "postgres"  # PostgreSQL refuses to run as root
BINARIES = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Postgres:
    """A cluster with one database, which can be killed as a machine that loses power would."""

    binaries: Path
    folder: Path
    port: int

    @property
    def url(self) -> str:
        """The database as `settings.yaml` names it."""
        return self.url_of("airflow")

    def url_of(self, database: str) -> str:
        """A database of this server."""
        return f"postgresql://{USER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Start the server and wait until it takes connections (after a crash it recovers first)."""
        (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)
        options = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        log = self.folder / "log"
        self._as_user("pg_ctl", "-D", self.folder / "data", "-l", log, "-w", "-o", options, "start")

    def processes(self) -> list[psutil.Process]:
        """The postmaster and its children."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if f"{self.folder / 'data'}" in " ".join(process.cmdline()):
                    found += [process, *process.children(recursive=True)]
        return found

    def kill(self) -> None:
        """Kill every process of the server at once."""
        processes = self.processes()
        assert processes, "no PostgreSQL to kill"
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        assert wait_until(lambda: not self.processes(), 10)

    def query(self, sql: str, database: str = "airflow") -> list[tuple]:
        """Rows of a query."""
        import psycopg

        with psycopg.connect(self.url_of(database)) as connection:
            return connection.execute(sql).fetchall()  # type: ignore[arg-type]

    def make(self) -> None:
        """Make the cluster and the database."""
        self._as_user("initdb", "-D", self.folder / "data", "-A", "trust", "-E", "UTF8", "--no-sync")
        self.start()
        self.create("airflow")

    def create(self, database: str) -> str:
        """Make an empty database and return its URL."""
        self._as_user("createdb", "-h", "127.0.0.1", "-p", str(self.port), database)
        return self.url_of(database)

    def _as_user(self, program: str, *arguments: object) -> None:
        command = [str(self.binaries / program), *map(str, arguments)]
        # The server must not hold our pipes open, so its output goes to a file.
        with open(self.folder / "commands.log", "ab") as log:
            done = subprocess.run(command, user=USER, cwd=self.folder, stdout=log, stderr=log, check=False)
        assert done.returncode == 0, (self.folder / "commands.log").read_text()[-2000:]


@contextlib.contextmanager
def private_postgres(port: int) -> Iterator[Postgres]:
    """Run a PostgreSQL for the block; skip the test where there is none or it cannot be run."""
    versions = sorted(BINARIES.glob("*/bin/initdb"))
    if not versions:
        pytest.skip("no PostgreSQL here: `make debian` installs it")
    if os.getuid() != 0:
        pytest.skip("a private PostgreSQL is started as the user postgres, which takes root")
    folder = Path(tempfile.mkdtemp(prefix="consilium-postgres-"))
    os.chown(folder, pwd.getpwnam(USER).pw_uid, -1)
    postgres = Postgres(versions[-1].parent, folder, port)
    try:
        postgres.make()
        yield postgres
    finally:
        with contextlib.suppress(AssertionError):
            postgres.kill()
        shutil.rmtree(folder, ignore_errors=True)
