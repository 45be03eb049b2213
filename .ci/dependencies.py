"""The dependency audit and the bill of materials of this environment: `make audit`.

pip-audit ends with 0 and "No known vulnerabilities found" also where it could ask nobody: what it skipped is
counted here, so that an audit which did not happen is never shown as one that passed.

    .venv-audit/bin/python .ci/dependencies.py ENVIRONMENT_PYTHON OUT_FOLDER
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

# Accepted for a reason that is written here, by identifier: {"CVE-...": "why it does not matter to us"}.
ACCEPTED: dict[str, str] = {}


def verdict(report: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit status and lines to print for pip-audit's JSON report: 1 only for what nobody has accepted."""
    audited = [part for part in report["dependencies"] if "vulns" in part]
    lines, status = [], 0
    for part in audited:
        for found in part["vulns"]:
            names = {found["id"], *found.get("aliases", [])}
            reasons = [ACCEPTED[name] for name in sorted(names & set(ACCEPTED))]
            if not reasons:
                status = 1
            fixed = ", ".join(found.get("fix_versions", [])) or "no version"
            note = f"accepted: {reasons[0]}" if reasons else f"fixed in {fixed}"
            lines.append(f"{part['name']} {part['version']}: {found['id']} ({note})")
    total = len(report["dependencies"])
    if len(audited) < total:
        lines.append(
            f"NOT AUDITED: {total - len(audited)} of {total} packages, for which no advisories could be read"
        )
    lines.append(f"audited {len(audited)} of {total} packages")
    return status, lines


def bill_of_materials(python: str, target: Path) -> int:
    """Write the environment's bill of materials (CycloneDX 1.6, checked by its schema); return its length."""
    tool = Path(sys.executable).parent / "cyclonedx-py"
    command = [
        str(tool),
        "environment",
        python,
        "--output-reproducible",
        "--spec-version",
        "1.6",
        "--validate",
    ]
    subprocess.run([*command, "--output-file", str(target)], check=True)
    return len(json.loads(target.read_text())["components"])


def audit(names: list[str], target: Path) -> dict[str, Any]:
    """Ask pip-audit about `name==version` lines, and keep its report."""
    tool = Path(sys.executable).parent / "pip-audit"
    wanted = target.with_suffix(".txt")
    wanted.write_text("\n".join(names))
    command = [str(tool), "--no-deps", "--disable-pip", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(
        [*command, "--requirement", str(wanted)], stdout=subprocess.PIPE, text=True, check=False
    )
    if not done.stdout.startswith("{"):
        found = [line.split("==") for line in names]
        skipped = [{"name": name, "version": version, "skip_reason": "no answer"} for name, version in found]
        report: dict[str, Any] = {"dependencies": skipped}
    else:
        report = json.loads(done.stdout)
    target.write_text(json.dumps(report, indent=1))
    return report


def main() -> int:
    """Write `sbom.cdx.json` and `audit.json`, and say what was found."""
    python, out = sys.argv[1], Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    count = bill_of_materials(python, out / "sbom.cdx.json")
    print(f"{out / 'sbom.cdx.json'}: {count} packages")
    code = (
        "from importlib.metadata import distributions as d; print(*{f'{x.name}=={x.version}' for x in d()})"
    )
    listed = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True)
    names = sorted(name for name in listed.stdout.split() if not name.startswith("consilium=="))
    status, lines = verdict(audit(names, out / "audit.json"))
    print(*lines, sep="\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
