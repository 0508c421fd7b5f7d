"""Asking: the answer streams, can be stopped, and fills everything on the page that shows what the model saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import gradio as gr

from inspector.figures.markup import show_answer, show_looks_needs, show_notes, show_provenance, show_seen
from inspector.figures.payload import strip_payload, viewer_payload
from inspector.images.example_files import PAGE_EXAMPLES
from inspector.row.ask import Inspection, ask, attend, inspect_unfinished
from inspector.row.prompt import name_missing
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import Answering, ModelStore, Shown
from inspector.views import attention as attention_view
from inspector.views import clip as clip_view
from inspector.views import image_edits as edits_view
from inspector.views import patch_words as words_view
from inspector.views import prompt as prompt_view
from inspector.views import which_image as which_view
from inspector.views.header import HeaderView
from inspector.views.prompting import REMEMBERED, remember
from inspector.views.results import ResultsView
from inspector.which_image.looks_needs import is_quick, measure_looks_needs
from inspector.which_image.seen import SeenAnswer, measure_all_seen
from inspector.widgets import encode
from model import InputError

OPENING_EXAMPLE = 1
"""Three images, one asked about."""


@dataclass(frozen=True)
class Page:
    """The views that an answer fills. ``shown`` holds what they show (a :class:`inspector.session.Shown`),
    ``answering`` what is on its way (an :class:`inspector.session.Answering`)."""

    header: HeaderView
    prompt: prompt_view.PromptView
    results: ResultsView
    attention: attention_view.AttentionView
    which: which_view.WhichImageView
    words: words_view.PatchWordsView
    clip: clip_view.ClipView
    edits: edits_view.ImageEditsView
    shown: gr.State
    answering: gr.State

    @property
    def answered(self) -> list[Any]:
        """What every event that asks fills: note, answer and ``answering`` while tokens come, all at the end."""
        return [
            self.prompt.note,
            self.results.answer,
            self.answering,
            self.header.provenance,
            self.shown,
            self.results.viewer,
            self.results.strip,
            self.attention.summary,
            self.attention.layer,
            self.attention.head,
            *self.which.fresh,
            *self.words.fresh,
            *self.clip.fresh,
            *self.edits.fresh,
            *self.attention.fresh,
            self.results.looks,
        ]


@dataclass(frozen=True)
class AskingHandlers:
    """What the events of asking call. ``folder`` is for the examples' pictures."""

    page: Page
    store: ModelStore
    folder: Path

    def ask(
        self, model: str, gallery: Any, turns: int, layout: str, document_mask: bool, *values: Any
    ) -> Iterator[list[Any]]:
        prompt = self.page.prompt
        settings_values, values = values[: len(prompt.settings)], values[len(prompt.settings) :]
        texts, options = values[: 2 * prompt_view.MAX_TURNS], values[2 * prompt_view.MAX_TURNS :]
        try:
            settings = prompt_view.read_settings(settings_values, prompt.bounds)
            asked, names = prompt_view.read_prompt(gallery, turns, layout, document_mask, texts, prompt.bounds)
            yield from self._stream(Answering(model, asked, tuple(names), settings, ((),) * len(asked.turns)), options)
        except InputError as error:
            yield self._refused(error, gr.skip())
            # A program gets the sentence as an error; on the page it stands under the button that was pressed.
            raise refuse(error, seen=False) from error

    def load_example(self, index: int, model: str) -> list[Any]:
        """Values for the prompt's contents."""
        return prompt_view.load_example(self.store, model, index, self.folder)

    def bring_back(self, model: str, asked: tuple[prompt_view.AskedPrompt, ...], number: str) -> list[Any]:
        """Values for the prompt's contents: an earlier one's."""
        found = next((one for one in asked if str(one.number) == number), None)
        if found is None:
            raise refuse("That prompt isn't kept any more; choose another, or write it anew.")
        return prompt_view.fill_contents(self.store, model, found.written, self.page.prompt.bounds)

    def remember_asked(
        self, page: Shown | None, history: list, asked: tuple[prompt_view.AskedPrompt, ...]
    ) -> list[Any]:
        """What Undo goes back to, the prompts that were asked on this page, and the choice of them, newest first."""
        if page is None:
            return [gr.skip()] * 3
        written = prompt_view.write_prompt(page.inspection.prompt)
        asked = tuple(one for one in asked if one.written != written)[1 - REMEMBERED :]
        asked += (prompt_view.AskedPrompt(asked[-1].number + 1 if asked else 1, written),)
        choices = [(one.label, str(one.number)) for one in reversed(asked)]
        picker = gr.update(choices=choices, value=choices[0][1], visible=len(asked) > 1)
        return [remember(history, *written), asked, picker]

    def stop(self, before: Shown | None, stopped: Answering | None, *options: Any) -> list[Any]:
        if stopped is None:
            return [gr.skip()] * len(self.page.answered)
        try:
            inspection = inspect_unfinished(self.store.get(stopped.model), stopped.prompt, stopped.tokens)
        except InputError as error:
            return self._refused(
                error, show_answer([]) if before is None else show_turns(before.inspection, before.seen)
            )
        count, left = len(inspection.answers[-1]), len(stopped.prompt.turns) - len(inspection.answers)
        note = f"Stopped after {count} {'token' if count == 1 else 'tokens'}; this is the answer as far as it came."
        if left:
            note += f" {left} later {'turn was' if left == 1 else 'turns were'} not asked."
        return self._finish(stopped, inspection, options, show_notes([note]))

    @property
    def _rest(self) -> list[Any]:
        """What stays while tokens come: all of :attr:`Page.answered` but its first three."""
        return [gr.skip()] * (len(self.page.answered) - 3)

    def _refused(self, error: InputError, answer: Any) -> list[Any]:
        return [show_notes([str(error)]), answer, None, *self._rest]

    def _stream(self, on_its_way: Answering, options: Sequence[Any]) -> Iterator[list[Any]]:
        asked, tokens = on_its_way.prompt, list(on_its_way.tokens)
        vlm, rest = self.store.get(on_its_way.model), self._rest
        note = show_notes(name_missing(asked))
        try:
            for event in ask(vlm, asked, on_its_way.settings):
                if isinstance(event, Inspection):
                    yield self._finish(on_its_way, event, options, note)
                    return
                turn, token = event
                if token is not None:
                    tokens[turn] += (token,)
                on_its_way = replace(on_its_way, tokens=tuple(tokens))
                parts = [(t.user, t.assistant, tokens[n], ()) for n, t in enumerate(asked.turns[: turn + 1])]
                yield [note, show_answer(parts, running=True), on_its_way, *rest]
        except InputError:
            # A later turn that doesn't fit takes nothing away from the answers before it.
            if any(tokens):
                yield self._finish(on_its_way, inspect_unfinished(vlm, asked, tokens), options)
            raise

    def look_behind(self, page: Shown | None, history: list, asked: tuple[prompt_view.AskedPrompt, ...]) -> list[Any]:
        """All that is done when an answer is there: :meth:`look_closer` and :meth:`remember_asked`."""
        return [*self.look_closer(page), *self.remember_asked(page, history, asked)]

    def look_closer(self, page: Shown | None) -> list[Any]:
        """What other pictures change in what was seen, and the line on looking and needing: where both cost next to
        nothing. An event of its own, so that nobody waits for it who has the answer and asks on."""
        if page is None or not page.inspection.row.images:
            return [gr.skip(), gr.skip()]
        vlm, inspection = self.store.get(page.model), page.inspection
        if not is_quick(vlm, inspection):
            return [gr.skip(), gr.skip()]
        answer, line = show_turns(inspection, measure_all_seen(vlm, inspection, exchange=True)), ""
        if inspection.prompt.turns[-1].is_answered and inspection.first_answer_position < len(inspection.row) - 1:
            chooser = inspection.row_that_chose(inspection.first_answer_position)
            found = measure_looks_needs(vlm, inspection, attend(vlm, inspection, chooser))
            line = "" if found is None else show_looks_needs(found.sentence)
        return [answer, line]

    def _finish(self, asked: Answering, inspection: Inspection, options: Sequence[Any], note: str = "") -> list[Any]:
        vlm = self.store.get(asked.model)
        layer, head, own_row, exclude_sinks, own_scale = options
        selected = inspection.first_answer_position
        row = selected if own_row else inspection.row_that_chose(selected)
        found = attend(vlm, inspection, row, exclude_sinks=exclude_sinks)
        seen = measure_all_seen(vlm, inspection, exchange=False)
        key = f"{inspection.fingerprint[:8]}-{id(inspection)}"
        strip = strip_payload(inspection, key)
        viewer = viewer_payload(vlm, inspection, asked.names, key)
        heat = attention_view.heat_of(found, selected, layer, head, own_scale)
        return [
            note,
            show_turns(inspection, seen),
            None,
            show_provenance(vlm, inspection, self.store.title_of(asked.model), self.store.memory_of(asked.model)),
            Shown(asked.model, inspection, selected, found, asked.names, asked.settings, seen),
            gr.update(data=encode(viewer)),
            gr.update(data=encode(strip), heat=encode(heat)),
            attention_view.summarise(inspection, found, layer, head),
            *attention_view.choices(found),
            *which_view.begin(self.page.which, self.store, asked.model, inspection),
            *words_view.begin(vlm.n_layers),
            *clip_view.begin(),
            *edits_view.begin(self.store, asked.model, inspection),
            *attention_view.begin(selected),
            "",
        ]


