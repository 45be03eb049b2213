"""The study's page in a real browser: it fits a phone, follows the reader's theme and asks nobody."""

from __future__ import annotations

import shutil

import pytest

from tasks.rounds import close_round
from tasks.study_page import study_page
from tests.factories import TinyFederation, honest_answer, open_next, tiny_study

pytestmark = pytest.mark.slow
LONG = "hospital_with_a_name_as_long_as_"  # 32 characters, the most that a name may have


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    federation = TinyFederation(folder, tiny_study(rounds=20), (LONG, "ash", "birch"))
    for number in range(20):
        plan, digest = open_next(federation, f"run-{number}")
        answers = {s: honest_answer(federation, plan, digest, s, folder) for s in federation.keys}
        answers[LONG if number % 3 else "ash"] = None
        close_round(federation.home, "tiny", f"run-{number}", answers)
    (folder / "study.html").write_text(study_page(federation.home, "tiny"), encoding="utf-8")
    return folder / "study.html"


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine: `make debian` installs it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_the_page_never_scrolls_sideways(browser, path, width):
    view = browser.new_page(viewport={"width": width, "height": 900})
    view.goto(path.as_uri())
    assert view.evaluate("document.documentElement.scrollWidth") <= width


def test_it_asks_for_nothing_but_itself_and_follows_the_theme(browser, path):
    seen = []
    for theme in ("light", "dark"):
        view = browser.new_page(color_scheme=theme)
        asked, complaints = [], []
        view.on("request", lambda request, to=asked: to.append(request.url))
        view.on("console", lambda message, to=complaints: to.append(message.text))
        view.goto(path.as_uri())
        assert len(asked) == 1 and complaints == []
        read = "s => getComputedStyle(document.querySelector(s))"
        seen.append(
            (
                view.evaluate(f"({read})('section').backgroundColor"),
                view.evaluate(f"({read})('.cell.silent').backgroundColor"),
                view.evaluate(f"({read})('.panel .own').stroke"),
            )
        )
    assert all(light != dark for light, dark in zip(*seen, strict=True))


def test_a_cell_that_went_wrong_leads_to_what_to_do(browser, path):
    view = browser.new_page()
    view.goto(path.as_uri())
    view.click("a.cell.silent >> nth=0")
    assert view.evaluate("document.querySelector('li:target').textContent").count("What to do.") == 1
