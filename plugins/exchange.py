"""The exchange over HTTP: a site puts its own answer to the open plan, and gets what a plan of its names."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse

from contracts.errors import ConsiliumError
from contracts.masking import UnmaskRequest
from contracts.plan import RoundPlan
from durable.files import locked, write_atomic
from durable.partial import Partial
from plugins.exchange_rules import SENDER
from plugins.identity import Claims
from plugins.uploads import Upload, body_start
from privacy.excerpt import MAX_EXCERPT_BYTES
from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome
from tasks.late import note_late
from tasks.own_documents import open_own
from tasks.settings import load_settings

SMALLEST_BOUND_BYTES = 16 << 20  # statistics, and updates of small models
UPDATES_PER_MODEL = 3  # an update may hold control variates or second moments beside its weights
BYTES_MASKED = 2  # a masked number has 64 bits, one of a model 32
BYTES_OF_SHARES = 128  # at most, of each pair of hospitals: encrypted share, commitment, and what frames them

# An update, or with an evaluation the excerpt of a privacy ledger.
TAKES = ("statistics", "training", "histogram", "evaluation")

Hex = Annotated[str, InPath(pattern=r"^[0-9a-f]{64}$")]


class _Blob(FileResponse):
    """A file in larger pieces than the default of 64 kB: each costs a change of threads."""

    chunk_size = 1 << 20


@dataclass
class Documents:
    """The signed plans and requests to unmask of all studies, read once each."""

    home: CoordinatorHome
    _plans: dict[str, RoundPlan] = field(default_factory=dict)
    _requests: dict[str, UnmaskRequest] = field(default_factory=dict)
    _lock: Lock = field(default_factory=Lock)  # looked up in threads: studies may have thousands of plans

    def plan(self, digest: str) -> RoundPlan | None:
        """The plan with this digest, if the coordinator signed one."""
        with self._lock:
            if digest not in self._plans:
                self._learn(f"*/plans/{digest}.json")
            return self._plans.get(digest)

    def is_open(self, digest: str, plan: RoundPlan) -> bool:
        """Say whether the head of the plan's study waits for answers to this plan."""
        try:
            head = json.loads((self.home.study(plan.study) / "head.json").read_bytes())
        except (OSError, ValueError):
            return False
        return bool(head.get("plan") == digest)

    def may_read(self, site: str, digest: str) -> bool:
        """Say whether a plan with `site` on its roster, or a request to it, names `digest`."""
        with self._lock:
            if self._names(site, digest):
                return True
            self._learn("*/plans/*.json")
            self._learn("*/requests/*.json")
            return self._names(site, digest)

    def _names(self, site: str, digest: str) -> bool:
        return any(
            digest in (plan.base_model, plan.artefact, *plan.baselines.values(), plan.folds.get(site))
            and plan.entry(site) is not None
            for plan in self._plans.values()
        ) or any(request.shares.get(site) == digest for request in self._requests.values())

    def _learn(self, pattern: str) -> None:
        for path in self.home.studies.glob(pattern):
            if path.stem in self._plans or path.stem in self._requests:
                continue
            with contextlib.suppress(ConsiliumError, OSError):
                if path.parent.name == "plans":
                    self._plans[path.stem] = open_own(self.home, path.read_bytes(), RoundPlan)
                else:
                    self._requests[path.stem] = open_own(self.home, path.read_bytes(), UnmaskRequest)


def _sender(request: Request) -> tuple[str, Claims]:
    """The site that signed this very request, and what its token says of it, as the gate verified them.

    Raises:
        HTTPException: 403, it did not pass the gate.
    """
    try:
        site, claims = request.scope[SENDER]
    except KeyError as error:
        raise HTTPException(403, "this did not pass the gate") from error
    return site, claims


