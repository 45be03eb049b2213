"""Headless Chromium (a Debian package; `make debian`), signed in to the platform's Airflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from consilium.airflow_home import password
from consilium.platform import Platform

# It must not look for its maker's hosts, and it runs as root in CI.
OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def signed_in(platform: Platform, user: str) -> Iterator[Any]:
    """A page of a browser in which `user` is signed in; the test is skipped where there is no Chromium."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: `make debian` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=list(OPTIONS))
        try:
            page = browser.new_page(viewport={"width": 1280, "height": 900})
            page.set_default_timeout(60_000)
            page.goto(f"{platform.url}/auth/login")
            page.fill('input[name="username"]', user)
            page.fill('input[name="password"]', password(platform.coordinator, user))
            page.keyboard.press("Enter")
            page.get_by_text("Dags", exact=True).first.wait_for()
            yield page
        finally:
            browser.close()
