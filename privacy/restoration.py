"""What an officer's decision has to charge, so that spent epsilon is never below what was released.

A restore charges at least what the damaged files show (`privacy/salvage.py`). No decision leaves a ledger of
which no epsilon can be stated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from contracts.errors import ConsiliumError
from privacy.accountant import Spend
from privacy.chain import Record
from privacy.salvage import Charge, Loss, statable

_NAMED = 5  # of each kind, so many are told in words


class ChargesMissing(ConsiliumError):
    """E417 of a restore that charges too little. `options` of `consilium ledger restore` would be enough."""

    def __init__(self, detail: str, options: tuple[str, ...]) -> None:
        super().__init__("E417", detail)
        self.options = options


def charges_for(
    loss: Loss, stated: Sequence[Spend], *, spend_found: bool, nothing_lost: bool, study: str | None
) -> list[Charge]:
    """What a restore writes off, besides `loss.carried`, if what the officer states is enough.

    Args:
        stated: the officer's own charges.
        spend_found: charge what was found besides them.
        nothing_lost: the officer states that nothing was lost.
        study: of the officer's own charges.

    Raises:
        ConsiliumError: E417, it is too little (`ChargesMissing`), or nothing where something is lost.
    """
    found = loss.found if spend_found else ()
    owed = [*(c.spend for c in (() if spend_found else loss.found)), *_shown(loss)]
    short, spare = _covered(owed, stated)
    if short or (loss.unknown and not spare):
        raise ChargesMissing(_in_words(loss, short), _options(loss, study))
    if not (stated or found or nothing_lost):
        raise ConsiliumError("E417", "nothing was found to charge, expected --spend or --nothing-lost")
    return [*found, *(Charge(spend, study) for spend in stated)]


def still_owed(charges: Sequence[Spend], records: Iterable[Record], lost_head: str) -> list[Spend]:
    """Return the charges that an interrupted restore of the same head has not written yet."""
    there: list[Spend] = []
    for record in records:
        if record.entry.lost_head != lost_head:
            continue
        if record.spend is None:  # a restore that was finished: this is another loss
            there.clear()
        else:
            there.append(record.spend)
    missing = []
    for charge in charges:
        if charge in there:
            there.remove(charge)
        else:
            missing.append(charge)
    return missing


def check_statable(before: Sequence[Spend], charges: Sequence[Spend]) -> None:
    """Check that an epsilon can be stated of a ledger with some charges more.

    Raises:
        ConsiliumError: E417, it could not: reservations would be E408 for ever.
    """
    if statable([*before, *charges]) or not statable(before):
        return
    # Whoever samples less and learns less: the same noise at rate 1 is never less.
    whole = [Spend(1.0, charge.noise_multiplier, charge.steps) for charge in charges]
    if statable([*before, *whole]):
        advice = "charge it at rate 1, which is never less: " + " ".join(map(as_option, whole))
    else:
        advice = "not even at rate 1: whatever the cap, train no more on this lineage"
    raise ConsiliumError(
        "E417", f"no epsilon can be stated with {' '.join(map(as_option, charges))}; {advice}"
    )


def as_option(spend: Spend) -> str:
    """A triple as an officer types it, with every digit."""
    return f"--spend {triple(spend)}"


def triple(spend: Spend) -> str:
    """A triple in every digit: `rate,noise,steps`."""
    return f"{spend.sample_rate!r},{spend.noise_multiplier!r},{spend.steps}"


def _shown(loss: Loss) -> list[Spend]:
    return [spend for _, record in loss.hints if (spend := record.spend) is not None]


def _covered(owed: Sequence[Spend], stated: Sequence[Spend]) -> tuple[list[Spend], bool]:
    """What of some triples is not covered by what is stated, and whether anything stated is to spare.

    A triple is covered by steps at its own rate and noise, or at a larger rate with no more noise.
    """
    left = _steps(stated)
    short = _steps(owed)
    for exact in (True, False):
        for rate, noise in short:
            for pair in sorted(left):
                if (pair == (rate, noise)) if exact else (pair[0] >= rate and pair[1] <= noise):
                    paid = min(left[pair], short[rate, noise])
                    left[pair] -= paid
                    short[rate, noise] -= paid
    return [Spend(*pair, n) for pair, n in short.items() if n], any(left.values())


def _steps(spends: Sequence[Spend]) -> dict[tuple[float, float], int]:
    steps: dict[tuple[float, float], int] = {}
    for spend in spends:
        pair = (spend.sample_rate, spend.noise_multiplier)
        steps[pair] = steps.get(pair, 0) + spend.steps
    return steps


def _options(loss: Loss, study: str | None) -> tuple[str, ...]:
    named = {record.opening.study for _, record in loss.hints if record.opening is not None}
    if study is None and len(named) == 1:
        study = named.pop()
    found = ["--spend-found"] if loss.found else []
    hints = [as_option(spend) for spend in _shown(loss)]
    unknown = ["--spend RATE,SIGMA,STEPS"] if loss.unknown else []
    whose = [f"--study {study}"] if study is not None else []
    return tuple(part for option in (*found, *hints, *unknown, *whose) for part in option.split(" "))


def _in_words(loss: Loss, short: Sequence[Spend]) -> str:
    parts = []
    if short:
        parts.append(f"not charged: {' '.join(map(as_option, short))}")
    if loss.found:
        counted = Counter(loss.found).most_common(_NAMED)
        found = ", ".join(f"{n} x {triple(c.spend)} ({c.study or 'no study'})" for c, n in counted)
        parts.append(f"signed lines behind the damage spent {found}")
    for (number, record), spend in zip(loss.hints[:_NAMED], _shown(loss), strict=False):
        opening = record.opening
        whose = f"{opening.study}, plan {opening.plan}" if opening is not None else "opening lost"
        parts.append(
            f"line {number} was changed and shows {triple(spend)} ({whose}): if it was more, charge that"
        )
    if loss.unknown:
        parts.append(f"{loss.unknown} entries cannot be read: charge besides what they may have spent")
    return "; ".join(parts)
