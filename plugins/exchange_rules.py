"""What a site may ask of the exchange; whose plan and whose content it is, the exchange itself decides."""

from __future__ import annotations

import re

from plugins.endpoint import Endpoint
from site_runtime.exchange import AUDIENCE

__all__ = ["AUDIENCE", "ENDPOINTS", "PREFIX", "SENDER"]

PREFIX = "/consilium/"
SENDER = "consilium.sender"  # in the scope of what passed: the site and the claims of its token

_BLOB = re.compile(r"blobs/[0-9a-f]{64}")
_UPLOAD = re.compile(r"plans/[0-9a-f]{64}/blobs/[0-9a-f]{64}")

ENDPOINTS = (
    Endpoint("get", "GET", _BLOB, "blobs/{digest}", audited=False),
    Endpoint("state", "GET", _UPLOAD, "plans/{plan}/blobs/{digest}", audited=False),
    Endpoint("put", "PUT", _UPLOAD, "plans/{plan}/blobs/{digest}"),
)
