"""The label page in headless Chromium: fifty answers by keyboard, the process killed, and continued."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.support.browser import chromium
from tests.support.label_shop import label_shop

pytestmark = pytest.mark.slow
SHOTS = os.environ.get("MMTUNE_SHOTS")
"""A folder for screenshots, for those who want to look."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return label_shop(tmp_path_factory.mktemp("label"))


class LabelProcess:
    """`mmtune label` in a process of its own."""

    def __init__(self, shop, out):
        command = [sys.executable, "-m", "mmtune", "label", shop, "--model", "tiny:clip", "--out", str(out), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.url, said = "", []
        for line in self.process.stderr:
            said.append(line)
            if found := re.match(r"(http://127\.0\.0\.1:\d+/label/)", line):
                self.url = found[1]
                break
        assert self.url, said

    def end(self, how):
        self.process.send_signal(how)
        return self.process.communicate(timeout=60)[0]


def shot(page, name):
    if SHOTS:
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def shown(page):
    """(number, query, item) of the question on the page."""
    question = page.locator(".mm-question")
    return tuple(question.get_attribute(f"data-{name}") for name in ("number", "query", "item"))


def press(page, key):
    """Press a key and wait for the next question."""
    number = shown(page)[0]
    page.keyboard.press(key)
    page.wait_for_function("n => document.querySelector('.mm-question')?.dataset.number !== n", arg=number)


def open_page(browser, url, annotator):
    page = browser.new_context(viewport={"width": 1200, "height": 900}).new_page()
    page.set_default_timeout(90_000)
    page.outside, page.said = [], []
    page.on(
        "request",
        lambda r: page.outside.append(r.url) if not r.url.startswith((url.split("/label")[0], "data:", "blob:")) else None,
    )
    page.on("pageerror", lambda e: page.said.append(str(e)))
    page.goto(f"{url}?annotator={annotator}", timeout=90_000)
    page.locator(".mm-question[data-query]").wait_for()
    return page


def test_fifty_answers_by_keyboard_a_kill_and_a_second_annotator(shop, tmp_path):
    out, asked = tmp_path / "out", []
    with chromium() as browser:
        first = LabelProcess(shop, out)
        page = open_page(browser, first.url, "ann")
        shot(page, "label-first")
        for n in range(25):
            _, query, item = shown(page)
            same = query.rpartition("-")[0] == item.rpartition("-")[0]
            key = "u" if n == 7 else ("m" if n % 2 else "1") if same else ("n" if n % 2 else "2")
            asked.append((query, item, {"u": "unsure", "m": "match", "1": "match", "n": "not", "2": "not"}[key]))
            press(page, key)
        assert "25 answers" in page.locator("#heading").inner_text()
        shot(page, "label-25")
        assert not page.outside and not page.said
        first.end(signal.SIGKILL)

        second = LabelProcess(shop, out)
        page = open_page(browser, second.url, "ann")
        assert "25 answers" in page.locator("#heading").inner_text()
        for _ in range(25):
            _, query, item = shown(page)
            same = query.rpartition("-")[0] == item.rpartition("-")[0]
            asked.append((query, item, "match" if same else "not"))
            press(page, "m" if same else "n")
        assert len({a[:2] for a in asked}) == 50

        press(page, "Backspace")
        assert shown(page)[1:] == asked[-1][:2]  # the last answer is asked again
        press(page, "m" if asked[-1][2] == "match" else "n")
        page.locator("#annotator input, #annotator textarea").first.fill("ma")  # letters typed into a field are no answers
        page.locator("#annotator input, #annotator textarea").first.fill("ann")
        assert "50 answers" in page.locator("#heading").inner_text()

        other = open_page(browser, second.url, "bob")
        for _ in range(10):
            press(other, "n")
        assert "bob: 10 answers" in other.locator("#heading").inner_text()
        assert "Krippendorff's alpha" in other.locator("#heading").inner_text()
        shot(other, "label-bob")
        said = second.end(signal.SIGINT)
    assert "60 answers, 59 judgments" in said
    lines = [json.loads(line) for line in (out / "answers.jsonl").read_text().split("\n") if line]
    last = {(x["query"], x["item"]): x["answer"] for x in lines if x["annotator"] == "ann"}
    assert last == {(query, item): answer for query, item, answer in asked}
    judged = [json.loads(line) for line in (out / "judgments.jsonl").read_text().split("\n") if line]
    assert len(judged) == 59 and {x["judge"] for x in judged} == {"ann", "bob"}
