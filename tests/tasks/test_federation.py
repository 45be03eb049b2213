"""The registry: who is in, by which keys, and that one change never touches another member's entry."""

from __future__ import annotations

import base64
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from contracts.canonical import canonical_json
from contracts.enrolment import make_request, make_rotation, open_kit
from contracts.errors import ConsiliumError
from contracts.signing import SigningKey, to_text
from durable.clock import now
from durable.files import write_json
from tasks.decisions import decisions_head, read_decisions
from tasks.federation import coordinator_key, coordinator_keys, edge_keys, enrol, load_federation
from tasks.home import CoordinatorHome
from tasks.membership import approve, remove, revoke, rotate, rotate_coordinator, startup_kit
from tasks.settings import Settings, Tls, save_settings

FORK = multiprocessing.get_context("fork")


class Hospital:
    """A hospital's keys, of which the coordinator sees only what is public."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sign, self.edge = SigningKey.generate(name), SigningKey.generate(name)

    def request(self, size: int = 100) -> str:
        return to_text(self.sign.sign(make_request(self.sign, self.edge, size, now())))

    def rotation(self) -> str:
        """Take new keys and return the change."""
        old = self.sign
        self.sign, self.edge = SigningKey.generate(self.name), SigningKey.generate(self.name)
        return to_text(old.sign(make_rotation(old, self.sign, now(), self.edge)))


@pytest.fixture
def home(tmp_path: Path) -> CoordinatorHome:
    return CoordinatorHome(tmp_path / "coordinator")


def admitted(home: CoordinatorHome, *names: str) -> list[Hospital]:
    hospitals = [Hospital(name) for name in names]
    for hospital in hospitals:
        approve(home, hospital.request(), "Dr. B")
    return hospitals


def entries(home: CoordinatorHome) -> dict[str, bytes]:
    """The bytes of each member's entry, which the file holds as they are."""
    data = home.federation.read_bytes()
    found = {m["site"]: canonical_json(m) for m in json.loads(data)["members"]}
    assert all(entry in data for entry in found.values())
    return found


def log(home: CoordinatorHome) -> list[tuple[str, str]]:
    return [(d.site, d.decision) for d in read_decisions(home, coordinator_key(home).public)]


def test_a_registry_of_version_0_1_still_loads_and_its_entries_keep_their_bytes(
    home: CoordinatorHome,
) -> None:
    old = [Hospital("birch"), Hospital("cedar")]
    cards = [
        {"site": h.name, "sign_key": h.sign.public, "edge_key": h.edge.public, "declared_size": 90}
        for h in old
    ]
    write_json(home.federation, {"members": cards})
    before = entries(home)
    assert load_federation(home).sites == ["birch", "cedar"]
    admitted(home, "ash")
    assert {site: entry for site, entry in entries(home).items() if site != "ash"} == before


def test_no_change_of_one_member_touches_the_entry_of_another(home: CoordinatorHome) -> None:
    ash, *_ = admitted(home, "ash", "birch", "cedar")
    before = entries(home)
    changes = (
        lambda: rotate(home, ash.rotation(), "Dr. B"),
        lambda: revoke(home, "ash", "ended", "Dr. B"),
        lambda: admitted(home, "dogwood"),
        lambda: remove(home, "ash", "Dr. B"),
    )
    for change in changes:
        change()
        after = entries(home)
        assert {site: after[site] for site in ("birch", "cedar")} == {
            s: before[s] for s in ("birch", "cedar")
        }
    assert load_federation(home).sites == ["birch", "cedar", "dogwood"]


def _approve(home: CoordinatorHome, text: str) -> None:
    approve(home, text, "Dr. B")


def test_approvals_at_the_same_time_all_survive(home: CoordinatorHome) -> None:
    hospitals = [Hospital(f"site{n}") for n in range(8)]
    coordinator_key(home)
    processes = [FORK.Process(target=_approve, args=(home, h.request())) for h in hospitals]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert load_federation(home).sites == [h.name for h in hospitals]
    assert sorted(log(home)) == [(h.name, "admitted") for h in hospitals]


