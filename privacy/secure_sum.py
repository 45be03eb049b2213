"""Secure aggregation: the coordinator learns the sum of the sites' vectors and no vector (design section 5).

Double masking after Bonawitz et al. 2017 (doi:10.1145/3133956.3133982, figure 4), in two hops:

1. Site i sends, in one message, y_i = x_i + PRG(b_i) + sum over j > i of PRG(s_ij) - sum over j < i of
   PRG(s_ij), modulo 2^64, and for every site k an encrypted bundle with one Shamir share of b_i and of each
   s_ij. The seed s_ij is known to i and j alone (X25519), b_i to i alone.
2. The coordinator says once who is alive (sent) and who is dead. Site k opens the bundles that the alive
   sites sent it and answers with its shares of b_i for i alive, and of s_ij for i alive and j dead; nothing
   else. From `threshold` answers the coordinator opens these seeds and takes their masks off the sum.

There, a site shares its private key before it sends, so that the masks of one who drops in between can be
opened. Here shares and vector are one message: a site that did not send has shared nothing, and its peers'
shares of the pair's seed stand in. A site that sent and then fell silent is opened from the others' shares.

Why no second sum can be opened, whatever the coordinator tells whom (n sites, all honest, each answers one
request; t the threshold, 2t > n). To open the sum over a set S it needs b_i for all i in S, hence t sites
that were told "i is alive"; and s_ij for all i in S and j outside, hence t sites that were told "i is alive,
j is dead", or t that were told the reverse. Two groups of t sites have one in common, and that one was told
one thing about i. So it is never the reverse, every j outside S is dead to t sites, and S is exactly the set
of those whom t sites were told are alive: one set. A vector that comes late, from a site said to be dead,
stays under its own mask b_i.

How small can that sum be? When all are told the same, S is the alive list: t sites or more. A coordinator
that tells sites different lists can do better. Each of n answers names t or more alive, and t of them hold a
j outside S for dead, so |S| n + (n - |S|) (n - t) >= n t: at least n (2t - n) / t sites, the `smallest_sum`
of `Context`. That is never one site alone, but for 5 sites and t = 3 it is two, and a test finds such lists.
It equals t when (n - t)^2 < t. The coordinator has then signed two requests for one plan, which convicts it
afterwards; Bonawitz et al. prevent it by a further hop, in which the sites sign the list to each other
("consistency check").

c sites that work with the coordinator answer every request: t - c of the n - c honest answers then open a
seed, and there is one sum only if t > (n + c) / 2, the condition of Bonawitz et al. for an active server too
(section 6). They also take their own vectors off it: what is left is a sum over the honest sites in S, so it
must hold more than c + 1 sites. A site can also spoil a round with a wrong vector: who sees only a sum cannot
check its parts.

Primitives: X25519 (RFC 7748), HKDF-SHA256 (RFC 5869) whose info binds study, protocol, plan, exchange,
roster, threshold, purpose and parties; the ChaCha20 key stream and ChaCha20-Poly1305 (RFC 8439); SHA-256
commitments to the seeds, which are uniform 32 bytes, so that a hash hides them. Nothing here reads or writes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from contracts.errors import ConsiliumError
from privacy.mask_context import Context
from privacy.mask_keys import agree, check_keys, commitment, derive, new_mask_key, own_key, seal, unseal
from privacy.mask_recovery import Pair, Seeds, recover
from privacy.shamir import SECRET_BYTES, Bytes, split

__all__ = [
    "Context",
    "Masked",
    "Pair",
    "Seeds",
    "check_keys",
    "mask",
    "new_mask_key",
    "open_shares",
    "recover",
    "remove_masks",
]

Vector = NDArray[np.uint64]

_BLOCK = 1 << 15  # numbers at a time: vector and key stream stay in a core's cache
_PER_COUNTER = 8  # numbers in one ChaCha20 block of 64 bytes
_LONGEST = 2**32 * _PER_COUNTER  # then the block counter would start again


@dataclass(frozen=True)
class Masked:
    """What a site sends.

    Attributes:
        vector: uint64 [d].
        shares: uint8 [n, L]; row k is the encrypted bundle for the site at place k of the roster.
        commitments: uint8 [n, 32] to the seeds: at the site's own place b_i, at place j s_ij.
    """

    vector: Vector
    shares: Bytes
    commitments: Bytes


def mask(values: Vector, context: Context, site: str, private: bytes, keys: Mapping[str, str]) -> Masked:
    """Mask one site's vector and share the seeds of its masks.

    To be called once for an exchange and a private key, its result kept before it is sent: two vectors
    under one pair's masks betray their difference.

    Args:
        values: uint64 [d], encoded. Overwritten: it becomes the masked vector, since d may be large.
        site: who masks.
        private: 32 bytes, this site's key for this exchange.
        keys: by site, everyone's public key (32 bytes, base64url), checked for their signatures.

    Raises:
        ConsiliumError: E432, the keys, or the site is not on the roster; E899, the vector is too long.
    """
    context.place(site)
    check_keys(context, keys)
    key = own_key(private, site, keys)
    secrets = {peer: private if peer == site else agree(key, peer, keys) for peer in context.roster}
    seeds = {peer: derive(context, "mask", sorted((site, peer)), secrets[peer]) for peer in context.roster}
    seeds[site] = os.urandom(SECRET_BYTES)
    _add_streams(values, [(seeds[peer], _sign(site, peer)) for peer in context.roster])
    rows = _rows([seeds[peer] for peer in context.roster])
    shares = split(rows, context.threshold, len(context.roster))
    return Masked(
        vector=values,
        shares=_rows(
            [
                seal(context, site, peer, secrets[peer], shares[place].tobytes())
                for place, peer in enumerate(context.roster)
            ]
        ),
        commitments=_rows([commitment(context, site, peer, seeds[peer]) for peer in context.roster]),
    )


def open_shares(
    context: Context,
    site: str,
    private: bytes,
    keys: Mapping[str, str],
    bundles: Mapping[str, bytes],
    alive: Sequence[str],
    dead: Sequence[str],
) -> tuple[dict[str, bytes], dict[Pair, bytes]]:
    """Open what the alive sites sent this one and return the shares that the request asks for.

    To be called for one request of an exchange, ever: a second one with other lists could open a second sum.

    Args:
        bundles: by alive site, what it encrypted for this one.

    Returns:
        This site's shares of each alive site's own mask, and by (alive, dead) of the masks of those pairs.

    Raises:
        ConsiliumError: E432, lists that are not the roster, overlap, hold too few alive, or this site among
            the dead, and bad keys; E433, a bundle is missing or was not made for this site and context.
    """
    context.check_lists(alive, dead)
    if site not in alive:
        raise ConsiliumError("E432", f"{site!r} is asked to answer, and is not among the alive")
    check_keys(context, keys)
    key = own_key(private, site, keys)
    own: dict[str, bytes] = {}
    pairs: dict[Pair, bytes] = {}
    for sender in sorted(alive):
        secret = private if sender == site else agree(key, sender, keys)
        rows = unseal(context, sender, site, secret, bundles.get(sender, b""))
        own[sender] = rows[context.place(sender)]
        pairs |= {(sender, gone): rows[context.place(gone)] for gone in dead}
    return own, pairs


def remove_masks(total: Vector, context: Context, seeds: Seeds, offset: int = 0) -> None:
    """Take the masks that are left off a sum of masked vectors, in place.

    Args:
        total: uint64 [d], or a block of it.
        offset: where in the vector `total` begins, so that a sum need not be in memory as a whole.

    Raises:
        ConsiliumError: E899, the vector is too long.
    """
    streams = [(seed, -1) for seed in seeds.own.values()]
    streams += [(seed, -_sign(site, gone)) for (site, gone), seed in seeds.pairs.items()]
    _add_streams(total, streams, offset)


def _sign(site: str, peer: str) -> int:
    """Sign of a mask in `site`'s vector; of its own mask too, where `peer` is the site itself."""
    return 1 if peer >= site else -1


