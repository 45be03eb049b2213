"""The study's page: what an operator opens when a cell is red.

Rounds are columns and hospitals are rows. Below stand what went wrong with what to do about it, the changes
of policies, the privacy spent, and what every hospital did to the model.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from contracts.errors import SENTENCES
from contracts.schedule import slot_at
from release.markup import Html
from release.templating import TEMPLATES, rendered
from tasks.account import spent_of
from tasks.federation import load_federation
from tasks.folds import invited, slot_of
from tasks.head import load_head, load_protocol, now
from tasks.home import CoordinatorHome
from tasks.influence_figure import influence_panels
from tasks.presence import present_sites
from tasks.roster import eligible_sites
from tasks.standing import next_step, opened_records
from tasks.store import load_record
from tasks.study_words import OF_NUMBER, PROTECTS, STATES, remedy_of

_OWN = Path(__file__).parent / "templates"
MOST_COLUMNS = 40  # newer rounds are what an operator looks for
OFTEN = 3  # rounds below which a list of them is written out


@dataclass(frozen=True)
class Cell:
    """What one hospital did in one exchange."""

    state: str
    number: str | None = None
    detail: str = ""

    @property
    def sign(self) -> str:
        """One character for the grid."""
        return STATES[self.state][0]


@dataclass(frozen=True)
class Problem:
    """One thing that went wrong with a hospital, in one or more exchanges."""

    site: str
    state: str
    number: str | None
    sentence: str
    columns: list[str]
    remedy: Html | None

    @property
    def anchor(self) -> str:
        """Where the page says more of it."""
        return anchor_of(self.site, self.state, self.number)

    @property
    def when(self) -> str:
        """The exchanges in words."""
        listed = self.columns if len(self.columns) <= OFTEN else [*self.columns[:1], "...", self.columns[-1]]
        if self.columns == ["intake"]:
            return "at the last intake"
        return f"in exchange{'s' if len(self.columns) > 1 else ''} {', '.join(listed)}"


def anchor_of(site: str, state: str, number: str | None) -> str:
    """Name of the place that explains this state of this hospital."""
    return f"{site}-{number or state}"


class StudyPage:
    """What the template shows, from the coordinator's files alone."""

    def __init__(self, home: CoordinatorHome, study: str) -> None:
        self.protocol, self.head = load_protocol(home, study), load_head(home, study)
        self.records = opened_records(home, self.protocol, self.head)
        self.present = present_sites(home)
        eligible, self.absent = eligible_sites(home, self.protocol, self.present)
        asked = invited(slot_of(self.protocol, self.head.round), self.head.fold_sites, set(eligible))
        self.next = next_step(self.head, self.protocol, len(asked))
        enrolled = load_federation(home).sites
        named = {site for record in self.records for site in (*record["expected"], *record["absent"])}
        self.sites = sorted({*enrolled, *named})
        folder = home.study(study) / "records"
        self.intake = load_record(home, study, "intake") if (folder / "intake.json").exists() else {}
        self.gone = set(self.sites) - set(enrolled)
        self.states, self.most, self.made = STATES, MOST_COLUMNS, now()

    @cached_property
    def columns(self) -> list[tuple[str, dict[str, Cell]]]:
        """(title, what every hospital did): the last intake, and the newest exchanges in their order."""
        exchanges = [
            (self.title(record), {site: self.cell(site, record) for site in self.sites})
            for record in self.records[-MOST_COLUMNS:]
        ]
        if not self.intake:
            return exchanges
        return [("intake", {site: self.taken_in(site) for site in self.sites}), *exchanges]

    def title(self, record: dict[str, Any]) -> str:
        """Name of an exchange in the head of its column."""
        slot = slot_at(self.protocol, record["round"])
        if slot is None or slot.purpose == "training":
            return str(record["round"])
        if slot.purpose == "fold":
            return f"without {record['fold']} {slot.round}"
        return {"statistics": "statistics", "histogram": "threshold"}.get(slot.purpose, "local")

    def cell(self, site: str, record: dict[str, Any]) -> Cell:
        """What a hospital did in an exchange."""
        if site in record["absent"]:
            return Cell("absent", detail=record["absent"][site])
        if site not in record["expected"]:
            return Cell("not asked")
        if "admitted" not in record:
            return Cell("waiting")
        if refusal := record["refused"].get(site):
            return Cell(OF_NUMBER.get(refusal["number"], "refused"), refusal["number"], refusal["sentence"])
        return Cell("silent" if site in record["silent"] else "admitted")

    def taken_in(self, site: str) -> Cell:
        """What became of a hospital's data at the last intake."""
        if site in self.intake["quality_failed"]:
            checks = ", ".join(self.intake["quality_failed"][site])
            return Cell("refused", "E204", f"{SENTENCES['E204'][1]} These failed: {checks}.")
        if number := self.intake["refused"].get(site):
            return Cell(OF_NUMBER.get(number, "refused"), number, SENTENCES[number][1])
        return Cell("admitted" if site in self.intake["admitted"] else "silent")

    def link(self, site: str, cell: Cell) -> str | None:
        """Where the page explains a cell; None where there is nothing to explain."""
        explained = cell.number or cell.state in ("silent", "absent")
        return f"#{anchor_of(site, cell.state, cell.number)}" if explained else None

    def now(self, site: str) -> str:
        """State of a hospital's connection, and why the next round cannot count on it."""
        if site in self.gone:
            return "no longer enrolled"
        return self.absent.get(site) or "ready"

    @cached_property
    def problems(self) -> list[Problem]:
        """What went wrong in the exchanges that are shown, the newest first."""
        found: dict[tuple[str, str, str | None, str], list[str]] = {}
        for title, cells in reversed(self.columns):
            for site, cell in cells.items():
                if self.link(site, cell):
                    key = (site, cell.state, cell.number, cell.detail)
                    found.setdefault(key, []).insert(0, title)
        return [
            Problem(
                site, state, number, detail or STATES[state][1], columns, remedy_of(state, number, detail)
            )
            for (site, state, number, detail), columns in found.items()
        ]

    @cached_property
    def policies(self) -> list[tuple[str, str, list[str]]]:
        """(hospital, digest in force, exchanges at which it changed): of every hospital that took part."""
        found = []
        for site in self.sites:
            lines = [(r, u) for r in self.records for u in r.get("updates", []) if u["site"] == site]
            changed = [
                self.title(record)
                for (_, before), (record, line) in itertools.pairwise(lines)
                if before["policy"] != line["policy"]
            ]
            if lines:
                found.append((site, lines[-1][1]["policy"], changed))
        return found

    @cached_property
    def spent(self) -> dict[str, Any] | None:
        """Epsilon by hospital, the largest and the planned one; None without privacy."""
        return spent_of(self.records)

    @cached_property
    def influence(self) -> list[tuple[int, dict[str, dict[str, float | None]]]]:
        """(round, what every hospital did), of the rounds that recorded it."""
        return [(r["round"], r["influence"]) for r in self.records if r.get("influence")]

    @cached_property
    def panels(self) -> dict[str, Html]:
        """A picture of each hospital's influence over the rounds."""
        return influence_panels(self.influence)

    @property
    def aggregation(self) -> tuple[str, str]:
        """What the protocol's aggregation does, and what it does not protect from."""
        method = self.protocol.strategy.aggregation
        does, open_to = PROTECTS[method.method]
        return does.format(**method.model_dump()), open_to.format(**method.model_dump())

    @cached_property
    def marked(self) -> list[tuple[str, list[int], list[int]]]:
        """(hospital, rounds in which it was scaled, rounds in which it was dropped), where there are any."""
        found = []
        for site in self.panels:
            told = [(number, sites[site]) for number, sites in self.influence if site in sites]
            scaled = [n for n, i in told if (i["scale"] or 0) < 1]
            dropped = [n for n, i in told if i["kept"] == 0]
            if scaled or dropped:
                found.append((site, scaled, dropped))
        return found


def study_page(home: CoordinatorHome, study: str) -> str:
    """Return the page: self-contained, no script; light or dark follows the reader's setting.

    Raises:
        ConsiliumError: E102, no such study.
    """
    page = StudyPage(home, study)
    styles = [TEMPLATES / "validation.css", _OWN / "study.css"]
    return rendered("study.html", styles, _OWN, page=page, protocol=page.protocol, head=page.head)
