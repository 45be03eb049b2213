"""Opening the seeds of masks from the shares that sites answered with, some of which may be wrong."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from contracts.errors import ConsiliumError
from privacy.mask_context import Context
from privacy.mask_keys import commitment
from privacy.shamir import SECRET_BYTES, Bytes, combine, interpolate
from privacy.share_decoding import right_shares

Pair = tuple[str, str]

_MOST_SUBSETS = 2000  # of holders, tried for one seed: a second or two


class SharesMissing(ConsiliumError):
    """E434 where further honest answers may still open the seeds.

    `wrong` names who is known to have answered wrongly: no more can be had of them.
    """

    def __init__(self, detail: str, wrong: set[str]) -> None:
        super().__init__("E434", detail)
        self.wrong = tuple(sorted(wrong))


@dataclass(frozen=True)
class Seeds:
    """Opened seeds: of each alive site's own mask, and by (alive, dead) of the masks of those pairs.

    `liars` answered with less than was asked for, or with a share that does not fit: a wrong one, unless who
    dealt it sent a wrong one under encryption.
    """

    own: Mapping[str, bytes]
    pairs: Mapping[Pair, bytes]
    liars: tuple[str, ...] = ()


def recover(
    context: Context,
    alive: Sequence[str],
    dead: Sequence[str],
    own: Mapping[str, Mapping[str, bytes]],
    pairs: Mapping[str, Mapping[Pair, bytes]],
    commitments: Mapping[str, Bytes],
) -> Seeds:
    """Open the seeds of the masks that are left in the sum of the alive sites' vectors.

    Of k answers up to (k - threshold) // 2 may be wrong in each seed, whoever gave them: they are found and
    named (`share_decoding`). Beyond that the commitments tell a right guess, and groups of holders are tried.

    Args:
        own: by site that answered, what `open_shares` returned there first.
        pairs: by site that answered, what it returned second.
        commitments: by alive site, uint8 [n, 32], as it sent them.

    Raises:
        SharesMissing: E434, too few good shares among the answers.
        ConsiliumError: E432, lists or an answer that do not fit the roster; E434, two alive sites
            committed to different seeds for the pair, so that their masks do not cancel.
    """
    context.check_lists(alive, dead)
    _check_commitments(context, alive, commitments)
    secrets = [(site, site) for site in sorted(alive)]
    secrets += [(site, gone) for site in sorted(alive) for gone in sorted(dead)]
    answers = _answers(context, alive, secrets, own, pairs)
    liars = set(own) - set(answers)
    holders = list(answers)
    if len(holders) < context.threshold:
        raise SharesMissing(
            f"{len(holders)} hospitals answered in full ({', '.join(holders)}), "
            f"expected at least {context.threshold}",
            liars,
        )
    shares = np.stack([answers[holder] for holder in holders])
    xs = [context.place(holder) + 1 for holder in holders]
    expected = [commitments[site][context.place(peer)].tobytes() for site, peer in secrets]
    first = list(range(context.threshold))
    seeds = [row.tobytes() for row in combine(shares, xs, context.threshold)]
    fits = [
        commitment(context, *secret, seed) == digest
        for secret, seed, digest in zip(secrets, seeds, expected, strict=True)
    ]
    liars |= {holders[h] for h in _misfits(shares[:, fits], xs, first)}
    for number in (n for n, fit in enumerate(fits) if not fit):
        mine = shares[:, number]
        trusted = [h for h, holder in enumerate(holders) if holder not in liars]
        for used in _groups(context, mine, xs, trusted):
            seed = interpolate(mine[used, None], [xs[u] for u in used], 0).tobytes()
            if commitment(context, *secrets[number], seed) == expected[number]:
                break
        else:
            raise SharesMissing(
                f"shares of the mask {secrets[number]} do not fit what {secrets[number][0]!r} committed to; "
                f"answers of {', '.join(holders)}; known to be wrong: {', '.join(sorted(liars)) or 'none'}",
                liars,
            )
        seeds[number] = seed
        liars |= {holders[h] for h in _misfits(mine[:, None], xs, used)}
    opened = dict(zip(secrets, seeds, strict=True))
    return Seeds(
        own={site: seed for (site, peer), seed in opened.items() if site == peer},
        pairs={pair: seed for pair, seed in opened.items() if pair[0] != pair[1]},
        liars=tuple(sorted(liars)),
    )


def _check_commitments(context: Context, alive: Sequence[str], commitments: Mapping[str, Bytes]) -> None:
    """Both sites of a pair commit to its one seed: otherwise their masks do not cancel."""
    shape = (len(context.roster), SECRET_BYTES)
    for site in alive:
        if site not in commitments or commitments[site].shape != shape:
            raise ConsiliumError("E434", f"{site!r} sent no commitments of the form {shape}")
    for one, other in combinations(sorted(alive), 2):
        if (
            commitments[one][context.place(other)].tobytes()
            != commitments[other][context.place(one)].tobytes()
        ):
            raise ConsiliumError("E434", f"{one!r} and {other!r} masked with different seeds of their pair")


def _answers(
    context: Context,
    alive: Sequence[str],
    secrets: Sequence[Pair],
    own: Mapping[str, Mapping[str, bytes]],
    pairs: Mapping[str, Mapping[Pair, bytes]],
) -> dict[str, Bytes]:
    """Return uint8 [secrets, 32] of every site that answered with exactly what was asked for."""
    if strangers := sorted(set(own) - set(alive)):
        raise ConsiliumError("E432", f"answers of {strangers}, who are not among the alive {sorted(alive)}")
    complete = {}
    for holder in sorted(own, key=context.place):
        given = {(site, site): share for site, share in own[holder].items()} | dict(pairs.get(holder, {}))
        if set(given) == set(secrets) and all(len(share) == SECRET_BYTES for share in given.values()):
            joined = b"".join(given[secret] for secret in secrets)
            complete[holder] = np.frombuffer(joined, dtype=np.uint8).reshape(-1, SECRET_BYTES)
    return complete


def _groups(context: Context, mine: Bytes, xs: Sequence[int], trusted: Sequence[int]) -> Iterator[list[int]]:
    """Groups of as many holders as the threshold, one of which opens a seed if any does that can be found.

    First those who were right in all seeds before, then all: a liar in one seed may be needed for another.

    Args:
        mine: uint8 [k, 32], everybody's shares of the seed.
        trusted: positions of holders not known to be wrong.
    """
    enough = [group for group in (trusted, range(len(xs))) if len(group) >= context.threshold]
    for group in enough:
        right = right_shares(mine[list(group)], [xs[h] for h in group], context.threshold)
        if right is not None:
            yield [group[position] for position in right[: context.threshold]]
    for group in enough:
        yield from _subsets(context, group)


def _subsets(context: Context, holders: Sequence[int]) -> Iterator[list[int]]:
    """All groups of as many holders as the threshold; if they are too many, some of them, spread evenly.

    Which ones follows from the context, so that a replay tries the same.
    """
    if math.comb(len(holders), context.threshold) <= _MOST_SUBSETS:
        yield from (list(group) for group in combinations(holders, context.threshold))
        return
    for number in range(_MOST_SUBSETS):
        lots = {h: hashlib.sha256(f"{context.digest} {number} {h}".encode()).digest() for h in holders}
        yield sorted(holders, key=lots.__getitem__)[: context.threshold]


def _misfits(shares: Bytes, xs: Sequence[int], used: Sequence[int]) -> Iterator[int]:
    """Positions with a share, of uint8 [k, m, 32], that is not on the polynomials through those used."""
    base = [xs[u] for u in used]
    for position in range(len(xs)):
        if position not in used and (interpolate(shares[used], base, xs[position]) != shares[position]).any():
            yield position
