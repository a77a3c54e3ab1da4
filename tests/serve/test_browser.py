"""The page as people use it, in headless Chromium: type, upload a picture, play a sound, compare, mark what is not a match."""

import os

import pytest

from mmtune.index.collection import Collection
from tests.serve.test_process import wait
from tests.support.browser import chromium
from tests.support.serve_helpers import TOKEN, Process, collection, copy_of, picture, sound

pytestmark = pytest.mark.slow
MEDIA_FLAGS = [
    "--autoplay-policy=no-user-gesture-required",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
SHOTS = os.environ.get("MMTUNE_SHOTS")
"""A folder for screenshots, for those who want to look."""


@pytest.fixture(scope="module")
def browser():
    with chromium(*MEDIA_FLAGS) as launched:
        yield launched


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return copy_of(collection(tmp_path_factory), tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def server(path):
    with Process(path) as found:
        wait(found)
        yield found


@pytest.fixture(scope="module")
def closed_server(path):
    """A server that asks for a token."""
    with Process(path, "--token", TOKEN) as found:
        wait(found)
        yield found


@pytest.fixture
def page(browser, server):
    """The page, open; nothing outside is asked, no script complains."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    page, outside, said = context.new_page(), [], []
    page.set_default_timeout(90_000)
    page.on("request", lambda r: outside.append(r.url) if not r.url.startswith((server.url, "data:", "blob:")) else None)
    page.on("pageerror", lambda e: said.append(str(e)))
    page.goto(server.url + "/page/", timeout=90_000)
    page.locator("#top .mm-said").wait_for()
    yield page
    context.close()
    assert not outside and not said


def shot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def hits(page, side="live"):
    """Ids of the results shown in a column."""
    return page.locator(f"#{side} .mm-hit .head b").all_inner_texts()


def tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


def test_typing_words_shows_both_versions_side_by_side(page, path):
    assert "24 items" in page.locator("#top").inner_text() and "v1 is live" in page.locator("#top").inner_text()
    tab(page, "text")
    page.locator("#ask-text textarea, #ask-text input").first.fill("a red square")
    shot(page, "1-typed")
    page.locator("#go-text").click()
    page.locator("#live .mm-hit").first.wait_for()
    page.locator("#beside .mm-hit").first.wait_for()  # v2 is staged, so it is put beside
    with Collection(path) as c:
        assert hits(page) == c.search(text="a red square", k=10).ids
        assert hits(page, "beside") == c.search(text="a red square", k=10, version="v2").ids
    assert "v1" in page.locator("#live .mm-said").inner_text() and "v2" in page.locator("#beside .mm-said").inner_text()
    pictures = page.locator("#live .mm-hit .values > img")
    pictures.first.wait_for()
    assert pictures.count() == 10 and all(p.evaluate("p => p.complete && p.naturalWidth > 0") for p in pictures.all())
    shot(page, "2-words")
    page.locator("#filter textarea, #filter input").first.fill("shade = 'dark'")
    page.locator("#go-text").click()
    page.wait_for_function("[...document.querySelectorAll('#live .mm-hit .meta')].every(d => d.innerText.includes('dark'))")
    assert hits(page)
    page.locator("#filter textarea, #filter input").first.fill("shade = ")
    page.locator("#go-text").click()
    page.locator("#live .mm-no").wait_for()
    assert "filter" in page.locator("#live .mm-no").inner_text() and not page.locator("#live .mm-hit").count()
    shot(page, "3-refused")


def test_uploading_a_picture_and_marking_what_is_not_a_match(page, path, tmp_path):
    file = tmp_path / "blue.png"
    file.write_bytes(picture("blue"))
    tab(page, "image")
    page.locator("#ask-image input[type=file]").set_input_files(str(file))
    page.locator("#ask-image img").first.wait_for()
    page.locator("#go-image").click()
    page.locator("#live .mm-hit").first.wait_for()
    with Collection(path) as c:
        assert hits(page) == c.search(image=picture("blue"), k=10).ids
    wrong = hits(page)[1]
    page.locator("#live-not_a_match-1").click()
    page.get_by_text("recorded: not a match").wait_for()
    page.locator("#live-match-0").click()
    page.get_by_text("recorded: a match").wait_for()
    shot(page, "4-picture")
    with Collection(path) as c:
        no, yes = c.feedback_log.events()[-2:]
        assert (no["item"], no["kind"], no["version"], no["modality"], no["rank"]) == (wrong, "not_a_match", "v1", "image", 2)
        assert (yes["item"], yes["kind"]) == (hits(page)[0], "match")
        assert c.export_feedback(tmp_path / "out")["verdicts"] == 2


def test_a_sound_is_uploaded_found_and_played(page, path, tmp_path):
    file = tmp_path / "red.wav"
    file.write_bytes(sound("red"))
    tab(page, "audio")
    page.locator("#ask-audio button[aria-label='Upload file'], #ask-audio [data-testid='upload-source']").first.click()
    page.locator("#ask-audio input[type=file]").set_input_files(str(file))
    page.locator("#ask-audio #waveform, #ask-audio [data-testid*='waveform']").first.wait_for()
    page.locator("#go-audio").click()
    page.locator("#live .mm-hit").first.wait_for()
    with Collection(path) as c:
        assert hits(page) == c.search(audio=sound("red"), k=10).ids
    player = page.locator("#live .mm-hit audio").first
    player.evaluate("p => { p.muted = true; return p.play() }")
    page.wait_for_function("document.querySelector('#live .mm-hit audio').currentTime > 0.05")
    assert player.evaluate("p => p.duration") > 0.5
    shot(page, "5-sound")


def test_a_microphone_records_and_asks(page, path):
    tab(page, "audio")
    page.locator("#ask-audio").get_by_role("button", name="Record", exact=False).first.click()
    page.wait_for_timeout(1500)
    with page.expect_response(lambda r: "/gradio_api/upload" in r.url and r.ok):  # the recording arrives
        page.locator("#ask-audio").get_by_role("button", name="Stop", exact=False).first.click()
    page.locator("#ask-audio [data-testid*='waveform'], #ask-audio #waveform").first.wait_for()
    page.wait_for_timeout(500)
    page.locator("#go-audio").click()
    page.locator("#live .mm-hit").first.wait_for()
    assert len(hits(page)) == 10
    shot(page, "6-microphone")


def test_an_items_neighbours_and_a_promotion_meanwhile(page, path):
    tab(page, "item")
    page.locator("#ask-item textarea, #ask-item input").first.fill("0-003")
    page.locator("#go-item").click()
    page.locator("#live .mm-hit").first.wait_for()
    assert "0-003" not in hits(page) and len(hits(page)) == 10
    with Collection(path) as c:
        c.promote("v2", force=True, why="a test")
        try:
            page.locator("#go-item").click()
            page.wait_for_function("document.querySelector('#live .mm-said').innerText.startsWith('v2')")
        finally:
            c.rollback("a test")
    page.reload()
    page.locator("#top .mm-said").wait_for()
    assert "v1 is live" in page.locator("#top").inner_text()


def test_a_phone_and_a_login(browser, closed_server):
    server = closed_server
    context = browser.new_context(
        viewport={"width": 390, "height": 844}, color_scheme="dark", extra_http_headers={"X-Forwarded-For": "8.8.8.8"}
    )
    page = context.new_page()
    page.set_default_timeout(90_000)
    page.goto(server.url + "/")
    assert page.url.endswith("/login")
    page.get_by_label("token").fill("wrong")
    page.get_by_role("button").click()
    assert "Wrong token" in page.get_by_role("alert").inner_text()
    page.get_by_label("token").fill(TOKEN)
    page.get_by_role("button").click()
    page.wait_for_url("**/page/")
    page.locator("#top .mm-said").wait_for()
    tab(page, "text")
    page.locator("#ask-text textarea, #ask-text input").first.fill("a green square")
    page.keyboard.press("Enter")
    page.locator("#live .mm-hit").first.wait_for()
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth + 1")
    shot(page, "7-phone")
    context.close()
