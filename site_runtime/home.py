"""The folder of one site: everything a hospital keeps, under one root that the coordinator cannot read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class SiteHome:
    """Paths inside a site's home. Nothing is created by naming it."""

    root: Path

    @property
    def config(self) -> Path:
        """The private `site.yaml`."""
        return self.root / "site.yaml"

    @property
    def signing_key(self) -> Path:
        """Ed25519 key (PKCS #8 PEM) that signs what leaves and the ledger."""
        return self.root / "keys" / "sign.pem"

    @property
    def edge_key(self) -> Path:
        """Ed25519 key (PKCS #8 PEM) of the site's edge worker and its calls to the exchange."""
        return self.root / "keys" / "edge.pem"

    @property
    def noise_key(self) -> Path:
        """32 random bytes: sampling and noise are derived from it; never leaves (design section 5)."""
        return self.root / "keys" / "noise.key"

    @property
    def split_key(self) -> Path:
        """32 random bytes: the keyed split into training and holdout, and the cohort's HMAC."""
        return self.root / "keys" / "split.key"

    @property
    def consent_key(self) -> Path:
        """32 random bytes that seal the hospital's record of its own decisions."""
        return self.root / "keys" / "consent.key"

    @property
    def coordinator_key(self) -> Path:
        """The coordinator's public key (43 characters of text), pinned at enrolment."""
        return self.root / "keys" / "coordinator.pub"

    @property
    def coordinator_url(self) -> Path:
        """Where the coordinator answers (text), from its startup kit."""
        return self.root / "keys" / "coordinator.url"

    @property
    def ca(self) -> Path:
        """The authority (PEM) whose certificates the coordinator shows; absent: those of this machine."""
        return self.root / "keys" / "ca.pem"

    @property
    def certificate(self) -> Path:
        """Certificate (PEM) of the edge key, where the federation asks hospitals for one."""
        return self.root / "keys" / "edge.crt.pem"

    @property
    def tunnel(self) -> Path:
        """Configuration of the loopback tunnel that shows this certificate."""
        return self.root / "tunnel"

    @property
    def kit(self) -> Path:
        """The startup kit that was taken last, as the coordinator signed it."""
        return self.root / "keys" / "kit.json"

    @property
    def rotation(self) -> Path:
        """A change of this site's keys that the coordinator has not answered yet."""
        return self.root / "keys" / "rotation-next.json"

    @property
    def peers(self) -> Path:
        """Signing keys of the other hospitals, pinned at this one."""
        return self.root / "keys" / "peers.json"

    @property
    def former_peers(self) -> Path:
        """Keys that these replaced by a change which the old key signed, and when this hospital learnt it."""
        return self.root / "keys" / "former-peers.json"

    def approval(self, study: str) -> Path:
        """The protocol (canonical JSON) that this hospital approved for `study`."""
        return self.root / "studies" / f"{study}.json"

    def cohort(self, study: str) -> Path:
        """Folder of the frozen cohort, inside the site's DVC repository `data/`."""
        return self.data / study

    @property
    def data(self) -> Path:
        """The site's own git + DVC repository of cohorts."""
        return self.root / "data"

    def ledger(self, lineage: str) -> Path:
        """The append-only privacy ledger of a lineage."""
        return self.root / "ledger" / f"{lineage}.jsonl"

    def outbox(self, plan: str) -> Path:
        """Folder of the finished result for a plan, named by the plan's digest."""
        return self.root / "outbox" / plan

    def state(self, study: str) -> Path:
        """What a strategy keeps at the site between rounds."""
        return self.root / "state" / study

    @property
    def egress_log(self) -> Path:
        """The hospital's own record of every document that left, one JSON line each."""
        return self.root / "egress.jsonl"

    @property
    def log(self) -> Path:
        """The hospital's own log: the only place where a refusal's detail is written."""
        return self.root / "log" / "site.log"

    @property
    def airflow(self) -> Path:
        """AIRFLOW_HOME of the site's edge worker."""
        return self.root / "airflow"
