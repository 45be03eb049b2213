"""The site's own git + DVC repository of cohorts: which data a model saw can be checked out years later.

It never leaves the hospital. DVC runs as a library (a command costs 2-3 s, a call .2 s), never in a round.
"""

from __future__ import annotations

import configparser
import logging
import os
import subprocess
from io import StringIO
from pathlib import Path

from contracts.errors import ConsiliumError
from durable.files import locked, write_atomic
from site_runtime.home import SiteHome

_DVC_CONFIG = "[core]\n    analytics = false\n    check_update = false\n"
_DVC_IGNORED = "/config.local\n/tmp\n/cache\n"


def commit_cohort(home: SiteHome, study: str, message: str, remote: str | None = None) -> str:
    """Version the frozen cohort of `study` and return the commit (40 hexadecimal characters).

    An unchanged cohort makes no new commit.

    Args:
        remote: a DVC remote of the hospital (a folder or URL); kept in `config.local` and pushed to.

    Raises:
        ConsiliumError: E899, git or DVC could not version the data.
    """
    with locked(home.root / ".data.lock"):
        try:
            _initialise(home)
            _add(home, home.cohort(study) / "cohort.parquet", remote)
            _git(home.data, "add", "--all", "--", ".")
            if _git(home.data, "status", "--porcelain"):
                _git(home.data, "commit", "--quiet", "--message", message)
            return _git(home.data, "rev-parse", "HEAD")
        except (OSError, subprocess.CalledProcessError) as error:
            stderr = getattr(error, "stderr", "") or str(error)
            raise ConsiliumError("E899", f"{home.data}: {stderr.strip()}") from error


def _initialise(home: SiteHome) -> None:
    home.data.mkdir(parents=True, exist_ok=True)
    if not (home.data / ".git").exists():
        _git(home.data, "init", "--quiet", "--initial-branch", "main", "--template=")
    # What `dvc init` writes, without the cache it keeps outside of the hospital's home.
    for path, text in (
        (home.data / ".dvc" / "config", _DVC_CONFIG),
        (home.data / ".dvc" / ".gitignore", _DVC_IGNORED),
        (home.data / ".dvcignore", ""),
    ):
        if not path.exists():
            write_atomic(path, text.encode())


def _add(home: SiteHome, path: Path, remote: str | None) -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    logging.getLogger("dvc").setLevel(logging.ERROR)
    if remote is not None:
        _write_remote(home, remote)
    cache = {"core": {"site_cache_dir": str(home.data / ".dvc" / "tmp" / "site")}}
    try:
        with Repo(str(home.data), config=cache, _wait_for_lock=True) as repo:
            repo.add([str(path)])
            if remote is not None:
                repo.push()
    except DvcException as error:
        raise ConsiliumError("E899", f"{home.data}: {error}") from error


def _write_remote(home: SiteHome, url: str) -> None:
    config = configparser.ConfigParser()
    config["core"] = {"remote": "hospital"}
    config["'remote \"hospital\"'"] = {"url": url}
    text = StringIO()
    config.write(text)
    write_atomic(home.data / ".dvc" / "config.local", text.getvalue().encode())


def _git(folder: Path, *arguments: str) -> str:
    """Run git in `folder` with an identity of its own and none of the user's configuration."""
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("GIT_")},
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "consilium",
        "GIT_AUTHOR_EMAIL": "site@localhost",
        "GIT_COMMITTER_NAME": "consilium",
        "GIT_COMMITTER_EMAIL": "site@localhost",
    }
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()
