"""What several tests do with the page. Waits are long: none of them measures how soon something comes."""

from pathlib import Path

from playwright.sync_api import Page

AXE = Path(__file__).with_name("axe.min.js")
OPENED = "#strip button.tok"
QUESTION = "#question-1 textarea, #question-1 input"
WAIT_MS = 60_000
RUN_ENDED = "#train-status .tr-done, #train-status .tr-failed"


def ask(page: Page) -> None:
    """Presses Ask and waits until the finished answer to the question that is typed there is shown."""
    question = page.input_value(QUESTION)
    page.evaluate("document.querySelector('#answer .vi-answers').dataset.stale = 'yes'")
    page.click("#ask")
    page.wait_for_function(
        "question => { const shown = document.querySelector('#answer .vi-answers');"
        " return !shown.dataset.stale && shown.innerText.includes(question) && shown.innerText.includes('p of each'); }",
        arg=question,
        timeout=WAIT_MS,
    )


def open_tab(page: Page, title: str) -> None:
    """What is in a tab is drawn when it is opened first."""
    page.get_by_role("tab", name=title, exact=True).click()
    page.wait_for_function(
        "title => document.querySelector('[role=tab][aria-selected=true]').dataset.tabId === title",
        arg=title,
        timeout=WAIT_MS,
    )


def open_train(page: Page, url: str, query: str = "") -> None:
    """The page at an address, with the tab Train open."""
    page.goto(f"{url}{query}")
    page.get_by_role("tab", name="Train").click()
    page.wait_for_selector("#train-start", timeout=WAIT_MS)


def wait_for_images(page: Page, count: int) -> None:
    """Until so many are in the prompt's list."""
    page.wait_for_function(
        "count => document.querySelectorAll('#plans li').length === count", arg=count, timeout=WAIT_MS
    )


def assert_nothing_serious(page: Page) -> None:
    """What axe-core calls serious or critical, named with its place, once nothing fades any more: gradio fades in what an
    event has changed, and half faded its text has less contrast than it will have."""
    page.wait_for_function(
        "document.getAnimations().every(one => !(one instanceof CSSTransition) || one.playState !== 'running')",
        timeout=WAIT_MS,
    )
    page.add_script_tag(path=str(AXE))
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [
        f"{item['id']}: {node['html'][:160]}"
        for item in found
        if item["impact"] in ("serious", "critical")
        for node in item["nodes"]
    ]
    assert not serious, "\n".join(serious)


def load_example(page: Page, name: str) -> None:
    """Presses an example's button and waits until its answer is shown."""
    page.click(f"#example-{name}")
    page.wait_for_function(
        "name => document.querySelector('#viewer').textContent.includes(name)", arg=f"{name}-1.png", timeout=WAIT_MS
    )
    page.wait_for_selector("#answer .vi-seen", timeout=WAIT_MS)
    page.wait_for_timeout(400)
