"""The documentation site in a browser, opened from files. Needs what `make docs` installs, playwright and Chromium."""

import importlib.util
import re
import shutil
import subprocess
import sys

import pytest
from deadlines import deadline
from places import ROOT

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path"),
    pytest.mark.skipif(importlib.util.find_spec("zensical") is None, reason="make docs installs Zensical"),
]
PHONE, DESKTOP = 360, 1360


@pytest.fixture(scope="module")
def site():
    made = subprocess.run(
        [sys.executable, ROOT / "docs/site/build_site.py"], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    return ROOT / "build" / "docs" / "site"


@pytest.fixture(scope="module")
def page():
    """Return a page of a browser that at the end has met no error and asked no server for anything."""
    troubles = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = browser.new_page()
        opened.set_default_timeout(deadline(30_000))
        opened.on("console", lambda message: troubles.append(message.text) if message.type == "error" else None)
        opened.on("pageerror", lambda error: troubles.append(str(error)))
        local = ("file:", "data:", "blob:", "about:")
        opened.on("request", lambda request: None if request.url.startswith(local) else troubles.append(request.url))
        yield opened
        browser.close()
    assert troubles == []


def test_no_page_scrolls_sideways_and_all_pictures_are_there(site, page):
    for path in sorted(site.glob("*.html")):
        if path.name == "404.html":
            continue
        for width in (PHONE, DESKTOP):
            page.set_viewport_size({"width": width, "height": 800})
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
            loaded = page.eval_on_selector_all("article img", "all => all.every(one => one.naturalWidth > 0)")
            assert loaded, path.name


def test_search_works_from_a_file(site, page):
    page.set_viewport_size({"width": DESKTOP, "height": 800})
    page.goto((site / "index.html").as_uri())
    page.locator("button:visible", has_text="Search").click()
    page.get_by_placeholder("Search").fill("accumulate")
    page.get_by_text(re.compile(r"^[1-9]\d* results?$")).wait_for()
