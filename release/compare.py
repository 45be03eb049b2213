"""Two releases side by side: performance at each hospital, and everything in which they differ.

Reads manifests, protocols and validation reports as they lie there; it verifies nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from contracts.errors import ConsiliumError
from contracts.gates import MetricName
from contracts.release import ModelInput, ReleaseManifest
from contracts.study import StudyProtocol, parse_study
from release.directory import read_manifest
from release.versioning import classify

POOLED = "pooled"
# Of a protocol, what names it and says nothing of the question it answers.
_NAMES = ("schema", "study", "product", "amends")
_FACTS = (
    "product", "study", "title", "intended_use", "regulatory_status", "decision_threshold", "outputs",
    "rounds", "privacy_mode", "epsilon", "delta", "model", "protocol_hash", "code_version", "opset",
    "sign_off", "created",
)  # fmt: skip


@dataclass(frozen=True)
class ReleaseRead:
    """What a comparison needs of a release directory."""

    path: Path
    manifest: ReleaseManifest
    protocol: StudyProtocol
    metrics: Mapping[str, Any]  # validation.json: `pooled` and each hospital


def read_release(folder: Path) -> ReleaseRead:
    """Read a release directory without trusting it.

    Raises:
        ConsiliumError: E703, a file is missing or no JSON; E802, the manifest; E101, the protocol.
    """
    manifest = read_manifest(folder)
    found = {}
    for name in ("study.json", "validation.json"):
        try:
            found[name] = json.loads((folder / name).read_bytes())
        except (OSError, ValueError) as error:
            raise ConsiliumError("E703", f"{folder / name}: {error}") from error
    protocol = parse_study(found["study.json"], str(folder / "study.json"))
    return ReleaseRead(folder, manifest, protocol, found["validation.json"])


def compare(a: ReleaseRead, b: ReleaseRead) -> dict[str, Any]:
    """Return everything in which release `b` differs from release `a`, ready for JSON.

    Keys: `a`, `b` (who they are), `change` (what changed and which level that is, computed for this pair),
    `metrics` (rows of hospital, metric, both estimates, difference b - a), `paired` (differences of both
    models on the same patients, as the hospitals computed them; only where `b` was compared with `a`),
    `gates`, `facts`, `protocol` (fields that differ), `inputs`, `sites`, `privacy` (epsilon by hospital),
    `data` (by hospital), `lineage`, `files`.

    The two estimates of a metric come from the same holdouts where no data changed, so that the interval of
    their difference is narrower than both suggest: `paired` has it.
    """
    before, after = a.manifest, b.manifest
    sites = set(before.sites), set(after.sites)
    return {
        "a": _identity(a),
        "b": _identity(b),
        "change": _change(a, b),
        "metrics": list(_metric_rows(a.metrics, b.metrics)),
        "paired": _paired(a, b),
        "gates": _gates(before, after),
        "facts": [
            {"name": name, "a": old, "b": new}
            for name in _FACTS
            for old, new in [(_plain(getattr(before, name)), _plain(getattr(after, name)))]
            if old != new
        ],
        "protocol": _protocol(a.protocol, b.protocol),
        "inputs": _inputs(before.inputs, after.inputs),
        "sites": {"added": sorted(sites[1] - sites[0]), "removed": sorted(sites[0] - sites[1])},
        "privacy": _privacy(before, after),
        "data": _data(before, after),
        "lineage": {
            name: {"a": old, "b": new}
            for name, old, new in (
                ("exchanges", len(before.lineage.rounds), len(after.lineage.rounds)),
                ("updates", _updates(before), _updates(after)),
                ("code_commit", before.lineage.code_commit, after.lineage.code_commit),
                ("environment", before.lineage.environment, after.lineage.environment),
            )
        },
        "files": _files(before, after),
    }


def _identity(release: ReleaseRead) -> dict[str, Any]:
    manifest = release.manifest
    return {
        "release": manifest.release_id,
        "study": manifest.study,
        "version": manifest.version,
        "created": manifest.created,
        "path": str(release.path.absolute()),
    }


def _change(a: ReleaseRead, b: ReleaseRead) -> dict[str, Any]:
    """What changed between these two, whichever `b` itself was compared with when it was made."""
    if a.manifest.model_copy(update={"published": None}) == b.manifest.model_copy(update={"published": None}):
        return {"level": "none", "changed": [], "modification": None, "stated": None}
    found = classify(a.manifest, a.protocol, b.protocol, b.manifest.lineage, b.manifest.sites)
    return {
        "level": found.level if a.manifest.product == b.manifest.product else "another product",
        "changed": list(found.changed),
        "modification": found.modification,
        "stated": b.manifest.change.model_dump(mode="json"),
    }


def _metric_rows(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    hospitals = sorted({name for tree in (a, b) for name in tree if not name.startswith("_")} - {POOLED})
    for hospital in [POOLED, *hospitals]:
        for metric in get_args(MetricName):
            old, new = (_estimate(tree.get(hospital, {}).get(metric)) for tree in (a, b))
            if old is None and new is None:
                continue
            yield {
                "hospital": hospital,
                "metric": metric,
                "a": old,
                "b": new,
                "difference": new["value"] - old["value"] if old and new else None,
            }


def _estimate(value: Any) -> dict[str, float] | None:
    return dict(value) if isinstance(value, Mapping) and "value" in value else None


def _paired(a: ReleaseRead, b: ReleaseRead) -> list[dict[str, Any]]:
    """Differences b - a on the same patients, where `a` is a release that `b` was compared with."""
    same = a.manifest.product == b.manifest.product
    if same and b.manifest.change.since == a.manifest.version:
        baseline = "previous"
    elif same and a.manifest.change.level == "first":
        baseline = "first"
    else:
        return []
    rows = []
    for hospital, tree in sorted(b.metrics.items()):
        if hospital.startswith("_"):
            continue
        found = tree.get("comparisons", {}).get(baseline, {})
        for metric, value in found.get("differences", found).items():
            if (estimate := _estimate(value)) is not None:
                rows.append({"hospital": hospital, "metric": metric, "difference": estimate})
    return rows


def _gates(a: ReleaseManifest, b: ReleaseManifest) -> list[dict[str, Any]]:
    old, new = ({gate.gate: gate.model_dump(mode="json") for gate in m.gates} for m in (a, b))
    return [{"gate": name, "a": old.get(name), "b": new.get(name)} for name in {**old, **new}]


def _protocol(a: StudyProtocol, b: StudyProtocol) -> list[dict[str, Any]]:
    old, new = (dict(_leaves({k: v for k, v in p.body().items() if k not in _NAMES}, "")) for p in (a, b))
    return [
        {"field": field, "a": old.get(field), "b": new.get(field)}
        for field in {**old, **new}
        if old.get(field) != new.get(field)
    ]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Fields of a protocol by dotted path; members of a list by their name or id, else by their number."""
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value and all(isinstance(inner, dict) for inner in value):
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{path}.{inner.get('name', inner.get('id', number))}")
    else:
        yield path, value


