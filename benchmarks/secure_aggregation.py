"""Secure aggregation of 25 M parameters: one mask, and a round of 8 sites, against plain aggregation.

Run: .venv/bin/python benchmarks/secure_aggregation.py [--parameters 25000000] [--sites 8] [--dead 0]

One mask: adding a pair's key stream to a vector, beside numpy adding a vector that is in memory. A round:
what a site does more (encode, mask) and what the coordinator does (sum of the masked files block by block,
shares, unmask, decode), beside the plain weighted mean of the same updates, read from files as well. Seconds
are those of one core (`time.process_time`), so that a busy machine changes little; everything runs in turn,
and medians are compared. Goals: a mask under 0.2 s, a round within 3 x of the mean.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from privacy.fixed_point import bits_for, decode, encode
from privacy.secure_sum import (
    Context,
    Masked,
    Seeds,
    mask,
    new_mask_key,
    open_shares,
    recover,
    remove_masks,
)

ROUNDS = 3
BOUND = 8.0
BLOCK = 1 << 18  # numbers of the sum that are in memory at a time


def timed(call: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    """Seconds of one core, and what the call returned."""
    started = time.process_time()
    result = call(*arguments)
    return time.process_time() - started, result


def plain_mean(files: list[Path], weights: list[float]) -> np.ndarray:
    """The reference: sum of weight times update over the sum of weights."""
    total = np.float32(weights[0]) * np.fromfile(files[0], np.float32)
    for weight, file in zip(weights[1:], files[1:], strict=True):
        total += np.float32(weight) * np.fromfile(file, np.float32)
    total /= np.float32(sum(weights))
    return total


def unmasked_mean(files: list[Path], context: Context, seeds: Seeds, bits: int, weight: float) -> np.ndarray:
    """The coordinator's half, with one block of the sum in memory."""
    vectors = [np.memmap(file, dtype=np.uint64, mode="r") for file in files]
    mean = np.empty(len(vectors[0]), dtype=np.float32)
    for start in range(0, len(mean), BLOCK):
        total = np.array(vectors[0][start : start + BLOCK])
        for vector in vectors[1:]:
            total += vector[start : start + BLOCK]
        remove_masks(total, context, seeds, offset=start)
        mean[start : start + BLOCK] = decode(total, bits) / weight
    return mean


def main() -> None:
    """Time a mask, a site, and the coordinator."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--parameters", type=int, default=25_000_000)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--dead", type=int, default=0)
    arguments = parser.parse_args()
    length, n = arguments.parameters, arguments.sites
    roster = tuple(f"site{number:02}" for number in range(n))
    context = Context("benchmark", "0" * 64, "1" * 64, 1, roster, n // 2 + 1)
    alive, dead = list(roster[: n - arguments.dead]), list(roster[n - arguments.dead :])
    weights = [1.0 + number for number in range(n)]
    bits = bits_for(BOUND, sum(weights))
    private = {site: new_mask_key() for site in roster}
    keys = {site: public for site, (_, public) in private.items()}

    draw = np.random.default_rng(0)
    print(f"{n} sites, {arguments.dead} dead, {length:,} parameters; load {os.getloadavg()[0]:.1f}")

    one = Seeds(own={"site00": os.urandom(32)}, pairs={})
    vector, other = np.zeros(length, np.uint64), np.ones(length, np.uint64)
    masks, adds = [], []
    for _ in range(ROUNDS):
        masks.append(timed(remove_masks, vector, context, one)[0])
        adds.append(timed(np.add, vector, other, vector)[0])
    del vector, other
    ratio = statistics.median(m / a for m, a in zip(masks, adds, strict=True))
    print(f"numpy add in place    {statistics.median(adds):.3f} s")
    print(f"one mask              {statistics.median(masks):.3f} s (goal < 0.2), ratio {ratio:.1f}")

    with tempfile.TemporaryDirectory() as folder:
        files, plain_files, sent = [], [], {}
        for number, site in enumerate(alive):
            update = draw.uniform(-1, 1, length).astype(np.float32)
            plain_files.append(Path(folder) / f"{site}-plain")
            update.tofile(plain_files[-1])
            values = encode(update, weights[number], bits, BOUND)
            masked = mask(values, context, site, private[site][0], keys)
            files.append(Path(folder) / site)
            masked.vector.tofile(files[-1])
            sent[site] = Masked(np.empty(0, np.uint64), masked.shares, masked.commitments)
        del masked, values
        plain, at_site, opened, at_coordinator = [], [], [], []
        for _ in range(ROUNDS):
            seconds, expected = timed(plain_mean, plain_files, weights[: len(alive)])
            plain.append(seconds)
            seconds, values = timed(encode, update, weights[0], bits, BOUND)
            masking, _ = timed(mask, values, context, alive[0], private[alive[0]][0], keys)
            at_site.append(seconds + masking)
            del values
            seconds, seeds = timed(answered, context, private, keys, sent, alive, dead)
            opened.append(seconds)
            seconds, mean = timed(unmasked_mean, files, context, seeds, bits, sum(weights[: len(alive)]))
            at_coordinator.append(seconds)
            assert np.abs(mean - expected).max() < 1e-5
    rounds = [sum(parts) for parts in zip(at_site, opened, at_coordinator, strict=True)]
    ratio = statistics.median(r / p for r, p in zip(rounds, plain, strict=True))
    print(f"plain weighted mean   {statistics.median(plain):.2f} s")
    print(f"a site: encode, mask  {statistics.median(at_site):.2f} s (all sites at once)")
    print(f"all sites' answers    {statistics.median(opened):.3f} s, with the seeds opened from them")
    print(f"sum, unmask, decode   {statistics.median(at_coordinator):.2f} s")
    print(f"round                 {statistics.median(rounds):.2f} s, ratio {ratio:.2f} (goal < 3)")


def answered(
    context: Context,
    private: dict[str, tuple[bytes, str]],
    keys: dict[str, str],
    sent: dict[str, Masked],
    alive: list[str],
    dead: list[str],
) -> Seeds:
    """Every alive site's answer, and the coordinator's recovery from them."""
    own, pairs = {}, {}
    for site in alive:
        bundles = {sender: sent[sender].shares[context.place(site)].tobytes() for sender in alive}
        own[site], pairs[site] = open_shares(context, site, private[site][0], keys, bundles, alive, dead)
    return recover(context, alive, dead, own, pairs, {site: sent[site].commitments for site in alive})


if __name__ == "__main__":
    main()