@dataclass(frozen=True)
class Asking:
    """What others need who load a prompt and ask it. ``filled``: what loading an example fills in. ``opened``: the
    event that has asked the question that the page opens with. ``closer``: has a look taken behind an event that
    asks."""

    page: Page
    handlers: AskingHandlers
    filled: list[Any]
    opened: Any
    in_turn: Callable[..., Any]
    closer: Callable[[Any], None]
    options: dict[str, Any]

    def follow(self, after: Any, name: str) -> Any:
        """Asks what the page holds ``after`` an event."""
        inputs = [*self.page.prompt.inputs, *self.page.attention.controls]
        asked = after(self.in_turn, inputs, self.page.answered, api_name=name, show_progress="hidden", **self.options)
        self.closer(asked)
        return asked


def wire_asking(page: Page, store: ModelStore, demo: GuardedBlocks, folder: Path, begun: Any) -> Asking:
    """``folder``: as :class:`AskingHandlers` has it. ``begun``: the event that has filled in what the page opens
    with."""
    handlers = AskingHandlers(page, store, folder)
    prompt, answered, place = page.prompt, page.answered, Rank.ASK.place
    inputs = [*prompt.inputs, *page.attention.controls]
    in_turn = demo.turns.run(Rank.ASK, handlers.ask)
    # What describes the API names parameters after the function's, and has no names for those behind an asterisk.
    _name_parameters(in_turn, (*prompt_view.INPUT_NAMES, *attention_view.CONTROL_NAMES))
    behind = demo.turns.run(Rank.LOOK, handlers.look_behind)

    def closer(asked: Any) -> None:
        asked.success(
            behind,
            [page.shown, prompt.history, prompt.asked],
            [page.results.answer, page.results.looks, prompt.history, prompt.asked, prompt.earlier],
            concurrency_id=Rank.LOOK.place,
            api_visibility="private",
            show_progress="hidden",
        )

    asks: list[Any] = [
        gr.on(
            [prompt.ask.click, *(question.submit for question in prompt.questions)],
            in_turn,
            inputs,
            answered,
            api_name="ask",
            concurrency_id=place,
            concurrency_limit=1,
            show_progress="minimal",
            show_progress_on=[page.results.answer],
        )
    ]

    def loader(index: int) -> Any:
        return lambda model: handlers.load_example(index, model)

    filled = prompt.contents
    # The same as /ask, so described once: what describes the API is sent with every page.
    again: dict[str, Any] = {"concurrency_id": place, "api_visibility": "undocumented"}
    for index, (button, example) in enumerate(zip(prompt.examples, PAGE_EXAMPLES, strict=True)):
        name = example.name.replace("-", "_")
        loaded = button.click(
            loader(index),
            prompt.model,
            filled,
            api_name=f"example_{name}",
            concurrency_limit=None,
            show_progress="hidden",
        )
        asks.append(
            loaded.success(
                in_turn,
                inputs,
                answered,
                api_name=f"ask_example_{name}",
                show_progress="minimal",
                show_progress_on=[page.results.answer],
                **again,
            )
        )

    back = prompt.earlier.input(
        handlers.bring_back,
        [prompt.model, prompt.asked, prompt.earlier],
        filled,
        api_name="earlier_prompt",
        concurrency_limit=None,
        show_progress="hidden",
    )
    asks.append(back.success(in_turn, inputs, answered, api_name="ask_earlier_prompt", show_progress="hidden", **again))

    opened = begun.success(in_turn, inputs, answered, api_name="ask_on_load", show_progress="hidden", **again)
    asks.append(opened)
    for asked in asks:
        closer(asked)

    # In the same place, so after what is being computed has ended: at its model's next block.
    prompt.stop.click(None, cancels=asks, api_name="stop").then(
        demo.turns.run(Rank.ASK, handlers.stop),
        [page.shown, page.answering, *page.attention.controls],
        answered,
        api_name="stopped",
        show_progress="hidden",
        **again,
    )
    return Asking(page, handlers, filled, opened, in_turn, closer, again)


def show_turns(inspection: Inspection, seen: Sequence[SeenAnswer]) -> str:
    """All questions and answers of what is shown, and which tokens were ``seen``."""
    turns = zip(inspection.prompt.turns, inspection.answers, inspection.answer_positions, strict=True)
    answers = show_answer([(turn.user, turn.assistant, tokens, places) for turn, tokens, places in turns])
    return answers + show_seen(seen)


def _name_parameters(handler: Callable[..., Any], names: Sequence[str]) -> None:
    parameters = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    handler.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
