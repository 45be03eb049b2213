"""The validation page of a candidate or of a stopped model, for whoever is signed in to Airflow."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import FastAPI, HTTPException
from fastapi import Path as InPath
from fastapi.responses import FileResponse, Response

from tasks.home import CoordinatorHome
from tasks.stopped import evidence_page

PREFIX = "/candidates"

# The page is one file with its pictures inside; nothing in it needs to run or to be fetched.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def evidence_app(home: CoordinatorHome) -> FastAPI:
    """Build the application that the plugin mounts at `PREFIX`."""
    app = FastAPI(title="Consilium evidence", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/{study}/validation.html")
    def page(study: Annotated[str, InPath(pattern=r"^[a-z][a-z0-9-]{1,63}$")], user: GetUserDep) -> Response:
        """The page of the candidate that waits or was approved last, or of the model that a gate stopped."""
        path = evidence_page(home, study)
        if not path.is_file():
            raise HTTPException(404, "no candidate, and no gate that stopped one")
        return FileResponse(path, media_type="text/html", headers=HEADERS)

    return app
