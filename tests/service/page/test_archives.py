"""Archives, jobs and watches on the page: recordings come, are found, are watched for, and go."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from service.settings import Settings
from tests.service.conftest import DEMO, serving
from tests.service.page.conftest import opened
from tests.service.page.test_page import search_for, until

STATION = DEMO / "archive" / "skerry-radio"
LATER = ("04-thursday.opus", "10-late-night.opus")
SHOWN_MS = 60_000  # until what is indexed in the background is there


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the server that may be indexed."""
    return Path(shutil.copytree(DEMO / "archive" / "field-notes", tmp_path_factory.mktemp("root") / "notes")).parent


@pytest.fixture
def empty(browser: Browser, root: Path, tokenizer_path: Path, tmp_path: Path) -> Iterator[Page]:
    """The page of a service in which there is nothing."""
    settings = Settings(
        home=tmp_path / "home", database_url=None, tokenizer=tokenizer_path, threads=1, roots=[root], _env_file=None
    )
    with serving(settings) as url, opened(browser, url) as page:
        yield page


def goes(page: Page, view: str) -> None:
    page.click(f"nav a[href='#{view}']")
    expect(page.locator(f"#view-{view}")).to_be_visible()


def test_from_nothing_to_a_watch_that_fires(empty: Page, query_path: Path, tmp_path: Path) -> None:
    page = empty
    expect(page.locator("#empty")).to_be_visible()
    page.click("#empty a")
    expect(page.locator("#no-archives")).to_be_visible()

    # Recordings are sent in, one of which is none.
    page.fill("#to", "station")
    bad = tmp_path / "bad.wav"
    bad.write_text("no sound")
    files = [path for path in sorted(STATION.iterdir()) if path.name not in LATER]
    page.set_input_files("#add-files", [*files, bad])
    job = page.locator("#jobs .entry").last
    expect(job.locator(".what")).to_have_text("Upload into station")
    expect(job.locator(".state")).to_have_text("done", timeout=SHOWN_MS)
    expect(job.locator(".told")).to_contain_text(f"{len(files)} indexed")
    expect(job.locator(".failed-count")).to_have_text("1 failed")
    job.locator("summary").click()
    expect(job.locator(".failed-files")).to_have_text("bad.wav: not audio that can be decoded")

    # And a folder of the server, into the same archive.
    page.fill("#folder", "notes")
    page.click("#folder-form button")
    expect(page.locator("#jobs .what")).to_have_text(["Folder into station", "Upload into station"])
    expect(page.locator("#jobs .state")).to_have_text(["done", "done"], timeout=SHOWN_MS)
    archive = page.locator("#archive-list .entry").first
    expect(archive.locator(".facts").first).to_contain_text(f"{len(files) + 6} recordings")

    # It is searched; what is looked for is watched for from now on.
    goes(page, "search")
    expect(page.locator("#archive-facts")).to_contain_text(f"{len(files) + 6} recordings")
    search_for(page, query_path)
    page.click("summary >> text=Watch for it")
    page.fill("#watch-name", "visibility")
    page.fill("#watch-score", "0")
    page.click("#watch")
    expect(page.locator("#status")).to_contain_text("Watching for “visibility” in station")
    page.fill("#watch-name", "visibility")
    page.click("#watch")
    expect(page.locator("#error")).to_contain_text("has a watch named 'visibility' already")

    # More is dropped onto the page, and the watch finds it there.
    goes(page, "archives")
    page.fill("#to", "station")
    page.set_input_files("#add-files", [STATION / name for name in LATER])
    expect(page.locator("#archive-list .facts").first).to_contain_text(f"{len(files) + 8} recordings", timeout=SHOWN_MS)
    goes(page, "watches")
    watch = page.locator("#watch-list > .entry")
    expect(watch.locator("> .about .name")).to_have_text("visibility")
    for _ in range(100):
        if "0 hits" not in watch.locator(".facts").inner_text():
            break
        page.wait_for_timeout(200)
        page.reload()
    watch.locator(".list").click()
    names = watch.locator(".hit .name")
    expect(names.first).to_be_visible()
    assert set(names.all_inner_texts()) == set(LATER)  # what was there before is not searched
    until(page, "document.querySelector('.found .hit canvas').width > 200")
    watch.locator(".hit .play").first.click()
    until(page, "document.querySelector('#player').currentTime > 0.3")
    page.screenshot(path=tmp_path / "watches.png", full_page=True)

    # All of it goes again, when that is really wanted.
    page.locator("#watch-list .delete").click()
    expect(page.locator("#sure-question")).to_contain_text("Delete the watch “visibility”")
    page.click("#sure-yes")
    expect(page.locator("#no-watches")).to_be_visible()
    goes(page, "archives")
    page.locator("#archive-list .list").click()
    expect(page.locator(".recordings .name")).to_have_count(len(files) + 8)
    page.screenshot(path=tmp_path / "archives.png", full_page=True)
    page.get_by_role("button", name="Delete 01-monday.opus").click()
    page.click("#sure button[value='']")
    expect(page.locator("#sure")).to_be_hidden()
    expect(page.locator(".recordings .name")).to_have_count(len(files) + 8)
    page.get_by_role("button", name="Delete 01-monday.opus").click()
    page.click("#sure-yes")
    expect(page.locator(".recordings .name")).to_have_count(len(files) + 7)
    page.get_by_role("button", name="Delete station", exact=True).click()
    page.click("#sure-yes")
    expect(page.locator("#no-archives")).to_be_visible()
    goes(page, "search")
    expect(page.locator("#empty")).to_be_visible()


