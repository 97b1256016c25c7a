"""A real browser for tests of pages: Debian's Chromium, driven by Playwright."""

import shutil
import time
from contextlib import contextmanager
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here; apt-get install chromium")
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True}


@contextmanager
def opened(url, **how):
    """A page at url, when it has loaded. It may not ask anybody but url's own place, and may not complain."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_context(**how).new_page()
        said, asked = [], []
        page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        yield page
        browser.close()
    place = "/".join(url.split("/")[:3])
    assert not said, said
    assert [each for each in asked if not each.startswith(("data:", "blob:", place))] == []


def eventually(true, seconds=20):
    """Wait until it is; a page's own policy forbids Playwright to wait inside it."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it never was"
        time.sleep(0.05)


def colourful(locator):
    """How many pixels of an element are no shade of gray."""
    pixels = np.asarray(Image.open(BytesIO(locator.screenshot())).convert("RGB")).astype(int)
    return int((np.ptp(pixels, axis=2) > 40).sum())


def violations(page):
    """What axe-core finds against WCAG 2.1 A and AA."""
    from axe_playwright_python.sync_playwright import Axe

    options = {"runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}}
    found = Axe().run(page, options=options).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in found]
