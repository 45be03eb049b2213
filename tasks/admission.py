"""What the coordinator checks before an update may touch the model (design section 4)."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from strategies.bounds import Expectation
from strategies.interface import THREADS
from strategies.secure import context_of, is_masked
from tasks.account import Account
from tasks.aggregate import expectation
from tasks.answers import Answers
from tasks.exchange import DirectoryExchange, file_digest
from tasks.home import CoordinatorHome
from tasks.secure import check_masked, layout_at
from tasks.tensors import TensorFile


def admit(
    home: CoordinatorHome,
    protocol: StudyProtocol,
    plan: RoundPlan,
    plan_digest: str,
    answers: Answers[UpdateEnvelope],
) -> None:
    """Check every delivered update and move those that fail to the refused, with their number.

    Reading and hashing the tensors of several updates at once takes every core.
    """
    exchange = DirectoryExchange(home.exchange)
    account = Account(home, protocol, plan)
    masked, length = None, 0
    if is_masked(protocol, plan.kind):
        masked, length = context_of(protocol, plan, plan_digest), layout_at(home, protocol, plan).length

    def check(envelope: UpdateEnvelope) -> ConsiliumError | None:
        entry = plan.entry(envelope.site)
        assert entry is not None
        try:
            if masked is not None:
                check_masked(home, envelope, masked, length)
            elif plan.kind != "local":
                check_tensors(exchange, envelope, expectation(home, protocol, plan, entry.declared_size))
        except ConsiliumError as error:
            return error
        return None

    for site, envelope in list(answers.documents.items()):
        try:
            check_envelope(envelope, plan, plan_digest, site)
            account.check(envelope)
        except ConsiliumError as error:
            answers.refuse(site, error)
    remaining = list(answers.documents.values())
    with ThreadPoolExecutor(THREADS) as pool:
        for envelope, found in zip(remaining, pool.map(check, remaining), strict=True):
            if found is not None:
                answers.refuse(envelope.site, found)


def check_envelope(envelope: UpdateEnvelope, plan: RoundPlan, plan_digest: str, site: str) -> None:
    """Check that an envelope answers this plan and no other.

    Raises:
        ConsiliumError: E504, another study, protocol, round, plan or site; E503, another base model;
            E305, a code version that the plan does not accept; E511, another data sheet; E501, tensors of a
            local model.
    """
    wanted = {
        "study": plan.study,
        "protocol_hash": plan.protocol_hash,
        "plan": plan_digest,
        "round": plan.round,
        "site": site,
    }
    for field, value in wanted.items():
        if getattr(envelope, field) != value:
            raise ConsiliumError("E504", f"{field} is {getattr(envelope, field)!r}, expected {value!r}")
    if envelope.base_model != plan.base_model:
        raise ConsiliumError("E503", f"base model {envelope.base_model}, expected {plan.base_model}")
    if envelope.code_version not in plan.code_versions:
        raise ConsiliumError("E305", f"code {envelope.code_version}, expected one of {plan.code_versions}")
    if plan.kind == "local" and (envelope.tensors, envelope.tensor_bytes) != (None, None):
        raise ConsiliumError("E501", "tensors of a local model, which stays at its hospital")
    entry = plan.entry(site)
    if entry is None:
        raise ConsiliumError("E306", f"site {site!r} is not on the roster")
    if envelope.data_sheet != entry.data_sheet:
        raise ConsiliumError("E511", f"data sheet {envelope.data_sheet}, expected {entry.data_sheet}")


def check_tensors(exchange: DirectoryExchange, envelope: UpdateEnvelope, expected: Expectation) -> TensorFile:
    """Check the tensors that an envelope names.

    Raises:
        ConsiliumError: E509, none named, missing or of another size; else as `check_file`.
    """
    if envelope.tensors is None:
        raise ConsiliumError("E509", f"the answer of {envelope.site!r} names no tensors")
    path = exchange.path_of(envelope.tensors)
    if not path.is_file() or path.stat().st_size != envelope.tensor_bytes:
        raise ConsiliumError("E509", f"digest {envelope.tensors}, {envelope.tensor_bytes} bytes")
    return check_file(path, envelope.tensors, expected)


def check_file(path: Path, digest: str, expected: Expectation) -> TensorFile:
    """Check digest, form, finiteness and norm of an update's file.

    The digest is computed beside the rest, on another core: hashing is half of the work.

    Raises:
        ConsiliumError: E509, another digest; E501, names, shapes or types; E502, not finite; E505, the norm
            is above the bound.
    """
    with ThreadPoolExecutor(max_workers=1) as pool:
        hashing = pool.submit(file_digest, path)
        try:
            file = TensorFile(path)
            if file.shapes != expected.shapes:
                raise ConsiliumError("E501", f"tensors {file.shapes}, expected {expected.shapes}")
            norm = l2_norm(file)
        finally:
            if hashing.result() != digest:
                raise ConsiliumError("E509", f"the content under {digest} has another digest")
    if norm > expected.max_norm:
        raise ConsiliumError("E505", f"L2 norm {norm:.4g}, expected <= {expected.max_norm:.4g}")
    return file


def l2_norm(file: TensorFile) -> float:
    """L2 norm over all tensors.

    Raises:
        ConsiliumError: E502, a value is NaN or infinite.
    """
    square = 0.0
    for name in file.shapes:
        for values in file.blocks(name):
            # A sum of squares is finite only if every value is; huge finite values overflow and are checked.
            with np.errstate(over="ignore"):
                part = float(np.dot(values, values))
            if not math.isfinite(part):
                if not np.isfinite(values).all():
                    raise ConsiliumError("E502", f"tensor {name!r} holds NaN or infinity")
                part = float(np.dot(values.astype(np.float64), values.astype(np.float64)))
            square += part
    return math.sqrt(square)
