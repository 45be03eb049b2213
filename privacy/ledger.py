"""The privacy ledger of one lineage: what was ever spent on a source population, over all studies and time.

One plan, one reservation (design section 5): `reserve` comes before data are touched and counts for ever,
whether or not its update arrived; asking again for the same plan returns the same entry and spends nothing.
A ledger that cannot be read, verified or locked is E402, never an empty budget.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.ledger import LedgerEntry, LedgerOpening
from contracts.signing import Signed, SigningKey
from privacy.accountant import Spend, epsilon
from privacy.chain import Chain, Record

MECHANISM = "subsampled-gaussian"


class Ledger:
    """An open ledger. Opening it verifies every entry and, for a new lineage, writes the first one.

    Args:
        path: `<lineage>.jsonl`; its head and its lock lie beside it.
        site: the owner of `key`.
        lineage: the source population.
        key: signs the entries and verifies those that are there.

    Raises:
        ConsiliumError: E402, by every method, when the ledger cannot be read, verified, locked or written.
    """

    def __init__(self, path: Path, site: str, lineage: str, key: SigningKey) -> None:
        self._chain = Chain(path, site, lineage, key)
        with self._chain.locked():
            if not self._chain.records:
                self._chain.append({"kind": "genesis"}, _opening(purpose="genesis"))

    @property
    def head(self) -> str:
        """Digest of the last entry, as of the last call."""
        return self._chain.records[-1].digest

    @property
    def length(self) -> int:
        """Number of entries, as of the last call."""
        return len(self._chain.records)

    def reserve(
        self,
        *,
        study: str,
        plan: str,
        purpose: str,
        spend: Spend,
        epsilon_cap: float,
        delta: float,
        projected: Iterable[Spend] = (),
    ) -> LedgerEntry:
        """Reserve what answering a plan costs, or return the entry that reserved it before.

        Args:
            plan: digest of the signed plan.
            purpose: what for: `statistics`, `training`, ...
            epsilon_cap: the site's cap for the lineage, at `delta`.
            projected: what the study still plans after this: a study that cannot be finished is not begun.

        Raises:
            ConsiliumError: E401, the cap would be passed; E411, the plan was reserved with another triple.
        """
        with self._chain.locked():
            earlier = self._reservation(plan)
            if earlier is not None:
                if _spend(earlier) != spend or earlier.opening is None or earlier.opening.study != study:
                    raise ConsiliumError(
                        "E411", f"plan {plan}: reserved {_spend(earlier)}, asked for {spend}"
                    )
                return earlier.entry
            total = epsilon([*self._spends(None), spend, *projected], delta)
            if not total <= epsilon_cap:
                raise ConsiliumError(
                    "E401", f"epsilon {total:.4f} at delta {delta:g}, expected at most {epsilon_cap:g}"
                )
            return self._chain.append(
                {
                    "kind": "reserve",
                    "mechanism": MECHANISM,
                    "sample_rate": spend.sample_rate,
                    "noise_multiplier": spend.noise_multiplier,
                    "steps": spend.steps,
                },
                _opening(study=study, plan=plan, purpose=purpose),
            ).entry

    def commit(self, plan: str) -> LedgerEntry:
        """Mark that the update of a reserved plan is in the outbox. Spends nothing; again is harmless.

        Raises:
            ConsiliumError: E402, the plan was never reserved.
        """
        with self._chain.locked():
            reserved = self._reservation(plan)
            if reserved is None or reserved.opening is None:
                raise ConsiliumError("E402", f"plan {plan} was never reserved")
            for record in self._chain.records:
                if record.entry.kind == "commit" and record.opening and record.opening.plan == plan:
                    return record.entry
            opening = _opening(study=reserved.opening.study, plan=plan, purpose=reserved.opening.purpose)
            return self._chain.append({"kind": "commit"}, opening).entry

    def reserved(self, plan: str) -> bool:
        """Say whether the plan was reserved, finished or not."""
        with self._chain.locked():
            return self._reservation(plan) is not None

    def committed(self, plan: str) -> bool:
        """Say whether the plan's update was once in the outbox."""
        with self._chain.locked():
            return any(
                record.entry.kind == "commit" and record.opening and record.opening.plan == plan
                for record in self._chain.records
            )

    def spends(self, study: str | None = None) -> list[Spend]:
        """Return what was reserved, in order, on the whole lineage or for one study."""
        with self._chain.locked():
            return self._spends(study)

    def entries(self) -> list[tuple[Signed, LedgerOpening | None]]:
        """Return every entry as it was signed, with its opening."""
        with self._chain.locked():
            return [(record.signed, record.opening) for record in self._chain.records]

    def verify(self) -> None:
        """Verify every entry again from the file.

        Raises:
            ConsiliumError: E402.
        """
        self._chain.forget()
        with self._chain.locked():
            pass

    def check_head(self, expected: str) -> None:
        """Check that this ledger contains the head that the coordinator has seen.

        Raises:
            ConsiliumError: E407, it does not: an older copy was put back.
        """
        with self._chain.locked():
            if all(record.digest != expected for record in self._chain.records):
                raise ConsiliumError(
                    "E407", f"{self._chain.path} has {self.length} entries, none of them {expected}"
                )

    def _reservation(self, plan: str) -> Record | None:
        for record in self._chain.records:
            if record.entry.kind == "reserve" and record.opening and record.opening.plan == plan:
                return record
        return None

    def _spends(self, study: str | None) -> list[Spend]:
        return [
            _spend(record)
            for record in self._chain.records
            if record.entry.kind == "reserve"
            and (study is None or (record.opening is not None and record.opening.study == study))
        ]


def spend_of_entry(entry: LedgerEntry) -> Spend | None:
    """Return the triple of a reservation; None for an entry that spends nothing."""
    if entry.sample_rate is None or entry.noise_multiplier is None or entry.steps is None:
        return None
    return Spend(entry.sample_rate, entry.noise_multiplier, entry.steps)


def _spend(record: Record) -> Spend:
    spend = spend_of_entry(record.entry)
    if spend is None:
        raise ConsiliumError("E402", f"entry {record.entry.sequence} has no triple")
    return spend


def _opening(*, purpose: str, study: str | None = None, plan: str | None = None) -> LedgerOpening:
    return LedgerOpening(
        study=study,
        plan=plan,
        purpose=purpose,
        time=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        salt=os.urandom(32).hex(),
    )
