"""Enrolment between homes that exchange files alone: request, kit, change of keys, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from contracts.enrolment import StartupKit, fingerprint, open_kit, open_request, open_rotation
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey, to_text
from contracts.update import UpdateEnvelope
from privacy.ledger import Ledger
from site_runtime.config import load_site
from site_runtime.egress import egress_records, send
from site_runtime.enrol import enrol_site, join_request, site_card
from site_runtime.home import SiteHome
from site_runtime.joining import join, peers_of
from site_runtime.kit import allowed_bucket
from site_runtime.peers import load_peers, pin_peer
from site_runtime.rotation import begin_rotation, finish_rotation, pending_keys
from tasks import membership
from tasks.federation import coordinator_key, edge_keys, load_federation
from tasks.home import CoordinatorHome
from tasks.settings import Exchange, Settings, Tls, save_settings
from tests.factories import SITE, write_site
from tests.instances import one_of_each

WHO = {"officer": "Dr. A. Smith", "reason": "yearly"}
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


class World:
    """A coordinator's home, and hospitals' homes that know it by files alone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.coordinator = CoordinatorHome(root / "coordinator")
        save_settings(self.coordinator, Settings(federation="North", url="https://fed.example"))

    def enrolled(self, name: str, **changes: object) -> SiteHome:
        home = SiteHome(self.root / "sites" / name)
        governance = {**SITE["governance"], "lineage": name}
        enrol_site(home, write_site(self.root / "source" / name, site=name, governance=governance, **changes))
        return home

    def admitted(self, name: str) -> SiteHome:
        home = self.enrolled(name)
        membership.approve(self.coordinator, join_request(home), "Dr. B")
        return home

    def joined(self, name: str) -> SiteHome:
        home = self.admitted(name)
        join(home, self.kit(), self.fingerprint)
        return home

    def kit(self) -> str:
        return membership.startup_kit(self.coordinator)

    @property
    def fingerprint(self) -> str:
        return fingerprint(coordinator_key(self.coordinator).public)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def kept(home: SiteHome) -> dict[str, bytes]:
    """Every key file of a home."""
    return {p.name: p.read_bytes() for p in home.signing_key.parent.glob("[!.]*")}


def refused(home: SiteHome, text: str, confirmed: str | None = None, bucket: str | None = None) -> str:
    """The number with which a kit is refused; nothing changes then."""
    before = kept(home)
    with pytest.raises(ConsiliumError) as error:
        join(home, text, confirmed, bucket)
    assert kept(home) == before
    return error.value.number


def test_a_request_shows_the_keys_that_stay_and_is_in_the_hospitals_record(world: World) -> None:
    home = world.enrolled("ash")
    before = kept(home)
    request, digest = open_request(join_request(home))
    card = site_card(home)
    assert (request.sign_key, request.edge_key) == (card.sign_key, card.edge_key)
    assert request.declared_size == SITE["governance"]["declared_size"]
    assert [(r["type"], r["digest"]) for r in egress_records(home)] == [("JoinRequest", digest)]
    assert kept(home) == before and not home.coordinator_key.exists()


def test_a_kit_is_taken_with_the_fingerprint_that_a_person_was_told(world: World) -> None:
    home = world.admitted("ash")
    assert refused(home, world.kit()) == "E809"
    assert refused(home, world.kit(), fingerprint(SigningKey.generate("coordinator").public)) == "E809"
    done = join(home, world.kit(), world.fingerprint)
    assert (done.coordinator_changed, done.rotated, done.followed) == (False, False, [])
    assert home.coordinator_key.read_text() == coordinator_key(world.coordinator).public
    assert home.coordinator_url.read_text() == "https://fed.example" and not home.ca.exists()
    join(home, world.kit())  # again, without


def test_the_authority_of_the_certificate_comes_and_goes_with_the_kit(world: World) -> None:
    home = world.joined("ash")
    save_settings(world.coordinator, Settings(url="https://fed.example:8443", tls=Tls(mode="proxy")))
    world.coordinator.ca.parent.mkdir(parents=True)
    world.coordinator.ca.write_text(CERTIFICATE)
    join(home, world.kit())
    assert home.ca.read_text() == CERTIFICATE
    assert home.coordinator_url.read_text() == "https://fed.example:8443"
    world.coordinator.ca.unlink()
    join(home, world.kit())
    assert not home.ca.exists()


