"""A hospital's private `site.yaml`: data source, governance, policy, budget and compute. It never leaves."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, ValidationError, field_validator

from contracts.canonical import digest
from contracts.errors import ConsiliumError
from contracts.fields import FeatureName, Finite, SiteName, Text, Unit
from contracts.signing import first_problem
from contracts.study import find_seed
from contracts.yaml_text import load_yaml
from site_runtime.connectors import Source, parse_source
from site_runtime.home import SiteHome
from site_runtime.policy_terms import Policy


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class UnitConversion(_Section):
    """How a stored value becomes the protocol's unit: `value * factor + offset`."""

    stored: Annotated[Unit, Field(alias="from")]
    factor: Finite
    offset: Finite = 0.0

    @field_validator("factor")
    @classmethod
    def _invertible(cls, value: float) -> float:
        if value == 0:
            raise ValueError("factor must not be 0")
        return value


class Governance(_Section):
    """Who answers for the data, and what the federation is told of their number."""

    institution: Text
    contact: Text
    lineage: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,63}$")]  # the source population, constant
    declared_size: Annotated[int, Field(ge=1)]  # patients in training, nominal: two significant figures
    approved_by: Text
    # Who may approve a study here; `approved_by` alone when nobody is named.
    approvers: Annotated[list[Text], Field(max_length=32)] = []

    @field_validator("declared_size")
    @classmethod
    def _two_figures(cls, value: int) -> int:
        if len(str(value).rstrip("0")) > 2:
            raise ValueError("expected two significant figures, such as 85, 170 or 4300")
        return value


class Budget(_Section):
    """The cap on epsilon for the lineage over all studies and all time.

    It holds at `delta`, or at a study's own delta where that is smaller: at a larger one the same epsilon
    would promise less.
    """

    delta: Annotated[float, Field(gt=0, lt=1e-2)] = 1e-5
    epsilon: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 10.0


class Compute(_Section):
    """The hospital's own hardware, in Lightning's words."""

    accelerator: Literal["auto", "cpu", "gpu", "mps"] = "auto"
    devices: Annotated[int, Field(ge=1)] = 1
    precision: Literal["32-true", "64-true", "16-mixed", "bf16-mixed"] = "32-true"


class SiteConfig(_Section):
    """One hospital's configuration, validated; paths in `source` are absolute after loading."""

    site: SiteName
    source: SerializeAsAny[Source]
    units: dict[FeatureName, UnitConversion] = {}
    holdout: Path | None = None  # file of patient ids, one a line, for studies with `holdout: list`
    data_remote: str | None = None  # DVC remote of the hospital itself, for its versioned cohorts
    governance: Governance
    policy: Policy = Policy()
    budget: Budget = Budget()
    compute: Compute = Compute()

    @field_validator("source", mode="before")
    @classmethod
    def _options_of_connector(cls, value: Any) -> Any:
        return parse_source(value) if isinstance(value, Mapping) else value

    @property
    def policy_digest(self) -> str:
        """Digest of the policy in force, by which rounds record it."""
        return digest(self.policy)


class SitePart(BaseModel):
    """What a privacy officer needs of a `site.yaml`; the rest needs what a light install lacks."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    site: SiteName
    governance: Governance
    budget: Budget = Budget()


def load_site_part(path: Path) -> SitePart:
    """Read name, governance and budget of a `site.yaml`, and nothing else of it.

    Raises:
        ConsiliumError: E103, naming field, value and what was expected.
    """
    try:
        return SitePart.model_validate(load_yaml(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        raise ConsiliumError("E103", f"{path}: {first_problem(error)}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConsiliumError("E103", f"{path}: {error}") from error


def data_folder() -> Path:
    """Where public data sets lie: `$CONSILIUM_DATA`, else `data` in the home, else `../shared/data`.

    The last is used only where it exists; it is how this project's own checkouts share the files.
    """
    named = os.environ.get("CONSILIUM_DATA")
    if named:
        return Path(named).absolute()
    own = Path(os.environ.get("CONSILIUM_HOME", ".consilium")).absolute() / "data"
    shared = Path("../shared/data").absolute()
    return own if own.exists() or not shared.exists() else shared


def resolve(path: Path, base: Path) -> Path:
    """Expand `${NAME}` from the environment and make `path` absolute, relative to `base`.

    Raises:
        ConsiliumError: E103, a variable that is not set.
    """

    def value(match: re.Match[str]) -> str:
        name = match.group(1)
        if name == "CONSILIUM_DATA":
            return str(data_folder())
        if name not in os.environ:
            raise ConsiliumError("E103", f"path {str(path)!r}: environment variable {name} is not set")
        return os.environ[name]

    return (base.absolute() / Path(re.sub(r"\$\{(\w+)\}", value, str(path))).expanduser()).resolve()


def load_site_file(path: Path) -> SiteConfig:
    """Read a `site.yaml`; relative paths in it are relative to its own folder.

    Raises:
        ConsiliumError: E103, naming field, value and what was expected.
    """
    try:
        value = load_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConsiliumError("E103", f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise ConsiliumError("E103", f"{path}: expected a mapping, got {type(value).__name__}")
    seed = find_seed({name: part for name, part in value.items() if name != "source"})
    if seed is not None:
        raise ConsiliumError("E405", f"{path}: field {seed!r}, expected none")
    try:
        config = SiteConfig.model_validate(value)
    except ValidationError as error:
        raise ConsiliumError("E103", f"{path}: {first_problem(error)}") from error
    paths = {name: resolve(option, path.parent) for name, option in config.source if isinstance(option, Path)}
    holdout = resolve(config.holdout, path.parent) if config.holdout is not None else None
    return config.model_copy(update={"source": config.source.model_copy(update=paths), "holdout": holdout})


def load_site(home: SiteHome) -> SiteConfig:
    """Read the configuration of an enrolled site.

    Raises:
        ConsiliumError: E103.
    """
    return load_site_file(home.config)


def dump_site(config: SiteConfig) -> str:
    """Return `config` as YAML that `load_site_file` reads back to an equal value."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_unset=True), sort_keys=False)
