"""What people do on the page, in a real browser: search, listen, mark, refine, export, record."""

import csv
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from sqlalchemy import text

from service import keys
from service.deps import Backend
from service.keys import Scope
from service.settings import Settings
from tests.service.conftest import DEMO
from tests.service.test_api import is_true, truth

TERM = "visibility"


def search_for(page: Page, clip: Path) -> None:
    page.set_input_files("#file", clip)
    expect(page.locator("#clip-name")).to_have_text(clip.name)
    search(page)


def search(page: Page) -> None:
    page.click("#search")
    expect(page.locator("#status")).to_contain_text("hits in")


def until(page: Page, holds: str) -> None:
    """Wait for a condition; the page's own policy lets Playwright evaluate nothing while it waits."""
    deadline = time.monotonic() + 20
    while not page.evaluate(holds):
        assert time.monotonic() < deadline, holds
        page.wait_for_timeout(50)


def hit_of(page: Page, number: int) -> dict:
    """What the page says of a hit."""
    item = page.locator(".hit").nth(number)
    start, end = (
        60 * int(m) + float(s) for m, s in (t.split(":") for t in item.locator(".time").inner_text().split(" to "))
    )
    return {"recording": {"name": item.locator(".name").inner_text()}, "start": start, "end": end}


def drawn(page: Page, selector: str) -> int:
    """How many dots of a canvas are not empty."""
    return page.locator(selector).first.evaluate(
        "c => c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((v, i) => i % 4 == 3 && v).length"
    )


def test_a_file_is_searched_for_and_its_hits_are_shown(page: Page, query_path: Path) -> None:
    expect(page.locator("#archive")).to_have_value("demo")
    expect(page.locator("#archive-facts")).to_have_text("46 recordings, 0.22 h")
    search_for(page, query_path)
    expect(page.locator(".hit")).to_have_count(20)
    assert all(is_true(hit_of(page, number), truth(TERM)) for number in range(5))
    assert float(page.locator(".hit .score").first.inner_text()) > 0.7
    until(page, "document.querySelector('.hit canvas').width > 300")
    assert drawn(page, "#clip-wave") > 2_000
    assert drawn(page, ".hit canvas") > 2_000


def test_hits_are_heard(page: Page, query_path: Path) -> None:
    search_for(page, query_path)
    play = page.locator(".hit .play").first
    play.click()
    until(page, "document.querySelector('#player').currentTime > 0.3")
    expect(play).to_have_text("Stop")
    # A second of context on each side.
    hit = hit_of(page, 0)
    length = page.evaluate("document.querySelector('#player').duration")
    assert length == pytest.approx(hit["end"] - hit["start"] + 2, abs=0.05)
    play.click()
    expect(play).to_have_text("Play")
    assert page.evaluate("document.querySelector('#player').paused")
    page.click("#play-clip")
    until(page, "document.querySelector('#player').currentTime > 0.1")
    expect(page.locator("#play-clip")).to_have_text("Play", timeout=30_000)  # it ends by itself


def test_a_part_of_the_clip_is_chosen_by_dragging_and_by_numbers(page: Page) -> None:
    name, start, end = truth(TERM)[0]
    page.set_input_files("#file", DEMO / "archive" / name)
    expect(page.locator("#clip-name")).to_have_text(Path(name).name)
    box = page.locator("#clip-wave").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + box["width"] * 0.25, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + 20, steps=4)
    page.mouse.up()
    chosen = [float(page.input_value(f"#clip-{side}")) for side in ("start", "end")]
    page.click("#whole")
    duration = float(page.input_value("#clip-end"))
    assert chosen == pytest.approx([0.25 * duration, 0.5 * duration], rel=0.02)
    for side, value in (("end", end), ("start", start)):
        page.fill(f"#clip-{side}", f"{value:.2f}")
        page.press(f"#clip-{side}", "Tab")
    search(page)
    assert all(is_true(hit_of(page, number), truth(TERM)) for number in range(3))


def test_marks_refine(page: Page, query_path: Path) -> None:
    search_for(page, query_path)
    first = hit_of(page, 0)
    expect(page.locator("#refine")).to_be_disabled()
    page.locator(".hit .wrong").first.click()
    page.locator(".hit .right").nth(1).click()
    expect(page.locator(".hit .wrong").first).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#refine")).to_have_text("Refine with your marks (2)")
    second = hit_of(page, 1)
    with page.expect_response("**/v1/search/refine") as answer:
        page.click("#refine")
    assert answer.value.ok
    expect(page.locator("#status")).to_contain_text("hits in")
    now = [hit_of(page, number) for number in range(page.locator(".hit").count())]
    assert first not in now
    assert second in now
    # What was said to be right stays marked.
    expect(page.locator('.hit .right[aria-pressed="true"]')).to_have_count(1)


def test_hits_are_filtered_and_exported(page: Page, query_path: Path) -> None:
    search_for(page, query_path)
    page.fill("#filter", "skerry")
    names = page.locator(".hit .name").all_inner_texts()
    assert names
    assert all("skerry" in name for name in names)
    page.fill("#label", TERM)
    with page.expect_download() as download:
        page.click("#export")
    rows = list(csv.DictReader(io.StringIO(Path(download.value.path()).read_text())))
    assert download.value.suggested_filename == "hits.csv"
    assert [row["recording"] for row in rows] == names
    assert {row["label"] for row in rows} == {TERM}
    page.select_option("#format", "eaf")
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "hits.eaf.zip"
    page.fill("#filter", "no such name")
    expect(page.locator("#nothing")).to_have_text("No hit is in such a recording.")