def test_what_goes_wrong_while_recordings_are_added_is_said(empty: Page, tmp_path: Path) -> None:
    page = empty
    goes(page, "archives")
    error = page.locator("#view-archives .error")
    page.fill("#folder", "/etc")
    page.click("#folder-form button")
    expect(error).to_have_text("there is no such folder among those that may be indexed")
    page.fill("#to", "")
    page.set_input_files("#add-files", STATION / LATER[0])
    expect(error).to_have_text("name the archive that the recordings are for")
    page.fill("#to", "a")
    page.route("**/v1/recordings", lambda route: route.abort())
    page.set_input_files("#add-files", STATION / LATER[0])
    expect(error).to_have_text("the service cannot be reached")
    page.unroute("**/v1/recordings")
    page.set_input_files("#add-files", STATION / LATER[0])
    expect(error).to_be_hidden()
    expect(page.locator("#jobs .state")).to_have_text("done", timeout=SHOWN_MS)
    page.set_input_files("#add-files", STATION / LATER[0])
    expect(error).to_contain_text("has a recording named '04-thursday.opus' already")
    page.check("#replace")
    page.set_input_files("#add-files", STATION / LATER[0])
    expect(page.locator("#jobs .state")).to_have_text(["done", "done"], timeout=SHOWN_MS)
    # A job that waits or runs can be given up; what is not over can be seen.
    page.fill("#to", "b")
    page.set_input_files("#add-files", sorted(STATION.iterdir()))
    cancel = page.locator("#jobs .cancel").first
    cancel.click()
    expect(page.locator("#jobs .state").first).to_have_text("cancelled", timeout=SHOWN_MS)
    expect(cancel).to_be_hidden()


@pytest.mark.parametrize("view", ["archives", "watches"])
@pytest.mark.parametrize("width", [320, 1_000])
def test_views_are_named_and_fit(browser: Browser, base_url: str, view: str, width: int) -> None:
    with opened(browser, base_url, f"/#{view}") as page:
        page.set_viewport_size({"width": width, "height": 800})
        expect(page.locator(f"nav a[href='#{view}']")).to_have_attribute("aria-current", "page")
        expect(page.locator(f"#view-{view}")).to_be_visible()
        expect(page.locator("#view-search")).to_be_hidden()
        if view == "archives":
            expect(page.locator("#archive-list .entry")).to_have_count(1)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.get_by_role("status").count() == 1
        nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, select, progress')].filter(e =>
            e.checkVisibility() &&
            !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim())
        ).map(e => e.outerHTML)""")
        assert nameless == []
