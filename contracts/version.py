"""The version of the code that a plan may accept and a site states."""

from __future__ import annotations

CODE_VERSION = "0.4.0"
