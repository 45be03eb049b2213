"""Secure aggregation at a hospital: its ephemeral keys, its one masked vector, and its one unmasking.

What is kept in the study's state, under the protocol's hash:

    key-N           private mask key (32 bytes); drawn for exchange N, it masks in N or in a later one, once
    exchange-N.json the plan whose roster got (or gets) this hospital's vector in exchange N, and by which key
    request-N       digest of the one request that is answered for exchange N, and who is alive in it

Each is written before what it stands for leaves, and never replaced: whatever the coordinator asks after a
crash, there is one masked vector for one roster and one unmasking in an exchange (design section 5). Two
vectors, or two lists of who is alive, could give the coordinator one hospital's update by subtraction.
So could two exchanges from one model, where no noise is added: of these the second is opened over the same
hospitals as the first or not at all.
"""

from __future__ import annotations

import base64
import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from safetensors import SafetensorError
from safetensors.numpy import load_file

from contracts.errors import ConsiliumError
from contracts.masking import MaskKey, UnmaskRequest, UnmaskShares
from contracts.plan import RoundPlan
from contracts.signing import SigningKey
from contracts.study import StudyProtocol
from durable.files import locked, read_json, write_atomic, write_json
from privacy.secure_sum import check_keys, mask, new_mask_key, open_shares
from site_runtime.exchange import Exchange
from site_runtime.home import SiteHome
from site_runtime.peers import keys_for
from strategies.interface import Shapes, Tensors
from strategies.secure import (
    COMMITMENTS,
    MASKED,
    SHARES,
    context_of,
    layout_of,
    least_alive,
    least_sites,
)


@dataclass(frozen=True)
class MaskState:
    """The keys and notes of one site for one version of a study."""

    home: SiteHome
    signing: SigningKey
    protocol: StudyProtocol

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.home.state(self.protocol.study) / "masks" / self.protocol.hash[:16]

    def note(self, exchange: int) -> Path:
        """The plan that was answered in an exchange."""
        return self.folder / f"exchange-{exchange}.json"

    def request(self, exchange: int) -> Path:
        """The digest of the request that was answered for an exchange."""
        return self.folder / f"request-{exchange}"

    def key(self, number: int) -> Path:
        """The private key that was drawn for an exchange."""
        return self.folder / f"key-{number}"

    def answered(self) -> list[int]:
        """Exchanges in which this site has bound itself to a plan."""
        return sorted(int(path.stem.rpartition("-")[2]) for path in self.folder.glob("exchange-*.json"))

    def next_key(self) -> MaskKey:
        """Return the signed key for the first exchange that is not answered yet; drawn once."""
        with locked(self.folder / ".lock"):
            done = self.answered()
            number = done[-1] + 1 if done else self.protocol.first_round
            if not self.key(number).exists():
                write_atomic(self.key(number), new_mask_key()[0])
            return self._signed(number)

    def _signed(self, number: int) -> MaskKey:
        key = self._public(number)
        return MaskKey.sign(self.signing, self.protocol.study, self.protocol.hash, number, key)

    def _public(self, number: int) -> str:
        public = X25519PrivateKey.from_private_bytes(self.key(number).read_bytes()).public_key()
        return _text(public.public_bytes_raw())

    def bind(self, plan: RoundPlan, plan_digest: str) -> None:
        """Note that this exchange's vector is for this plan, for ever, and erase the keys before its own.

        Raises:
            ConsiliumError: E513, the plan's key is not one of this site's, or masked before; E514, the
                exchange, or a later one, was answered under another plan; E522, a sum from the same model was
                opened over others.
        """
        entry = plan.entry(self.signing.owner)
        assert entry is not None and entry.mask is not None
        number = entry.mask.exchange
        with locked(self.folder / ".lock"):
            notes = {n: read_json(self.note(n)) for n in self.answered()}
            here = notes.get(plan.round)
            if here is not None and here["digest"] != plan_digest:
                raise ConsiliumError(
                    "E514",
                    f"exchange {plan.round} was answered under plan {here['digest']}, asked again "
                    f"under {plan_digest}",
                )
            if here is None:
                if notes and plan.round < max(notes):
                    raise ConsiliumError("E514", f"exchange {plan.round} after exchange {max(notes)}")
                roster = {entry.site for entry in plan.roster}
                for earlier, alive in self.opened_from(plan).items():
                    if not alive <= roster:
                        raise _other_sum(plan, earlier, alive, roster)
                used = number in {note["key"] for note in notes.values()}
                # Its own key it knows by the key itself: it may have changed the one that signed it.
                if used or not self.key(number).exists() or self._public(number) != entry.mask.key:
                    raise ConsiliumError(
                        "E513",
                        f"mask key {entry.mask.key} for exchange {number}: "
                        + ("it masked before" if used else "not made or no longer here"),
                    )
                body = plan.model_dump(mode="json", exclude_none=True)
                write_json(self.note(plan.round), {"digest": plan_digest, "key": number, "plan": body})
            for path in self.folder.glob("key-*"):
                if int(path.name.partition("-")[2]) < number:
                    path.unlink()

    def opened_from(self, plan: RoundPlan) -> dict[int, set[str]]:
        """Over which hospitals this one helped to open sums of exact updates from the plan's model.

        By exchange, all but the plan's own. Empty with differential privacy: there every sum is noised, and
        its epsilon counts on its own, whatever other sums say.
        """
        found: dict[int, set[str]] = {}
        if self.protocol.privacy.mode != "none" or plan.kind != "training":
            return found
        for number in self.answered():
            earlier = read_json(self.note(number))["plan"]
            same = (earlier["kind"], earlier.get("base_model")) == (plan.kind, plan.base_model)
            if same and number != plan.round and self.request(number).exists():
                found[number] = set(self.request(number).read_text().split()[1:])
        return found

    def private(self, plan: RoundPlan) -> bytes:
        """Return the private key of a plan that was bound.

        Raises:
            ConsiliumError: E513, it was erased: a later exchange has begun.
        """
        entry = plan.entry(self.signing.owner)
        assert entry is not None and entry.mask is not None
        path = self.key(entry.mask.exchange)
        if not path.exists():
            raise ConsiliumError("E513", f"the mask key of exchange {plan.round} was erased after it")
        return path.read_bytes()