def _add_streams(vector: Vector, streams: Sequence[tuple[bytes, int]], offset: int = 0) -> None:
    """Add or subtract (1 or -1) the key streams of the seeds, from position `offset` of each, in place."""
    if offset + len(vector) > _LONGEST:
        raise ConsiliumError("E899", f"a vector of {offset + len(vector)} numbers, expected at most 2^35")
    counter, skipped = divmod(offset, _PER_COUNTER)
    # No seed serves two purposes, so the nonce may be zero; before it stands the block counter (RFC 8439).
    start = counter.to_bytes(4, "little") + bytes(12)
    ciphers = [
        (Cipher(algorithms.ChaCha20(seed, start), mode=None).encryptor(), sign) for seed, sign in streams
    ]
    zeros, stream = np.zeros(_BLOCK, dtype="<u8"), np.empty(_BLOCK, dtype="<u8")
    for cipher, _ in ciphers:
        cipher.update_into(zeros[:skipped].data.cast("B"), stream.data.cast("B"))
    for begin in range(0, len(vector), _BLOCK):
        block = vector[begin : begin + _BLOCK]
        part = stream[: len(block)]
        for cipher, sign in ciphers:
            cipher.update_into(zeros[: len(block)].data.cast("B"), part.data.cast("B"))
            if sign > 0:
                block += part
            else:
                block -= part


def _rows(parts: Sequence[bytes]) -> Bytes:
    """Lay equally long byte strings below each other: uint8 [len(parts), length]."""
    return np.frombuffer(b"".join(parts), dtype=np.uint8).reshape(len(parts), -1)
