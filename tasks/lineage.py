"""From what and with what a model was made: data, rounds, code and installed packages."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from contracts.canonical import sha256
from contracts.datasheet import DataSheet
from contracts.plan import RoundPlan
from contracts.release import Lineage, RoundLineage, SiteData
from contracts.signing import parse_signed
from contracts.study import StudyProtocol
from release.facts import Component
from tasks.home import CoordinatorHome
from tasks.store import load_plan, load_record, sheet_text

PROJECT = "consilium"
RUNTIME_EXTRA = "verify"
_GIT_SECONDS = 20.0


def lineage_of(home: CoordinatorHome, protocol: StudyProtocol, sheets: Mapping[str, str]) -> Lineage:
    """Gather the lineage of a study's model from its records.

    Args:
        sheets: digest of each hospital's data sheet, as `admitted_under` gives it.

    Raises:
        ConsiliumError: E511, a data sheet that a record names is not here.
    """
    data = []
    for site, digest in sorted(sheets.items()):
        sheet = DataSheet.model_validate(parse_signed(sheet_text(home, protocol.study, digest)).document)
        data.append(
            SiteData(
                site=site,
                data_sheet=digest,
                cohort=sheet.cohort,
                data_version=sheet.data_version,
                policy=sheet.policy,
            )
        )
    return Lineage(
        data=data,
        rounds=[
            RoundLineage(
                round=record["round"],
                kind=record["kind"],
                fold=record.get("fold"),
                plan=record["plan"],
                model=record["model"],
                updates={line["site"]: line["envelope"] for line in record["updates"]},
            )
            for record in closed_exchanges(home, protocol.study)
        ],
        code_commit=code_commit(Path(__file__).resolve().parents[1]),
        environment=environment_digest(),
    )


def exchanges(home: CoordinatorHome, study: str) -> list[dict[str, Any]]:
    """The records of all exchanges before the release, whatever their kind and status, in their order."""
    folder = home.study(study) / "records"
    numbers = sorted(int(path.stem) for path in folder.glob("*.json") if path.stem.isdigit())
    return [load_record(home, study, str(number)) for number in numbers]


def closed_exchanges(home: CoordinatorHome, study: str) -> list[dict[str, Any]]:
    """The records of those that are closed: their updates went into a model."""
    return [record for record in exchanges(home, study) if record["status"] == "closed"]


def admitted_under(home: CoordinatorHome, protocol: StudyProtocol, evaluation: RoundPlan) -> dict[str, str]:
    """Return, by hospital, the data sheet under which it trained last, else that of its last roster."""
    expected: dict[str, str] = {}
    trained: dict[str, str] = {}
    for record in closed_exchanges(home, protocol.study):
        for attempt in (*record.get("attempts", []), record):
            plan = load_plan(home, protocol.study, attempt["plan"])
            expected |= {entry.site: entry.data_sheet for entry in plan.roster}
        trained |= {line["site"]: line["data_sheet"] for line in record["updates"]}
    expected |= {entry.site: entry.data_sheet for entry in evaluation.roster}
    return dict(sorted({**expected, **trained}.items()))


def code_commit(root: Path) -> str | None:
    """Return the commit of a checkout at `root` in which nothing was changed; None when there is none.

    A release may be made from an installed copy, without git, or from a checkout with changes: then no commit
    describes the code, and none is stated.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top) != root or _git(root, "status", "--porcelain") != "":
        return None
    return _git(root, "rev-parse", "--verify", "HEAD")


def _git(root: Path, *arguments: str) -> str | None:
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    own["GIT_OPTIONAL_LOCKS"] = "0"  # a status must not write into the checkout
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=root,
            env=own,
            capture_output=True,
            text=True,
            check=False,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def environment_digest() -> str:
    """Digest of the sorted list of installed packages, one `name==version` a line."""
    return sha256("\n".join(sorted(f"{name}=={d.version}" for name, d in _installed())).encode())


def components() -> list[Component]:
    """List the installed packages, marked where a deployment needs them to run and verify the model."""
    found = dict(_installed())
    runtime = _closure(found)
    return [
        Component(
            name=name,
            version=found[name].version,
            license=_license(found[name]),
            runtime=name in runtime,
            requires=_requires(found, name),
        )
        for name in sorted(found)
    ]


def _installed() -> Iterator[tuple[str, metadata.Distribution]]:
    """Installed distributions by normalised name; of two on the path, the one that is imported."""
    seen = set()
    for found in metadata.distributions():
        name = found.metadata["Name"]
        if name and _normal(name) not in seen:
            seen.add(_normal(name))
            yield _normal(name), found


def _closure(found: dict[str, metadata.Distribution]) -> set[str]:
    """What the `verify` extra pulls in, from the installed packages' own requirements."""
    from packaging.requirements import Requirement  # comes with the coordinator's install

    reached: set[tuple[str, str]] = set()
    waiting = [(PROJECT, RUNTIME_EXTRA), (PROJECT, "")]
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in reached or name not in found:
            continue
        reached.add((name, extra))
        for line in found[name].requires or []:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                waiting += [(_normal(need.name), e) for e in ("", *need.extras)]
    return {name for name, _ in reached}


def _requires(found: dict[str, metadata.Distribution], name: str) -> list[str]:
    """Installed packages that a package needs without any extra, by normalised name."""
    from packaging.requirements import Requirement

    needs = (Requirement(line) for line in found[name].requires or [])
    named = {_normal(n.name) for n in needs if n.marker is None or n.marker.evaluate({"extra": ""})}
    return sorted(named & set(found))


def _license(found: metadata.Distribution) -> str:
    """A package's license as its metadata says: an SPDX expression, a short name, or its classifiers."""
    about = found.metadata
    for field in ("License-Expression", "License"):
        said = str(about[field] or "").strip() if field in about else ""
        if said and len(said) <= 100 and "\n" not in said:  # some packages put the whole text there
            return said
    classifiers = [c for c in about.get_all("Classifier") or [] if c.startswith("License ::")]
    return "; ".join(c.rpartition(" :: ")[2] for c in classifiers)


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
