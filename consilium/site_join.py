"""`consilium site` enrol, join, rotate, peers, card: a hospital's part in knowing and being known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from consilium.output import Json, file_to_write, home_folder, print_json, reporting_refusals, screen
from consilium.site_home import Home, MaybeOfficer, MaybeReason, Site, find_site
from contracts.errors import ConsiliumError

if TYPE_CHECKING:
    from site_runtime.home import SiteHome
    from site_runtime.joining import Joined


def _to_write(name: str) -> Any:
    return typer.Option("--out", help=f"File to write; {name} here.", callback=file_to_write())


_TOLD = typer.Option("--fingerprint", help="What the other side read out to you.")
Told = Annotated[str, _TOLD]
MaybeTold = Annotated[str | None, _TOLD]
Peer = Annotated[str, typer.Argument(metavar="SITE", help="The other hospital.")]

peers = typer.Typer(no_args_is_help=True, help="The other hospitals' keys: compare and pin them.")


def enrol(
    name: Annotated[str, typer.Argument(metavar="SITE", help="The name that site.yaml says.")],
    config: Annotated[
        Path | None,
        typer.Option("--config", exists=True, dir_okay=False, help="site.yaml; of an enrolled site its own."),
    ] = None,
    out: Annotated[Path | None, _to_write("<site>.request.json")] = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make this hospital's keys, once, and a request to be a member. No private key leaves the home."""
    from site_runtime.config import load_site, load_site_file
    from site_runtime.enrol import enrol_site, join_request
    from site_runtime.home import SiteHome

    with reporting_refusals(json):
        place = SiteHome(home or home_folder() / "sites" / name)
        if config is None and not place.config.exists():
            raise ConsiliumError("E103", f"--config is missing, and {place.config} does not exist")
        found = load_site_file(config).site if config is not None else load_site(place).site
        if found != name:
            raise ConsiliumError("E103", f"field 'site': {found!r}, expected {name!r}")
        if config is not None:
            enrol_site(place, config)
        path = _write(out or Path(f"{name}.request.json"), join_request(place))
        facts = {**card_facts(place), "request": str(path)}
        if json:
            print_json(facts)
            return
        screen.print(
            f"{place.root} is the hospital's own folder: keep it, and keep it private.", highlight=False
        )
        screen.print(f"[green]written[/] {path}: send it to the coordinator.", highlight=False)
        _print_fingerprints(facts)
        screen.print(
            "The coordinator rings you up: read out the fingerprint of the signing key, and have the"
        )
        screen.print("coordinator's read out to you. Then: consilium site join KIT --fingerprint ...")


