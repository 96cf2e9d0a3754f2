"""A headless Chromium for tests of pages; they are skipped where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def require(there: Any, what: str) -> None:
    """Skip a test where something is missing; an error where KVGEN_REQUIRE_BROWSER is set."""
    if not there:
        if os.environ.get("KVGEN_REQUIRE_BROWSER"):
            pytest.fail(f"{what} is missing, and KVGEN_REQUIRE_BROWSER is set")
        pytest.skip(f"{what} is missing")


@contextmanager
def chromium() -> Iterator[Any]:
    """A running browser of Playwright for Python."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    require(executable, "chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        require(None, "playwright")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_QUIET))
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: Any, file: Path, *, address: str = "", width: int = 1280, scheme: str = "dark"
) -> Iterator[Any]:
    """A page opened from disk; fails where it asks for anything else, or reports an error."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    asked: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(f"file://{file}{address}")
    page.wait_for_selector("html[data-ready=true]", timeout=20_000)
    yield page
    page.close()
    assert not errors, errors
    assert [url.split("#")[0] for url in asked] == [f"file://{file}"]
