"""The Train tab in a real Chromium: a run that is followed, survives a reload, and opens by its link elsewhere."""

import pytest

from tests.browser.steps import RUN_ENDED, assert_nothing_serious, open_train

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


def test_a_run_is_followed_survives_a_reload_and_opens_by_its_link(new_page, train_url):
    page = new_page()
    open_train(page, train_url)
    page.fill("#train-steps input", "4")
    page.click("#train-start")
    page.wait_for_selector("#train-status .tr-status", timeout=60_000)
    assert "frozen" in page.inner_text("#train-modules")
    page.wait_for_selector(RUN_ENDED, timeout=300_000)
    assert "done" in page.inner_text("#train-status")
    job = page.input_value("#train-job textarea, #train-job input")
    page.wait_for_selector("#train-chart canvas:visible", timeout=60_000)
    page.locator("#train-chart .vlm-chart").focus()
    page.keyboard.press("End")
    assert "step 4: loss" in page.inner_text("#train-chart .vlm-read")
    # The tab that isn't open when the page comes back is the trap.
    page.reload()
    page.wait_for_timeout(1000)
    page.get_by_role("tab", name="Train").click()
    page.wait_for_selector(RUN_ENDED, timeout=60_000)
    assert page.input_value("#train-job textarea, #train-job input") == job
    other = new_page(width=390, dark=True)
    open_train(other, train_url, f"?__theme=dark&job={job}")
    other.wait_for_selector(RUN_ENDED, timeout=60_000)
    assert other.evaluate("document.documentElement.scrollWidth") <= 390
    assert_nothing_serious(other)
    assert page.errors == []


def test_zero_steps_get_a_sentence(new_page, train_url):
    page = new_page()
    open_train(page, train_url)
    page.fill("#train-steps input", "0")
    page.click("#train-start")
    page.wait_for_selector("text=it must be a whole number from 1 to", timeout=60_000)
    assert "No run is followed" in page.inner_text("#train-status")


def test_a_check_of_a_large_file_is_stopped_and_the_page_goes_on(new_page, train_url, tmp_path):
    line = '{"messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "That."}]}\n'
    path = tmp_path / "large.jsonl"
    path.write_text(line * 300_000, "utf-8")
    page = new_page()
    open_train(page, train_url)
    page.click("#train-data input")
    page.get_by_role("option", name="my file").click()
    page.set_input_files("#train-file input[type=file]", path)
    page.wait_for_selector("text=press Check to see what is in it", timeout=60_000)
    assert page.locator("#train-halt").count() == 0 or not page.is_visible("#train-halt")
    page.click("#train-check")
    page.wait_for_selector("#train-halt:visible", timeout=60_000)
    page.click("#train-halt")
    page.wait_for_selector("#train-halt", state="hidden", timeout=20_000)
    assert page.inner_text("#train-reports").strip() == ""
    # What is checked next is checked to its end.
    page.click("#train-data input")
    page.get_by_role("option", name="scenes: one picture").click()
    page.click("#train-check")
    page.wait_for_selector("#train-reports .tr-histogram", timeout=60_000)
    assert page.errors == []
