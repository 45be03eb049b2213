"""Without the key: bytes, files, signatures and keys that were changed on the way."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from contracts.canonical import canonical_json
from release.contents import SIGNATURE
from release.signature import ORDER
from tests.release.mutations.world import FILES, MUTATIONS, Mutation, World, mutation


def changing(path: str, where: float) -> Callable[[World], None]:
    """One byte of a file is another."""

    def do(world: World) -> None:
        data = bytearray((world.folder / path).read_bytes())
        data[int(where * (len(data) - 1))] ^= 1
        (world.folder / path).write_bytes(data)

    return do


def edited(path: str, old: str, new: str) -> Callable[[World], None]:
    """A text in a file is another; the file keeps its form."""

    def do(world: World) -> None:
        text = (world.folder / path).read_text()
        assert old in text
        (world.folder / path).write_text(text.replace(old, new, 1))

    return do


for path in FILES:
    for where in (0.0, 0.5, 1.0):
        MUTATIONS.append(
            Mutation(f"byte at {where} of {path}", changing(path, where), "digests", "E701", f"{path} is not")
        )
for old, new in (
    ('"rounds":2', '"rounds":3'),
    ('"triggered_by":"operator"', '"triggered_by":"somebody"'),
    ('"role":"clinician"', '"role":"physician"'),
    ('"verified":"2026-01-01T00:02:00Z"', '"verified":"2026-01-01T00:01:00Z"'),
    ('"delta":0.0001', '"delta":0.0002'),
):
    MUTATIONS.append(
        Mutation(
            f"manifest: {new}", edited("manifest.json", old, new), "digests", "E701", "manifest.json is not"
        )
    )
for where in (0.0, 1.0):
    MUTATIONS.append(
        Mutation(f"byte at {where} of the manifest", changing("manifest.json", where), "manifest", "E802", "")
    )
MUTATIONS.append(
    Mutation("a blank in the manifest", edited("manifest.json", ",", ", "), "manifest", "E802", "canonical")
)
for step in range(8):
    MUTATIONS.append(
        Mutation(f"byte at {step}/7 of the signature", changing(SIGNATURE, step / 7), "signature", "E702", "")
    )


for path in FILES:
    MUTATIONS.append(
        Mutation(
            f"{path} is removed",
            lambda world, path=path: (world.folder / path).unlink(),
            "files",
            "E703",
            f"{path} is missing",
        )
    )
for path in ("extra.txt", ".hidden", ".gitignore", ".git/config", "manifest.json.bak", "ledgers/cedar.jsonl"):

    def _add(world: World, path: str = path) -> None:
        (world.folder / path).parent.mkdir(exist_ok=True)
        (world.folder / path).write_text("x")

    MUTATIONS.append(Mutation(f"{path} is added", _add, "files", "E703", f"{path} is not in the manifest"))
for path in ("model.onnx", "golden.json", "ledgers/ash.jsonl"):

    def _rename(world: World, path: str = path) -> None:
        (world.folder / path).rename(world.folder / f"{path}.old")

    MUTATIONS.append(Mutation(f"{path} is renamed", _rename, "files", "E703", f"{path} is missing"))
for path in ("model.onnx", "validation.html", "data_sheets/ash.json"):

    def _link(world: World, path: str = path) -> None:
        elsewhere = world.folder.parent / f"elsewhere-{Path(path).name}"
        (world.folder / path).rename(elsewhere)
        os.symlink(elsewhere, world.folder / path)

    MUTATIONS.append(Mutation(f"{path} is a link", _link, "files", "E703", f"{path} is a link"))


@mutation("files", "E703", "ledgers is a link")
def a_folder_is_a_link(world: World) -> None:
    (world.folder / "ledgers").rename(world.folder.parent / "elsewhere")
    os.symlink(world.folder.parent / "elsewhere", world.folder / "ledgers")


@mutation("files", "E703", "empty is not in the manifest")
def an_empty_folder_is_added(world: World) -> None:
    (world.folder / "empty").mkdir()


@mutation("files", "E703", "pipe is not in the manifest")
def a_pipe_is_added(world: World) -> None:
    os.mkfifo(world.folder / "pipe")


@mutation("manifest", "E703", "manifest.json")
def the_manifest_is_removed(world: World) -> None:
    (world.folder / "manifest.json").unlink()


@mutation("signature", "E702", "release.sig")
def the_signature_is_removed(world: World) -> None:
    (world.folder / SIGNATURE).unlink()


@mutation("digests", "E701", "ledgers/ash.jsonl is not")
def two_hospitals_ledgers_are_swapped(world: World) -> None:
    one, two = world.folder / "ledgers/ash.jsonl", world.folder / "ledgers/birch.jsonl"
    first, second = one.read_bytes(), two.read_bytes()
    one.write_bytes(second)
    two.write_bytes(first)


@mutation("digests", "E701", "manifest.json is not")
def an_older_manifest(world: World) -> None:
    shutil.copy(world.older.folder / "manifest.json", world.folder)


@mutation("digests", "E701", "model.onnx is not")
def an_older_manifest_with_its_signature(world: World) -> None:
    for name in ("manifest.json", SIGNATURE):
        shutil.copy(world.older.folder / name, world.folder)


@mutation("digests", "E701", "manifest.json is not")
def an_older_signature(world: World) -> None:
    shutil.copy(world.older.folder / SIGNATURE, world.folder)


def respell(world: World, change: Callable[[dict[str, Any]], None], canonical: bool = True) -> None:
    """Change the bundle without the key."""
    document = json.loads((world.folder / SIGNATURE).read_bytes())
    change(document)
    data = canonical_json(document) if canonical else json.dumps(document).encode()
    (world.folder / SIGNATURE).write_bytes(data)


@mutation("signature", "E702", "by the key")
def another_key(world: World) -> None:
    world.it.rewrite(key=world.stranger)


@mutation("signature", "E702", "by the key")
def a_key_swapped_inside_the_release(world: World) -> None:
    world.it.rewrite({"release.pub.pem": world.stranger.public.pem.encode()}, key=world.stranger)


@mutation("signature", "E702", "does not match")
def another_key_under_the_trusted_name(world: World) -> None:
    world.it.rewrite(key=world.stranger)
    named = world.it.key.public.fingerprint
    respell(world, lambda d: d["verificationMaterial"]["publicKey"].update(hint=named))


@mutation("signature", "E702", "does not match")
def the_payload_names_another_digest(world: World) -> None:
    def change(document: dict[str, Any]) -> None:
        payload = json.loads(base64.b64decode(document["dsseEnvelope"]["payload"]))
        payload["predicate"]["resources"][0]["digest"] = "0" * 64
        document["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()

    respell(world, change)


@mutation("signature", "E702", "does not match")
def the_higher_s(world: World) -> None:
    def change(document: dict[str, Any]) -> None:
        line = document["dsseEnvelope"]["signatures"][0]
        r, s = decode_dss_signature(base64.b64decode(line["sig"]))
        line["sig"] = base64.b64encode(encode_dss_signature(r, ORDER - s)).decode()

    respell(world, change)


@mutation("signature", "E702", "one spelling")
def a_further_field_in_the_signature(world: World) -> None:
    respell(world, lambda document: document.update(note="read me"))


@mutation("signature", "E702", "one spelling")
def a_second_signature(world: World) -> None:
    respell(world, lambda d: d["dsseEnvelope"]["signatures"].append(d["dsseEnvelope"]["signatures"][0]))


@mutation("signature", "E702", "one spelling")
def the_signature_in_other_json(world: World) -> None:
    respell(world, lambda document: None, canonical=False)


@mutation("signature", "E702", "one spelling")
def a_newline_after_the_signature(world: World) -> None:
    with (world.folder / SIGNATURE).open("ab") as file:
        file.write(b"\n")


@mutation("signature", "E702", "no bundle")
def an_empty_signature(world: World) -> None:
    (world.folder / SIGNATURE).write_bytes(b"")
