"""Requests, changes of keys and kits prove who holds the keys in them, and refuse whatever was altered."""

from __future__ import annotations

import hashlib

import pytest

from contracts.canonical import canonical_json
from contracts.enrolment import (
    StartupKit,
    check_fingerprint,
    fingerprint,
    make_request,
    make_rotation,
    newest_key,
    open_kit,
    open_request,
    open_rotation,
)
from contracts.errors import ConsiliumError
from contracts.fields import Contract
from contracts.signing import SigningKey, _unb64, to_text

TIME = "2026-01-01T00:00:00Z"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"


def key(owner: str = "ash") -> SigningKey:
    return SigningKey.generate(owner)


def signed(by: SigningKey, document: Contract, **changes: object) -> str:
    """The document signed anew after a change, as its forger would."""
    return to_text(by.sign(document.model_copy(update=changes)))


def refusal(text: str, opening=open_request) -> str:
    with pytest.raises(ConsiliumError) as error:
        opening(text)
    return error.value.number


def test_a_fingerprint_is_the_sha256_of_the_raw_key_however_it_is_written_down() -> None:
    public = key().public
    digest = hashlib.sha256(_unb64(public)).hexdigest()
    shown = fingerprint(public)
    assert shown.replace(" ", "") == digest and {len(group) for group in shown.split()} == {4}
    for given in (shown, digest, shown.upper(), shown.replace(" ", ":"), f"  {shown}\n"):
        check_fingerprint(given, public)
    for given in ("", shown[:-1], shown[:19], fingerprint(key().public)):
        with pytest.raises(ConsiliumError, match="E809"):
            check_fingerprint(given, public)


def test_a_request_is_by_the_holder_of_both_keys() -> None:
    sign, edge = key(), key()
    request = make_request(sign, edge, 100, TIME)
    opened, digest = open_request(signed(sign, request))
    assert opened == request and digest == sign.sign(request).digest


def test_a_forged_request_is_refused() -> None:
    sign, edge, thief = key(), key(), key()
    request = make_request(sign, edge, 100, TIME)
    # Signed by another key than the one in it; altered after the edge key's proof, by whoever holds `sign`.
    assert refusal(signed(thief, request)) == "E803"
    assert refusal(signed(sign, request, declared_size=200)) == "E803"
    assert refusal(signed(sign, request, site="birch")) == "E803"
    assert refusal(signed(SigningKey("birch", sign._private), request)) == "E803"
    assert refusal(signed(sign, request).replace(TIME, "2027-01-01T00:00:00Z")) == "E803"
    assert refusal("{}") == "E802"


def test_an_edge_key_that_was_swapped_in_is_refused() -> None:
    """Nobody is enrolled with an edge key of which they do not hold the private half."""
    sign, edge, other = key(), key(), key("birch")
    request = make_request(sign, edge, 100, TIME)
    assert refusal(signed(sign, request, edge_key=other.public)) == "E803"
    assert refusal(signed(sign, request, edge_key=sign.public)) == "E802"
    stolen = make_request(key("birch"), other, 100, TIME).edge_proof
    assert refusal(signed(sign, request, edge_key=other.public, edge_proof=stolen)) == "E803"


def test_a_change_of_keys_is_signed_by_the_old_key_and_proves_the_new_ones() -> None:
    old, new, edge, thief = (key() for _ in range(4))
    rotation = make_rotation(old, new, TIME, edge)
    assert open_rotation(signed(old, rotation)) == rotation
    assert refusal(signed(thief, rotation), open_rotation) == "E803"
    assert refusal(signed(old, rotation, new_key=thief.public), open_rotation) == "E803"
    assert refusal(signed(old, rotation, edge_key=thief.public), open_rotation) == "E803"
    assert refusal(signed(old, rotation, edge_key=None), open_rotation) == "E802"
    assert refusal(signed(old, rotation, new_key=old.public), open_rotation) == "E802"
    # A request is no change of keys, though both are signed by the same key.
    assert refusal(signed(old, make_request(old, edge, 100, TIME)), open_rotation) == "E802"


