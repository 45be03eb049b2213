"""Documents of a study at the coordinator, and global states in its exchange."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file, save

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.signing import Signed, parse_signed, to_text
from contracts.study import StudyProtocol
from durable.files import read_json, write_atomic, write_json
from strategies.interface import Global, Tensors
from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome
from tasks.own_documents import open_own, sign_own, text_in_force


def save_plan(home: CoordinatorHome, plan: RoundPlan) -> str:
    """Sign and store a plan under its digest and return the digest."""
    signed = sign_own(home, plan)
    write_atomic(_plan(home, plan.study, signed.digest), to_text(signed).encode())
    return signed.digest


def plan_text(home: CoordinatorHome, study: str, digest: str) -> str:
    """The plan as it is sent to the sites, signed by the coordinator's key in force."""
    return text_in_force(home, _plan(home, study, digest).read_text(), RoundPlan)


def load_plan(home: CoordinatorHome, study: str, digest: str) -> RoundPlan:
    """Read a stored plan and check the coordinator's own signature on it."""
    return open_own(home, _plan(home, study, digest).read_bytes(), RoundPlan)


def _plan(home: CoordinatorHome, study: str, digest: str) -> Path:
    return home.study(study) / "plans" / f"{digest}.json"


def save_answer(home: CoordinatorHome, study: str, plan: str, site: str, text: str) -> None:
    """Keep a site's signed document for a plan: replay and the release are made from these."""
    write_atomic(home.study(study) / "answers" / plan / f"{site}.json", text.encode())


def load_answer(home: CoordinatorHome, study: str, plan: str, site: str) -> str:
    """Read a site's signed document for a plan."""
    return (home.study(study) / "answers" / plan / f"{site}.json").read_text()


def save_sheet(home: CoordinatorHome, study: str, site: str, text: str) -> None:
    """Keep a site's newest data sheet, and every earlier one by its digest: plans and releases name them."""
    folder = home.study(study) / "sheets"
    write_atomic(folder / "all" / f"{parse_signed(text).digest}.json", text.encode())
    write_atomic(folder / f"{site}.json", text.encode())


def load_sheet(home: CoordinatorHome, study: str, site: str) -> Signed | None:
    """Read a site's newest data sheet (signed; verified when it was admitted), or None."""
    path = home.study(study) / "sheets" / f"{site}.json"
    return parse_signed(path.read_text()) if path.exists() else None


def sheet_text(home: CoordinatorHome, study: str, digest: str) -> str:
    """Read a signed data sheet (canonical text) by its digest; verified when it was admitted.

    Raises:
        ConsiliumError: E511, no sheet of this digest was admitted here.
    """
    path = home.study(study) / "sheets" / "all" / f"{digest}.json"
    if not path.exists():
        raise ConsiliumError("E511", f"study {study!r} has no data sheet {digest}")
    return path.read_text()


def save_record(home: CoordinatorHome, study: str, name: str, record: dict) -> None:
    """Write the record of a round (or of an intake or release step)."""
    write_json(home.study(study) / "records" / f"{name}.json", record)


def load_record(home: CoordinatorHome, study: str, name: str) -> dict:
    """Read a record.

    Raises:
        ConsiliumError: E102, there is none of this name.
    """
    path = home.study(study) / "records" / f"{name}.json"
    if not path.exists():
        raise ConsiliumError("E102", f"study {study!r} has no record {name!r}")
    return read_json(path)


def put_tensors(home: CoordinatorHome, tensors: Tensors) -> str:
    """Store tensors in the exchange as safetensors (bytes are a function of the tensors)."""
    exchange = DirectoryExchange(home.exchange)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        path.write_bytes(save(dict(sorted(tensors.items()))))
        return exchange.put(path)


def get_tensors(home: CoordinatorHome, digest: str) -> Tensors:
    """Load tensors from the exchange."""
    tensors: Tensors = load_file(DirectoryExchange(home.exchange).path_of(digest))
    return tensors


def load_global(home: CoordinatorHome, model: str, optimiser: str | None) -> Global:
    """Load a global model and what the coordinator's optimiser kept beside it."""
    return Global(model=get_tensors(home, model), optimiser=get_tensors(home, optimiser) if optimiser else {})


def get_model(home: CoordinatorHome, protocol: StudyProtocol, digest: str) -> Any:
    """Load a global model as a torch module, ready to evaluate or export."""
    from models.registry import load_model  # torch: only where a module is needed

    return load_model(protocol, DirectoryExchange(home.exchange).path_of(digest))
