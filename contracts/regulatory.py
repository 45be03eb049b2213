"""What a person states, and signs, when a release's regulatory status is no longer the default."""

from __future__ import annotations

from contracts.fields import Contract, Digest, LongText, StudyName, Text, Timestamp


class RegulatoryStatement(Contract):
    """A change of the regulatory status, signed by a person (Ed25519, as every `Signed`).

    It is for one protocol of one product: another intended use or another model needs another statement.
    """

    product: StudyName
    protocol_hash: Digest
    status: Text  # `cleared, 510(k) K000000`
    basis: LongText  # by whose decision, where it can be looked up
    name: Text
    role: Text
    time: Timestamp
