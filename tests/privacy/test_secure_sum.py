"""Secure aggregation: the sum comes out bit for bit, and nothing else does."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from contracts.errors import ConsiliumError
from contracts.masking import MaskKey, UnmaskShares
from contracts.signing import SigningKey
from privacy.mask_keys import agree
from privacy.secure_sum import Context, Seeds, check_keys, mask, new_mask_key, remove_masks
from tests.privacy.masked_round import Answers, Round, context_of


def text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def drawn(context: Context, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    return {site: draw.integers(0, 2**64, length, dtype=np.uint64, endpoint=False) for site in context.roster}


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_sum_is_exact_whoever_drops_before_and_whoever_falls_silent_after(data: st.DataObject) -> None:
    sites = data.draw(st.integers(3, 7))
    context = context_of(sites, data.draw(st.integers(sites // 2 + 1, sites)))
    values = drawn(context, data.draw(st.integers(0, 50)), data.draw(st.integers(0, 99)))
    order = data.draw(st.permutations(context.roster))
    alive = order[: data.draw(st.integers(context.threshold, sites))]
    dead = order[len(alive) :]
    answering = alive[: data.draw(st.integers(context.threshold, len(alive)))]
    played = Round(context, values)
    seeds = played.recover(alive, dead, played.answers(alive, dead, answering))
    total = played.sum(alive)
    remove_masks(total, context, seeds)
    np.testing.assert_array_equal(total, np.sum([values[s] for s in alive], axis=0, dtype=np.uint64))
    assert seeds.liars == ()


@pytest.mark.parametrize("sites", [3, 4, 5])
def test_the_sum_is_exact_for_every_dropout_that_leaves_the_threshold(sites: int) -> None:
    for threshold in range(sites // 2 + 1, sites + 1):
        context = context_of(sites, threshold)
        values = drawn(context, 5)
        played = Round(context, values)
        for alive_count in range(threshold, sites + 1):
            for chosen in combinations(context.roster, alive_count):
                alive, dead = list(chosen), [s for s in context.roster if s not in chosen]
                seeds = played.recover(alive, dead, played.answers(alive, dead, alive[-threshold:]))
                total = played.sum(alive)
                remove_masks(total, context, seeds)
                expected = np.sum([values[s] for s in alive], axis=0, dtype=np.uint64)
                np.testing.assert_array_equal(total, expected)


def test_a_sum_is_unmasked_block_by_block_as_in_one_piece() -> None:
    context = context_of(3, 2)
    values = drawn(context, 70_001)
    played = Round(context, values)
    alive, dead = ["sa", "sc"], ["sb"]
    seeds = played.recover(alive, dead, played.answers(alive, dead, alive))
    total = played.sum(alive)
    edges = [0, 1, 7, 8, 32_767, 32_771, 65_536, 70_001]
    for start, end in pairwise(edges):
        remove_masks(total[start:end], context, seeds, offset=start)
    np.testing.assert_array_equal(total, values["sa"] + values["sc"])


def test_a_masked_vector_looks_uniform_and_never_the_same_twice() -> None:
    context = context_of(3, 2)
    zeros = {site: np.zeros(100_000, np.uint64) for site in context.roster}
    one, two = Round(context, zeros), Round(context, zeros)
    for vector in (one.sent["sb"].vector, one.sum(["sa", "sb"]), one.sum(context.roster)):
        for shift in (0, 30, 56):
            digits = ((vector >> np.uint64(shift)) & np.uint64(255)).astype(int)
            assert chisquare(np.bincount(digits, minlength=256)).pvalue > 1e-4
    assert not (one.sent["sb"].vector == two.sent["sb"].vector).any()


def test_masks_are_the_key_stream_of_rfc_8439() -> None:
    """Appendix A.1, test vectors 1 and 2: key and nonce of zeros, block counters 0 and 1."""
    blocks = (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    )
    for number, block in enumerate(blocks):
        stream = np.frombuffer(bytes.fromhex(block), dtype="<u8").copy()
        remove_masks(stream, context_of(3, 2), Seeds(own={"sa": bytes(32)}, pairs={}), offset=8 * number)
        assert not stream.any()


def test_keys_agree_as_in_rfc_7748() -> None:
    """Section 6.1: Bob's private and Alice's public key."""
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    alice = bytes.fromhex("8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a")
    shared = agree(X25519PrivateKey.from_private_bytes(bob), "alice", {"alice": text(alice)})
    assert shared.hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"


def test_keys_and_shares_fit_the_documents_that_carry_them() -> None:
    context = context_of(3, 2)
    played = Round(context, drawn(context, 3))
    own, pairs = played.answer("sa", ["sa", "sb"], ["sc"])
    MaskKey.sign(SigningKey.generate("sa"), "tiny", "a" * 64, 1, played.keys["sa"])
    UnmaskShares(
        study="tiny",
        protocol_hash="a" * 64,
        plan="b" * 64,
        exchange=1,
        request="c" * 64,
        site="sa",
        own={site: text(share) for site, share in own.items()},
        pairs={" ".join(pair): text(share) for pair, share in pairs.items()},
    )


def test_an_answer_holds_shares_of_the_own_masks_of_the_alive_and_of_their_masks_with_the_dead() -> None:
    """And never of a dead site's own mask, nor of a pair of alive sites."""
    context = context_of(5, 3)
    own, pairs = Round(context, drawn(context, 1)).answer("sb", ["se", "sb", "sa"], ["sc", "sd"])
    assert set(own) == {"sa", "sb", "se"}
    assert set(pairs) == {(alive, dead) for alive in ("sa", "sb", "se") for dead in ("sc", "sd")}


