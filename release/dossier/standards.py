"""What further standards and guidances ask for, as rows of the conformance matrix.

Titles are in our words. Clause numbers are those of the editions named in `SOURCES`.
"""

from __future__ import annotations

from release.dossier.chai import FIELDS as CHAI_FIELDS
from release.dossier.chai import STATEMENTS as CHAI_STATEMENTS
from release.dossier.change_control import FILE as PCCP
from release.dossier.change_control import PROTOCOL_PARTS
from release.dossier.change_control import SOURCE as PCCP_SOURCE
from release.dossier.governance import FILE as GOVERNANCE
from release.dossier.index import Item, Place
from release.dossier.intended_use import FILE as USE
from release.dossier.model_description import FILE as MODEL
from release.dossier.monitoring import FILE as MONITORING
from release.dossier.pointers import WHOLE
from release.dossier.risk import FILE as RISK
from release.dossier.statements import FILE as STATEMENTS

SOURCES = {
    "IEC 62304": "IEC 62304:2006 + A1:2015, Medical device software: Software life cycle processes",
    "IEC 81001-5-1": "IEC 81001-5-1:2021, Health software: Security, activities in the product life cycle",
    "ISO 14971": "ISO 14971:2019, Medical devices: Application of risk management to medical devices",
    "MDR Annex I": "Regulation (EU) 2017/745, Annex I, general safety and performance requirements",
    "FDA PCCP": PCCP_SOURCE,
    "CycloneDX": "CycloneDX 1.6 (ECMA-424, 2024), software bill of materials with the model as a component",
    "SLSA": "SLSA v1.0, provenance of what was built",
    "CHAI": "CHAI Applied Model Card, v0.2",
    "NIST AI RMF": "NIST AI 100-1, Artificial Intelligence Risk Management Framework 1.0, January 2023",
}


def _item(key: str, clause: str, title: str, *places: Place, **rest: object) -> Item:
    return Item(key, clause, title, places, **rest)  # type: ignore[arg-type]


def _release_file(key: str, clause: str, title: str, *places: Place) -> Item:
    """A row that only a file answers, never a statement."""
    return Item(key, clause, title, places, source="the coordinator's release run", statement="none")


