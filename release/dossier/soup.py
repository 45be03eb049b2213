"""`soup.json`: third-party software (SOUP, IEC 62304:2006 + A1:2015, clauses 7.1.2, 7.1.3, 8.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from release.dossier.pointers import open_value
from release.dossier.sbom import distinct, reference
from release.dossier.vulnerabilities import Finding, findings, normal_name, scan_is_current, uncovered
from release.dossier.writing import json_bytes
from release.facts import Component, ReleaseFacts

# What each package that this project names itself is for.
PURPOSES = {
    "apache-airflow": "runs the pipeline's tasks at the coordinator and the hospitals",
    "apache-airflow-providers-edge3": "lets a hospital's worker poll the coordinator over outbound HTTPS",
    "cryptography": "Ed25519 signatures, X25519 sealing, ChaCha20 noise streams",
    "cyclonedx-python-lib": "checks bill of materials and VEX against their schema",
    "dvc": "versions data at the hospitals and releases at the coordinator",
    "fsspec": "the exchange in a bucket, where a federation uses one",
    "great-expectations": "data-quality checks at the hospitals",
    "gto": "tags releases in the coordinator's registry",
    "httpx": "transfers tensors between a hospital and the exchange",
    "jinja2": "writes the validation page",
    "jsonschema": "reads the schemas of bill of materials and VEX",
    "matplotlib": "draws the figures of the validation page",
    "model-signing": "signs and verifies the release directory",
    "numpy": "arrays, accounting of privacy, metrics",
    "onnx": "reads and checks the model file",
    "onnxruntime": "computes the model's output at a deployment",
    "onnxscript": "writes the model file from the trained network",
    "opacus": "clipped gradients of single patients, and a second accountant to compare with",
    "pandas": "tables of a hospital's cohort",
    "psutil": "watches the processes that this project starts",
    "psycopg": "Airflow's metadata on PostgreSQL",
    "pyarrow": "stores a hospital's cohort as Parquet",
    "pydantic": "types and limits of everything that crosses a hospital's boundary",
    "pyjwt": "tokens by which a hospital is known to the coordinator",
    "pyopenssl": "keys of the release signature",
    "pytorch-lightning": "training loop at the hospitals",
    "pyyaml": "reads study protocols and a hospital's settings",
    "referencing": "finds the parts of those schemas",
    "rfc3339-validator": "checks the times in bill of materials and VEX",
    "rfc8785": "canonical JSON, of which digests and signatures are made",
    "rich": "tables of the command line",
    "safetensors": "stores tensors without executable content",
    "scipy": "distributions for intervals and privacy accounting",
    "tenacity": "asks Airflow again that could not answer just then",
    "torch": "trains the network and computes its reference output",
    "typer": "the command line",
}
OWN = "consilium"
_SAYS_WHAT_FOR = "whoever maintains the software: a line in the list of purposes"
_SCANS = "whoever scans the components, as a dated report brought to the coordinator"


def soup(facts: ReleaseFacts) -> bytes:
    """Return the list of third-party software; the same facts give the same bytes."""
    packages = [p for p in distinct(facts.components) if p.name != OWN]
    found = findings(facts.evidence)
    current = scan_is_current(facts.evidence, facts.created)
    missing = set(uncovered(facts.evidence, packages))
    value: dict[str, Any] = {
        "source": "IEC 62304:2006 + A1:2015, clauses 7.1.2, 7.1.3 and 8.1.2",
        "environment": facts.lineage.environment,
        "what_is_listed": (
            "Installed Python packages of the coordinator. The Python interpreter and the operating system "
            "of a machine are its operator's."
        ),
        "uses": {
            "runtime": "a deployment needs it to run and verify the model",
            "making": "it took part in making the release only",
        },
        "software": [
            _entry(p, packages, _anomalies(p, found, current and reference(p) not in missing))
            for p in packages
        ]
        or open_value("The installed packages.", "the coordinator's release run"),
    }
    if not packages:
        value |= open_value("The installed packages.", "the coordinator's release run")
    return json_bytes(value)


def _entry(package: Component, packages: Sequence[Component], anomalies: Any) -> dict[str, Any]:
    no_licence = open_value("Its licence: the package states none.", "whoever assesses licences")
    return {
        "name": package.name,
        "version": package.version,
        "identifier": reference(package),
        "licence": package.license or no_licence,
        "purpose": _purpose(package, packages),
        "use": "runtime" if package.runtime else "making",
        "known_anomalies": anomalies,
    }


def _purpose(package: Component, packages: Sequence[Component]) -> str | dict[str, str]:
    name = normal_name(package.name)
    if name in PURPOSES:
        return PURPOSES[name]
    needing = sorted({p.name for p in packages if p != package and name in map(normal_name, p.requires)})
    if needing:
        more = f" and {len(needing) - 5} more" if len(needing) > 5 else ""
        return f"dependency of {', '.join(needing[:5])}{more}"
    return open_value("What it is for.", _SAYS_WHAT_FOR)


def _anomalies(package: Component, found: Sequence[Finding], scanned: bool) -> Any:
    """What the scan found in this package; an empty list only where a current scan covers it."""
    here = [f for f in found if f.component == reference(package)]
    if not here and not scanned:
        return open_value("A scan of the last 30 days that covers this version.", _SCANS)
    if not here:
        return "none in the scan"
    return [
        {
            "id": f.id,
            "severity": f.severity,
            "analysis": f.analysis.get("state")
            or open_value("An analysis of this vulnerability.", "whoever assesses it, as a VEX statement"),
        }
        for f in here
    ]
