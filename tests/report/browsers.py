"""A report page in the system's Chromium."""

import shutil
from contextlib import contextmanager


@contextmanager
def opened(html, folder):
    """The page on a phone; what it says to the console and asks of a network fails afterwards."""
    from playwright.sync_api import sync_playwright

    file = folder / "page.html"
    file.write_text(html, encoding="utf-8")
    with sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        said, asked = [], []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(file.as_uri())
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        yield tab

        assert said == []
        assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
        browser.close()