def test_a_kit_that_does_not_know_this_hospitals_key_is_refused(world: World) -> None:
    home = world.enrolled("ash")
    assert refused(home, world.kit(), world.fingerprint) == "E811"
    other = World(world.root / "other")
    membership.approve(world.coordinator, join_request(other.enrolled("ash")), "Dr. B")
    assert refused(home, world.kit(), world.fingerprint) == "E811"


def test_an_older_kit_is_not_taken_after_a_newer_one(world: World) -> None:
    home = world.joined("ash")
    kit = open_kit(world.kit())
    older = kit.model_copy(update={"created": "2020-01-01T00:00:00Z", "url": "https://old.example"})
    assert refused(home, to_text(coordinator_key(world.coordinator).sign(older))) == "E811"


def test_a_kit_of_another_coordinator_is_refused_even_with_its_fingerprint(world: World) -> None:
    home = world.joined("ash")
    thief = SigningKey.generate("coordinator")
    kit = open_kit(world.kit()).model_copy(update={"coordinator_key": thief.public})
    text = to_text(thief.sign(kit))
    assert refused(home, text) == refused(home, text, fingerprint(thief.public)) == "E812"
    altered = StartupKit.model_validate({**kit.model_dump(), "url": "https://evil.example"})
    real = coordinator_key(world.coordinator).sign(open_kit(world.kit()))
    swapped = real.model_copy(update={"document": altered.model_dump(mode="json", exclude_none=True)})
    assert refused(home, to_text(swapped)) == "E803"


def test_a_new_coordinator_key_is_followed_by_the_word_of_the_old_one(world: World) -> None:
    home = world.joined("ash")
    for _ in range(2):
        membership.rotate_coordinator(world.coordinator, officer="Dr. B", reason="yearly")
    assert join(home, world.kit()).coordinator_changed
    assert home.coordinator_key.read_text() == coordinator_key(world.coordinator).public


def test_new_keys_are_in_force_when_the_coordinator_has_answered(world: World) -> None:
    home = world.joined("ash")
    before, ledger = site_card(home), Ledger(home.ledger("ash"), "ash", "ash", load_key(home))
    head = ledger.head
    text = begin_rotation(home, **WHO)
    assert begin_rotation(home, **WHO) == text and site_card(home) == before
    assert not join(home, world.kit()).rotated  # a kit from before the change
    membership.rotate(world.coordinator, text, "Dr. B")
    assert edge_keys(world.coordinator)["ash"] == open_rotation(text).edge_key != before.edge_key
    assert join(home, world.kit()).rotated and pending_keys(home) is None
    card, member = site_card(home), load_federation(world.coordinator).member("ash")
    assert (card.sign_key, card.edge_key) == (member.sign_key, member.edge_key)
    Ledger(home.ledger("ash"), "ash", "ash", load_key(home)).check_head(head)  # opens with the new key
    assert [r["type"] for r in egress_records(home)] == ["JoinRequest", "KeyRotation"]


def load_key(home: SiteHome) -> SigningKey:
    return SigningKey.load(home.root.name, home.signing_key)


def test_a_revoked_hospital_comes_back_with_new_keys_and_its_own_ledger(world: World) -> None:
    home = world.joined("ash")
    Ledger(home.ledger("ash"), "ash", "ash", load_key(home))
    membership.revoke(world.coordinator, "ash", "ended", "Dr. B")
    assert refused(home, world.kit()) == "E811"
    begin_rotation(home, **WHO)
    finish_rotation(home)
    membership.approve(world.coordinator, join_request(home), "Dr. B")
    join(home, world.kit())
    Ledger(home.ledger("ash"), "ash", "ash", load_key(home)).verify()


def test_without_a_change_there_is_nothing_to_finish(world: World) -> None:
    with pytest.raises(ConsiliumError, match="E812"):
        finish_rotation(world.joined("ash"))