def test_a_word_is_spoken(page: Page) -> None:
    record = page.locator("#record")
    record.click()
    expect(record).to_have_attribute("aria-pressed", "true")
    page.wait_for_timeout(2_600)
    record.click()
    expect(page.locator("#clip-name")).to_have_text("Recording")
    expect(record).to_have_attribute("aria-pressed", "false")
    assert 1.5 < float(page.input_value("#clip-end")) < 5.0
    search(page)
    assert is_true(hit_of(page, 0), truth(TERM))


def test_a_stretch_of_a_recording_and_a_hit_are_searched_for(page: Page) -> None:
    name, start, end = truth(TERM)[0]
    page.click("#browse")
    expect(page.locator("#recording-list li")).to_have_count(46)
    page.fill("#contains", name)
    expect(page.locator("#recording-list li")).to_have_count(1)
    page.click("#recording-list button")
    expect(page.locator("#clip-name")).to_have_text(name)
    for side, value in (("end", end), ("start", start)):
        page.fill(f"#clip-{side}", f"{value:.2f}")
        page.press(f"#clip-{side}", "Tab")
    page.click("#play-clip")
    until(page, "document.querySelector('#player').currentTime > 0.1")
    search(page)
    first = hit_of(page, 0)
    assert is_true(first, truth(TERM))
    assert first["recording"]["name"] != name
    page.locator(".hit .again").first.click()
    expect(page.locator("#clip-name")).to_have_text(first["recording"]["name"])
    expect(page.locator(".hit .name").first).not_to_have_text(first["recording"]["name"])
    assert is_true(hit_of(page, 0), truth(TERM))


def test_what_goes_wrong_is_said(page: Page, query_path: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.wav"
    notes.write_text("no sound at all")
    page.set_input_files("#file", notes)
    expect(page.locator("#status")).to_contain_text("cannot draw")
    page.click("#search")
    expect(page.locator("#error")).to_have_text("not audio that can be decoded")
    page.set_input_files("#file", query_path)
    expect(page.locator("#clip-name")).to_have_text(query_path.name)
    page.check("#deep")
    page.click("#search")
    expect(page.locator("#error")).to_contain_text("sayagain tokenizer build accurate")
    page.uncheck("#deep")
    page.route("**/v1/search", lambda route: route.abort())
    page.click("#search")
    expect(page.locator("#error")).to_have_text("the service cannot be reached")
    expect(page.locator("#search")).to_be_enabled()
    page.unroute("**/v1/search")
    search(page)
    expect(page.locator("#error")).to_be_hidden()


@pytest.fixture
def key(settings: Settings) -> Iterator[str]:
    """A key of the demo's service, which is open again afterwards."""
    backend = Backend.open(settings)
    with backend.connect() as connection, connection.begin():
        made = keys.create(connection, "the page", Scope.READ)
    yield made
    with backend.connect() as connection, connection.begin():
        connection.execute(text("DELETE FROM api_key"))
    backend.close()


def test_a_key_is_asked_for_where_one_is_needed(page: Page, key: str, query_path: Path) -> None:
    page.set_input_files("#file", query_path)
    expect(page.locator("#clip-name")).to_have_text(query_path.name)
    page.click("#search")
    expect(page.locator("#error")).to_contain_text("a key is needed")
    page.fill("#key", "not this one")
    page.press("#key", "Enter")
    expect(page.locator("#error")).to_contain_text("this key is unknown")
    page.fill("#key", key)
    page.press("#key", "Enter")
    expect(page.locator("#key-form")).to_be_hidden()
    search(page)
    page.locator(".hit .play").first.click()
    until(page, "document.querySelector('#player').currentTime > 0.3")
    until(page, "document.querySelector('.hit canvas').width > 300")
    with page.expect_download() as download:
        page.click("#export")
    assert download.value.suggested_filename == "hits.csv"


def test_the_keyboard_is_enough(page: Page, query_path: Path) -> None:
    page.set_input_files("#file", query_path)
    expect(page.locator("#clip-name")).to_have_text(query_path.name)
    page.locator("#limit").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("hits in")
    expect(page.locator("#results")).to_be_focused()
    for _ in range(5):
        page.keyboard.press("Tab")  # filter, format, label, download; then the first hit
    expect(page.locator(".hit .play").first).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.locator(".hit .right").first).to_have_attribute("aria-pressed", "true")


def test_everything_has_a_name_for_a_screen_reader(page: Page, query_path: Path) -> None:
    search_for(page, query_path)
    nameless = page.evaluate("""() => [...document.querySelectorAll('button, input, select, canvas')].filter(e =>
        e.checkVisibility() &&
        !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.[0]?.textContent.trim())
    ).map(e => e.outerHTML)""")
    assert nameless == []
    names = [page.locator(".hit .play").nth(n).get_attribute("aria-label") for n in range(20)]
    assert len(set(names)) == 20
    assert page.get_by_role("status").count() == 1


@pytest.mark.parametrize("width", [320, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_phones_and_both_schemes(
    browser: Browser, base_url: str, query_path: Path, width: int, scheme: str, tmp_path: Path
) -> None:
    context = browser.new_context(
        viewport={"width": width, "height": 800},
        color_scheme=scheme,
        has_touch=True,
        is_mobile=True,  # type: ignore[arg-type]
    )
    page = context.new_page()
    page.goto(base_url)
    page.wait_for_selector("#archive option", state="attached")
    search_for(page, query_path)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(20, 24, 26)") == (scheme == "dark")
    page.screenshot(path=tmp_path / "phone.png", full_page=True)
    context.close()
