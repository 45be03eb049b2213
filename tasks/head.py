"""The head: where a study stands, advanced by compare-and-set. It is the truth, whatever Airflow repeats."""

from __future__ import annotations

from typing import Literal

from pydantic import ValidationError

from contracts.errors import ConsiliumError
from contracts.fields import Contract, Count, Digest, Probability, SiteName, StudyName, Text, Timestamp
from contracts.signing import first_problem
from contracts.study import StudyProtocol, parse_study
from durable.clock import now as now
from durable.files import locked, read_json, write_json
from privacy.promise import check_mechanism
from strategies.registry import strategy_of
from tasks.amendments import check_amendment
from tasks.events import record_event
from tasks.home import CoordinatorHome


class Head(Contract):
    """State of one study. `version` counts every change and is what compare-and-set compares."""

    study: StudyName
    protocol_hash: Digest
    version: Count = 0
    status: Literal["registered", "running", "finished", "released", "rejected"] = "registered"
    round: Count  # the exchange that is open, or comes next; see contracts.schedule
    plan: Digest | None = None  # of the exchange that is open: a round, or a release's evaluation
    refusals: Count = 0  # of this round for want of a quorum
    reason: Text | None = None  # why the study waits or was rejected
    model: Digest | None = None  # global model after the last closed round of training
    optimiser: Digest | None = None  # coordinator's kept state beside it
    threshold: Probability | None = None  # locked after training, where the protocol has a rule for it
    fold_sites: list[SiteName] = []  # leave-one-site-out: whom it leaves out in turn, frozen after training
    folds: dict[SiteName, Digest] = {}  # the finished model that a hospital had no part in
    runs: dict[str, Count] = {}  # Airflow run id -> the round it was bound to
    evaluation: Digest | None = None  # release: plan under which the sites evaluated the final model
    verification: Digest | None = None  # release: plan under which they verified the exported model
    candidate: Digest | None = None  # release: what an approval must name
    updated: Timestamp


def load_protocol(home: CoordinatorHome, study: str) -> StudyProtocol:
    """Read the registered protocol.

    Raises:
        ConsiliumError: E102, no such study.
    """
    path = home.study(study) / "protocol.json"
    if not path.exists():
        raise ConsiliumError("E102", f"study {study!r}; registered: {registered_studies(home)}")
    return parse_study(read_json(path), str(path))


def registered_studies(home: CoordinatorHome) -> list[str]:
    """Names of the studies this coordinator knows."""
    return sorted(path.parent.name for path in home.studies.glob("*/protocol.json"))


def load_head(home: CoordinatorHome, study: str) -> Head:
    """Read the head of a study.

    Raises:
        ConsiliumError: E102, no such study or a damaged head.
    """
    path = home.study(study) / "head.json"
    if not path.exists():
        raise ConsiliumError("E102", f"study {study!r}; registered: {registered_studies(home)}")
    try:
        return Head.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ConsiliumError("E102", f"{path}: {first_problem(error)}") from error


def advance(home: CoordinatorHome, old: Head, **changes: object) -> Head:
    """Replace `old` by itself with `changes`, if the stored head still is `old`.

    Raises:
        ConsiliumError: E507, another task advanced the head meanwhile; nothing is written.
    """
    folder = home.study(old.study)
    with locked(folder / ".head.lock"):
        stored = load_head(home, old.study)
        if stored.version != old.version:
            raise ConsiliumError("E507", f"version {stored.version}, expected {old.version}")
        fields = {**old.model_dump(), **changes, "version": old.version + 1, "updated": now()}
        new = Head.model_validate(fields)
        write_json(folder / "head.json", new.model_dump(mode="json"))
    return new


def register_study(home: CoordinatorHome, protocol: StudyProtocol) -> Head:
    """Make a study known here. The same protocol again changes nothing.

    Raises:
        ConsiliumError: E101, another protocol is registered under this name; E406, E414, E415, the study
            promises what its strategy, its sampler or its divisor cannot keep; E111, E710, it may not amend
            the study that it names.
    """
    check_mechanism(protocol)
    strategy_of(protocol)
    folder = home.study(protocol.study)
    if not (folder / "head.json").exists():
        check_amendment(home, protocol)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".head.lock"):
        if (folder / "head.json").exists():
            head = load_head(home, protocol.study)
            if head.protocol_hash != protocol.hash:
                raise ConsiliumError(
                    "E101",
                    f"study {protocol.study!r} has another protocol here; name the new one anew",
                )
            if (folder / "protocol.json").exists():
                return head
        head = Head(
            study=protocol.study, protocol_hash=protocol.hash, round=protocol.first_round, updated=now()
        )
        write_json(folder / "head.json", head.model_dump(mode="json"))
        record_event(
            home,
            protocol.study,
            "registered",
            protocol.hash,
            protocol_hash=protocol.hash,
            product=protocol.product_name,
            amends=protocol.amends,
        )
        # Last: a study is known by its protocol, and then its head is there.
        write_json(folder / "protocol.json", protocol.body())
    return head
