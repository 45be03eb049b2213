"""The coordinator's half of secure aggregation: admit masked vectors, ask once who unmasks, open the sum.

Under masks the coordinator can check signature, roster, base, length, form and digest of what a hospital
sent, and the bound of the sum. That a single update is not too large is then the word of its own code.

Nothing here moves the head. Everything follows from stored documents: signed envelopes, masked vectors, the
one request, and the answers to it; `consilium study replay` reads them again.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from contracts.errors import ConsiliumError
from contracts.masking import UnmaskRequest, UnmaskShares
from contracts.plan import RoundPlan
from contracts.signing import parse_signed, to_text
from contracts.study import StudyProtocol
from contracts.update import UpdateEnvelope
from durable.files import write_atomic
from privacy.mask_keys import bundle_bytes
from privacy.secure_sum import Context, Seeds, recover, remove_masks
from strategies.interface import Admitted, Shapes, Tensors
from strategies.secure import COMMITMENTS, MASKED, SHARES, Layout, context_of, layout_of
from tasks.answers import open_answer, open_stored
from tasks.central import COORDINATOR, Combined
from tasks.exchange import DirectoryExchange, file_digest
from tasks.federation import load_federation
from tasks.home import CoordinatorHome
from tasks.own_documents import sign_own, text_in_force
from tasks.store import load_answer, put_tensors, save_answer
from tasks.tensors import TensorFile

BLOCK = 1 << 20  # numbers of the sum in memory at once; the key stream's counter wants a multiple of 8


@dataclass(frozen=True)
class Sum:
    """What an exchange under masks gave.

    Attributes:
        envelopes: of the alive hospitals, in the order of their names.
        weights: theirs in the sum.
        update: the mean (training) or the total (statistics, histogram), as one update.
        liars: hospitals whose shares did not fit.
    """

    envelopes: list[UpdateEnvelope]
    digests: dict[str, str]
    weights: dict[str, float]
    update: Admitted
    liars: list[str]


def layout_at(home: CoordinatorHome, protocol: StudyProtocol, plan: RoundPlan) -> Layout:
    """The form of a plan's masked vectors, from the base model in the exchange."""
    model: Shapes = {}
    if plan.base_model is not None:
        model = TensorFile(DirectoryExchange(home.exchange).path_of(plan.base_model)).shapes
    return layout_of(protocol, plan, model)