# What a site or the coordinator refuses.


@pytest.mark.parametrize(
    ("roster", "threshold"),
    [
        (("sa",), 1),
        (("sa", "sb"), 2),
        (("sb", "sa", "sc"), 2),
        (("sa", "sa", "sb"), 2),
        (("sa", "sb", "sc"), 1),
        (("sa", "sb", "sc", "sd"), 2),
        (("sa", "sb", "sc"), 4),
        (tuple(f"s{number:02}" for number in range(65)), 40),
    ],
)
def test_rosters_and_thresholds_that_protect_nobody_are_refused(
    roster: tuple[str, ...], threshold: int
) -> None:
    with pytest.raises(ConsiliumError, match="E432"):
        replace(context_of(3, 2), roster=roster, threshold=threshold)


# u-coordinates of order 1, 2, 4 and 8 (RFC 7748, section 7, names them "small subgroups").
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ec" + "ff" * 30 + "7f",
]


@pytest.mark.parametrize("point", [*LOW_ORDER, "ed" + "ff" * 30 + "7f", "09" + "00" * 30 + "80", "09"])
def test_points_of_low_order_and_second_spellings_are_no_mask_keys(point: str) -> None:
    context = context_of(3, 2)
    keys = {site: new_mask_key()[1] for site in context.roster} | {"sb": text(bytes.fromhex(point))}
    with pytest.raises(ConsiliumError, match=r"E432.*'sb'"):
        check_keys(context, keys)


def test_missing_repeated_and_strange_mask_keys_are_refused() -> None:
    context = context_of(3, 2)
    keys = {site: new_mask_key()[1] for site in context.roster}
    check_keys(context, keys)
    for wrong in (
        {site: keys[site] for site in ("sa", "sb")},
        keys | {"sd": new_mask_key()[1]},
        keys | {"sb": keys["sa"]},
    ):
        with pytest.raises(ConsiliumError, match="E432"):
            check_keys(context, wrong)


def test_a_site_masks_only_under_the_key_that_it_made_and_only_on_the_roster() -> None:
    context = context_of(3, 2)
    pairs = {site: new_mask_key() for site in context.roster}
    keys = {site: public for site, (_, public) in pairs.items()}
    for site, private in (("sa", pairs["sb"][0]), ("sx", pairs["sa"][0])):
        values = np.arange(5, dtype=np.uint64)
        with pytest.raises(ConsiliumError, match="E432"):
            mask(values, context, site, private, keys)
        assert values.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("site", "alive", "dead"),
    [
        ("sa", ["sa", "sb", "sc", "sd"], ["sd", "se"]),
        ("sa", ["sa", "sb", "sc"], ["sd"]),
        ("sa", ["sa", "sb", "sc"], ["sd", "sx"]),
        ("sa", ["sa", "sb"], ["sc", "sd", "se"]),
        ("sa", ["sa", "sa", "sb"], ["sc", "sd", "se"]),
        ("se", ["sa", "sb", "sc"], ["sd", "se"]),
    ],
)
def test_a_site_answers_no_request_that_is_not_the_roster(site: str, alive: list, dead: list) -> None:
    context = context_of(5, 3)
    with pytest.raises(ConsiliumError, match="E432"):
        Round(context, drawn(context, 1)).answer(site, alive, dead)