def test_the_same_request_again_changes_nothing(home: CoordinatorHome) -> None:
    text = Hospital("ash").request()
    first = approve(home, text, "Dr. B")
    data = home.federation.read_bytes(), home.decisions.read_bytes()
    assert approve(home, text, "Dr. C") == first
    assert (home.federation.read_bytes(), home.decisions.read_bytes()) == data


def test_a_request_for_a_taken_name_or_with_a_key_of_somebody_else_is_refused(home: CoordinatorHome) -> None:
    ash, birch = admitted(home, "ash", "birch")
    rotate(home, ash.rotation(), "Dr. B")
    before = home.federation.read_bytes()
    for request in (Hospital("ash").request(), ash.request(size=200), Hospital("collect").request()):
        with pytest.raises(ConsiliumError, match="E810"):
            approve(home, request, "Dr. B")
    cedar = Hospital("cedar")
    cedar.edge = SigningKey("cedar", birch.edge._private)  # who holds it may prove it, and still not share it
    with pytest.raises(ConsiliumError, match=r"E810.*'birch'"):
        approve(home, cedar.request(), "Dr. B")
    assert home.federation.read_bytes() == before


def test_a_rotated_key_ends_at_once_and_is_kept_with_the_time(home: CoordinatorHome) -> None:
    (ash,) = admitted(home, "ash")
    old_sign, old_edge = ash.sign.public, ash.edge.public
    assert edge_keys(home) == {"ash": old_edge}
    text = ash.rotation()
    member = rotate(home, text, "Dr. B")
    assert edge_keys(home) == {"ash": ash.edge.public} and member.sign_key == ash.sign.public
    (former,) = member.former
    assert (former.sign_key, former.edge_key, former.ended) == (old_sign, old_edge, "rotated")
    assert member.keys_at(former.until) == [ash.sign.public, old_sign]
    assert member.keys_at("9999-01-01T00:00:00Z") == [ash.sign.public]
    assert rotate(home, text, "Dr. B") == member  # again


def test_a_change_that_does_not_begin_at_the_key_in_force_is_refused(home: CoordinatorHome) -> None:
    ash, birch = admitted(home, "ash", "birch")
    first, second = ash.rotation(), ash.rotation()
    with pytest.raises(ConsiliumError, match="E812"):
        rotate(home, second, "Dr. B")  # the first was left out
    rotate(home, first, "Dr. B")
    rotate(home, second, "Dr. B")
    with pytest.raises(ConsiliumError, match="E812"):
        rotate(home, first, "Dr. B")  # back to a former key
    old = birch.sign
    taken = SigningKey("birch", ash.edge._private)
    change = make_rotation(old, SigningKey.generate("birch"), now(), taken)
    with pytest.raises(ConsiliumError, match="E810"):
        rotate(home, to_text(old.sign(change)), "Dr. B")
    stranger = Hospital("willow")
    with pytest.raises(ConsiliumError, match="E806"):
        rotate(home, stranger.rotation(), "Dr. B")


def test_a_revoked_member_is_out_at_once_and_comes_back_with_new_keys_only(home: CoordinatorHome) -> None:
    ash, _birch = admitted(home, "ash", "birch")
    assert set(edge_keys(home)) == {"ash", "birch"}
    revoke(home, "ash", "agreement ended", "Dr. B")
    federation = load_federation(home)
    assert set(edge_keys(home)) == {"birch"} and federation.sites == ["birch"]
    assert federation.known("ash").reason == "agreement ended"
    with pytest.raises(ConsiliumError, match="E808"):
        federation.member("ash")
    with pytest.raises(ConsiliumError, match="E808"):
        approve(home, ash.request(), "Dr. B")  # the same keys
    with pytest.raises(ConsiliumError, match="E808"):
        rotate(home, Hospital("ash").rotation(), "Dr. B")
    half = Hospital("ash")
    half.edge = ash.edge  # one of the keys
    with pytest.raises(ConsiliumError, match="E810"):
        approve(home, half.request(), "Dr. B")
    again = approve(home, (new := Hospital("ash")).request(), "Dr. B")
    assert again.status == "active" and edge_keys(home)["ash"] == new.edge.public
    assert [f.ended for f in again.former] == ["revoked"] and not again.vouches(ash.sign.public)
    assert ("ash", "revoked") in log(home) and log(home)[-1] == ("ash", "admitted")


