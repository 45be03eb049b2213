"""What a hospital holds the coordinator to in leave-one-site-out: it counts the folds itself.

The protocol says how many hospitals may be left out and how many rounds each of these models gets. Who they
are, the coordinator decides after the main training; a hospital notes whom it was told, so that no fold comes
twice, under another name or from another model. Folds come in the order of the hospitals' names, so that a
hospital knows whether the one without it is over.
"""

from __future__ import annotations

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from contracts.schedule import Slot, most_folds
from contracts.study import StudyProtocol
from durable.files import read_json, write_json
from site_runtime.home import SiteHome


def check_fold(home: SiteHome, protocol: StudyProtocol, plan: RoundPlan, slot: Slot, site: str) -> None:
    """Check that a plan trains the next model that some other hospital has no part in, and note it.

    Args:
        slot: what the protocol plans under the plan's number: a round of a fold.
        site: this hospital.

    Raises:
        ConsiliumError: E504, the hospital left out is this one or on the roster; the roster is larger than
            the study was planned for; the fold does not fit those noted before; the round was planned before
            from another model.
    """
    fold, index = plan.fold, slot.fold
    assert fold is not None and index is not None
    if plan.entry(fold) is not None or len(plan.roster) >= most_folds(protocol):
        raise ConsiliumError("E504", f"a fold without {fold!r} for {len(plan.roster)} hospitals, one of it")
    path = home.state(protocol.study) / "folds" / f"{protocol.hash}.json"
    noted = read_json(path) if path.exists() else {"names": {}, "bases": {}}
    names = {int(i): str(name) for i, name in noted["names"].items()}
    # Where the fold without this hospital comes: before this one exactly if its name does.
    least, most = (1, most_folds(protocol) - 1) if site < fold else (0, most_folds(protocol) - 2)
    known = names.setdefault(index, fold)
    order = [names[i] for i in sorted(names)]
    if fold == site or known != fold or order != sorted(set(order)) or not least <= index <= most:
        raise ConsiliumError("E504", f"fold {index + 1} leaves out {fold!r}; noted before: {names}")
    base = noted["bases"].setdefault(str(plan.round), plan.base_model)
    if base != plan.base_model:
        raise ConsiliumError("E504", f"exchange {plan.round} was planned from {base}, not {plan.base_model}")
    write_json(path, {"names": {str(i): name for i, name in names.items()}, "bases": noted["bases"]})
