"""A real service and a real browser, which hears a wav in place of a microphone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.service.sounds import write

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(scope="package")
def browser(query: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium; its microphone hears the query clip over and over, with silence around it."""
    if not CHROMIUM:
        pytest.skip("no Chromium here")
    silence = np.zeros(12_000, np.float32)
    heard = write(tmp_path_factory.mktemp("microphone") / "heard.wav", np.concatenate([silence, query, silence]))
    words = [
        "--no-sandbox",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        f"--use-file-for-fake-audio-capture={heard}",
        "--autoplay-policy=no-user-gesture-required",
    ]
    expect.set_options(timeout=20_000)  # a busy machine
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=words)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, base_url: str) -> Iterator[Page]:
    """The page, loaded; at the end nothing has gone wrong in it, and nothing was asked of anybody else."""
    with opened(browser, base_url) as page:
        page.wait_for_selector("#archive option", state="attached")
        yield page


@contextmanager
def opened(browser: Browser, base_url: str, view: str = "") -> Iterator[Page]:
    """The page of a service, watched."""
    context = browser.new_context(viewport={"width": 1_000, "height": 900}, accept_downloads=True)
    page = context.new_page()
    wrong: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if "Content Security" in message.text else None)
    page.on(
        "request",
        lambda request: wrong.append(request.url) if not request.url.startswith((base_url, "blob:", "data:")) else None,
    )
    page.goto(base_url + view)
    yield page
    context.close()
    assert wrong == []