def test_a_removed_member_is_forgotten_but_a_revoked_key_never_returns(home: CoordinatorHome) -> None:
    (ash,) = admitted(home, "ash")
    revoke(home, "ash", "mistake", "Dr. B")
    remove(home, "ash", "Dr. B")
    assert load_federation(home).members == []
    with pytest.raises(ConsiliumError, match="E808"):
        approve(home, ash.request(), "Dr. B")
    assert [decision for _, decision in log(home)] == ["admitted", "revoked", "removed"]


def test_keys_that_ended_never_come_back_by_a_rotation_or_under_another_name(home: CoordinatorHome) -> None:
    """Revoked or replaced, and their member forgotten since: the log of decisions knows them."""
    (ash, elm, fir) = admitted(home, "ash", "elm", "fir")
    revoked, replaced = (elm.sign, elm.edge), (fir.sign, fir.edge)
    revoke(home, "elm", "stolen", "Dr. B")
    rotate(home, fir.rotation(), "Dr. B")
    for name in ("elm", "fir"):
        remove(home, name, "Dr. B")
    before = home.federation.read_bytes()
    for sign, edge in (revoked, replaced):
        again, follower = Hospital("oak"), Hospital("ash")
        again.sign = SigningKey("oak", sign._private)
        follower.edge = SigningKey("ash", edge._private)
        change = make_rotation(ash.sign, follower.sign, now(), follower.edge)
        for step in (
            lambda again=again: approve(home, again.request(), "Dr. B"),
            lambda change=change: rotate(home, to_text(ash.sign.sign(change)), "Dr. B"),
        ):
            with pytest.raises(ConsiliumError, match="E808"):
                step()
    assert home.federation.read_bytes() == before


def test_a_member_that_was_approved_under_a_wrong_name_asks_again_with_its_keys(
    home: CoordinatorHome,
) -> None:
    (wrong,) = admitted(home, "elmm")
    remove(home, "elmm", "Dr. B")
    right = Hospital("elm")
    right.sign, right.edge = SigningKey("elm", wrong.sign._private), SigningKey("elm", wrong.edge._private)
    assert approve(home, right.request(), "Dr. B").site == "elm"


def test_who_took_part_cannot_be_removed(home: CoordinatorHome) -> None:
    admitted(home, "ash")
    sheet = home.study("tiny") / "sheets" / "ash.json"
    sheet.parent.mkdir(parents=True)
    sheet.write_text("{}")
    with pytest.raises(ConsiliumError, match=r"E810.*tiny"):
        remove(home, "ash", "Dr. B")
    assert load_federation(home).sites == ["ash"]


@pytest.mark.parametrize("line", [1, 2])
@pytest.mark.parametrize("damage", ["changed", "left out", "signed by another"])
def test_a_changed_log_of_decisions_is_noticed_and_nothing_is_decided(
    home: CoordinatorHome, damage: str, line: int
) -> None:
    admitted(home, "ash", "birch", "cedar")
    lines = home.decisions.read_bytes().splitlines(keepends=True)
    if damage == "changed":
        lines[line - 1] = lines[line - 1].replace(b"Dr. B", b"Dr. C")
    elif damage == "left out":
        del lines[line - 1]
    else:
        decision = read_decisions(home, coordinator_key(home).public)[line - 1]
        lines[line - 1] = to_text(SigningKey.generate("coordinator").sign(decision)).encode() + b"\n"
    home.decisions.write_bytes(b"".join(lines))
    before = home.federation.read_bytes()
    for step in (lambda: revoke(home, "ash", "r", "b"), lambda: log(home), lambda: admitted(home, "dogwood")):
        with pytest.raises(ConsiliumError, match="E813"):
            step()
    assert home.federation.read_bytes() == before


def test_half_a_line_of_a_crash_is_cut_off(home: CoordinatorHome) -> None:
    admitted(home, "ash")
    with open(home.decisions, "ab") as file:
        file.write(b'{"half')
    admitted(home, "birch")
    assert log(home) == [("ash", "admitted"), ("birch", "admitted")]