def test_other_hospitals_are_offered_and_pinned_by_a_person_alone(world: World) -> None:
    ash, birch = world.joined("ash"), world.admitted("birch")
    join(ash, world.kit())
    assert [(p.site, p.standing) for p in peers_of(ash)] == [("birch", "offered")]
    assert load_peers(ash) == {}
    pin_peer(ash, "birch", site_card(birch).sign_key)
    assert [p.standing for p in peers_of(ash)] == ["pinned"]
    membership.rotate(world.coordinator, begin_rotation(birch, **WHO), "Dr. B")
    assert join(ash, world.kit()).followed == ["birch"]
    assert load_peers(ash)["birch"] == load_federation(world.coordinator).member("birch").sign_key
    membership.revoke(world.coordinator, "birch", "ended", "Dr. B")
    join(ash, world.kit())
    assert [p.standing for p in peers_of(ash)] == ["not in the kit"]


def test_a_key_that_the_coordinator_exchanged_is_shown_as_changed_and_not_pinned(world: World) -> None:
    ash, birch = world.joined("ash"), world.admitted("birch")
    pin_peer(ash, "birch", site_card(birch).sign_key)
    membership.revoke(world.coordinator, "birch", "ended", "Dr. B")
    begin_rotation(birch, **WHO)
    finish_rotation(birch)
    membership.approve(world.coordinator, join_request(birch), "Dr. B")
    pinned = load_peers(ash)
    assert join(ash, world.kit()).followed == []
    assert [p.standing for p in peers_of(ash)] == ["changed"] and load_peers(ash) == pinned


BUCKET = "s3://bucket/prefix"


def offering(world: World, bucket: str | None) -> str:
    """A kit of a federation that keeps its tensors in a bucket."""
    settings = Settings(federation="North", url="https://fed.example", exchange=Exchange(url=bucket))
    save_settings(world.coordinator, settings)
    return world.kit()


def test_a_bucket_is_used_once_somebody_here_has_named_it_and_no_other(world: World) -> None:
    home = world.joined("ash")
    before = load_site(home)
    kit = offering(world, BUCKET)
    assert join(home, kit).bucket is None and load_site(home) == before
    assert refused(home, kit, bucket="s3://bucket/other") == "E811" and load_site(home) == before
    assert join(home, kit, bucket=BUCKET).bucket == BUCKET == allowed_bucket(home)
    after = load_site(home)
    assert after.policy.exchange == BUCKET and after.policy_digest != before.policy_digest
    same = after.policy.model_copy(update={"exchange": None})
    assert after.model_copy(update={"policy": same}) == before
    assert join(home, kit).bucket == BUCKET  # again, without


@pytest.mark.parametrize("bucket", ["s3://elsewhere/prefix", None])
def test_a_coordinator_cannot_steer_a_hospital_to_another_bucket(world: World, bucket: str | None) -> None:
    home = world.joined("ash")
    join(home, offering(world, BUCKET), bucket=BUCKET)
    assert join(home, offering(world, bucket)).bucket is None
    assert allowed_bucket(home) is None and load_site(home).policy.exchange == BUCKET


def test_a_bucket_that_a_kit_does_not_offer_is_not_used(world: World) -> None:
    home = world.joined("ash")
    assert refused(home, offering(world, None), bucket=BUCKET) == "E811"
    policy = SITE["policy"] | {"exchange": BUCKET}
    home = world.enrolled("birch", policy=policy)
    assert load_site(home).policy.exchange == BUCKET and allowed_bucket(home) is None


def test_the_hospitals_record_says_where_its_tensors_lie(world: World) -> None:
    home = world.joined("ash")
    join(home, offering(world, BUCKET), bucket=BUCKET)
    config = load_site(home)
    envelope = next(one for one in one_of_each() if isinstance(one, UpdateEnvelope))
    send(home, config, envelope.model_copy(update={"policy": config.policy_digest}))
    join_request(home)
    assert [record.get("tensors_to") for record in egress_records(home)][-2:] == [BUCKET, None]
