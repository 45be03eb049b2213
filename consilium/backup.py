"""A backup of the coordinator as one file, and its restoration into an empty home.

The file is a tar of the coordinator's folder, of Airflow's database and of a manifest with the digest of
each. It holds the private keys, so it is readable by its owner only and should be kept encrypted elsewhere.
Logs, presence and generated configuration are left out: `up` makes them again. The homes of hospitals are not
in it; a hospital's ledger must never be put back (docs/operations.md).
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import sqlite3
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Annotated, Any
from urllib.parse import unquote, urlsplit

from pydantic import Field, ValidationError

from consilium.database import is_empty, postgres_url
from contracts.canonical import canonical_json, sha256
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Count, Digest, Timestamp, Version
from contracts.signing import first_problem
from contracts.version import CODE_VERSION
from durable.files import locked, sync
from tasks.head import load_head, now, registered_studies
from tasks.home import CoordinatorHome
from tasks.settings import load_settings, save_settings

MANIFEST = "manifest.json"
FOLDER = "coordinator"
SQLITE, POSTGRES = "database.sqlite", "database.dump"
LEFT_OUT = ("airflow", "presence", "tmp")  # of the coordinator's folder: what `up` makes again
_BLOCK = 1 << 20  # bytes
_MANIFEST_BYTES = 64 << 20
_CLIENT_SECONDS = 3600


class SavedFile(Contract):
    """Size and SHA-256 of a member of the tar."""

    size: Count
    sha256: Digest


class Backup(Contract):
    """The manifest: what was saved, when and in which state of the studies."""

    created: Timestamp
    code_version: Version
    federation: str
    studies: dict[str, dict[str, str | int]]  # status and round, for people
    files: Annotated[dict[str, SavedFile], Field(max_length=10_000_000)]


def backup(home: CoordinatorHome, file: Path) -> Backup:
    """Save the coordinator to a new file while it runs or rests.

    The database comes first: where it is older than the studies' heads, the heads are the truth. No round is
    closed and no head moves while the folder is read.

    Raises:
        ConsiliumError: E119, the file exists, or could not be written, or the database could not be saved.
    """
    if not home.federation.exists():
        raise ConsiliumError(
            "E119", f"{home.root} is no coordinator's folder: no {home.federation.name} in it"
        )
    if file.exists():
        raise ConsiliumError("E119", f"{file} exists and is not overwritten")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor, partial = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError as error:
        raise ConsiliumError("E119", f"{file}: {error.strerror}") from error
    try:
        with os.fdopen(descriptor, "wb") as stream, tempfile.TemporaryDirectory(dir=file.parent) as folder:
            with tarfile.open(fileobj=stream, mode="w") as tar:
                files: dict[str, SavedFile] = {}
                dumped = dump_database(home, Path(folder))
                if dumped is not None:
                    files[dumped.name] = _add(tar, dumped.name, dumped)
                with standing_still(home):
                    for path in saved_paths(home):
                        name = f"{FOLDER}/{path.relative_to(home.root)}"
                        files[name] = _add(tar, name, path)
                    found = _manifest(home, files)
                text = canonical_json(found)
                member = tarfile.TarInfo(MANIFEST)
                member.size, member.mode = len(text), 0o600
                tar.addfile(member, io.BytesIO(text))
            stream.flush()
            os.fsync(stream.fileno())
        os.link(partial, file)  # unlike a rename it never replaces what somebody wrote meanwhile
        sync(file.parent)
    except OSError as error:
        raise ConsiliumError("E119", f"{file}: {error.strerror}") from error
    finally:
        Path(partial).unlink(missing_ok=True)
    return found


@contextlib.contextmanager
def standing_still(home: CoordinatorHome) -> Iterator[None]:
    """Hold the locks under which rounds are closed and heads, ledger heads and the registry change."""
    studies = [home.study(study) for study in registered_studies(home)]
    paths = [study / ".close.lock" for study in studies]
    paths += [home.root / name for name in (".publish.lock", ".ledger_heads.lock", ".federation.lock")]
    paths += [study / ".head.lock" for study in studies]
    with contextlib.ExitStack() as held:
        for path in paths:
            held.enter_context(locked(path))
        yield


def saved_paths(home: CoordinatorHome) -> list[Path]:
    """Files of the coordinator's folder that belong into a backup: no locks, nothing unfinished."""
    found = []
    for path in sorted(home.root.rglob("*")):
        place = path.relative_to(home.root)
        unfinished = path.name.startswith(".incoming.") or path.name.endswith(".lock")
        if place.parts[0] not in LEFT_OUT and not unfinished and path.is_file() and not path.is_symlink():
            found.append(path)
    return found


def dump_database(home: CoordinatorHome, folder: Path) -> Path | None:
    """Write a consistent copy of Airflow's database; None where none was made yet.

    Raises:
        ConsiliumError: E119, `pg_dump` is missing or failed; E118, E112, the settings.
    """
    url = postgres_url(home)
    if url is not None:
        run_client("E119", url, "pg_dump", "--format=custom", f"--file={folder / POSTGRES}")
        return folder / POSTGRES
    source = home.airflow / "airflow.db"
    if not source.exists():
        return None
    opened = (contextlib.closing(sqlite3.connect(path)) for path in (source, folder / SQLITE))
    with next(opened) as old, next(opened) as new:
        old.backup(new)
    return folder / SQLITE