STANDARDS: dict[str, tuple[Item, ...]] = {
    "IEC 62304": (
        _item("iec62304.4.3", "4.3", "Software safety class"),
        _release_file(
            "iec62304.8.1.2",
            "8.1.2",
            "Third-party software (SOUP) identified",
            ("soup.json", WHOLE),
        ),
        _release_file(
            "iec62304.7.1.3",
            "7.1.3",
            "Published anomalies of SOUP evaluated",
            (RISK, "/evidence/scan_time"),
            ("vex.cdx.json", WHOLE),
        ),
        _item(
            "iec62304.5.7",
            "5.7",
            "System tested, with records",
            (RISK, "/evidence/tests"),
            (RISK, "/evidence/tests_time"),
            who="whoever runs the tests",
            statement="none",
        ),
        _item("iec62304.5.8.2", "5.8.2", "Known residual anomalies documented"),
        _item("iec62304.8.2", "8.2", "Change control", (PCCP, "/this_release")),
        _item("iec62304.9", "9", "Problem resolution"),
    ),
    "IEC 81001-5-1": (
        _item("iec81001.5", "5", "Security in development", (STATEMENTS, "/fields/security")),
        _release_file(
            "iec81001.6",
            "6",
            "Vulnerabilities of components watched and assessed",
            (RISK, "/evidence/scan_time"),
            ("vex.cdx.json", WHOLE),
        ),
        _item("iec81001.7", "7", "Security risk management"),
        _release_file(
            "iec81001.8",
            "8",
            "Components under configuration management (SBOM)",
            ("sbom.cdx.json", WHOLE),
            ("soup.json", "/software"),
        ),
    ),
    "ISO 14971": (
        _item("iso14971.4.4", "4.4", "Risk management plan", (RISK, "/plan")),
        _item("iso14971.4.2", "4.2", "Criteria by which risks are acceptable", (RISK, "/criteria")),
        _item(
            "iso14971.5.2",
            "5.2",
            "Intended use and foreseeable misuse",
            (USE, "#intended-use"),
            (USE, "#out-of-scope"),
        ),
        _item("iso14971.5.3", "5.3", "Characteristics related to safety"),
        _item("iso14971.5.4", "5.4", "Hazards and hazardous situations", (RISK, "/risks")),
        _item("iso14971.5.5", "5.5", "Risk estimation, with scales", (RISK, "/risks"), (RISK, "/scales")),
        _item("iso14971.6", "6", "Risk evaluation against the criteria"),
        _item("iso14971.7.1", "7.1", "Options of control, in order of priority", (RISK, "/risks")),
        _item(
            "iso14971.7.2", "7.2", "Controls implemented and verified", (RISK, "/controls"), statement="none"
        ),
        _item("iso14971.7.3", "7.3", "Residual risks evaluated", (RISK, "/residual_risks"), statement="none"),
        _item("iso14971.7.4", "7.4", "Benefit weighed against risk"),
        _item("iso14971.7.5", "7.5", "Risks that arise from controls"),
        _item("iso14971.7.6", "7.6", "All hazards considered"),
        _item("iso14971.8", "8", "Overall residual risk", (RISK, "/overall_residual_risk")),
        _item("iso14971.9", "9", "Review of risk management before release"),
        _item(
            "iso14971.10",
            "10",
            "Information from production and use",
            (MONITORING, "/responsible"),
            (MONITORING, "/measures"),
        ),
    ),
    "MDR Annex I": (
        _item("mdr.14.2.d", "14.2(d)", "Interactions of the software with the IT it runs in"),
        _item(
            "mdr.17.1",
            "17.1",
            "Repeatability, reliability and performance",
            ("golden.json", "/rows"),
            ("validation.json", "/_parity"),
            ("validation.json", "/pooled/auroc"),
        ),
        _item(
            "mdr.17.2",
            "17.2",
            "State of the art: life cycle, risk, security, verification and validation",
            ("validation.json", "/_gates"),
            (RISK, "/controls"),
            (STATEMENTS, "/fields/security"),
            statement="none",
        ),
        _item("mdr.17.3", "17.3", "Use with mobile computing platforms"),
        _item("mdr.17.4", "17.4", "Minimum requirements on hardware, network and IT security"),
        _item(
            "mdr.23.4",
            "23.4",
            "Instructions for use: purpose, users, benefit, performance, limits, risks",
            (USE, "#intended-use"),
            (USE, "#intended-users"),
            (USE, "#benefit"),
            (USE, "#limitations"),
            ("validation.json", "/pooled/auroc"),
            (RISK, "/residual_risks"),
        ),
        _item("mdr.23.4.ab", "23.4(ab)", "The same minimum requirements, in the instructions for use"),
    ),
    "FDA PCCP": (
        _item(
            "pccp.description",
            "Description of Modifications",
            "Each planned modification",
            (PCCP, "/description_of_modifications"),
            statement="none",
        ),
        *(
            _item(
                f"pccp.{part}",
                f"Modification Protocol: {part.replace('_', ' ')}",
                title,
                (PCCP, f"/modification_protocol/{part}"),
                statement="none",
            )
            for part, title in PROTOCOL_PARTS.items()
        ),
        _item(
            "pccp.impact",
            "Impact Assessment",
            "Benefits, risks and their mitigation",
            (PCCP, "/impact_assessment"),
            statement="none",
        ),
        _item(
            "pccp.release",
            "Version control",
            "Which modification this release is",
            (PCCP, "/this_release"),
            statement="none",
        ),
        _item(
            "pccp.authorised",
            "Section 515C of the FD&C Act",
            "Which authority authorised the plan",
            (PCCP, "/authorised_by"),
            statement="none",
        ),
    ),
    "CycloneDX": (
        _release_file(
            "cyclonedx.sbom",
            "1.6",
            "Bill of materials with the model and its card",
            ("sbom.cdx.json", "/components"),
            ("soup.json", "/software"),
        ),
        _item(
            "cyclonedx.considerations",
            "1.6 modelCard",
            "Considerations of the model card: users, use cases, limits, ethics, fairness",
            ("sbom.cdx.json", "/components"),
            (USE, "#intended-use"),
            *(
                (STATEMENTS, f"/fields/{name}")
                for name in ("users", "use_of_output", "limitations", "ethics")
            ),
            (STATEMENTS, "/fields/bias"),
            statement="none",
        ),
        _release_file(
            "cyclonedx.vex",
            "1.6 VEX",
            "Statements on vulnerabilities",
            (RISK, "/evidence/scan_time"),
            ("vex.cdx.json", WHOLE),
        ),
    ),
    "SLSA": (
        _release_file(
            "slsa.provenance",
            "Provenance v1",
            "How and from what it was built",
            ("provenance.json", WHOLE),
        ),
    ),
    "CHAI": (
        _release_file(
            "chai.card",
            "v0.2",
            "Applied Model Card, with every text that a person writes in a field",
            ("dossier/chai.xml", WHOLE),
            *((STATEMENTS, f"/fields/{name}") for name in CHAI_FIELDS),
        ),
        *(_item(f"chai.{name}", element, title) for name, (element, title) in CHAI_STATEMENTS.items()),
    ),
    "NIST AI RMF": (
        _item(
            "nist.govern",
            "GOVERN",
            "Roles, approvals and accountability",
            (GOVERNANCE, "/sign_off/roles"),
            (GOVERNANCE, "/approvals_current"),
            statement="none",
        ),
        _item(
            "nist.map",
            "MAP",
            "Context, purpose, people affected",
            (USE, "#intended-use"),
            (USE, "#patients"),
            (USE, "#out-of-scope"),
            statement="none",
        ),
        _item(
            "nist.measure",
            "MEASURE",
            "Performance, fairness, privacy",
            ("validation.json", "/pooled/auroc"),
            ("validation.json", "/pooled/subgroups"),
            (MODEL, "#privacy"),
            statement="none",
        ),
        _item(
            "nist.manage",
            "MANAGE",
            "Risks treated and watched",
            (RISK, "/risks"),
            (MONITORING, "/triggers"),
            statement="none",
        ),
    ),
}