def open_masks(home: SiteHome, site: str, protocol: StudyProtocol) -> MaskState:
    """Return the keys and notes of a site for a study.

    Raises:
        ConsiliumError: E801, the signing key cannot be read.
    """
    return MaskState(home, SigningKey.load(site, home.signing_key), protocol)


def roster_keys(state: MaskState, plan: RoundPlan, plan_digest: str) -> dict[str, str]:
    """Return everybody's mask key, each verified by the key that this hospital has pinned for its owner.

    By a key that this one replaced, too, if the plan is from before (`site_runtime.peers.keys_for`). Whether
    the hospital's own is one that it made, `MaskState.bind` sees.

    Raises:
        ConsiliumError: E512, too few hospitals, one without a key or with one for a later exchange, or not
            one good key for each; E807, a hospital that was never pinned here; E803, a key that its hospital
            did not sign.
    """
    protocol = state.protocol
    least = least_sites(protocol, plan.fold is not None)
    if len(plan.roster) < least:
        raise ConsiliumError("E512", f"a roster of {len(plan.roster)} hospitals, expected at least {least}")
    keys = {}
    for entry in plan.roster:
        mask_key, site = entry.mask, entry.site
        if mask_key is None or mask_key.exchange > plan.round:
            raise ConsiliumError("E512", f"hospital {site!r} has no mask key for exchange {plan.round}")
        if site != state.signing.owner:
            _check_signed(mask_key, protocol, site, keys_for(state.home, site, plan.created))
        keys[site] = mask_key.key
    try:
        check_keys(context_of(protocol, plan, plan_digest), keys)
    except ConsiliumError as error:
        raise ConsiliumError("E512", error.detail) from error
    return keys


def _check_signed(mask_key: MaskKey, protocol: StudyProtocol, site: str, publics: list[str]) -> None:
    """Check that one of these keys of a hospital signed its mask key; the first one is in force.

    Raises:
        ConsiliumError: E803, none did.
    """
    for public in publics[1:]:
        with contextlib.suppress(ConsiliumError):
            return mask_key.check(protocol.study, protocol.hash, site, mask_key.exchange, public)
    mask_key.check(protocol.study, protocol.hash, site, mask_key.exchange, publics[0])