def _inputs(a: list[ModelInput], b: list[ModelInput]) -> list[dict[str, Any]]:
    old, new = ({i.name: (n, i.model_dump(mode="json")) for n, i in enumerate(inputs)} for inputs in (a, b))
    return [
        {"input": name, "a": _input(old.get(name)), "b": _input(new.get(name))}
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ]


def _input(found: tuple[int, dict[str, Any]] | None) -> str | None:
    if found is None:
        return None
    position, fields = found
    values = f"levels {fields['levels']}" if fields["levels"] else f"{fields['low']} to {fields['high']}"
    return f"column {position + 1}: {fields['kind']}, {fields['unit']}, {values}"


def _privacy(a: ReleaseManifest, b: ReleaseManifest) -> list[dict[str, Any]]:
    old, new = ({p.site: p for p in manifest.site_privacy} for manifest in (a, b))
    return [
        {
            "hospital": site,
            **{
                f"{part}_{name}": getattr(spent.get(site), f"epsilon_{part}", None)
                for part in ("study", "lineage")
                for name, spent in (("a", old), ("b", new))
            },
        }
        for site in sorted({*old, *new})
    ]


def _data(a: ReleaseManifest, b: ReleaseManifest) -> list[dict[str, Any]]:
    old, new = ({d.site: d for d in manifest.lineage.data} for manifest in (a, b))
    rows = []
    for site in sorted({*old, *new}):
        both = site in old and site in new
        rows.append(
            {
                "hospital": site,
                "same_cohort": old[site].cohort == new[site].cohort if both else None,
                "data_version_a": old[site].data_version if site in old else None,
                "data_version_b": new[site].data_version if site in new else None,
                "same_policy": old[site].policy == new[site].policy if both else None,
            }
        )
    return rows


def _updates(manifest: ReleaseManifest) -> int:
    return sum(len(round_.updates) for round_ in manifest.lineage.rounds)


def _files(a: ReleaseManifest, b: ReleaseManifest) -> dict[str, Any]:
    old, new = ({file.path: file.sha256 for file in manifest.files} for manifest in (a, b))
    both = sorted({*old} & {*new})
    return {
        "added": sorted({*new} - {*old}),
        "removed": sorted({*old} - {*new}),
        "changed": [path for path in both if old[path] != new[path]],
        "same": [path for path in both if old[path] == new[path]],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
