"""The cohort: raw records made canonical, frozen under a keyed digest, and read back as arrays.

Everything done to a record here is a function of its patient's rows and of protocol constants (design
section 5), so that a patient touches only their own gradient.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from dataclasses import dataclass
from io import BytesIO
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.study import StudyProtocol
from durable.files import write_atomic
from site_runtime.config import SiteConfig
from site_runtime.home import SiteHome
from site_runtime.split import holdout_patients, keyed_hash, load_split_key, pseudonym

Part = Literal["training", "holdout"]


class FrozenCohort(BaseModel):
    """What intake froze (`cohort.json` beside the Parquet file). Stays at the site: it holds counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    protocol_hash: str
    digest: str
    training_patients: int
    holdout_patients: int
    records: int


@dataclass(frozen=True)
class CohortArrays:
    """One part of a frozen cohort.

    Attributes:
        x: float32 [patients, records, features] in the protocol's units; NaN = missing; unused records 0.
        mask: bool [patients, records], True where there is a record.
        y: float32 [patients, records], 0 or 1; unused records 0.
        auxiliary: float32 [patients, records, auxiliary labels], 0 or 1; NaN = unknown or unused record.
        digest: the frozen cohort's keyed digest (both parts together).
    """

    x: NDArray[np.float32]
    mask: NDArray[np.bool_]
    y: NDArray[np.float32]
    auxiliary: NDArray[np.float32]
    digest: str

    @property
    def patients(self) -> int:
        """Number of patients; stays at the site."""
        return int(self.x.shape[0])


def convert_units(frame: pd.DataFrame, config: SiteConfig, protocol: StudyProtocol) -> pd.DataFrame:
    """Bring every feature to the protocol's unit by the conversions that `site.yaml` declares.

    A conversion for a feature that this study does not have is left alone: the site may serve another.

    Raises:
        ConsiliumError: E103, the factor makes a value infinite.
    """
    converted = frame.copy()
    for name, conversion in config.units.items():
        if name not in protocol.feature_names:
            continue
        values = frame[name] * conversion.factor + conversion.offset
        if np.isinf(values.to_numpy()).any():
            raise ConsiliumError("E103", f"field 'units.{name}': the converted value is not finite")
        converted[name] = values
    return converted


def eligible(frame: pd.DataFrame, protocol: StudyProtocol) -> pd.DataFrame:
    """Drop incomplete records when the study asks for complete cases: of the features and the label."""
    if not protocol.cohort.complete_cases:
        return frame
    needed = [*protocol.feature_names, protocol.label.name]
    return frame[frame[needed].notna().all(axis=1)].reset_index(drop=True)


def latest_first(frame: pd.DataFrame) -> pd.DataFrame:
    """Order records by patient, the most recent first, and number them in `position` (0 = the latest).

    Recent means the later prediction time, then the larger record number, then the later record name. Rows
    without time count as oldest.
    """
    keys = pd.DataFrame({"patient": frame["patient"], "record": frame["record"]})
    has_time = "prediction_time" in frame
    keys["time"] = frame["prediction_time"] if has_time else pd.NaT
    keys["number"] = pd.to_numeric(frame["record"], errors="coerce")
    order = keys.sort_values(
        ["patient", "time", "number", "record"],
        ascending=[True, False, False, False],
        na_position="last",
        kind="stable",
    ).index
    ordered = frame.loc[order].reset_index(drop=True)
    ordered["position"] = ordered.groupby("patient", sort=False).cumcount()
    return ordered


def value_columns(protocol: StudyProtocol) -> list[str]:
    """The columns of a cohort that hold values: features, the label, auxiliary labels."""
    auxiliary = [label.name for label in protocol.auxiliary_labels]
    return [*protocol.feature_names, protocol.label.name, *auxiliary]


def build_cohort(
    frame: pd.DataFrame, protocol: StudyProtocol, key: bytes, holdout: frozenset[str]
) -> pd.DataFrame:
    """Turn eligible records into the canonical cohort.

    Columns: `patient` (pseudonym), `position` (uint8, 0 = the latest record), `holdout` (bool), the features,
    the label and any auxiliary labels (float32), one row per kept record, ordered by pseudonym and position,
    so that the order of the source's rows does not matter.
    """
    kept = latest_first(frame)
    kept = kept[kept["position"] < protocol.cohort.max_records]
    names = {p: pseudonym(key, protocol.product_name, p) for p in kept["patient"].unique()}
    columns = {
        "patient": kept["patient"].map(names),
        "position": kept["position"].astype("uint8"),
        "holdout": kept["patient"].isin(holdout),
    }
    for name in value_columns(protocol):
        columns[name] = kept[name].astype("float32")
    return pd.DataFrame(columns).sort_values(["patient", "position"]).reset_index(drop=True)


def cohort_digest(cohort: pd.DataFrame, protocol: StudyProtocol, key: bytes) -> str:
    """HMAC-SHA256 of the canonical cohort under the site's split key.

    Over the values and not the Parquet file, whose bytes change with the library that writes it.
    """
    mac = hmac.new(keyed_hash(key, "cohort", b""), digestmod=hashlib.sha256)
    header: dict[str, object] = {
        "study": protocol.product_name,  # the same records are the same data in every study of a product
        "columns": list(cohort.columns),
        "rows": len(cohort),
    }
    mac.update(canonical_json(header))
    mac.update("\n".join(cohort["patient"]).encode())
    mac.update(cohort["position"].to_numpy(np.uint8).tobytes())
    mac.update(cohort["holdout"].to_numpy(np.uint8).tobytes())
    for name in value_columns(protocol):
        values = cohort[name].to_numpy("<f4").copy()
        values[np.isnan(values)] = np.nan  # one bit pattern for every missing value
        mac.update(values.tobytes())
    return mac.hexdigest()


