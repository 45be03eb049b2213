"""The key of the site gate, and the audiences between which it translates tokens of tasks."""

from __future__ import annotations

import json

from contracts.signing import SigningKey
from durable.files import locked, write_atomic
from tasks.home import CoordinatorHome

GATE = "gate"  # issuer and `kid` of what the gate signs; no site has this name (it is reserved)
TASK_AUDIENCE = "urn:airflow.apache.org:task"  # of the tokens that tasks hold; Airflow's default
GATE_AUDIENCE = "consilium-gate"  # of the tokens that Airflow's execution API takes


def gate_key(home: CoordinatorHome) -> SigningKey:
    """The gate's key, drawn at first use, with its public half published to Airflow as a JWKS (RFC 8037).

    Raises:
        ConsiliumError: E801, the key file is damaged.
    """
    with locked(home.root / ".gate.lock"):
        if not home.gate_key.exists():
            SigningKey.generate(GATE).save(home.gate_key)
        key = SigningKey.load(GATE, home.gate_key)
        public = {"kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": GATE, "x": key.public}
        write_atomic(home.gate_jwks, json.dumps({"keys": [public]}).encode())
    return key
