"""Messages over the page show what came as text, whatever it is made of: links and files bring nothing onto the page."""

import io
import json
import zipfile
from urllib.parse import quote

import pytest

from tests.browser.steps import OPENED, WAIT_MS

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

PICTURE = "<img src=//evil.example/x>"
LINK = "<a href=//evil.example/y>here</a>"
FORM = "<form action=//evil.example/z><button>go</button></form>"
TOAST = "[data-testid=toast-text]"


def read_toast(page, words):
    """The text of the message that has these words in it, and is nothing but text."""
    text = page.locator(TOAST, has_text=words)
    text.wait_for(timeout=WAIT_MS)
    assert page.locator(f"{TOAST} *").count() == 0
    assert page.locator("img[src*=evil], a[href*=evil], form[action*=evil]").count() == 0
    assert page.requests_out == []
    return text.inner_text()


def test_a_link_to_a_run_shows_the_name_that_it_brings_as_it_is(new_page, app_url):
    page = new_page()
    for made in (PICTURE, LINK, FORM, "<b>run</b>", "&lt;b&gt;", "<image>"):
        page.goto(f"{app_url}?job={quote(made)}")
        said = read_toast(page, "There is no run")
        # Long ones are cut.
        assert said.startswith(f"There is no run “{made[:20]}")


def archive(entry):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as file:
        file.writestr(entry, "{}")
    return made.getvalue()


FILES = [
    ("<b><img src=x>.jsonl", b'{"other": 1}', ["has rows with the keys other"]),
    ("keys.jsonl", json.dumps({PICTURE: 1, "<image>": 2}).encode(), [PICTURE, "<image>"]),
    ("keys.json", json.dumps([{LINK: 1, FORM: 2}]).encode(), [LINK, FORM]),
    ("entry.zip", archive(f"../{LINK}"), [LINK]),
    ("broken.json", b"[1, 2", ["broken.json"]),
]


@pytest.fixture
def train_page(new_page, app_url):
    page = new_page()
    page.goto(app_url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)
    page.get_by_role("tab", name="Train").click()
    page.wait_for_selector("#train-start", timeout=WAIT_MS)
    page.locator("#train-data input").click()
    page.get_by_role("option", name="my file").click()
    page.wait_for_selector("#train-file input[type=file]", state="attached", timeout=WAIT_MS)
    return page


def bring(page, name, data):
    page.set_input_files(
        "#train-file input[type=file]", {"name": name, "mimeType": "application/octet-stream", "buffer": data}
    )


@pytest.mark.parametrize(("name", "data", "words"), FILES, ids=[name for name, _, _ in FILES])
def test_what_is_in_a_data_file_is_quoted_as_it_stands_there(train_page, name, data, words):
    bring(train_page, name, data)
    said = read_toast(train_page, "“")
    for word in words:
        assert word in said


def test_a_name_of_a_data_file_is_text_in_messages_and_reports(train_page):
    page = train_page
    name = "<img src=x><i>name.jsonl"
    row = {"conversations": [{"from": "human", "value": f"{PICTURE}<image>\n{LINK}?"}, {"from": "gpt", "value": FORM}]}
    bring(page, name, json.dumps(row).encode())
    page.locator(TOAST, has_text="Read as “llava”").wait_for(timeout=WAIT_MS)
    page.click("#train-check")
    page.wait_for_function("document.body.innerText.includes('<image> mark')", timeout=WAIT_MS)
    assert page.locator("#train-reports img, #train-reports a, #train-reports form, #train-reports i").count() == 0
    assert page.locator("img[src*=evil], a[href*=evil], form[action*=evil], img[src=x]").count() == 0
    assert page.requests_out == []


def test_an_error_that_quotes_a_value_is_text(new_page, app_url):
    page = new_page()
    page.goto(app_url)
    page.wait_for_selector(OPENED, timeout=WAIT_MS)
    # What no link can do, a script that talks as the page does can: the value that is none of the choices is quoted.
    page.route(
        "**/queue/join*",
        lambda route: route.continue_(post_data=route.request.post_data.replace('"images-first"', json.dumps(PICTURE))),
    )
    page.click("#ask")
    assert PICTURE in read_toast(page, "choose of images-first")
