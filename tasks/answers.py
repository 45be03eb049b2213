"""Opening what the sites of a roster answered to a plan: documents, refusals and silence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from pydantic import BaseModel

from contracts.errors import SENTENCES, ConsiliumError
from contracts.plan import RoundPlan
from contracts.refusal import Refusal
from contracts.signing import open_signed, parse_signed
from tasks.federation import Federation, load_federation
from tasks.home import CoordinatorHome
from tasks.withdrawals import note_withdrawals

Document = TypeVar("Document", bound=BaseModel)


@dataclass
class Answers(Generic[Document]):
    """Answers by site, in the roster's order of names."""

    documents: dict[str, Document] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)  # site -> number
    silent: list[str] = field(default_factory=list)

    def refuse(self, site: str, error: ConsiliumError) -> None:
        """Move a site's document to the refused, with the coordinator's number."""
        self.documents.pop(site, None)
        self.refused[site] = error.number

    def reasons(self) -> dict[str, dict[str, str]]:
        """Refusals as records show them."""
        return {
            site: {"number": number, "name": SENTENCES[number][0], "sentence": SENTENCES[number][1]}
            for site, number in sorted(self.refused.items())
        }

    def summary(self) -> str:
        """One line for logs and pages: who delivered, who refused and why, who was silent."""
        parts = [f"delivered: {', '.join(self.documents) or 'none'}"]
        for number in sorted(set(self.refused.values())):
            sites = ", ".join(site for site, n in sorted(self.refused.items()) if n == number)
            parts.append(f"refused: {sites} ({number} {SENTENCES[number][1]})")
        if self.silent:
            parts.append(f"silent: {', '.join(self.silent)}")
        return "; ".join(parts)


def open_answer(
    federation: Federation, site: str, text: str, kind: type[Document], plan: RoundPlan | None
) -> tuple[Document, str]:
    """Verify what a site answers now, by the key that it has now, and return it with its digest.

    Raises:
        ConsiliumError: the number of the site's own refusal, or E802, E803, E806, E808 for a bad document.
    """
    return _opened(text, kind, site, federation.member(site).sign_key, plan)


def open_stored(
    federation: Federation, site: str, text: str, kind: type[Document], plan: RoundPlan
) -> tuple[Document, str]:
    """Verify an answer that was admitted before, by any key that the site had since the plan was made.

    Raises:
        ConsiliumError: as `open_answer`, but a site that was revoked since has answered.
    """
    keys, key = federation.known(site).keys_at(plan.created), parse_signed(text).key
    if key not in keys:
        raise ConsiliumError("E803", f"signed by a key that {site!r} did not have at {plan.created}")
    return _opened(text, kind, site, key, plan)


def _opened(
    text: str, kind: type[Document], site: str, public: str, plan: RoundPlan | None
) -> tuple[Document, str]:
    signed = parse_signed(text)
    if signed.type == Refusal.__name__:
        refusal = open_signed(text, Refusal, site, public)
        if refusal.site != site or (plan is not None and refusal.study != plan.study):
            raise ConsiliumError("E803", f"the refusal speaks for {refusal.site!r} in {refusal.study!r}")
        raise ConsiliumError(refusal.number)
    return open_signed(text, kind, site, public), signed.digest


def gather(
    home: CoordinatorHome,
    plan: RoundPlan,
    results: dict[str, str | None],
    kind: type[Document],
    kept: Mapping[str, str] | None = None,
) -> Answers[Document]:
    """Open the answers of every site on the plan's roster; what others sent is not looked at.

    Args:
        kept: answers to this plan that were admitted before, for sites that are silent now.

    A site that was revoked since the plan was made is among the refused (E808).
    """
    federation = load_federation(home)
    answers: Answers[Document] = Answers()
    for site in sorted(entry.site for entry in plan.roster):
        text, before = results.get(site), (kept or {}).get(site)
        try:
            federation.member(site)
            if text:
                document, digest = open_answer(federation, site, text, kind, plan)
            elif before:
                text = before
                document, digest = open_stored(federation, site, before, kind, plan)
            else:
                answers.silent.append(site)
                continue
        except ConsiliumError as error:
            answers.refused[site] = error.number
            continue
        answers.documents[site], answers.texts[site], answers.digests[site] = document, text, digest
    note_withdrawals(home, plan, answers.refused)
    return answers