def masked_update(
    state: MaskState, plan: RoundPlan, plan_digest: str, base: Shapes, update: Tensors
) -> Tensors:
    """Return what leaves instead of an update: the masked vector, encrypted shares of its masks, commitments.

    The plan was bound before (`MaskState.bind`); what is returned goes to the outbox, and nowhere before.

    Raises:
        ConsiliumError: E430, E431, E501, E505, the update; E512, E513, E803, E807, the roster.
    """
    keys = roster_keys(state, plan, plan_digest)
    context = context_of(state.protocol, plan, plan_digest)
    site = state.signing.owner
    vector = layout_of(state.protocol, plan, base).encoded(update, site)
    masked = mask(vector, context, site, state.private(plan), keys)
    return {MASKED: masked.vector, SHARES: masked.shares, COMMITMENTS: masked.commitments}


def answered_plan(state: MaskState, request: UnmaskRequest) -> RoundPlan:
    """Return the plan that a request is about: the one that this hospital answered in that exchange.

    Raises:
        ConsiliumError: E517, it answered none in that exchange, or another.
    """
    path = state.note(request.exchange)
    note = read_json(path) if path.exists() else {}
    if note.get("digest") != request.plan or request.protocol_hash != state.protocol.hash:
        raise ConsiliumError(
            "E517",
            f"exchange {request.exchange} under plan {request.plan}; answered here: {note.get('digest')}",
        )
    return RoundPlan.model_validate(note["plan"])


def bind_request(state: MaskState, plan: RoundPlan, request: UnmaskRequest, digest: str) -> None:
    """Check who a request says is alive, and note that it is the one that is answered for its exchange.

    Raises:
        ConsiliumError: E517, lists that are not the roster, too few alive, or this hospital not among them;
            E515, another request was answered; E522, a sum from the same model was opened over others.
    """
    site, least = state.signing.owner, least_alive(state.protocol, plan)
    try:
        context_of(state.protocol, plan, request.plan).check_lists(request.alive, request.dead)
    except ConsiliumError as error:
        raise ConsiliumError("E517", error.detail) from error
    if site not in request.alive or len(request.alive) < least:
        raise ConsiliumError("E517", f"alive {request.alive}, expected {site!r} and {least} or more in all")
    path = state.request(request.exchange)
    with locked(state.folder / ".lock"):
        answered = path.read_text().split()[0] if path.exists() else None
        if answered not in (None, digest):
            raise ConsiliumError("E515", f"request {digest}, answered was {answered}")
        for number, alive in state.opened_from(plan).items():
            if alive != set(request.alive):
                raise _other_sum(plan, number, alive, set(request.alive))
        write_atomic(path, " ".join([digest, *sorted(request.alive)]).encode())


def unmask_shares(
    state: MaskState, plan: RoundPlan, request: UnmaskRequest, digest: str, exchange: Exchange
) -> UnmaskShares:
    """Return this hospital's shares of the masks that are left in the sum.

    Args:
        plan: as it was noted when this hospital masked its vector. Its keys were verified then; a hospital
            that has changed its own since has not taken them back, and the vectors are masked by these.

    Raises:
        ConsiliumError: E433, a bundle is missing or was made for something else; E513, the private key was
            erased; E804, E805, E509, the exchange.
    """
    keys = {entry.site: entry.mask.key for entry in plan.roster if entry.mask is not None}
    site = state.signing.owner
    own, pairs = open_shares(
        context_of(state.protocol, plan, request.plan),
        site,
        state.private(plan),
        keys,
        _bundles(exchange, request.shares[site]),
        request.alive,
        request.dead,
    )
    return UnmaskShares(
        study=request.study,
        protocol_hash=request.protocol_hash,
        plan=request.plan,
        exchange=request.exchange,
        request=digest,
        site=site,
        own={name: _text(share) for name, share in own.items()},
        pairs={f"{alive} {dead}": _text(share) for (alive, dead), share in pairs.items()},
    )


def _other_sum(plan: RoundPlan, number: int, before: set[str], now: set[str]) -> ConsiliumError:
    return ConsiliumError(
        "E522",
        f"exchange {plan.round} sums up {', '.join(sorted(now))}; exchange {number} from the same model "
        f"{plan.base_model} was opened over {', '.join(sorted(before))}",
    )


def _bundles(exchange: Exchange, digest: str) -> dict[str, bytes]:
    """Fetch what the alive sites encrypted for this one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shares.safetensors"
        exchange.get(digest, path)
        try:
            found = load_file(path)
        except (SafetensorError, ValueError) as error:
            raise ConsiliumError("E433", f"shares {digest}: {error}") from error
    return {sender: np.ascontiguousarray(array).tobytes() for sender, array in found.items()}


def _text(share: bytes) -> str:
    return base64.urlsafe_b64encode(share).rstrip(b"=").decode()
