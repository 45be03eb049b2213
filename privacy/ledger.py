"""The privacy ledger of one lineage: what was ever spent on a source population, over all studies and time.

One plan, one reservation (design section 5): `reserve` comes before data are touched and counts for ever,
whether or not its update arrived; asking again for the same plan returns the same entry and spends nothing.
A ledger that cannot be read, verified or locked is E402, never an empty budget. No check reads the clock.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from contracts.errors import ConsiliumError
from contracts.ledger import LedgerEntry, LedgerOpening
from contracts.signing import Signed, SigningKey, first_problem
from privacy.accountant import Spend, StudyCap, epsilon
from privacy.chainfile import ChainFile, Draft
from privacy.excerpt import excerpt_of
from privacy.restoration import charges_for, check_statable, still_owed
from privacy.salvage import Loss

MECHANISM = "subsampled-gaussian"


class Ledger:
    """An open ledger. Opening it verifies every entry and, for a new lineage, writes the first one.

    Args:
        path: `<lineage>.jsonl`; its head and its lock lie beside it.
        site: the owner of `key`.
        lineage: the source population.
        key: the key in force, which signs new entries.

    Raises:
        ConsiliumError: E402, by every method, when the ledger cannot be read, verified, locked or written.
    """

    def __init__(self, path: Path, site: str, lineage: str, key: SigningKey) -> None:
        self._chain = ChainFile(path, site, lineage, key)
        with self._chain.locked():
            if not self._chain.history.records:
                self._chain.append(self._genesis())

    @classmethod
    def loss(cls, path: Path, site: str, lineage: str, key: SigningKey) -> Loss:
        """Say what a restore would find wrong with a ledger, and must charge. Writes nothing."""
        with ChainFile(path, site, lineage, key).salvaged() as found:
            pass
        return found

    @classmethod
    def restored(
        cls,
        path: Path,
        site: str,
        lineage: str,
        key: SigningKey,
        *,
        lost_head: str,
        charges: Sequence[Spend],
        spend_found: bool = False,
        nothing_lost: bool = False,
        officer: str,
        reason: str,
        study: str | None = None,
    ) -> Ledger:
        """Open a ledger that lost entries, charge for them, and let it answer for `lost_head` from then on.

        The longest beginning that verifies is kept; of nothing a new ledger is begun. What lines behind it
        show has to be charged (see `privacy/salvage.py`). Charges and the restore entry are written together;
        whoever repeats an interrupted restore adds only what is not there yet. A ledger from before a change
        of key cannot be continued: what it spent is charged in a new one.

        Args:
            lost_head: the head that the coordinator saw last.
            charges: what the lost entries may have spent at most; with `spend_found` besides what was found.
            spend_found: charge what signed lines behind the damage spent, under their own studies.
            nothing_lost: states instead that they spent nothing; refused where the files prove otherwise.
            officer: who decides.
            study: whose charges they are, where it was one.

        Raises:
            ConsiliumError: E417, nothing is wrong with the ledger and it holds that head, or not exactly one
                of charges and `nothing_lost` is given, or the charges are less than what was found
                (`ChargesMissing`), or no epsilon could be stated with them.
        """
        if (bool(charges) or spend_found) == nothing_lost:
            raise ConsiliumError("E417", "expected charges for what was lost, or that nothing was lost")
        ledger = cls.__new__(cls)
        ledger._chain = ChainFile(path, site, lineage, key)
        with ledger._chain.salvaged() as loss:
            history = ledger._chain.history
            if history.knows(lost_head) and not loss.damaged:
                raise ConsiliumError("E417", f"the ledger holds {lost_head}: there is nothing to restore")
            stated = still_owed(charges, history.records, lost_head)
            resumed = bool(charges) and not stated
            decided = charges_for(
                loss, stated, spend_found=spend_found, nothing_lost=resumed or nothing_lost, study=study
            )
            proven = [charge.spend for charge in (*loss.carried, *loss.found)]
            check_statable([*history.pooled(), *proven], stated)
            drafts = [] if history.records else [ledger._genesis()]
            for charge in (*loss.carried, *decided):
                drafts.append(ledger._write_off(charge.spend, officer, reason, charge.study, lost_head))
            opening = ledger._opening(purpose="restore", officer=officer, reason=reason)
            drafts.append((_fields(kind="restore", lost_head=lost_head), opening))
            ledger._chain.append(*drafts)
        return ledger

    @property
    def head(self) -> str:
        """Digest of the last entry, as of the last call."""
        return self._chain.history.head()

    @property
    def length(self) -> int:
        """Number of entries, as of the last call."""
        return len(self._chain.history.records)

    def reserve(
        self,
        *,
        study: str,
        plan: str,
        purpose: str,
        spend: Spend,
        epsilon_cap: float,
        delta: float,
        projected: Sequence[Spend] = (),
        study_cap: StudyCap | None = None,
        quantile_share: float | None = None,
    ) -> LedgerEntry:
        """Reserve what answering a plan costs, or return the entry that reserved it before.

        Both caps are held under the ledger's lock: reservations that are asked for at once count each other.

        Args:
            plan: digest of the signed plan.
            purpose: what for: `statistics`, `training`, ...
            epsilon_cap: the site's cap for the lineage, at `delta`.
            projected: what the study still plans after this: a study that cannot be finished is not begun.
            study_cap: what the study alone may come to, `projected` included.
            quantile_share: of each step's precision, what pays for the count of adaptive clipping. It is
                part of the spend and costs nothing more.

        Raises:
            ConsiliumError: E401, a cap would be passed; E411, the plan was reserved with another triple.
        """
        with self._chain.locked():
            history = self._chain.history
            earlier = history.reserved.get(plan)
            if earlier is not None and earlier.opening is not None:
                before = (earlier.opening.study, earlier.spend, earlier.entry.quantile_share)
                if before != (study, spend, quantile_share):
                    asked = (study, spend, quantile_share)
                    raise ConsiliumError("E411", f"plan {plan}: reserved {before}, asked for {asked}")
                return earlier.entry
            if study_cap is not None:
                promised = epsilon(
                    [*history.spends(study), spend, *projected], study_cap.delta, study_cap.adjacency
                )
                if not promised <= study_cap.epsilon:
                    raise ConsiliumError(
                        "E401",
                        f"the study would come to epsilon {promised:.4f}, approved was {study_cap.epsilon:g}",
                    )
            total = epsilon([*history.pooled(), spend, *projected], delta)
            if not total <= epsilon_cap:
                raise ConsiliumError(
                    "E401", f"epsilon {total:.4f} at delta {delta:g}, expected at most {epsilon_cap:g}"
                )
            fields = _fields(kind="reserve", spend=spend, quantile_share=quantile_share)
            opening = self._opening(study=study, plan=plan, purpose=purpose)
            return self._chain.append((fields, opening))[0].entry

    def commit(self, plan: str) -> LedgerEntry:
        """Mark that the update of a reserved plan is in the outbox. Spends nothing; again is harmless.

        Raises:
            ConsiliumError: E402, the plan was never reserved.
        """
        with self._chain.locked():
            history = self._chain.history
            reserved = history.reserved.get(plan)
            if reserved is None or reserved.opening is None:
                raise ConsiliumError("E402", f"plan {plan} was never reserved")
            if plan in history.committed:
                return history.committed[plan].entry
            opening = self._opening(study=reserved.opening.study, plan=plan, purpose=reserved.opening.purpose)
            return self._chain.append((_fields(kind="commit"), opening))[0].entry

    def write_off(
        self, *spends: Spend, officer: str, reason: str, study: str | None = None
    ) -> list[LedgerEntry]:
        """Charge what no plan made: spent outside this ledger, or by a trial done by hand. Counts for ever.

        No cap refuses it, since it happened. Of several all are written or none.

        Raises:
            ConsiliumError: E417, the officer, the reason or the study is not of the agreed form, or no
                epsilon could be stated of the ledger any more.
        """
        with self._chain.locked():
            check_statable(self._chain.history.pooled(), spends)
            drafts = [self._write_off(spend, officer, reason, study) for spend in spends]
            return [record.entry for record in self._chain.append(*drafts)]

    def rotate(self, new_key: SigningKey, *, officer: str, reason: str) -> LedgerEntry:
        """Hand over to a new key, in one entry that both keys sign. From then on only the new one signs.

        Raises:
            ConsiliumError: E417, the key was in force before or is not the site's own.
        """
        with self._chain.locked():
            if new_key.public in self._chain.history.keys or new_key.owner != self._chain.site:
                raise ConsiliumError("E417", f"key {new_key.public} of {new_key.owner!r}, expected a new one")
            opening = self._opening(purpose="rotate", officer=officer, reason=reason)
            fields = _fields(kind="rotate", new_key=new_key.public)
            return self._chain.append((fields, opening), new_key=new_key)[0].entry

    def reserved(self, plan: str) -> bool:
        """Say whether the plan was reserved, finished or not."""
        with self._chain.locked():
            return plan in self._chain.history.reserved

    def committed(self, plan: str) -> bool:
        """Say whether the plan's update was once in the outbox."""
        with self._chain.locked():
            return plan in self._chain.history.committed

    def spends(self, study: str | None = None) -> list[Spend]:
        """Return what was reserved and written off, in order, on the whole lineage or for one study."""
        with self._chain.locked():
            return self._chain.history.spends(study)

    def entries(self) -> list[tuple[Signed, LedgerOpening | None]]:
        """Return every entry as it was signed, with its opening."""
        with self._chain.locked():
            return [(record.signed, record.opening) for record in self._chain.history.records]

    def excerpt(self, study: str) -> bytes:
        """Return the ledger as whoever may see one study sees it: see `privacy.excerpt`.

        Raises:
            ConsiliumError: E418, it would be too large.
        """
        with self._chain.locked():
            return excerpt_of(self._chain.history.records, study)

    def verify(self) -> None:
        """Verify every entry again from the file.

        Raises:
            ConsiliumError: E402.
        """
        self._chain.forget()
        with self._chain.locked():
            pass

    def check_head(self, expected: str) -> None:
        """Check that this ledger contains, or since a restore answers for, the head the coordinator has seen.

        Raises:
            ConsiliumError: E407, it does not: an older copy was put back.
        """
        with self._chain.locked():
            if not self._chain.history.knows(expected):
                raise ConsiliumError(
                    "E407", f"{self._chain.path} has {self.length} entries, none of them {expected}"
                )

    def _genesis(self) -> Draft:
        return _fields(kind="genesis"), self._opening(purpose="genesis")

    def _write_off(
        self, spend: Spend, officer: str, reason: str, study: str | None, lost_head: str | None = None
    ) -> Draft:
        opening = self._opening(study=study, purpose="write-off", officer=officer, reason=reason)
        return _fields(kind="write-off", spend=spend, lost_head=lost_head), opening

    def _opening(self, **fields: Any) -> LedgerOpening:
        """An opening of now; of the time of the entry before, when the clock went back."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        records = self._chain.history.records
        before = records[-1].opening if records else None
        try:
            return LedgerOpening(
                **fields, time=max(now, before.time) if before else now, salt=os.urandom(32).hex()
            )
        except ValidationError as error:
            raise ConsiliumError("E417", first_problem(error)) from error


def _fields(*, kind: str, spend: Spend | None = None, **fields: Any) -> dict[str, Any]:
    triple = (
        {}
        if spend is None
        else {
            "mechanism": MECHANISM,
            "sample_rate": spend.sample_rate,
            "noise_multiplier": spend.noise_multiplier,
            "steps": spend.steps,
        }
    )
    return {"kind": kind, **triple, **fields}
