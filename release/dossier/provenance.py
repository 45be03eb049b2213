"""`provenance.json`: how and from what the release was built: SLSA v1.0 in an in-toto Statement v1.

Sources: SLSA v1.0, Provenance (predicate type https://slsa.dev/provenance/v1); in-toto Attestation Framework,
Statement v1. The statement is not signed by itself: the release's signature covers it. docs/dossier.md says
what the build type and its parameters mean.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from contracts.canonical import digest
from release.dossier.writing import json_bytes
from release.facts import ReleaseFacts

STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:consilium:build:federated-release:1"
BUILDER = "urn:consilium:builder:coordinator:1"


def provenance(facts: ReleaseFacts, digests: Mapping[str, str]) -> bytes:
    """Return the provenance statement; the same facts and digests give the same bytes.

    Args:
        digests: SHA-256 of every file that is there when it is made, by path.
    """
    return json_bytes(
        {
            "_type": STATEMENT,
            "subject": [
                {"name": path, "digest": {"sha256": sha256}} for path, sha256 in sorted(digests.items())
            ],
            "predicateType": PREDICATE,
            "predicate": {"buildDefinition": _definition(facts), "runDetails": _run(facts)},
        }
    )


def _definition(facts: ReleaseFacts) -> dict[str, Any]:
    protocol = facts.protocol
    internal: dict[str, Any] = {
        "rounds": facts.rounds,
        "strategy": protocol.strategy.name,
        "privacyMode": protocol.privacy.mode,
        "trainingNoise": facts.training_noise,
        "statisticsNoise": facts.statistics_noise,
        "histogramNoise": facts.histogram_noise,
        "decisionThreshold": facts.decision_threshold,
    }
    external = {"study": protocol.study, "protocolHash": protocol.hash, "triggeredBy": facts.triggered_by}
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": _known(external),
        "internalParameters": _known(internal),
        "resolvedDependencies": list(_dependencies(facts)),
    }


def _dependencies(facts: ReleaseFacts) -> Iterator[dict[str, Any]]:
    """Protocol, data sheets, plans, updates, models between rounds, code and environment."""
    lineage = facts.lineage
    yield _resource("protocol", "protocol", facts.protocol.hash)
    yield _resource("trained model", "model", facts.model)
    for data in sorted(lineage.data, key=lambda d: d.site):
        yield _resource(f"data sheet of {data.site}", f"data-sheet:{data.site}", data.data_sheet)
        yield _resource(f"cohort of {data.site}", f"cohort:{data.site}", data.cohort)
        yield _resource(f"policy of {data.site}", f"policy:{data.site}", data.policy)
        if data.data_version is not None:
            found: dict[str, Any] = {"name": f"data version of {data.site}"}
            uri, version = f"urn:consilium:data-version:{data.site}", data.data_version
            hexadecimal = len(version) == 40 and set(version) <= set("0123456789abcdef")
            named = (
                {"digest": {"gitCommit": version}} if hexadecimal else {"annotations": {"version": version}}
            )
            yield found | {"uri": uri} | named
    for number, round_ in enumerate(lineage.rounds):
        where = f"exchange {number} ({round_.kind}, round {round_.round})"
        where += f" without {round_.fold}" if round_.fold else ""
        yield _resource(f"plan of {where}", f"plan:{number}", round_.plan)
        if round_.model is not None:
            yield _resource(f"model after {where}", f"exchange-model:{number}", round_.model)
        for site, update in sorted(round_.updates.items()):
            yield _resource(f"update of {site} in {where}", f"update:{number}:{site}", update)
    yield _resource("installed packages", "environment", lineage.environment)
    if lineage.code_commit is not None:
        code = {"name": "code of the coordinator", "uri": "urn:consilium:source"}
        yield code | {"digest": {"gitCommit": lineage.code_commit}}


def _resource(name: str, what: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "uri": f"urn:consilium:{what}", "digest": {"sha256": sha256}}


def _run(facts: ReleaseFacts) -> dict[str, Any]:
    identity = {
        "release": facts.release_id,
        "protocol": facts.protocol.hash,
        "model": facts.model,
        "created": facts.created,
    }
    metadata = {
        "invocationId": f"urn:consilium:invocation:{digest(identity)}",
        "startedOn": _started(facts.events),
        "finishedOn": facts.created,
    }
    return {
        "builder": {"id": BUILDER, "version": {"consilium": facts.code_version}},
        "metadata": _known(metadata),
    }


def _started(events: bytes) -> str | None:
    """When the study's event log begins; None without one."""
    for line in events.splitlines():
        found = json.loads(line).get("time")
        return found if isinstance(found, str) else None
    return None


def _known(value: dict[str, Any]) -> dict[str, Any]:
    return {key: found for key, found in value.items() if found is not None}