def check_masked(home: CoordinatorHome, envelope: UpdateEnvelope, context: Context, length: int) -> None:
    """Check the file that an envelope names: digest, length and form. What is masked cannot be looked at.

    Raises:
        ConsiliumError: E509, none named, missing, or of another size or digest; E519, another form.
    """
    if envelope.tensors is None:
        raise ConsiliumError("E509", f"the answer of {envelope.site!r} names no tensors")
    path = DirectoryExchange(home.exchange).path_of(envelope.tensors)
    if not path.is_file() or path.stat().st_size != envelope.tensor_bytes:
        raise ConsiliumError("E509", f"digest {envelope.tensors}, {envelope.tensor_bytes} bytes")
    if file_digest(path) != envelope.tensors:
        raise ConsiliumError("E509", f"the content under {envelope.tensors} has another digest")
    n = len(context.roster)
    expected = {
        MASKED: ("U64", [length]),
        SHARES: ("U8", [n, bundle_bytes(context)]),
        COMMITMENTS: ("U8", [n, 32]),
    }
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            found = {name: (one.get_dtype(), list(one.get_shape())) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        raise ConsiliumError("E519", f"not a safetensors file: {error}") from error
    if found != expected:
        raise ConsiliumError("E519", f"tensors {found}, expected {expected}")


def stored_request(
    home: CoordinatorHome, study: str, plan_digest: str
) -> tuple[UnmaskRequest, str, str] | None:
    """The one request that was made for a plan: itself, its digest and its text as hospitals get it.

    None before there is one.
    """
    path = _request_of(home, study, plan_digest)
    if not path.exists():
        return None
    text = text_in_force(home, path.read_text(), UnmaskRequest)
    signed = parse_signed(text)
    return UnmaskRequest.model_validate(signed.document), signed.digest, text


def make_request(
    home: CoordinatorHome,
    plan: RoundPlan,
    context: Context,
    envelopes: Mapping[str, UpdateEnvelope],
    texts: Mapping[str, str],
) -> tuple[UnmaskRequest, str, str]:
    """Store the answers and the one request that follows from them, and lay the shares out for its sites.

    Called again after a crash, with more answers or fewer, it completes the request that was made first.

    Args:
        envelopes, texts: of the admitted hospitals, by name.
    """
    if stored_request(home, plan.study, context.plan) is None:
        for site in envelopes:
            save_answer(home, plan.study, context.plan, site, texts[site])
        request = UnmaskRequest(
            study=plan.study,
            protocol_hash=plan.protocol_hash,
            plan=context.plan,
            exchange=plan.round,
            alive=sorted(envelopes),
            dead=sorted(set(context.roster) - set(envelopes)),
            shares=lay_out_shares(home, context, envelopes),
        )
        text = to_text(sign_own(home, request))
        write_atomic(_request_of(home, plan.study, context.plan), text.encode())
    found = stored_request(home, plan.study, context.plan)
    assert found is not None
    # By its own digest too, where the exchange looks up who may read which shares.
    write_atomic(home.study(plan.study) / "requests" / f"{found[1]}.json", found[2].encode())
    return found


def lay_out_shares(
    home: CoordinatorHome, context: Context, envelopes: Mapping[str, UpdateEnvelope]
) -> dict[str, str]:
    """Store for each alive hospital what the alive ones encrypted for it; returns the digests by hospital."""
    bundles: dict[str, Tensors] = {site: {} for site in envelopes}
    for sender, envelope in envelopes.items():
        shares = _small(home, envelope, SHARES)
        for site in envelopes:
            bundles[site][sender] = shares[context.place(site)].copy()
    return {site: put_tensors(home, found) for site, found in sorted(bundles.items())}


def check_shares(shares: UnmaskShares, request: UnmaskRequest, request_digest: str, site: str) -> None:
    """Check that an answer is for this request.

    Raises:
        ConsiliumError: E504.
    """
    wanted = {
        "study": request.study,
        "protocol_hash": request.protocol_hash,
        "plan": request.plan,
        "exchange": request.exchange,
        "request": request_digest,
        "site": site,
    }
    for field, value in wanted.items():
        if getattr(shares, field) != value:
            raise ConsiliumError("E504", f"{field} is {getattr(shares, field)!r}, expected {value!r}")


def keep_shares(
    home: CoordinatorHome,
    plan: RoundPlan,
    request: UnmaskRequest,
    request_digest: str,
    results: Mapping[str, str | None],
) -> tuple[dict[str, UnmaskShares], dict[str, str]]:
    """Keep what was answered to a request, and return every answer so far and the numbers of refusals.

    An answer of an earlier run counts still: it is the same request.
    """
    refused: dict[str, str] = {}
    for site in request.alive:
        text = results.get(site)
        if not text:
            continue
        try:
            shares, _ = open_answer(load_federation(home), site, text, UnmaskShares, plan)
            check_shares(shares, request, request_digest, site)
        except ConsiliumError as error:
            refused[site] = error.number
            continue
        save_answer(home, plan.study, request_digest, site, text)
    answered = stored_shares(home, plan, request, request_digest)
    return answered, {site: number for site, number in refused.items() if site not in answered}


def stored_shares(
    home: CoordinatorHome, plan: RoundPlan, request: UnmaskRequest, request_digest: str
) -> dict[str, UnmaskShares]:
    """The answers to a request that are stored, verified again: by keys that have ended since, too."""
    federation, found = load_federation(home), {}
    folder = home.study(plan.study) / "answers" / request_digest
    for path in sorted(folder.glob("*.json")):
        shares, _ = open_stored(federation, path.stem, path.read_text(), UnmaskShares, plan)
        check_shares(shares, request, request_digest, path.stem)
        found[path.stem] = shares
    return found


def open_sum(home: CoordinatorHome, protocol: StudyProtocol, plan: RoundPlan, plan_digest: str) -> Sum:
    """Open the sum of an exchange from what is stored of it: deterministic, whoever's shares were used.

    A hospital that left or changed its keys after its vector was admitted is still in the sum: the request
    names it, and there is one request.

    Raises:
        ConsiliumError: E434, too few good shares; E518, the sum is larger than honest updates can make it;
            E5xx, E803, a stored document or vector no longer passes.
    """
    found = stored_request(home, plan.study, plan_digest)
    assert found is not None
    request, request_digest, _ = found
    context, layout = context_of(protocol, plan, plan_digest), layout_at(home, protocol, plan)
    federation, envelopes, digests = load_federation(home), [], {}
    for site in request.alive:
        text = load_answer(home, plan.study, plan_digest, site)
        envelope, digests[site] = open_stored(federation, site, text, UpdateEnvelope, plan)
        check_masked(home, envelope, context, layout.length)
        envelopes.append(envelope)
    answers = stored_shares(home, plan, request, request_digest)
    seeds = recover(
        context,
        request.alive,
        request.dead,
        {s: {name: _bytes(share) for name, share in a.own.items()} for s, a in answers.items()},
        {s: {_pair(pair): _bytes(share) for pair, share in a.pairs.items()} for s, a in answers.items()},
        {e.site: _small(home, e, COMMITMENTS) for e in envelopes},
    )
    total = unmasked(home, envelopes, context, seeds, layout)
    norm, most = float(np.linalg.norm(total)), layout.largest_sum(request.alive)
    if norm > most:
        raise ConsiliumError("E518", f"L2 norm {norm:.4g} of the sum, expected <= {most:.4g}")
    weights = {site: layout.weights[site] for site in request.alive}
    if plan.kind == "training":
        total /= sum(weights.values())
    return Sum(
        envelopes=envelopes,
        digests=digests,
        weights=weights,
        update=Admitted(COORDINATOR, 1.0, Combined(layout.tensors(total))),
        liars=list(seeds.liars),
    )


def unmasked(
    home: CoordinatorHome,
    envelopes: list[UpdateEnvelope],
    context: Context,
    seeds: Seeds,
    layout: Layout,
) -> np.ndarray:
    """Add the masked vectors, take the masks off and decode, block by block: float64 [length]."""
    exchange, total = DirectoryExchange(home.exchange), np.empty(layout.length, dtype=np.float64)
    paths = [exchange.path_of(e.tensors) for e in envelopes if e.tensors is not None]
    for start in range(0, layout.length, BLOCK):
        stop = min(start + BLOCK, layout.length)
        block = np.zeros(stop - start, dtype=np.uint64)
        for path in paths:
            block += _slice(path, MASKED, slice(start, stop))
        remove_masks(block, context, seeds, start)
        total[start:stop] = layout.decoded(block)
    return total


def _small(home: CoordinatorHome, envelope: UpdateEnvelope, name: str) -> np.ndarray:
    """One of the small tensors beside a masked vector."""
    assert envelope.tensors is not None
    return _slice(DirectoryExchange(home.exchange).path_of(envelope.tensors), name, slice(None))


def _slice(path: Path, name: str, span: slice) -> np.ndarray:
    with safe_open(path, framework="numpy") as file:
        found: np.ndarray = file.get_slice(name)[span]
    return found


def _request_of(home: CoordinatorHome, study: str, plan_digest: str) -> Path:
    return home.study(study) / "unmasking" / f"{plan_digest}.json"


def _bytes(share: str) -> bytes:
    return base64.urlsafe_b64decode(share + "=")


def _pair(text: str) -> tuple[str, str]:
    alive, dead = text.split()
    return alive, dead
