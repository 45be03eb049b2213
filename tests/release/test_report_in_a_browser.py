"""The validation page in a real browser: it fits a phone, follows the reader's theme and asks nobody."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from release.report import validation_page
from tests.full_facts import full_facts

pytestmark = pytest.mark.slow
LONG = "hospital_with_a_name_as_long_as_"  # 32 characters, the most that a name may have


@pytest.fixture(scope="module")
def page() -> str:
    assert len(LONG) == 32
    return validation_page(full_facts({LONG: 700, "ash": 500, "hazel": 40}))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: `make debian` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def opened(browser: Any, tmp_path: Any, page: str, **options: Any) -> Any:
    """The page from a file, in a window of its own."""
    path = tmp_path / "validation.html"
    path.write_text(page, encoding="utf-8")
    view = browser.new_page(**options)
    view.complaints, view.asked = [], []
    view.on("console", lambda message: view.complaints.append(message.text))
    view.on("request", lambda request: view.asked.append(request.url))
    view.goto(path.as_uri())
    return view


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser, tmp_path, page, width):
    view = opened(browser, tmp_path, page, viewport={"width": width, "height": 900})
    assert view.evaluate("document.documentElement.scrollWidth") <= width


def test_a_usual_hospital_name_stays_on_one_line_of_every_table_on_a_phone(browser, tmp_path):
    page = validation_page(full_facts({"switzerland": 700, "ash": 500}))
    view = opened(browser, tmp_path, page, viewport={"width": 390, "height": 900})
    heights = view.evaluate(
        "[...document.querySelectorAll('.scroll tbody th')]"
        ".filter(t => t.textContent.trim() == 'switzerland')"
        ".map(t => { const r = document.createRange(); r.selectNodeContents(t);"
        " return new Set([...r.getClientRects()].map(b => b.top)).size })"
    )
    assert len(heights) > 3 and set(heights) == {1}


def test_the_page_asks_for_nothing_but_itself_and_breaks_no_policy(browser, tmp_path, page):
    view = opened(browser, tmp_path, page)
    assert len(view.asked) == 1 and view.complaints == []


def test_the_figures_follow_the_theme(browser, tmp_path, page):
    seen = []
    for theme in ("light", "dark"):
        view = opened(browser, tmp_path, page, color_scheme=theme)
        read = "s => getComputedStyle(document.querySelector(s))"
        seen.append(
            (
                view.evaluate(f"({read})('section').backgroundColor"),
                view.evaluate(f"({read})('.panel .own').stroke"),
                view.evaluate(f"({read})('.diamond').fill"),
            )
        )
    assert all(light != dark for light, dark in zip(*seen, strict=True))


def test_it_prints_on_a4(browser, tmp_path, page):
    view = opened(browser, tmp_path, page)
    assert view.pdf(prefer_css_page_size=True, print_background=True).count(b"/MediaBox [0 0 59") >= 3