@pytest.mark.parametrize(
    "change",
    [
        {"study": "other"},
        {"protocol_hash": "c" * 64},
        {"plan": "c" * 64},
        {"exchange": 2},
        {"threshold": 3},
        {"roster": ("sa", "sb", "sd")},
    ],
)
def test_what_was_made_for_another_plan_opens_in_none(change: dict) -> None:
    context = context_of(3, 2)
    played = Round(context, drawn(context, 2))
    keys = dict(played.keys)
    if "roster" in change:
        keys["sd"] = keys.pop("sc")
    before = played.bundles("sa", ("sa", "sb"))
    played.context, played.keys = replace(context, **change), keys
    rest = [site for site in played.context.roster if site not in before]
    alive = list(played.context.roster)
    played.bundles = lambda holder, senders: before | {site: before["sb"] for site in rest}  # type: ignore[method-assign]
    with pytest.raises(ConsiliumError, match="E433"):
        played.answer("sa", alive, [])


def test_masks_of_two_contexts_do_not_cancel() -> None:
    """Sites that were told different rosters, plans or exchanges: the coordinator gets noise."""
    context = context_of(3, 2)
    values = drawn(context, 100)
    played = Round(context, values)
    other = replace(context, exchange=2)
    played.sent["sb"] = mask(values["sb"].copy(), other, "sb", played.private["sb"], played.keys)
    alive = list(context.roster)
    with pytest.raises(ConsiliumError, match=r"E433.*'sb'"):
        played.answer("sa", alive, [])
    assert not (played.sum(alive) == np.sum(list(values.values()), axis=0, dtype=np.uint64)).any()


@pytest.mark.parametrize("sender", ["sa", "sb"])
def test_a_bundle_that_was_changed_is_for_another_or_is_missing_does_not_open(sender: str) -> None:
    context = context_of(3, 2)
    played = Round(context, drawn(context, 2))
    alive = list(context.roster)
    good = played.bundles("sa", alive)
    flipped = bytearray(good[sender])
    flipped[20] ^= 1
    for wrong in (
        bytes(flipped),
        good[sender][:-1],
        played.bundles("sc", alive)[sender],
        played.bundles(sender, ["sa"])["sa"] if sender != "sa" else good["sb"],  # reflected
        b"",
    ):
        played.bundles = lambda holder, senders, wrong=wrong: good | {sender: wrong}  # type: ignore[misc]
        with pytest.raises(ConsiliumError, match=f"E433.*'{sender}'"):
            played.answer("sa", alive, [])


# What the coordinator does with wrong answers.


def _altered(answers: Answers, site: str, of: str) -> None:
    answers[site][0][of] = bytes(32)


def _altered_pair(answers: Answers, site: str, of: str) -> None:
    answers[site][1][of, "se"] = bytes(32)


def _incomplete(answers: Answers, site: str, of: str) -> None:
    del answers[site][0][of]


def _too_much(answers: Answers, site: str, of: str) -> None:
    answers[site][0]["se"] = bytes(32)


@pytest.mark.parametrize("lie", [_altered, _altered_pair, _incomplete, _too_much])
@pytest.mark.parametrize("liar", ["sa", "sb", "sd"])
def test_a_wrong_answer_is_named_and_the_rest_open_the_sum(
    lie: Callable[[Answers, str, str], None], liar: str
) -> None:
    context = context_of(5, 3)
    values = drawn(context, 20)
    played = Round(context, values)
    alive, dead = ["sa", "sb", "sc", "sd"], ["se"]
    answers = played.answers(alive, dead, alive)
    lie(answers, liar, "sc")
    seeds = played.recover(alive, dead, answers)
    assert seeds.liars == (liar,)
    total = played.sum(alive)
    remove_masks(total, context, seeds)
    np.testing.assert_array_equal(total, np.sum([values[s] for s in alive], axis=0, dtype=np.uint64))