def join(
    file: Annotated[Path, typer.Argument(metavar="KIT", exists=True, dir_okay=False)],
    fingerprint: MaybeTold = None,
    exchange: Annotated[
        str | None,
        typer.Option(help="The bucket of the kit, to allow it: your policy names it from now on."),
    ] = None,
    site: Site = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Take the coordinator's startup kit. The first time it needs the fingerprint that you were told."""
    from site_runtime.joining import join as take
    from site_runtime.joining import peers_of

    with reporting_refusals(json):
        place = find_site(site, home)
        done = take(place, file.read_bytes().strip(), fingerprint, exchange)
        others = peers_of(place)
        facts = {
            **card_facts(place),
            "federation": done.kit.federation,
            "url": done.kit.url,
            "exchange": {"offered": done.kit.exchange, "allowed": done.bucket},
            "coordinator_changed": done.coordinator_changed,
            "rotated": done.rotated,
            "followed": done.followed,
            "peers": {peer.site: peer.standing for peer in others},
        }
        if json:
            print_json(facts)
            return
        screen.print(f"[green]joined[/] {done.kit.federation} at {done.kit.url}", highlight=False)
        _print_exchange(done)
        if done.coordinator_changed:
            screen.print("The coordinator has a new key, signed by the one that was pinned.")
        if done.rotated:
            screen.print(
                "Your new keys are in force, the ledgers know them; a running worker reads them itself."
            )
        if done.followed:
            screen.print(f"New keys, signed by those you had pinned: {', '.join(done.followed)}")
        changed = [peer.site for peer in others if peer.standing == "changed"]
        if changed:
            screen.print(
                f"[bold red]Another key than the one you pinned[/]: {', '.join(changed)}. Ring them up."
            )
        offered = [peer.site for peer in others if peer.standing == "offered"]
        if offered:
            screen.print(f"Not pinned yet: {', '.join(offered)} (consilium site peers pin)", highlight=False)


def _print_exchange(done: Joined) -> None:
    if done.bucket is not None:
        screen.print(f"Models and updates go by {done.bucket}, as your policy allows.", highlight=False)
    elif done.kit.exchange is not None:
        screen.print(
            f"[yellow]The federation also keeps models and updates in {done.kit.exchange}.[/] "
            "Your policy does not name it: yours go to the coordinator alone.",
            highlight=False,
        )
        screen.print(f"To allow it: consilium site join KIT --exchange {done.kit.exchange}", soft_wrap=True)


def rotate(
    officer: MaybeOfficer = None,
    reason: MaybeReason = None,
    out: Annotated[Path | None, _to_write("<site>.rotation.json")] = None,
    finish: Annotated[
        bool, typer.Option("--finish", help="Put the new keys in force now, whatever the coordinator knows.")
    ] = False,
    site: Site = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Make new keys and a change signed by the old one; in force when the coordinator's kit comes."""
    from site_runtime.config import load_site
    from site_runtime.rotation import begin_rotation, finish_rotation, pending_rotation

    with reporting_refusals(json):
        place = find_site(site, home)
        pending = pending_rotation(place)
        if pending is not None:
            officer, reason = pending.officer, pending.reason
        if officer is None or reason is None:
            raise ConsiliumError("E417", "expected --officer and --reason: the ledgers keep both")
        text = begin_rotation(place, officer=officer, reason=reason)
        path = _write(out or Path(f"{load_site(place).site}.rotation.json"), text)
        if finish:
            finish_rotation(place)
        facts = {**card_facts(place), "rotation": str(path), "finished": finish}
        if json:
            print_json(facts)
            return
        screen.print(f"[green]written[/] {path}: send it to the coordinator.", highlight=False)
        if finish:
            screen.print("The new keys are in force here; a running worker reads them by itself.")
        else:
            screen.print("The old keys are in use until you take the kit that comes: consilium site join KIT")
        _print_fingerprints(facts)


def card(site: Site = None, home: Home = None, json: Json = False) -> None:
    """Show this hospital's keys and the coordinator's by their fingerprints, to be read out."""

    with reporting_refusals(json):
        facts = card_facts(find_site(site, home))
        if json:
            print_json(facts)
            return
        screen.print(f"[bold]{facts['site']}[/] declared size {facts['declared_size']}", highlight=False)
        _print_fingerprints(facts)


@peers.command("list")
def list_command(site: Site = None, home: Home = None, json: Json = False) -> None:
    """List the other hospitals: pinned, offered by the coordinator, or offered with another key."""
    from contracts.enrolment import fingerprint
    from site_runtime.joining import peers_of

    with reporting_refusals(json):
        found = peers_of(find_site(site, home))
        if json:
            print_json(
                [
                    {"site": p.site, "standing": p.standing, "fingerprint": fingerprint(p.sign_key)}
                    for p in found
                ]
            )
            return
        if not found:
            screen.print("No other hospital is known here.")
            return
        table = Table(title="Other hospitals", title_justify="left")
        for column in ("hospital", "key", "fingerprint"):
            table.add_column(column, overflow="fold")
        colours = {"pinned": "green", "changed": "bold red"}
        for peer in found:
            colour = colours.get(peer.standing, "yellow")
            table.add_row(peer.site, f"[{colour}]{peer.standing}[/]", fingerprint(peer.sign_key))
        screen.print(table)


@peers.command()
def show(
    name: Peer,
    site: Site = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Show the fingerprint of one hospital's key, as offered and as pinned."""
    from contracts.enrolment import fingerprint
    from site_runtime.peers import load_peers

    with reporting_refusals(json):
        place = find_site(site, home)
        peer, pinned = _peer(place, name), load_peers(place).get(name)
        facts = {
            "site": name,
            "standing": peer.standing,
            "offered": fingerprint(peer.sign_key),
            "pinned": None if pinned is None else fingerprint(pinned),
        }
        if json:
            print_json(facts)
            return
        screen.print(f"[bold]{name}[/] {peer.standing}", highlight=False)
        for word in ("offered", "pinned"):
            screen.print(f"{word}: {facts[word] or 'no'}", highlight=False, soft_wrap=True)


@peers.command()
def pin(
    name: Peer,
    fingerprint: Told,
    replace: Annotated[
        bool, typer.Option("--replace", help="In the place of another key, as after a revocation.")
    ] = False,
    site: Site = None,
    home: Home = None,
    json: Json = False,
) -> None:
    """Pin the key that the kit offers, if it is the one whose fingerprint that hospital told you."""
    from contracts.enrolment import check_fingerprint
    from site_runtime.peers import pin_peer

    with reporting_refusals(json):
        place = find_site(site, home)
        key = _peer(place, name).sign_key
        check_fingerprint(fingerprint, key)
        pin_peer(place, name, key, replace=replace)
        if json:
            print_json({"site": name, "pinned": key})
        else:
            screen.print(f"[green]pinned[/] {name}", highlight=False)


def _peer(home: SiteHome, name: str) -> Any:
    from site_runtime.joining import peers_of

    found = {peer.site: peer for peer in peers_of(home)}
    if name not in found:
        raise ConsiliumError(
            "E807", f"no kit offers a key of {name!r}; known: {', '.join(found) or 'nobody'}"
        )
    return found[name]


def card_facts(home: SiteHome) -> dict[str, Any]:
    """Name, size and fingerprints of an enrolled site, and the coordinator's."""
    from contracts.enrolment import fingerprint
    from site_runtime.enrol import site_card
    from site_runtime.rotation import pending_keys

    own, waiting = site_card(home), pending_keys(home)
    pinned = home.coordinator_key.read_text().strip() if home.coordinator_key.exists() else None
    fingerprints = {
        "sign_key": fingerprint(own.sign_key),
        "edge_key": fingerprint(own.edge_key),
        "next_sign_key": None if waiting is None else fingerprint(waiting.new_key),
        "coordinator": None if pinned is None else fingerprint(pinned),
    }
    return {"site": own.site, "declared_size": own.declared_size, "fingerprints": fingerprints}


def _print_fingerprints(facts: dict[str, Any]) -> None:
    names = {
        "sign_key": "signing key",
        "edge_key": "edge key",
        "next_sign_key": "signing key that waits for the coordinator",
        "coordinator": "the coordinator's key, pinned here",
    }
    for name, words in names.items():
        if facts["fingerprints"][name] is not None:
            screen.print(f"{words}:", highlight=False)
            screen.print(f"  {facts['fingerprints'][name]}", highlight=False, soft_wrap=True)


def _write(path: Path, text: str) -> Path:
    from durable.files import write_atomic

    write_atomic(path.absolute(), text.encode())
    return path
