"""A coordinator that tells every site another list of who is alive: all its ways, for small rosters.

Every site answers one request whose list holds itself and at least the threshold. From the answers the
coordinator has the own mask of i if t sites were told "i is alive", and the mask of the pair (i, j) if t were
told "i is alive, j is dead" or t the reverse: `open_shares` gives just these shares, as another test shows,
and fewer than t say nothing. It can open the sum over S if it has the own masks of S and all masks between S
and the rest.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from privacy.secure_sum import Seeds, open_shares, remove_masks
from privacy.shamir import interpolate
from tests.privacy.masked_round import Round, context_of


def views(site: int, sites: int, threshold: int) -> list[int]:
    """Lists of the alive, as bits, that a site would answer."""
    return [a for a in range(2**sites) if a >> site & 1 and a.bit_count() >= threshold]


def openable(assigned: np.ndarray, sites: int, threshold: int, corrupt: int = 0) -> np.ndarray:
    """Say which sums each assignment opens: bool [assignments, 2^sites].

    Args:
        assigned: [assignments, honest sites], the list that each was told, as bits.
        corrupt: sites that answer everything.
    """
    alive = (assigned[:, :, None] >> np.arange(sites) & 1).astype(bool)
    own = alive.sum(axis=1) + corrupt >= threshold
    joint = np.einsum("akj,aki->aji", ~alive, alive, dtype=np.int64) + corrupt >= threshold  # j dead, i alive
    pairs = joint | joint.transpose(0, 2, 1)
    found = np.zeros((len(assigned), 2**sites), dtype=bool)
    for subset in range(1, 2**sites):
        members = [i for i in range(sites) if subset >> i & 1]
        others = [i for i in range(sites) if not subset >> i & 1]
        found[:, subset] = own[:, members].all(axis=1) & pairs[:, others][:, :, members].all(axis=(1, 2))
    return found


def all_assignments(honest: int, sites: int, threshold: int) -> np.ndarray:
    return np.array(list(product(*(views(site, sites, threshold) for site in range(honest)))))


CASES = [(sites, threshold) for sites in (3, 4, 5) for threshold in range(sites // 2 + 1, sites + 1)]


@pytest.mark.parametrize(("sites", "threshold"), CASES)
def test_no_lists_open_two_sums_or_one_sites_vector_or_fewer_than_the_smallest_sum(
    sites: int, threshold: int
) -> None:
    found = openable(all_assignments(sites, sites, threshold), sites, threshold)
    assert (found.sum(axis=1) <= 1).all()
    sizes = {subset.bit_count() for subset in range(2**sites) if found[:, subset].any()}
    context = context_of(sites, threshold)
    assert min(sizes) >= context.smallest_sum >= 2
    if (sites - threshold) ** 2 < threshold:
        assert min(sizes) == context.smallest_sum == threshold


def test_the_smallest_sum_of_five_with_three_is_reached() -> None:
    """The residual risk is real: with this roster, five different lists open a sum of two."""
    found = openable(all_assignments(5, 5, 3), 5, 3)
    assert min(s.bit_count() for s in range(32) if found[:, s].any()) == 2 == context_of(5, 3).smallest_sum


@pytest.mark.parametrize(("sites", "threshold", "corrupt"), [(3, 3, 1), (4, 3, 1), (5, 4, 1), (5, 4, 2)])
def test_sites_that_work_with_the_coordinator_change_nothing_below_the_bound(
    sites: int, threshold: int, corrupt: int
) -> None:
    """t > (n + c) / 2: still one sum."""
    assert 2 * threshold > sites + corrupt
    found = openable(all_assignments(sites - corrupt, sites, threshold), sites, threshold, corrupt)
    assert (found.sum(axis=1) <= 1).all() and found.any()


def test_at_the_bound_two_sums_are_open() -> None:
    """n = 5, t = 3 and one site that answers everything: the bound cannot be relaxed."""
    found = openable(all_assignments(4, 5, 3), 5, 3, corrupt=1)
    assert (found.sum(axis=1) > 1).any()


def test_the_lists_that_open_two_of_five_do_so_with_real_shares_and_open_no_single_site() -> None:
    """The model above is that of the code: the same lists, with keys and vectors."""
    context = context_of(5, 3)
    values = {site: np.full(4, number, np.uint64) for number, site in enumerate(context.roster)}
    played = Round(context, values)
    lists = ["abd", "abe", "abc", "abd", "abe"]
    told = dict(zip(context.roster, ([f"s{x}" for x in letters] for letters in lists), strict=True))
    own: dict[str, dict[int, bytes]] = {}
    pairs: dict[tuple[str, str], dict[int, bytes]] = {}
    for place, (site, alive) in enumerate(told.items()):
        dead = [other for other in context.roster if other not in alive]
        bundles = played.bundles(site, alive)
        shares, between = open_shares(context, site, played.private[site], played.keys, bundles, alive, dead)
        for name, share in shares.items():
            own.setdefault(name, {})[place + 1] = share
        for pair, share in between.items():
            pairs.setdefault(pair, {})[place + 1] = share

    def seed(shares: dict[int, bytes]) -> bytes:
        rows = np.stack([np.frombuffer(share, np.uint8)[None, :] for share in shares.values()])
        return interpolate(rows[:3], list(shares)[:3], 0).tobytes()

    opened = {site for site, shares in own.items() if len(shares) >= 3}
    assert opened == {"sa", "sb"}
    known = {pair for pair, shares in pairs.items() if len(shares) >= 3}
    assert known == {(alive, dead) for alive in ("sa", "sb") for dead in ("sc", "sd", "se")}
    total = played.sum(opened)
    split = Seeds(
        own={site: seed(own[site]) for site in opened}, pairs={pair: seed(pairs[pair]) for pair in known}
    )
    remove_masks(total, context, split)
    assert total.tolist() == [1, 1, 1, 1]


def test_the_smallest_sum_is_never_one_site_and_never_more_than_the_threshold() -> None:
    for sites in range(3, 65):
        for threshold in range(sites // 2 + 1, sites + 1):
            assert 2 <= context_of(sites, threshold).smallest_sum <= threshold