def split_cohort(
    frame: pd.DataFrame, protocol: StudyProtocol, config: SiteConfig, key: bytes
) -> pd.DataFrame:
    """Split eligible records by patient and return the canonical cohort.

    Raises:
        ConsiliumError: E205, fewer training patients than the study needs; E207, fewer held-out ones.
    """
    patients = list(frame["patient"].unique())
    holdout = holdout_patients(key, protocol, patients, config.holdout)
    training = len(patients) - len(holdout)
    if training < protocol.cohort.minimum_patients:
        raise ConsiliumError(
            "E205", f"{training} patients in training, expected at least {protocol.cohort.minimum_patients}"
        )
    if len(holdout) < protocol.holdout.minimum_patients:
        raise ConsiliumError(
            "E207", f"{len(holdout)} patients held out, expected at least {protocol.holdout.minimum_patients}"
        )
    return build_cohort(frame, protocol, key, holdout)


def freeze(home: SiteHome, cohort: pd.DataFrame, protocol: StudyProtocol, key: bytes) -> FrozenCohort:
    """Write the cohort to the site's data folder and return its record."""
    first = cohort[cohort["position"] == 0]
    frozen = FrozenCohort(
        study=protocol.study,
        protocol_hash=protocol.hash,
        digest=cohort_digest(cohort, protocol, key),
        training_patients=int((~first["holdout"]).sum()),
        holdout_patients=int(first["holdout"].sum()),
        records=len(cohort),
    )
    folder = home.cohort(protocol.study)
    parquet = BytesIO()
    cohort.to_parquet(parquet, index=False)
    write_atomic(folder / "cohort.parquet", parquet.getvalue())
    write_atomic(folder / "cohort.json", canonical_json(frozen))
    return frozen


def read_frozen(home: SiteHome, protocol: StudyProtocol) -> FrozenCohort:
    """Read what the last intake froze for this version of the study.

    Raises:
        ConsiliumError: E211, nothing was frozen, or for another version; E210, the record is damaged.
    """
    path = home.cohort(protocol.study) / "cohort.json"
    if not path.exists():
        raise ConsiliumError("E211", f"study {protocol.study!r}: no cohort at this site")
    try:
        frozen = FrozenCohort.model_validate(json.loads(path.read_bytes()))
    except (OSError, ValueError, ValidationError) as error:
        raise ConsiliumError("E210", f"{path} is damaged: {type(error).__name__}") from error
    if frozen.protocol_hash != protocol.hash:
        raise ConsiliumError(
            "E211",
            f"study {protocol.study!r}: the cohort is for version {frozen.protocol_hash[:12]}, "
            f"expected {protocol.hash[:12]}",
        )
    return frozen


def load_cohort(
    home: SiteHome, config: SiteConfig, protocol: StudyProtocol, part: Part = "training"
) -> CohortArrays:
    """Load one part of the frozen cohort, after checking that it is the frozen one.

    The holdout has each patient's index (latest) record only: records = 1. Training has `max_records`,
    whatever the cohort holds, so that no shape depends on the data of one patient.

    Raises:
        ConsiliumError: E211, run intake first; E210, the cohort changed after intake.
    """
    frozen = read_frozen(home, protocol)
    path = home.cohort(protocol.study) / "cohort.parquet"
    try:
        cohort = pd.read_parquet(path)
        digest = cohort_digest(cohort, protocol, load_split_key(home))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConsiliumError("E210", f"{path} cannot be read: {type(error).__name__}") from error
    if not hmac.compare_digest(digest, frozen.digest):
        raise ConsiliumError("E210", f"{path}: digest {digest[:12]}, expected {frozen.digest[:12]}")
    rows = cohort[cohort["holdout"] == (part == "holdout")]
    if part == "holdout":
        rows = rows[rows["position"] == 0]
    width = 1 if part == "holdout" else protocol.cohort.max_records
    return _arrays(rows, protocol, width, frozen.digest)


def _arrays(rows: pd.DataFrame, protocol: StudyProtocol, width: int, digest: str) -> CohortArrays:
    patient, _ = pd.factorize(rows["patient"])  # rows are ordered by patient
    position = rows["position"].to_numpy(np.int64)
    patients = int(patient.max()) + 1 if len(rows) else 0
    x = np.zeros((patients, width, len(protocol.features)), np.float32)
    y = np.zeros((patients, width), np.float32)
    auxiliary = np.full((patients, width, len(protocol.auxiliary_labels)), np.nan, np.float32)
    mask = np.zeros((patients, width), np.bool_)
    x[patient, position] = rows[protocol.feature_names].to_numpy(np.float32)
    y[patient, position] = rows[protocol.label.name].to_numpy(np.float32)
    names = [label.name for label in protocol.auxiliary_labels]
    auxiliary[patient, position] = rows[names].to_numpy(np.float32)
    mask[patient, position] = True
    return CohortArrays(x=x, mask=mask, y=y, auxiliary=auxiliary, digest=digest)
