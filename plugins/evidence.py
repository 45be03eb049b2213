"""The pages of a study, for whoever is signed in to Airflow: where it stands, and what its model is worth."""

from __future__ import annotations

from typing import Annotated

from airflow.api_fastapi.core_api.security import GetUserDep
from fastapi import FastAPI, HTTPException
from fastapi import Path as InPath
from fastapi.responses import FileResponse, HTMLResponse, Response

from contracts.errors import ConsiliumError
from tasks.home import CoordinatorHome
from tasks.stopped import evidence_page

PREFIX = "/candidates"

Study = Annotated[str, InPath(pattern=r"^[a-z][a-z0-9-]{1,63}$")]

# A page is one file with its pictures inside; nothing in it needs to run or to be fetched.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def evidence_app(home: CoordinatorHome) -> FastAPI:
    """Build the application that the plugin mounts at `PREFIX`."""
    app = FastAPI(title="Consilium evidence", docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/{study}/validation.html")
    def page(study: Study, user: GetUserDep) -> Response:
        """The page of the candidate that waits or was approved last, or of the model that a gate stopped."""
        path = evidence_page(home, study)
        if not path.is_file():
            raise HTTPException(404, "no candidate, and no gate that stopped one")
        return FileResponse(path, media_type="text/html", headers=HEADERS)

    @app.get("/{study}/study.html")
    def standing(study: Study, user: GetUserDep) -> Response:
        """The study's page as of now."""
        from tasks.study_page import study_page  # jinja2: only when it is asked for

        try:
            return HTMLResponse(study_page(home, study), headers=HEADERS)
        except ConsiliumError as error:
            raise HTTPException(
                404 if error.number == "E102" else 409, f"{error.number} {error.sentence}"
            ) from None

    return app
