"""Connectors: how a site's source becomes raw records. One file each, found by name in `CONNECTORS`.

A connector is a module with two names:

    class Options(Source)   its options in `site.yaml`, under `source`; paths are typed `Path`
    read(options, protocol) -> pandas.DataFrame

`read` returns one row per record with the columns

    patient         str, the source's own identifier (it is replaced by a keyed hash before anything is kept)
    record          str, unique within a patient
    <feature>       float64, as stored, for every feature of the protocol; NaN = missing
    <label>         float64, 0, 1 or NaN; likewise every auxiliary label, NaN = unknown
    prediction_time datetime64, optional: when the model would have been asked
    observed_until  datetime64, optional: when the last of the record's values was observed

and raises E201 (source unreadable), E202 (column missing) or E203 (no number where one must be).
`tests/site_runtime/test_connectors.py` is the contract every connector passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, Protocol, cast

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas

    from contracts.study import StudyProtocol

CONNECTORS = {
    "synthetic": "site_runtime.connectors.synthetic",
    "csv": "site_runtime.connectors.csv",
}


class Source(BaseModel):
    """Base of every connector's options."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connector: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{1,31}$")]

    @property
    def tells_patients_apart(self) -> bool:
        """Whether the records of one patient are known to be one patient's: differential privacy needs it."""
        return True


class Connector(Protocol):
    """What a connector module offers."""

    Options: type[Source]

    def read(self, options: Any, protocol: StudyProtocol) -> pandas.DataFrame:
        """Return the raw records of the source (see the package's docstring)."""
        ...


def find(name: str) -> Connector:
    """Return the connector called `name`; ValueError when there is none."""
    if name not in CONNECTORS:
        raise ValueError(f"no connector {name!r}; there are {', '.join(sorted(CONNECTORS))}")
    return cast(Connector, import_module(CONNECTORS[name]))


def parse_source(value: Mapping[str, Any]) -> Source:
    """Validate the `source` section by the options of the connector it names."""
    name = value.get("connector")
    if not isinstance(name, str):
        raise ValueError("source needs `connector:` with the name of a connector")
    return find(name).Options.model_validate(dict(value))


def read(source: Source, protocol: StudyProtocol) -> pandas.DataFrame:
    """Read the records of a source through its connector.

    Raises:
        ConsiliumError: E201, E202 or E203, with the place in the source as detail.
    """
    return find(source.connector).read(source, protocol)
