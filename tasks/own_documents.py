"""What this coordinator has signed: verified with every key it ever had, shown under the one in force.

A hospital accepts one key, the one that it has pinned, and learns the next from a startup kit alone. So what
was signed before a change of the key and still waits for an answer (plans, requests to unmask) is signed
again whenever it is handed out. Other documents name it by the digest of the document, which that leaves as
it is. Former keys count here only, for what lies in the coordinator's own folder.

Not kept like this: the decisions and the ledger of the federation are chains that carry their own changes of
key, a startup kit is made anew each time, and releases have a key of their own.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from contracts.enrolment import COORDINATOR
from contracts.signing import Signed, open_signed, parse_signed, to_text
from tasks.federation import coordinator_key, coordinator_keys
from tasks.home import CoordinatorHome

OTHER_KEY = "E814"  # refusal of a hospital that has pinned another key than the one that asked it

Document = TypeVar("Document", bound=BaseModel)


def sign_own(home: CoordinatorHome, document: BaseModel) -> Signed:
    """Sign a document with the coordinator's key in force."""
    return coordinator_key(home).sign(document)


def open_own(home: CoordinatorHome, text: str | bytes, kind: type[Document]) -> Document:
    """Verify that a document was signed by this coordinator, with its key in force or a former one.

    Raises:
        ConsiliumError: E802, E803.
    """
    own, key = coordinator_keys(home), parse_signed(text).key
    return open_signed(text, kind, COORDINATOR, key if key in own else own[0])


def text_in_force(home: CoordinatorHome, text: str, kind: type[Document]) -> str:
    """A stored document as hospitals get it: by the key in force, signed again if a former one signed it.

    Raises:
        ConsiliumError: E802, E803, the coordinator did not sign it.
    """
    open_own(home, text, kind)
    key, signed = coordinator_key(home), parse_signed(text)
    return text if signed.key == key.public else to_text(key.sign_again(signed))
