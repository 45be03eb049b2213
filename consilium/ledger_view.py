"""What `consilium ledger` reads and says of a ledger; nothing here writes to one."""

from __future__ import annotations

import json as jsonlib
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table
from rich.text import Text

from consilium.ledger_keeper import COORDINATOR, Keeper, LineageFile
from consilium.output import NARROW, neighbours, screen
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from privacy.chain import History, Record

_POINTS = 60  # of a long ledger, how many epsilons over time are computed
_ROWS = 20  # a longer table is collapsed to one line per study and purpose
_DECISIONS = ("rotate", "restore", "write-off")


def read_ledger(ledger: LineageFile, *, own: bool) -> History:
    """Replay a ledger without writing to it. At the site itself its head and the key in force must agree.

    Raises:
        ConsiliumError: E402, naming the line and what does not hold.
    """
    from privacy.chain import read_history

    try:
        if own and (ledger.path.is_symlink() or not ledger.path.is_file()):
            raise ConsiliumError("E402", f"{ledger.path} is missing or no plain file")
        history, _ = read_history(ledger.path.read_bytes(), ledger.public)
        if own:
            marked = jsonlib.loads(ledger.path.with_suffix(".head").read_bytes())
            length, head = int(marked["length"]), str(marked["head"])
            if length > len(history.records) or (length and history.head(length) != head):
                raise ConsiliumError("E402", f"{ledger.path} has lost entries: {length} were acknowledged")
            if history.keys[-1] != ledger.public:
                detail = "`consilium ledger rotate` was interrupted: run it again"
                raise ConsiliumError("E402", f"key {history.keys[-1]} is in force, not this site's; {detail}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConsiliumError("E402", f"{ledger.path}: {error}") from error
    return history


def facts_of(ledger: LineageFile, delta: float, cap: float | None) -> dict[str, Any]:
    """Everything `show` says of one lineage."""
    from privacy.accountant import epsilon

    history = read_ledger(ledger, own=True)
    spending = [record for record in history.records if record.spend is not None]
    spends = history.spends()
    wanted = _spread(len(spending))
    entries = [
        {
            **_entry(record, history),
            "epsilon_so_far": epsilon(spends[: i + 1], delta) if i in wanted else None,
        }
        for i, record in enumerate(spending)
    ]
    spent = epsilon(spends, delta) if spends else 0.0
    return {
        "lineage": ledger.lineage,
        "site": history.site,
        "entries": entries,
        "by_study": _by_study(spending, history, delta),
        "decisions": [_decision(r) for r in history.records if r.entry.kind in _DECISIONS],
        "length": len(history.records),
        "head": history.head(),
        "key": history.keys[-1],
        "delta": delta,
        "adjacency": "add-or-remove-one",
        "unit": unit_of(history),
        "epsilon": spent,
        "epsilon_cap": cap,
        "epsilon_left": None if cap is None else cap - spent,
    }


def unit_of(history: History) -> str:
    """What a ledger protects: a patient; in the coordinator's, a hospital."""
    return "hospital" if history.site == COORDINATOR else "patient"


def print_elsewhere(keeper: Keeper) -> None:
    """Say where the spending of studies stands that is not in a hospital's own ledger."""
    if keeper.kept_by_coordinator:
        screen.print(
            f"{', '.join(keeper.kept_by_coordinator)}: privacy per hospital, in the coordinator's ledger "
            "(`consilium ledger show --coordinator` there); nothing of it counts here",
            highlight=False,
        )


def _spread(count: int) -> set[int]:
    """Indices of at most `_POINTS` of `count` entries, evenly, the last among them."""
    if count <= _POINTS:
        return set(range(count))
    return {round(i * (count - 1) / (_POINTS - 1)) for i in range(_POINTS)}


def _entry(record: Record, history: History) -> dict[str, Any]:
    entry, opening = record.entry, record.opening
    return {
        "sequence": entry.sequence,
        "kind": entry.kind,
        "time": opening.time if opening else None,
        "study": opening.study if opening else None,
        "purpose": opening.purpose if opening else None,
        "plan": opening.plan if opening else None,
        "sample_rate": entry.sample_rate,
        "noise_multiplier": entry.noise_multiplier,
        "steps": entry.steps,
        "quantile_share": entry.quantile_share,
        "delivered": opening is not None and opening.plan in history.committed,
    }


def _by_study(spending: list[Record], history: History, delta: float) -> list[dict[str, Any]]:
    """What each study spent on each purpose, with epsilon of that alone (epsilons do not simply add up)."""
    from privacy.accountant import epsilon

    groups: dict[tuple[str, str], list[Record]] = {}
    for record in spending:
        opening = record.opening
        name = (opening.study or "", opening.purpose) if opening else ("", "")
        groups.setdefault(name, []).append(record)
    return [
        {
            "study": study or None,
            "purpose": purpose,
            "entries": len(records),
            "delivered": sum(r.opening is not None and r.opening.plan in history.committed for r in records),
            "steps": sum(r.entry.steps or 0 for r in records),
            "first": records[0].opening.time if records[0].opening else None,
            "last": records[-1].opening.time if records[-1].opening else None,
            "epsilon": epsilon([r.spend for r in records if r.spend is not None], delta),
        }
        for (study, purpose), records in groups.items()
    ]


def _decision(record: Record) -> dict[str, Any]:
    entry, opening = record.entry, record.opening
    return {
        "sequence": entry.sequence,
        "kind": entry.kind,
        "time": opening.time if opening else None,
        "officer": opening.officer if opening else None,
        "reason": opening.reason if opening else None,
        "study": opening.study if opening else None,
        "new_key": entry.new_key,
        "lost_head": entry.lost_head,
    }


def print_facts(facts: dict[str, Any], *, every: bool) -> None:
    """Print one lineage for people: what was spent, who decided what, how much of the cap is gone."""
    cap, title = facts["epsilon_cap"], f"{facts['site']}: lineage {facts['lineage']}"
    if every or len(facts["entries"]) <= _ROWS:
        screen.print(_entries_table(title, facts["entries"], cap))
    else:
        screen.print(
            _studies_table(f"{title}; epsilon of each alone (--all: every entry)", facts["by_study"])
        )
    if facts["decisions"]:
        table = _table("Decisions", ("#", "date", "what", "officer", "reason"), numbers=("#",))
        for d in facts["decisions"]:
            what = d["kind"] + (f" {d['new_key'] or d['lost_head'] or ''}"[:9].rstrip())
            table.add_row(
                str(d["sequence"]),
                _day(d["time"]),
                what,
                Text(d["officer"] or ""),
                Text(d["reason"] or ""),
            )
        screen.print(table)
    if cap is not None:
        screen.print(_bar(facts["epsilon"], cap))
    of = "" if cap is None else f" of {cap:g}, {facts['epsilon_left']:.3f} left"
    at = f"at delta {facts['delta']:g} for {neighbours(facts['adjacency'], facts['unit'])}"
    screen.print(f"epsilon {facts['epsilon']:.3f}{of}, {at}; head {facts['head'][:16]}", highlight=False)


def _entries_table(title: str, entries: list[dict[str, Any]], cap: float | None) -> Table:
    """One line an entry; narrow terminals do without the triple and the date."""
    numbers = ("#", "rate", "noise", "steps", "epsilon", "cap")
    names = ["#", "date", "study", "purpose", *numbers[1:], "sent"]
    if screen.width < NARROW:
        names = [name for name in names if name not in ("date", "rate", "noise", "steps")]
    table = _table(title, tuple(names), numbers)
    for entry in entries:
        so_far = entry["epsilon_so_far"]
        cells = {
            "#": str(entry["sequence"]),
            "date": _day(entry["time"]),
            "study": entry["study"] or "",
            "purpose": entry["purpose"] or "",
            "rate": f"{entry['sample_rate']:g}",
            "noise": f"{entry['noise_multiplier']:.4g}",
            "steps": str(entry["steps"]),
            "epsilon": "" if so_far is None else f"{so_far:.3f}",
            "cap": f"{so_far / cap:.0%}" if cap and so_far is not None else "",
            "sent": "" if entry["kind"] == "write-off" else "yes" if entry["delivered"] else "no",
        }
        table.add_row(*(cells[name] for name in names))
    return table


def _studies_table(title: str, groups: list[dict[str, Any]]) -> Table:
    numbers = ("entries", "sent", "steps", "epsilon")
    table = _table(title, ("study", "purpose", "last", *numbers), numbers)
    for group in groups:
        table.add_row(
            group["study"] or "",
            group["purpose"],
            _day(group["last"]),
            str(group["entries"]),
            str(group["delivered"]),
            str(group["steps"]),
            f"{group['epsilon']:.3f}",
        )
    return table


def _table(title: str, columns: tuple[str, ...], numbers: tuple[str, ...]) -> Table:
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
    )
    for name in columns:
        wraps = name in ("study", "officer", "reason")
        table.add_column(
            name,
            justify="right" if name in numbers else "left",
            no_wrap=not wraps,
            overflow="fold" if wraps else "ellipsis",
        )
    return table


def _day(time: str | None) -> str:
    return (time or "")[:10]


def _bar(spent: float, cap: float, width: int = 50) -> Text:
    """What is spent of the cap, as a bar."""
    share, width = spent / cap, max(10, min(width, screen.width - len(" 100% of the cap") - 4))
    full = min(width, round(width * share))
    on, off = ("█", "░") if screen.encoding.startswith("utf") else ("#", "-")
    colour = "green" if share < 0.5 else "yellow" if share < 0.9 else "red"
    return Text.assemble((on * full, colour), (off * (width - full), "dim"), f" {share:.0%} of the cap")