def test_two_liars_among_many_are_both_named() -> None:
    context = context_of(9, 5)
    played = Round(context, drawn(context, 1))
    alive = list(context.roster)
    answers = played.answers(alive, [], alive)
    for liar in ("sa", "se"):
        for site in alive:
            _altered(answers, liar, site)
    assert played.recover(alive, [], answers).liars == ("sa", "se")


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.data())
def test_as_many_liars_as_can_be_told_are_named_wherever_they_stand(data: st.DataObject) -> None:
    """Each lies about seeds of its choice, in each seed at most (answers - threshold) // 2 of them."""
    sites = data.draw(st.integers(5, 24))
    context = context_of(sites, data.draw(st.integers(sites // 2 + 1, sites - 2)))
    played = Round(context, drawn(context, 1))
    alive = list(context.roster)
    answers = played.answers(alive, [], alive)
    lied = set()
    for of in data.draw(st.lists(st.sampled_from(alive), min_size=1, unique=True)):
        most = (sites - context.threshold) // 2
        for liar in data.draw(st.lists(st.sampled_from(alive), max_size=most, unique=True)):
            _altered(answers, liar, of)
            lied.add(liar)
    assert played.recover(alive, [], answers).liars == tuple(sorted(lied))


@pytest.mark.slow
@pytest.mark.parametrize(("sites", "threshold", "liars"), [(20, 14, (0, 10)), (64, 45, (0, 7, 21, 30, 63))])
def test_liars_spread_over_a_large_roster_are_named(
    sites: int, threshold: int, liars: tuple[int, ...]
) -> None:
    context = context_of(sites, threshold)
    played = Round(context, drawn(context, 1))
    alive = list(context.roster)
    answers = played.answers(alive, [], alive)
    for liar in liars:
        for of in alive:
            _altered(answers, alive[liar], of)
    seeds = played.recover(alive, [], answers)
    assert seeds.liars == tuple(alive[liar] for liar in liars)


def test_more_liars_than_can_be_told_are_told_by_what_was_committed_to() -> None:
    """Of 20 answers 14 are needed and 4 are wrong: a group without them is found by trying."""
    context = context_of(20, 14)
    played = Round(context, drawn(context, 1))
    alive = list(context.roster)
    answers = played.answers(alive, [], alive)
    for liar in (0, 5, 10, 15):
        for of in alive:
            _altered(answers, alive[liar], of)
    assert played.recover(alive, [], answers).liars == tuple(alive[liar] for liar in (0, 5, 10, 15))


def test_too_few_good_answers_open_nothing() -> None:
    context = context_of(5, 3)
    played = Round(context, drawn(context, 1))
    alive, dead = ["sa", "sb", "sc", "sd"], ["se"]
    with pytest.raises(ConsiliumError, match="E434"):
        played.recover(alive, dead, played.answers(alive, dead, ["sa", "sb"]))
    answers = played.answers(alive, dead, ["sa", "sb", "sc"])
    _altered(answers, "sb", "sd")
    with pytest.raises(ConsiliumError, match=r"E434.*'sd'"):
        played.recover(alive, dead, answers)


def test_a_stranger_and_a_dead_site_have_no_say() -> None:
    context = context_of(3, 2)
    played = Round(context, drawn(context, 1))
    answers = played.answers(["sa", "sb"], ["sc"], ["sa", "sb"])
    with pytest.raises(ConsiliumError, match="E432"):
        played.recover(["sa", "sb"], ["sc"], answers | {"sc": answers["sa"]})


def test_two_sites_that_masked_with_different_seeds_of_their_pair_are_named() -> None:
    context = context_of(3, 2)
    played = Round(context, drawn(context, 1))
    alive = list(context.roster)
    answers = played.answers(alive, [], alive)
    changed = played.sent["sc"].commitments.copy()
    changed[0] ^= 1
    played.sent["sc"] = replace(played.sent["sc"], commitments=changed)
    with pytest.raises(ConsiliumError, match=r"E434.*'sa' and 'sc'"):
        played.recover(alive, [], answers)
