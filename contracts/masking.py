"""What crosses for secure aggregation: ephemeral keys, the request to unmask a sum, and the answer to it.

The masked vectors themselves, and the encrypted shares beside them, lie in the exchange (safetensors).
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from contracts.canonical import canonical_json
from contracts.errors import ConsiliumError
from contracts.fields import Contract, Digest, Key, Signature, SiteName, StudyName
from contracts.signing import SigningKey, verify_bytes
from contracts.strategy import MAX_SECURE_SITES

Share = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{43}$")]  # 32 bytes, base64url
Pair = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,31} [a-z][a-z0-9_]{1,31}$")]


class MaskKey(Contract):
    """The ephemeral X25519 key of one site for one exchange of a study, signed by the site's own key.

    It travels in the document that the site sent before (data sheet, or envelope of the exchange before), and
    from there in the plan to all others, who verify the signature by the key that they pinned themselves: a
    coordinator cannot put a key of its own in between.
    """

    exchange: Annotated[int, Field(ge=0)]  # number of the exchange that it is for
    key: Key
    signature: Signature

    @staticmethod
    def signed_bytes(study: str, protocol_hash: str, site: str, exchange: int, key: str) -> bytes:
        """The bytes that the signature covers."""
        return canonical_json(
            {
                "type": "MaskKey",
                "study": study,
                "protocol_hash": protocol_hash,
                "site": site,
                "exchange": exchange,
                "key": key,
            }
        )

    @classmethod
    def sign(cls, signing: SigningKey, study: str, protocol_hash: str, exchange: int, key: str) -> MaskKey:
        """Sign an ephemeral public key (32 bytes, base64url) in the name of the signing key's owner."""
        data = cls.signed_bytes(study, protocol_hash, signing.owner, exchange, key)
        return cls(exchange=exchange, key=key, signature=signing.sign_bytes(data))

    def check(self, study: str, protocol_hash: str, site: str, exchange: int, public: str) -> None:
        """Verify that `site`, whose pinned key is `public`, made this key for this exchange.

        Raises:
            ConsiliumError: E803.
        """
        data = self.signed_bytes(study, protocol_hash, site, exchange, self.key)
        if self.exchange != exchange or not verify_bytes(data, self.signature, public):
            raise ConsiliumError("E803", f"the mask key of {site!r} for exchange {exchange} is not its own")


class UnmaskRequest(Contract):
    """The coordinator's one request for an exchange: who sent a masked vector, and who did not.

    Every alive site answers with its shares of the alive sites' own masks and, for every pair of an alive and
    a dead site, of the pair's mask. There is one request for a plan, ever.
    """

    study: StudyName
    protocol_hash: Digest
    plan: Digest
    exchange: Annotated[int, Field(ge=0)]
    alive: Annotated[list[SiteName], Field(min_length=1, max_length=MAX_SECURE_SITES)]
    dead: Annotated[list[SiteName], Field(max_length=MAX_SECURE_SITES)]
    # By alive site, digest of what lies in the exchange for it: the shares that the alive sites sent it.
    shares: Annotated[dict[SiteName, Digest], Field(max_length=MAX_SECURE_SITES)]

    @model_validator(mode="after")
    def _shares_for_the_alive(self) -> UnmaskRequest:
        if set(self.shares) != set(self.alive):
            raise ValueError("shares must be there for exactly the sites that are alive")
        return self


class UnmaskShares(Contract):
    """One alive site's answer to an `UnmaskRequest`."""

    study: StudyName
    protocol_hash: Digest
    plan: Digest
    exchange: Annotated[int, Field(ge=0)]
    request: Digest
    site: SiteName
    own: Annotated[dict[SiteName, Share], Field(max_length=MAX_SECURE_SITES)]  # of each alive site's own mask
    # "alive dead": of the mask of that pair.
    pairs: Annotated[dict[Pair, Share], Field(max_length=MAX_SECURE_SITES**2)] = {}
