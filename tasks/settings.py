"""How this coordinator is run: address, database, how long things are kept. Written by `federation init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from contracts.enrolment import BucketUrl
from contracts.errors import ConsiliumError
from contracts.fields import Text, Version
from contracts.signing import first_problem
from contracts.version import CODE_VERSION
from contracts.yaml_text import load_yaml
from durable.files import write_atomic
from tasks.home import CoordinatorHome


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Tls(_Section):
    """Server TLS. `proxy`: nginx ends it and hands on over loopback; `server`: the API server does itself."""

    mode: Literal["none", "server", "proxy"] = "none"
    client_certificates: bool = False  # ask hospitals for one as well; needs mode proxy
    # Where TLS is answered on this machine, as in 192.0.2.7:8443; when not given, at the URL's port of every
    # IPv4 address.
    listen: Annotated[str, Field(pattern=r"^(\d{1,3}(\.\d{1,3}){3}|\[[0-9a-f:.]+\]):\d{1,5}$")] | None = None

    def listens_at(self, port: int) -> tuple[str, int]:
        """Address and port at which TLS is answered on this machine, for a URL with `port`."""
        if self.listen is None:
            return "0.0.0.0", port
        host, _, own = self.listen.rpartition(":")
        return host.strip("[]"), int(own)


class Exchange(_Section):
    """Limits of the exchange of tensors."""

    # An fsspec URL such as s3://bucket/prefix, which startup kits offer to hospitals; the API server alone
    # when not given.
    url: BucketUrl | None = None
    quota_bytes: Annotated[int, Field(ge=1 << 20)] = 8 << 30  # of one site in one round
    keep_days: Annotated[float, Field(ge=0)] = 90.0  # of what no head, record or release names any more
    # Requests of one site, apart from those of its worker. A transfer over a link that breaks again and again
    # asks four times a second, whatever its size, and a worker makes four at once.
    requests_per_second: Annotated[float, Field(gt=0)] = 20.0  # on average
    burst: Annotated[int, Field(ge=10)] = 100  # that may come at once; each attempt of a transfer takes two


class Settings(_Section):
    """The content of `settings.yaml` in the coordinator's folder; every field has a default for a demo."""

    federation: Text = "local"
    url: Text | None = None  # as hospitals reach it; http://127.0.0.1:<port> when not given
    port: Annotated[int, Field(ge=1, le=65535)] = 8080  # of the API server on loopback, behind a proxy
    database: Text | None = None  # SQLAlchemy URL of Airflow's metadata; SQLite in the home when not given
    # Code versions of hospitals that a plan accepts besides the coordinator's own.
    accepted_versions: Annotated[list[Version], Field(max_length=15)] = []
    tls: Tls = Tls()
    exchange: Exchange = Exchange()
    requests_per_second: Annotated[float, Field(gt=0)] = 50.0  # of one site, on average
    burst: Annotated[int, Field(ge=1)] = 200  # requests of one site that may come at once


def load_settings(home: CoordinatorHome) -> Settings:
    """Read the coordinator's settings; without a file they are the defaults.

    Raises:
        ConsiliumError: E112, naming field, value and what was expected.
    """
    if not home.settings.exists():
        return Settings()
    try:
        return parse_settings(load_yaml(home.settings.read_text(encoding="utf-8")) or {}, home.settings)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConsiliumError("E112", f"{home.settings}: {error}") from error


def parse_settings(value: object, where: Path) -> Settings:
    """Check the content of a settings file.

    Raises:
        ConsiliumError: E112, naming field, value and what was expected.
    """
    try:
        return Settings.model_validate(value)
    except ValidationError as error:
        raise ConsiliumError("E112", f"{where}: {first_problem(error)}") from error


def save_settings(home: CoordinatorHome, settings: Settings) -> None:
    """Write the settings that differ from the defaults."""
    text = yaml.safe_dump(settings.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
    write_atomic(home.settings, text.encode())


def accepted_versions(settings: Settings) -> list[str]:
    """Code versions whose updates are taken: this one first, then the older ones that are still accepted."""
    return list(dict.fromkeys([CODE_VERSION, *settings.accepted_versions]))
