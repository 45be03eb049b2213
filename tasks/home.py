"""The folder of the coordinator: federation, studies, exchange, registry and releases under one root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

LOCAL_QUEUE = "coordinator-local"  # of the coordinator's own tasks; a site's name has no hyphen


@dataclass(frozen=True)
class CoordinatorHome:
    """Paths inside the coordinator's home. Nothing is created by naming it."""

    root: Path

    @property
    def signing_key(self) -> Path:
        """Ed25519 key (PKCS #8 PEM) that signs plans and records."""
        return self.root / "keys" / "sign.pem"

    @property
    def release_key(self) -> Path:
        """EC P-256 key (PKCS #8 PEM) that signs releases as whole directories."""
        return self.root / "keys" / "release.pem"

    @property
    def rotations(self) -> Path:
        """One line for each change of the release key, signed by the key before; public."""
        return self.root / "keys" / "rotations.jsonl"

    @property
    def noise_key(self) -> Path:
        """32 random bytes: the noise of hospital-level privacy is derived from it (design section 5)."""
        return self.root / "keys" / "noise.key"

    @property
    def seal_key(self) -> Path:
        """X25519 key (32 raw bytes) to which hospitals seal their evaluations."""
        return self.root / "keys" / "seal.key"

    @property
    def api_key(self) -> Path:
        """Ed25519 key (PKCS #8 PEM) for Airflow's own tokens."""
        return self.root / "keys" / "api.pem"

    @property
    def gate_key(self) -> Path:
        """Ed25519 key (PKCS #8 PEM) of the site gate, which signs what it has let through."""
        return self.root / "keys" / "gate.pem"

    @property
    def gate_jwks(self) -> Path:
        """The gate's public key as a JSON Web Key Set: all that Airflow's edge API trusts."""
        return self.root / "keys" / "gate.jwks.json"

    @property
    def gate_state(self) -> Path:
        """When the gate last proved that it stands before the API server, and in which process."""
        return self.root / "gate.json"

    @property
    def audit(self) -> Path:
        """One file a day of what hospitals were refused and what they changed."""
        return self.root / "audit"

    @property
    def tls(self) -> Path:
        """Certificates and keys of the two private authorities and of the server."""
        return self.root / "keys" / "tls"

    @property
    def nginx(self) -> Path:
        """Configuration and temporary files of the nginx before the API server."""
        return self.root / "nginx"

    @property
    def systemd(self) -> Path:
        """Units that run this coordinator."""
        return self.root / "systemd"

    @property
    def federation(self) -> Path:
        """The registry of enrolled sites (names, public keys, declared sizes)."""
        return self.root / "federation.json"

    @property
    def decisions(self) -> Path:
        """Who was admitted, rotated, revoked and removed when: signed lines, each naming the one before."""
        return self.root / "federation.jsonl"

    @property
    def ca(self) -> Path:
        """Certificate (PEM) of the authority that signed the coordinator's, when it is one of its own."""
        return self.root / "keys" / "tls" / "ca.pem"

    @property
    def settings(self) -> Path:
        """How this coordinator is run (`tasks.settings`)."""
        return self.root / "settings.yaml"

    @property
    def budget(self) -> Path:
        """`{"epsilon": ..., "delta": ...}`: what may be spent on the federation's hospitals, for ever."""
        return self.root / "budget.json"

    def ledger(self, lineage: str) -> Path:
        """The append-only privacy ledger of hospital-level privacy."""
        return self.root / "ledger" / f"{lineage}.jsonl"

    @property
    def studies(self) -> Path:
        """One folder per registered study."""
        return self.root / "studies"

    def study(self, study: str) -> Path:
        """Protocol, head, plans, envelopes and records of a study."""
        return self.studies / study

    @property
    def exchange(self) -> Path:
        """The content-addressed store of tensors."""
        return self.root / "exchange"

    @property
    def presence(self) -> Path:
        """One file per site, touched at every authenticated request of its edge worker."""
        return self.root / "presence"

    @property
    def registry(self) -> Path:
        """The git + DVC + GTO repository of models and releases."""
        return self.root / "registry"

    @property
    def releases(self) -> Path:
        """Published releases: `<product>/<version>/`."""
        return self.root / "releases"

    @property
    def evidence(self) -> Path:
        """Test results, vulnerability scan, VEX and regulatory statements that people brought."""
        return self.root / "evidence"

    @property
    def airflow(self) -> Path:
        """AIRFLOW_HOME of the coordinator."""
        return self.root / "airflow"