def run_client(number: str, url: str, program: str, *arguments: str) -> None:
    """Run a program of PostgreSQL on the database; the password travels in its environment, not in `ps`.

    Raises:
        ConsiliumError: with `number`; the program is missing or failed. No password is in its detail.
    """
    parts = urlsplit(f"postgresql://{url}")
    secret = {} if parts.password is None else {"PGPASSWORD": unquote(parts.password)}
    user = "" if parts.username is None else f"{parts.username}@"
    bare = parts._replace(netloc=f"{user}{parts.netloc.rpartition('@')[2]}").geturl()
    try:
        done = subprocess.run(
            [program, "--no-password", f"--dbname={bare}", *arguments],
            env={**os.environ, **secret},
            capture_output=True,
            text=True,
            check=False,
            timeout=_CLIENT_SECONDS,
        )
    except FileNotFoundError as error:
        raise ConsiliumError(number, f"{program} is not installed (Debian: postgresql-client)") from error
    except subprocess.TimeoutExpired as error:
        raise ConsiliumError(number, f"{program} was not done after {_CLIENT_SECONDS} s") from error
    if done.returncode != 0:
        raise ConsiliumError(number, f"{program}: {done.stderr.strip()[-500:]}")


def restore(
    file: Path,
    target: Path,
    database: str | None = None,
    look: Callable[[Backup, CoordinatorHome], None] = lambda found, home: None,
) -> Backup:
    """Put a backup into a home without a coordinator; nothing is there unless every digest is right.

    Args:
        target: the home (`CONSILIUM_HOME`) that gets the folder `coordinator`.
        database: URL of an empty PostgreSQL database, where it is not the one that the settings name.
        look: gets what was unpacked before anything is in its place; what it raises stops the restoration.

    Raises:
        ConsiliumError: E120, the file is no backup or damaged; E121, a coordinator or a filled database is
            there; E118, the database does not answer, or `pg_restore` is missing or failed.
    """
    home = CoordinatorHome(target / "coordinator")
    if home.root.exists():
        raise ConsiliumError("E121", f"{home.root} exists; move it away first")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".restoring.") as name:
        folder = Path(name)
        found = unpack(file, folder)
        restored = CoordinatorHome(folder / FOLDER)
        look(found, restored)
        if database is not None:
            save_settings(restored, load_settings(restored).model_copy(update={"database": database}))
        url = postgres_url(restored)
        if url is not None and POSTGRES in found.files:
            if not is_empty(restored):
                raise ConsiliumError("E121", "the database holds tables; give an empty one with --database")
            options = ("--no-owner", "--exit-on-error", "--single-transaction", str(folder / POSTGRES))
            run_client("E118", url, "pg_restore", *options)
        elif SQLITE in found.files and url is None:
            restored.airflow.mkdir(parents=True)
            os.replace(folder / SQLITE, restored.airflow / "airflow.db")
        os.rename(restored.root, home.root)
        sync(target)
    return found


def unpack(file: Path, folder: Path) -> Backup:
    """Write the members of a backup below an empty folder and check each against the manifest.

    Raises:
        ConsiliumError: E120.
    """
    seen: dict[str, SavedFile] = {}
    text = b""
    try:
        with tarfile.open(file, mode="r:") as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isreg() else None
                if source is None or member.name in seen or not _inside(member.name):
                    raise ConsiliumError("E120", f"{file}: unexpected member {member.name!r}")
                if member.name == MANIFEST:
                    text = source.read(_MANIFEST_BYTES)
                    continue
                path = folder / member.name
                path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as written:
                    seen[member.name] = _copied(source, written)
        found = Backup.model_validate_json(text)
    except ValidationError as error:
        raise ConsiliumError("E120", f"{file}: {MANIFEST}: {first_problem(error)}") from error
    except (OSError, tarfile.TarError, EOFError) as error:
        raise ConsiliumError("E120", f"{file}: {error}") from error
    wrong = sorted(name for name in {*seen, *found.files} if seen.get(name) != found.files.get(name))
    if wrong:
        raise ConsiliumError(
            "E120", f"{file}: {len(wrong)} files differ from the manifest, first {wrong[0]!r}"
        )
    return found


def digest_of(found: Backup) -> str:
    """The digest to write down at the backup and to compare at the restoration."""
    return sha256(canonical_json(found))


def _manifest(home: CoordinatorHome, files: dict[str, SavedFile]) -> Backup:
    heads = {study: load_head(home, study) for study in registered_studies(home)}
    studies: dict[str, Any] = {s: {"status": head.status, "round": head.round} for s, head in heads.items()}
    return Backup(
        created=now(),
        code_version=CODE_VERSION,
        federation=load_settings(home).federation,
        studies=studies,
        files=files,
    )


def _add(tar: tarfile.TarFile, name: str, path: Path) -> SavedFile:
    """Add a file and return what was read, whatever becomes of the file meanwhile."""
    with open(path, "rb") as source, tempfile.TemporaryFile() as copy:
        saved = _copied(source, copy)
        copy.seek(0)
        member = tarfile.TarInfo(name)
        member.size, member.mode = saved.size, 0o600
        tar.addfile(member, copy)
    return saved


def _copied(source: IO[bytes], target: IO[bytes]) -> SavedFile:
    sha, size = hashlib.sha256(), 0
    while block := source.read(_BLOCK):
        sha.update(block)
        size += len(block)
        target.write(block)
    return SavedFile(size=size, sha256=sha.hexdigest())


def _inside(name: str) -> bool:
    parts = Path(name).parts
    known = name in (MANIFEST, SQLITE, POSTGRES) or (parts[:1] == (FOLDER,) and len(parts) > 1)
    return known and ".." not in parts and not Path(name).is_absolute()
