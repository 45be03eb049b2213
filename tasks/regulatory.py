"""The regulatory status that a person states and signs; without one a release is investigational."""

from __future__ import annotations

from pathlib import Path

from contracts.errors import ConsiliumError
from contracts.regulatory import RegulatoryStatement
from contracts.release import INVESTIGATIONAL
from contracts.signing import SigningKey, open_signed, parse_signed, to_text
from contracts.study import StudyProtocol
from durable.files import write_atomic
from tasks.head import load_protocol, registered_studies
from tasks.home import CoordinatorHome


def protocol_of(home: CoordinatorHome, product: str, study: str | None = None) -> StudyProtocol:
    """Return the registered protocol of a product, for which alone a statement counts.

    Args:
        study: which one, where several studies make the product.

    Raises:
        ConsiliumError: E715, none or several.
    """
    protocols = [load_protocol(home, name) for name in registered_studies(home)]
    found = [p for p in protocols if p.product_name == product and study in (None, p.study)]
    if len(found) != 1:
        names = ", ".join(sorted(p.study for p in found)) or "none"
        raise ConsiliumError("E715", f"registered studies of product {product!r}: {names}; expected one")
    return found[0]


def state_status(
    home: CoordinatorHome, protocol: StudyProtocol, statement: RegulatoryStatement, key: SigningKey
) -> str:
    """Sign and keep a statement; the protocol's next release carries it.

    Args:
        key: of the person who answers for the status.

    Returns:
        The signed text.

    Raises:
        ConsiliumError: E715, it is about another product or protocol, or says no status or basis.
    """
    if (statement.product, statement.protocol_hash) != (protocol.product_name, protocol.hash):
        raise ConsiliumError("E715", f"the statement is not about {protocol.product_name} {protocol.hash}")
    if not all(text.strip() for text in (statement.status, statement.basis, statement.name)):
        raise ConsiliumError("E715", "a statement needs a status, its basis and the name of who signs")
    text = to_text(key.sign(statement))
    write_atomic(_path(home, protocol), text.encode())
    return text


def load_regulatory(home: CoordinatorHome, protocol: StudyProtocol) -> tuple[str, str | None]:
    """Return the status of a protocol's releases and the signed text that states it.

    Without a statement for exactly this product and protocol: investigational, and None.

    Raises:
        ConsiliumError: E802 or E803, the kept statement was changed; E715, it is about something else.
    """
    path = _path(home, protocol)
    if not path.exists():
        return INVESTIGATIONAL, None
    text = path.read_text(encoding="utf-8", errors="replace")
    signed = parse_signed(text)
    # Nobody's key is registered for this: the release shows whose it was, and its reader knows the person.
    said = open_signed(text, RegulatoryStatement, signed.signer, signed.key)
    if (said.product, said.protocol_hash) != (protocol.product_name, protocol.hash):
        raise ConsiliumError("E715", f"{path.name} states the status of another product or protocol")
    return said.status, text


def _path(home: CoordinatorHome, protocol: StudyProtocol) -> Path:
    return home.evidence / "regulatory" / f"{protocol.product_name}-{protocol.hash}.json"