def exchange_app(home: CoordinatorHome) -> FastAPI:
    """Build the application that the plugin mounts at `/consilium`."""
    app = FastAPI(title="Consilium exchange", docs_url=None, redoc_url=None, openapi_url=None)
    documents = Documents(home)
    store = DirectoryExchange(home.exchange)

    @app.get("/plans/{plan}/blobs/{digest}")
    async def state(plan: Hex, digest: Hex, request: Request) -> dict[str, int | bool]:
        """How much of an upload is here; refused like the upload itself, before its body is sent."""
        site, claims = _sender(request)
        opened = await asyncio.to_thread(_answerable, documents, plan, site)
        upload = _upload(home, store, opened, (plan, site, digest), claims)
        if _received(home, opened, plan, site, digest) and store.path_of(digest).is_file():
            return {"offset": upload.length, "complete": True}
        upload.check_room()
        return {"offset": upload.offset(), "complete": False}

    @app.put("/plans/{plan}/blobs/{digest}", status_code=201)
    async def put(plan: Hex, digest: Hex, request: Request) -> dict[str, str]:
        """Take the body, from where an earlier one ended (Content-Range), and store it when it is whole."""
        site, claims = _sender(request)
        opened = await asyncio.to_thread(_answerable, documents, plan, site)
        upload = _upload(home, store, opened, (plan, site, digest), claims)
        start = body_start(request, upload.length)
        if claims.get("offset", 0) != start:
            raise HTTPException(403, "the token is for another body")
        if _received(home, opened, plan, site, digest) and store.path_of(digest).is_file():
            return {"sha256": digest}
        partial = await upload.receive(request, start)
        await asyncio.to_thread(_store, home, store, opened, (plan, site, digest), partial)
        return {"sha256": digest}

    @app.get("/blobs/{digest}")
    async def get(digest: Hex, request: Request) -> Response:
        """A content, or the rest of it (Range with If-Range: the entity tag is the digest)."""
        site, _ = _sender(request)
        if not await asyncio.to_thread(documents.may_read, site, digest):
            raise HTTPException(403, "no plan of this site names this digest")
        if "," in request.headers.get("range", ""):
            raise HTTPException(400, "one range at a time")
        path = store.path_of(digest)
        if not path.is_file():
            raise HTTPException(404, "not in the exchange")
        return _Blob(path, media_type="application/octet-stream", headers={"etag": f'"{digest}"'})

    return app


def _answerable(documents: Documents, plan: str, site: str) -> RoundPlan:
    """The open plan that a site may answer with tensors."""
    opened = documents.plan(plan)
    if opened is None or opened.entry(site) is None:
        raise HTTPException(403, "no plan of this digest names this site")
    if opened.kind not in TAKES or not documents.is_open(plan, opened):
        if opened.kind in TAKES and not _receipt(documents.home, opened, plan, site).exists():
            note_late(documents.home, opened, plan, site)
        raise HTTPException(409, "this plan takes no update")
    return opened


def _upload(
    home: CoordinatorHome,
    store: DirectoryExchange,
    opened: RoundPlan,
    name: tuple[str, str, str],
    claims: Claims,
) -> Upload:
    """What the token of a request is about: plan, site and digest, and the length that it names."""
    length = claims.get("length")
    if claims.get("sha256") != name[2] or type(length) is not int or length < 0:
        raise HTTPException(403, "the token is for another body")
    if length > _bound(store, opened):
        raise HTTPException(413, "larger than what answers this plan can be")
    return Upload(store.partial.joinpath(*name), length, load_settings(home).exchange.quota_bytes)


def _bound(store: DirectoryExchange, plan: RoundPlan) -> int:
    """Largest update in bytes that a plan's model allows; for an evaluation, largest excerpt of a ledger."""
    if plan.kind == "evaluation":
        return MAX_EXCERPT_BYTES
    base = store.path_of(plan.base_model) if plan.base_model else None
    size = base.stat().st_size if base is not None and base.is_file() else 0
    masked = [entry for entry in plan.roster if entry.mask is not None]
    if masked:
        size = BYTES_MASKED * size
    return max(SMALLEST_BOUND_BYTES, UPDATES_PER_MODEL * size) + BYTES_OF_SHARES * len(masked) ** 2


def _received(home: CoordinatorHome, opened: RoundPlan, plan: str, site: str, digest: str) -> bool:
    """Say whether this very content answers the plan already; another one is refused."""
    receipt = _receipt(home, opened, plan, site)
    known = receipt.read_text() if receipt.exists() else ""
    if known not in ("", digest):
        raise HTTPException(409, "another update of this site for this plan is here")
    return known == digest


def _receipt(home: CoordinatorHome, opened: RoundPlan, plan: str, site: str) -> Path:
    return home.study(opened.study) / "received" / plan / site


def _store(
    home: CoordinatorHome,
    store: DirectoryExchange,
    opened: RoundPlan,
    name: tuple[str, str, str],
    partial: Partial,
) -> None:
    """Note that a site answered a plan, of two at once the first, and give the content its place.

    A crash between the two leaves a note without its content: the site sends the same again.

    Raises:
        HTTPException: 409, another one was first; 422, it is not what its digest says; 507, the disk is full.
    """
    plan, site, digest = name
    receipt = _receipt(home, opened, plan, site)
    try:
        if partial.digest != digest:
            raise HTTPException(422, "the body is not what its digest says")
        with locked(receipt.parent.parent / ".lock"):
            if not _received(home, opened, plan, site, digest):
                write_atomic(receipt, digest.encode())
        partial.move(store.path_of(digest))
    except ConsiliumError as error:
        partial.close()
        raise HTTPException(507, error.sentence) from error
    except BaseException:
        partial.discard()
        raise
    shutil.rmtree(partial.path.parent, ignore_errors=True)  # what else it began can answer nothing any more
