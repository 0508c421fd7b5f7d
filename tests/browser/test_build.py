"""“Build a VLM” and what is said before a run starts, as a person clicks it."""

import pytest

from tests.browser.steps import RUN_ENDED, assert_nothing_serious, open_train

# gradio's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

SLOW_MS = 240_000


def test_a_vlm_is_built_from_parts_checked_run_and_gone_on_with(new_page, train_url):
    page = new_page()
    open_train(page, train_url)
    assert not page.is_visible("#train-parts")
    page.get_by_label("build a VLM").check()
    page.wait_for_selector("#train-parts:visible", timeout=60_000)
    page.wait_for_selector("#train-modules .tr-memory", timeout=60_000)
    assert "98,304" in page.inner_text("#train-modules")
    # What one preset begins from is none of the next one's business.
    page.get_by_label("LoRA", exact=True).check()
    page.wait_for_function("document.querySelector('#train-base input').value === 'embedded'", timeout=60_000)
    page.get_by_label("build a VLM").check()
    page.wait_for_selector("#train-parts:visible", timeout=60_000)
    page.wait_for_selector("#train-modules .tr-memory", timeout=60_000)
    page.click("#train-projector input")
    page.get_by_role("option", name="mlp").click()
    page.wait_for_function("document.querySelector('#train-modules').innerText.includes('135,552')", timeout=60_000)
    page.click("#train-check")
    page.wait_for_selector("#train-reports .tr-row img", timeout=SLOW_MS)
    assert page.locator("#train-reports .tr-row").count() == 4
    page.fill("#train-steps input", "3")
    page.click("#train-start")
    page.wait_for_selector(RUN_ENDED, timeout=SLOW_MS)
    status = page.inner_text("#train-status")
    assert "done" in status
    assert "estimated" in status
    # Measured before the first step, too: two evaluations, and the curve of what is held out begins at 0.
    page.wait_for_selector("#train-answers .tr-shares", timeout=60_000)
    assert "of 48" in page.inner_text("#train-answers")
    # What the run began with stays with it.
    assert page.locator("#train-answers .tr-row img").count() == 4
    page.locator("#train-chart .vlm-chart").focus()
    page.keyboard.press("Home")
    assert "held out at 0" in page.inner_text("#train-chart .vlm-read")
    page.click("#train-go-on")
    page.wait_for_function(
        "document.querySelector('#train-preset input:checked').value === 'instruction tuning'", timeout=60_000
    )
    assert "build a VLM" in page.input_value("#train-base input")
    page.click("#train-export")
    page.wait_for_selector("#train-files:visible", timeout=60_000)
    button, file = (page.locator(name).bounding_box() for name in ("#train-export", "#train-files"))
    assert 0 <= file["y"] - (button["y"] + button["height"]) < 40
    # The curve has its beginning whenever the tab is opened after a reload.
    page.reload()
    page.wait_for_timeout(2000)
    page.get_by_role("tab", name="Train").click()
    page.wait_for_selector(RUN_ENDED, timeout=60_000)
    page.wait_for_selector("#train-chart canvas:visible", timeout=60_000)
    page.locator("#train-chart .vlm-chart").focus()
    page.keyboard.press("Home")
    assert "step 1:" in page.inner_text("#train-chart .vlm-read")
    assert "held out at 0" in page.inner_text("#train-chart .vlm-read")
    page.click("#train-compare")
    page.wait_for_selector("#train-result .ba-headline", timeout=SLOW_MS)
    assert "of 48" in page.inner_text("#train-result .ba-headline")
    assert page.locator("#train-result .ba-card img").count() > 0
    assert_nothing_serious(page)
    assert page.errors == []


def test_a_failed_check_takes_the_former_one_away(new_page, train_url):
    page = new_page()
    open_train(page, train_url)
    page.click("#train-check")
    page.wait_for_selector("#train-reports .tr-report", timeout=SLOW_MS)
    page.fill("#train-steps input", "0")
    page.click("#train-check")
    page.wait_for_selector("text=it must be a whole number from 1 to", timeout=60_000)
    page.wait_for_function("!document.querySelector('#train-reports .tr-report')", timeout=60_000)


def test_a_recipe_fills_the_form_and_says_what_it_cannot(new_page, train_url, tmp_path):
    from model.training.recipe import read_recipe

    path = tmp_path / "mine.toml"
    path.write_text(read_recipe("embedded", ["base=embedded", "stages.0.steps=7"]).to_toml(), "utf-8")
    page = new_page(width=390)
    open_train(page, train_url)
    page.click("#train-files-in button")
    page.set_input_files("#train-recipe input[type=file]", path)
    page.wait_for_function("document.querySelector('#train-steps input').value === '7'", timeout=60_000)
    assert "Not in the form: stage" in page.inner_text("#train-opened")
    page.click("#train-show-samples")
    for name in ("chat.zip", "llava.zip", "captions.zip", "rows.parquet"):
        page.wait_for_selector(f"#train-samples :text('{name.partition('.')[0]}')", timeout=60_000)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
