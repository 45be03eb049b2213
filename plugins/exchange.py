"""The exchange over HTTP: a site puts its own answer to the open plan, and gets what a plan of its names."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request, Response
from fastapi import Path as InPath
from fastapi.responses import FileResponse

from contracts.errors import ConsiliumError
from contracts.plan import RoundPlan
from plugins.identity import Keys, Refused, first_authorisation
from privacy.excerpt import MAX_EXCERPT_BYTES
from site_runtime.exchange import AUDIENCE
from tasks.exchange import DirectoryExchange
from tasks.home import CoordinatorHome
from tasks.late import note_late
from tasks.store import open_plan

SMALLEST_BOUND_BYTES = 16 << 20  # statistics, and updates of small models
UPDATES_PER_MODEL = 3  # an update may hold control variates or second moments beside its weights

# An update, or with an evaluation the excerpt of a privacy ledger.
TAKES = ("statistics", "training", "histogram", "evaluation")

Hex = Annotated[str, InPath(pattern=r"^[0-9a-f]{64}$")]


@dataclass
class Plans:
    """The signed plans of all studies, read once each."""

    home: CoordinatorHome
    _known: dict[str, RoundPlan] = field(default_factory=dict)

    def plan(self, digest: str) -> RoundPlan | None:
        """The plan with this digest, if the coordinator signed one."""
        if digest not in self._known:
            for path in self.home.studies.glob(f"*/plans/{digest}.json"):
                self._learn(path)
        return self._known.get(digest)

    def is_open(self, digest: str, plan: RoundPlan) -> bool:
        """Say whether the head of the plan's study waits for answers to this plan."""
        try:
            head = json.loads((self.home.study(plan.study) / "head.json").read_bytes())
        except (OSError, ValueError):
            return False
        return bool(head.get("plan") == digest)

    def may_read(self, site: str, digest: str) -> bool:
        """Say whether a plan with `site` on its roster names `digest`."""
        if self._names(site, digest):
            return True
        for path in self.home.studies.glob("*/plans/*.json"):
            if path.stem not in self._known:
                self._learn(path)
        return self._names(site, digest)

    def _names(self, site: str, digest: str) -> bool:
        return any(
            digest in (plan.base_model, plan.artefact, *plan.baselines.values(), plan.folds.get(site))
            and plan.entry(site) is not None
            for plan in self._known.values()
        )

    def _learn(self, path: Path) -> None:
        try:
            plan = open_plan(self.home, path.read_bytes())
        except (ConsiliumError, OSError):
            return
        self._known[path.stem] = plan


def exchange_app(home: CoordinatorHome, keys: Keys | None = None) -> FastAPI:
    """Build the application that the plugin mounts at `/consilium`."""
    app = FastAPI(title="Consilium exchange", docs_url=None, redoc_url=None, openapi_url=None)
    keys = keys or Keys(home)
    plans = Plans(home)
    store = DirectoryExchange(home.exchange)

    @app.put("/plans/{plan}/blobs/{digest}", status_code=201)
    async def put(plan: Hex, digest: Hex, request: Request) -> dict[str, str]:
        site, claims = _sender(keys, request)
        length = _declared_length(request)
        if claims.get("sha256") != digest or claims.get("length") != length:
            raise HTTPException(403, "the token is for another body")
        opened = plans.plan(plan)
        if opened is None or opened.entry(site) is None:
            raise HTTPException(403, "no plan of this digest names this site")
        receipt = home.study(opened.study) / "received" / plan / site
        if opened.kind not in TAKES or not plans.is_open(plan, opened):
            if opened.kind in TAKES and not receipt.exists():
                note_late(home, opened, plan, site)
            raise HTTPException(409, "this plan takes no update")
        if length > _bound(store, opened):
            raise HTTPException(413, "larger than what answers this plan can be")
        if receipt.exists():
            if receipt.read_text() != digest:
                raise HTTPException(409, "another update of this site for this plan is here")
            if store.path_of(digest).is_file():
                return {"sha256": digest}
        temporary = await _receive(request, store.root, digest, length)
        try:
            _once(receipt, digest)
            store.adopt(temporary, digest)
        finally:
            temporary.unlink(missing_ok=True)
        return {"sha256": digest}

    @app.get("/blobs/{digest}")
    async def get(digest: Hex, request: Request) -> Response:
        site, _ = _sender(keys, request)
        if not plans.may_read(site, digest):
            raise HTTPException(403, "no plan of this site names this digest")
        path = store.path_of(digest)
        if not path.is_file():
            raise HTTPException(404, "not in the exchange")
        return FileResponse(path, media_type="application/octet-stream")

    return app


def _sender(keys: Keys, request: Request) -> tuple[str, dict[str, Any]]:
    """Verify that a site signed this very request."""
    try:
        site, claims = keys.site_of(first_authorisation(request.scope["headers"]), AUDIENCE)
    except Refused as refusal:
        raise HTTPException(refusal.status, "token refused") from refusal
    if claims.get("method") != request.method or claims.get("path") != request.url.path:
        raise HTTPException(403, "the token is for another request")
    return site, claims


def _declared_length(request: Request) -> int:
    try:
        return int(request.headers["content-length"])
    except (KeyError, ValueError) as error:
        raise HTTPException(411, "Content-Length is needed") from error


def _bound(store: DirectoryExchange, plan: RoundPlan) -> int:
    """Largest update in bytes that a plan's model allows; for an evaluation, largest excerpt of a ledger."""
    if plan.kind == "evaluation":
        return MAX_EXCERPT_BYTES
    base = store.path_of(plan.base_model) if plan.base_model else None
    size = base.stat().st_size if base is not None and base.is_file() else 0
    return max(SMALLEST_BOUND_BYTES, UPDATES_PER_MODEL * size)


async def _receive(request: Request, folder: Path, digest: str, length: int) -> Path:
    """Stream the body into a temporary file of the store and verify it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".incoming.")
    sha, size = hashlib.sha256(), 0
    try:
        with os.fdopen(descriptor, "wb") as file:
            async for block in request.stream():
                size += len(block)
                if size > length:
                    raise HTTPException(400, "longer than declared")
                sha.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
        if size != length or sha.hexdigest() != digest:
            raise HTTPException(400, "the body is not what its digest says")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return Path(name)


def _once(receipt: Path, digest: str) -> None:
    """Note that a site answered a plan; of two at once the first wins.

    The note appears with its content: an empty one, left by a server that was killed, would bar the site.
    """
    receipt.parent.mkdir(parents=True, exist_ok=True)
    descriptor, whole = tempfile.mkstemp(dir=receipt.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        os.link(whole, receipt)
    except FileExistsError as error:
        if receipt.read_text() != digest:
            raise HTTPException(409, "another update of this site for this plan is here") from error
    finally:
        os.unlink(whole)
