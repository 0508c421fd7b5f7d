"""Follow the post: a question at a time, on the example that shows it or on the prompt of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from inspector.figures.markup import show_info
from inspector.figures.pipeline import show_pipeline
from inspector.images.example_files import recognise_example
from inspector.lessons.course import LESSONS, Lesson, find_lesson
from inspector.lessons.pipeline import list_pipeline
from inspector.lessons.shown_prompt import ShownPrompt
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import inform, refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.views import batch as batch_view
from inspector.views import prompt as prompt_view
from inspector.views.asking import Asking
from inspector.views.prompting import remember
from model import InputError
from model.training.synthetic.examples import EXAMPLES

ABOUT = (
    "Questions that come up when one reads a post about nanoVLM's training notebook, in its order: each loads the "
    "example that shows it, opens the place and answers with that prompt's own numbers (“On my images”: with those of "
    "what the page shows). It can't answer for another model or another prompt than the one that is shown."
)
PRESENT = (
    '<button type="button" class="vi-present-switch" aria-pressed="false" title="large print; arrow keys go through '
    'the questions">Present</button>'
)
"""Worked by the page's script; ?present in the address is the same."""
OUTLINE = """() => {
    document.querySelectorAll('.vi-lesson-target').forEach((one) => one.classList.remove('vi-lesson-target'));
    const said = document.querySelector('#lesson-text [data-target]');
    window.vlmLessonWatch?.disconnect();
    if (!said) return;
    const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    const find = (left) => {
        const found = document.getElementById(said.dataset.target);
        if (!found || !found.offsetParent) { if (left) setTimeout(find, 100, left - 1); return; }
        found.classList.add('vi-lesson-target');
        const bring = (behavior) => {
            const taken = parseFloat(getComputedStyle(found).scrollMarginTop) || 0;
            const block = found.offsetHeight > innerHeight - taken ? 'start' : 'nearest';
            found.scrollIntoView({ block, behavior });
        };
        bring(calm ? 'auto' : 'smooth');
        const watch = window.vlmLessonWatch = new ResizeObserver(() => bring('auto'));
        watch.observe(document.querySelector('.vi-results'));
        const leave = () => watch.disconnect();
        for (const kind of ['wheel', 'touchstart', 'pointerdown', 'keydown'])
            addEventListener(kind, leave, { once: true, passive: true, capture: true });
        setTimeout(leave, 10000);
    };
    find(20);
}"""
"""A tab that is opened is drawn a moment later, and what stands above the place may come later still: the place stays
in the window meanwhile, until somebody goes elsewhere."""


@dataclass(frozen=True)
class LessonsView:
    chosen: gr.Dropdown
    back: gr.Button
    onward: gr.Button
    mine: gr.Button


def build_lessons() -> LessonsView:
    choices = [(f"{number}. {lesson.question}", lesson.key) for number, lesson in enumerate(LESSONS, start=1)]
    with gr.Row(elem_classes="vi-lessons"):
        gr.HTML(show_info("Lessons", ABOUT), elem_classes="vi-lessons-title")
        chosen = gr.Dropdown(
            [("Follow the post", ""), *choices],
            value="",
            label="Question",
            show_label=False,
            container=False,
            filterable=False,
            elem_id="lesson",
        )
        back = gr.Button("‹ Back", size="sm", min_width=60, scale=0, elem_id="lesson-back")
        onward = gr.Button("Next ›", size="sm", min_width=60, scale=0, elem_id="lesson-next")
        mine = gr.Button("On my images", size="sm", min_width=110, scale=0, elem_id="lesson-mine")
        gr.HTML(PRESENT, elem_classes="vi-lessons-present")
    return LessonsView(chosen, back, onward, mine)


def build_text() -> gr.HTML:
    """Where the answer to a question is said, in sight however far the page is scrolled."""
    return gr.HTML("", elem_id="lesson-text")


