"""Opening the seeds of masks from the shares that sites answered with, some of which may be wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations, islice

import numpy as np

from contracts.errors import ConsiliumError
from privacy.mask_context import Context
from privacy.mask_keys import commitment
from privacy.shamir import SECRET_BYTES, Bytes, combine, interpolate

Pair = tuple[str, str]

_MOST_SUBSETS = 2000  # of holders, tried for one seed: a second or two


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

    Args:
        own: by site that answered, what `open_shares` returned there first.
        pairs: by site that answered, what it returned second.
        commitments: by alive site, uint8 [n, 32], as it sent them.

    Raises:
        ConsiliumError: E432, lists or an answer that do not fit the roster; E434, too few good shares, or
            two alive sites committed to different seeds for the pair, so that their masks do not cancel.
    """
    context.check_lists(alive, dead)
    _check_commitments(context, alive, commitments)
    secrets = [(site, site) for site in sorted(alive)]
    secrets += [(site, gone) for site in sorted(alive) for gone in sorted(dead)]
    answers = _answers(context, alive, secrets, own, pairs)
    liars = set(own) - set(answers)
    holders = list(answers)
    if len(holders) < context.threshold:
        raise ConsiliumError(
            "E434",
            f"{len(holders)} hospitals answered in full ({', '.join(holders)}), "
            f"expected at least {context.threshold}",
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
        mine = shares[:, number : number + 1]
        for used in _subsets(holders, liars, context.threshold):
            seed = interpolate(mine[used], [xs[u] for u in used], 0).tobytes()
            if commitment(context, *secrets[number], seed) == expected[number]:
                break
        else:
            raise ConsiliumError(
                "E434",
                f"shares of the mask {secrets[number]} do not fit what {secrets[number][0]!r} committed to; "
                f"answers of {', '.join(holders)}; known to be wrong: {', '.join(sorted(liars)) or 'none'}",
            )
        seeds[number] = seed
        liars |= {holders[h] for h in _misfits(mine, xs, used)}
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


def _subsets(holders: Sequence[str], liars: set[str], threshold: int) -> Iterator[list[int]]:
    """Groups of holders to try, those without a known liar first, at most `_MOST_SUBSETS`.

    Rotations leave every holder out soon; in the order of combinations a wrong first one stays for long.
    """
    order = sorted(range(len(holders)), key=lambda h: holders[h] in liars)
    yield order[:threshold]
    rotated = ((order[start:] + order[:start])[:threshold] for start in range(1, len(order)))
    others = (list(group) for group in combinations(order, threshold))
    yield from islice(chain(rotated, others), _MOST_SUBSETS)


def _misfits(shares: Bytes, xs: Sequence[int], used: Sequence[int]) -> Iterator[int]:
    """Positions with a share, of uint8 [k, m, 32], that is not on the polynomials through those used."""
    base = [xs[u] for u in used]
    for position in range(len(xs)):
        if position not in used and (interpolate(shares[used], base, xs[position]) != shares[position]).any():
            yield position