def test_a_chain_of_changes_is_followed_only_along_its_owner_and_signatures() -> None:
    a, b, c = key(), key(), key()
    chain = [a.sign(make_rotation(a, b, TIME, key())), b.sign(make_rotation(b, c, TIME, key()))]
    other, later = key("birch"), key("birch")
    strange = other.sign(make_rotation(other, later, TIME, key("birch")))
    assert newest_key([chain[0], strange, chain[1]], "ash", a.public) == c.public
    assert newest_key(chain, "ash", b.public) == c.public
    assert newest_key(chain[1:], "ash", a.public) == a.public  # a gap leads nowhere
    assert newest_key(chain, "birch", a.public) == a.public
    forged = chain[0].model_copy(update={"document": {**chain[0].document, "new_key": c.public}})
    with pytest.raises(ConsiliumError, match="E803"):
        newest_key([forged], "ash", a.public)


def a_kit(coordinator: SigningKey, **changes: object) -> StartupKit:
    fields = {
        "federation": "north",
        "url": "https://fed.example",
        "coordinator_key": coordinator.public,
        "members": [],
        "code_versions": ["0.1.0"],
        "log_head": "0" * 64,
        "created": TIME,
    }
    return StartupKit.model_validate(fields | changes)


def test_a_kit_is_signed_by_the_key_that_it_names() -> None:
    coordinator, thief = key("coordinator"), key("coordinator")
    kit = a_kit(coordinator)
    assert open_kit(signed(coordinator, kit)) == kit
    assert refusal(signed(thief, kit), open_kit) == "E803"
    assert refusal(signed(SigningKey("ash", coordinator._private), kit), open_kit) == "E803"
    assert refusal(signed(coordinator, kit).replace("north", "south"), open_kit) == "E803"


def test_a_kit_with_a_private_key_in_it_cannot_be_made_or_opened() -> None:
    coordinator = key("coordinator")
    private = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"
    assert a_kit(coordinator, ca=CERTIFICATE).ca == CERTIFICATE
    for ca in (private, CERTIFICATE + private, private + CERTIFICATE, "no PEM at all"):
        with pytest.raises(ValueError, match="certificates and nothing else"):
            a_kit(coordinator, ca=ca)
        assert refusal(signed(coordinator, a_kit(coordinator), ca=ca), open_kit) == "E802"
    body = {**a_kit(coordinator).model_dump(mode="json", exclude_none=True), "sign_private": "A" * 43}

    class Extended(StartupKit):
        sign_private: str

    extended = coordinator.sign(Extended.model_validate(body)).model_copy(update={"type": "StartupKit"})
    again = extended.model_copy(update={"signature": coordinator.sign_bytes(extended.signed_bytes())})
    assert refusal(canonical_json(again).decode(), open_kit) == "E802"


@pytest.mark.parametrize(
    "url", ["s3://bucket/prefix", "file:///mnt/share", "abfs://models@account.dfs.example/prefix", "gs://a-b"]
)
def test_a_kit_offers_a_bucket_and_one_without_is_signed_as_before_there_were_any(url: str) -> None:
    coordinator = key("coordinator")
    assert open_kit(signed(coordinator, a_kit(coordinator, exchange=url))).exchange == url
    assert "exchange" not in coordinator.sign(a_kit(coordinator)).document


@pytest.mark.parametrize(
    "url",
    [
        "bucket",
        "/mnt/share",
        "s3://",
        "s3://name:secret@bucket/prefix",
        "s3://bucket/a b",
        "s3://bucket/[red]x",
        "s3://bucket/$(id)",
        "s3://bucket/\x1b[0m",
        "filecache::s3://bucket",
        "s3://bucket::file:///etc",
        "s3://bucket/" + "x" * 400,
    ],
)
def test_a_bucket_with_a_secret_a_detour_or_a_trick_in_its_address_is_none(url: str) -> None:
    coordinator = key("coordinator")
    with pytest.raises(ValueError, match="exchange"):
        a_kit(coordinator, exchange=url)
    assert refusal(signed(coordinator, a_kit(coordinator), exchange=url), open_kit) == "E802"