@dataclass(frozen=True)
class LessonHandlers:
    """What the events call. ``text`` is empty where no question is chosen."""

    asking: Asking
    batch: batch_view.BatchView
    store: ModelStore

    def load(self, key: str, model: str) -> list[Any]:
        """The prompt's contents and the arrangement of the batch, for the example that shows it."""
        if not key:
            return [gr.skip()] * (len(self.asking.filled) + 1)
        lesson = _find(key)
        index = next(n for n, example in enumerate(EXAMPLES) if example.name == lesson.example)
        return [*self.asking.handlers.load_example(index, model), lesson.arrangement]

    def load_own(self, model: str, gallery: Any, asked: Sequence[prompt_view.AskedPrompt]) -> list[Any]:
        """Values for the prompt's contents: the last that was asked with other images than an example's. What is
        there stays where it is such a prompt, or there was none."""
        untouched = [gr.skip()] * len(self.asking.filled)
        if gallery and not self._is_example([path for path, _ in gallery]):
            return untouched
        for former in reversed(asked):
            paths = [path for path, _ in former.written[0]]
            if paths and not self._is_example(paths):
                bounds = self.asking.page.prompt.bounds
                return prompt_view.fill_contents(self.store, model, former.written, bounds)
        inform("No images of yours were asked about on this page yet: drop some, press Ask, and come back.")
        return untouched

    def _is_example(self, paths: Sequence[str]) -> bool:
        try:
            return recognise_example(paths, self.asking.handlers.folder) is not None
        except InputError:
            return False  # its file is gone, which is said when it is asked

    def step(self, key: str, by: int) -> str:
        """The question that comes after (or before) this one; the first after none, and round at the ends."""
        if not key:
            return LESSONS[0 if by > 0 else -1].key
        return LESSONS[(find_lesson(key) + by) % len(LESSONS)].key

    def tell(self, key: str, page: Shown | None) -> list[Any]:
        """The text, the tab, the arrangement of the batch, and the batch where that is the place."""
        untouched = [gr.skip()] * len(self.batch.outputs)
        if not key or page is None:
            return ["", gr.skip(), gr.skip(), *untouched]
        lesson = _find(key)
        vlm = self.store.get(page.model)
        try:
            prompt = ShownPrompt(vlm, page.inspection)
            said = lesson.tell(prompt)
            picture = show_pipeline(list_pipeline(prompt), lesson.stage) if lesson.stage else ""
        except InputError as error:
            raise refuse(error) from error
        drawn = batch_view.draw(vlm, page.inspection, lesson.arrangement) if lesson.tab == "Batch" else untouched
        return [show_lesson(lesson, said) + picture, gr.update(selected=lesson.tab), lesson.arrangement, *drawn]


def show_lesson(lesson: Lesson, said: str) -> str:
    return (
        f'<p class="vi-lesson" data-target="{escape(lesson.target)}" role="status"><b>{escape(lesson.question)}</b> '
        f"{escape(said)}</p>"
    )


def _find(key: str) -> Lesson:
    try:
        return LESSONS[find_lesson(key)]
    except InputError as error:
        raise refuse(error) from error


def wire_lessons(
    view: LessonsView,
    text: gr.HTML,
    asking: Asking,
    tabs: gr.Tabs,
    batch: batch_view.BatchView,
    store: ModelStore,
    shown: gr.State,
    demo: GuardedBlocks,
) -> None:
    """``text``: as :func:`build_text` makes it. ``shown`` holds a :class:`inspector.session.Shown`."""
    handlers, prompt = LessonHandlers(asking, batch, store), asking.page.prompt
    told: list[Any] = [text, tabs, batch.arrangement, *batch.outputs]
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "undocumented"}
    look: dict[str, Any] = {"concurrency_id": Rank.LOOK.place, **quiet}
    tell = demo.turns.run(Rank.LOOK, handlers.tell)

    view.chosen.change(
        remember, [prompt.history, *prompt.written], prompt.history, api_visibility="private", show_progress="hidden"
    )

    def follow(event: Any, name: str) -> None:
        loaded = event(
            handlers.load,
            [view.chosen, prompt.model],
            [*asking.filled, batch.arrangement],
            api_name=f"{name}_load",
            concurrency_limit=None,
            **quiet,
        )
        asked = asking.follow(loaded.success, f"{name}_ask")
        said = asked.then(tell, [view.chosen, shown], told, api_name=f"{name}_tell", **look)
        said.success(None, None, None, js=OUTLINE, api_visibility="private")

    follow(view.chosen.change, "lesson")
    for button, by, name in ((view.back, -1, "lesson_back"), (view.onward, 1, "lesson_next")):
        button.click(lambda key, by=by: handlers.step(key, by), view.chosen, view.chosen, api_name=name, **quiet)
    loaded = view.mine.click(
        handlers.load_own,
        [prompt.model, prompt.gallery, prompt.asked],
        asking.filled,
        api_name="lesson_own_load",
        concurrency_limit=None,
        **quiet,
    )
    asked = asking.follow(loaded.success, "lesson_own_ask")
    own = asked.then(tell, [view.chosen, shown], told, api_name="lesson", concurrency_id=Rank.LOOK.place)
    own.success(None, None, None, js=OUTLINE, api_visibility="private")
    # A link to a question, once the page is open.
    asking.opened.then(name_lesson, None, view.chosen, api_name="lesson_of_link", **quiet)


def name_lesson(request: gr.Request) -> Any:
    """The key of the question that the page's address names; nothing changes for an unknown one, or none."""
    key = str(dict(request.query_params).get("lesson", ""))
    return key if any(lesson.key == key for lesson in LESSONS) else gr.skip()
