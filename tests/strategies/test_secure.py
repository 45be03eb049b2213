"""What both sides derive of a sum under masks: how many hospitals must answer."""

from __future__ import annotations

import pytest

from privacy.mask_context import LEAST_SITES, smallest_sum
from strategies.secure import shares_needed
from tests.factories import tiny_study


@pytest.mark.parametrize("share", [0.51, 0.6, 0.7, 1.0])
@pytest.mark.parametrize("sites", range(LEAST_SITES, 21))
def test_lists_that_differ_open_no_sum_over_fewer_than_three_hospitals(share: float, sites: int) -> None:
    protocol = tiny_study(strategy={"aggregation": {"method": "secure", "threshold": share}})
    needed = shares_needed(protocol, sites)
    assert sites / 2 < needed <= sites
    assert needed >= share * sites - 1e-9
    assert smallest_sum(sites, needed) >= LEAST_SITES


def test_a_threshold_that_is_safe_is_taken_as_it_is() -> None:
    protocol = tiny_study(strategy={"aggregation": {"method": "secure", "threshold": 0.7}})
    assert [shares_needed(protocol, n) for n in (3, 4, 5, 8, 20)] == [3, 3, 4, 6, 14]
    low = tiny_study(strategy={"aggregation": {"method": "secure", "threshold": 0.51}})
    assert [shares_needed(low, n) for n in (5, 7, 20)] == [4, 5, 11]