def test_the_edge_keys_are_read_again_only_when_the_registry_was_replaced(
    home: CoordinatorHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert edge_keys(home) == {}
    admitted(home, "ash")
    first = edge_keys(home)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda self: pytest.fail("read again"))
        assert edge_keys(home) is first
    revoke(home, "ash", "r", "b")
    assert edge_keys(home) == {}


def test_a_kit_names_the_active_members_and_holds_no_private_key(home: CoordinatorHome) -> None:
    ash, birch, cedar = admitted(home, "ash", "birch", "cedar")
    revoke(home, "cedar", "r", "b")
    rotate(home, birch.rotation(), "b")
    save_settings(home, Settings(federation="North", url="https://fed.example", tls=Tls(mode="proxy")))
    home.ca.parent.mkdir(parents=True)
    home.ca.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    text = startup_kit(home)
    kit = open_kit(text)
    assert {c.site: c.sign_key for c in kit.members} == {"ash": ash.sign.public, "birch": birch.sign.public}
    assert kit.coordinator_key == coordinator_key(home).public and kit.log_head == decisions_head(home)
    assert kit.ca == home.ca.read_text() and kit.url == "https://fed.example"
    assert "PRIVATE" not in text
    for key in (ash.sign, ash.edge, birch.sign, cedar.sign, coordinator_key(home)):
        raw = key._private.private_bytes_raw()
        for form in (
            raw.hex(),
            base64.b64encode(raw).decode()[:40],
            base64.urlsafe_b64encode(raw).decode()[:40],
        ):
            assert form not in text
    home.ca.write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(ConsiliumError, match="E112"):
        startup_kit(home)


def test_without_an_address_there_is_no_kit(home: CoordinatorHome) -> None:
    with pytest.raises(ConsiliumError, match=r"E112.*'url'"):
        startup_kit(home)


def test_the_coordinators_new_key_signs_and_its_old_one_is_known(home: CoordinatorHome) -> None:
    admitted(home, "ash")
    keys = [coordinator_key(home).public]
    for _ in range(2):
        rotation = rotate_coordinator(home, officer="Dr. B", reason="yearly")
        assert rotation.old_key == keys[0] and rotation.new_key == coordinator_key(home).public
        keys.insert(0, rotation.new_key)
    assert coordinator_keys(home) == keys
    admitted(home, "birch")
    assert [site for site, _ in log(home)] == ["ash", "coordinator", "coordinator", "birch"]
    with pytest.raises(ConsiliumError, match="E813"):
        read_decisions(home, keys[-1])  # an auditor who knows the first key alone is not left in doubt


def _rotate_until(home: CoordinatorHome, effect: int) -> None:
    count = 0
    for name in ("write", "fsync", "replace"):
        real = getattr(os, name)

        def counted(*arguments: object, real: object = real, **keywords: object) -> object:
            nonlocal count
            count += 1
            if count == effect:
                os._exit(9)
            return real(*arguments, **keywords)  # type: ignore[operator]

        setattr(os, name, counted)
    rotate_coordinator(home, officer="Dr. B", reason="yearly")


def test_a_crash_in_the_coordinators_rotation_leaves_what_the_same_command_completes(tmp_path: Path) -> None:
    for effect in range(1, 60):
        home = CoordinatorHome(tmp_path / str(effect))
        admitted(home, "ash")
        old = coordinator_key(home).public
        process = FORK.Process(target=_rotate_until, args=(home, effect))
        process.start()
        process.join(60)
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        assert old in coordinator_keys(home)
        rotation = rotate_coordinator(home, officer="Dr. B", reason="yearly")
        assert rotation.new_key == coordinator_key(home).public == coordinator_keys(home)[0]
        assert old in coordinator_keys(home) and log(home)[0] == ("ash", "admitted")
        enrol(home, {**_card("birch"), "declared_size": 100})
    assert process.exitcode == 0 and effect > 5


def _card(name: str) -> dict[str, object]:
    hospital = Hospital(name)
    return {"site": name, "sign_key": hospital.sign.public, "edge_key": hospital.edge.public}
