"""The CLIP tab: images and captions in one space, the losses that put them there, and what single patches say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.encoder.captions import write_captions
from inspector.encoder.head_comparison import EVERY, STEPS, compare_heads
from inspector.encoder.inputs import DEFAULT_LABELS, TEMPLATE, ReadImages, read_images, split_lines, suggest_phrases
from inspector.encoder.patches import AlikePatches, find_alike, read_encoder_attention
from inspector.encoder.store import OWN, EncoderStore
from inspector.encoder.study import TextQuestions, TextStudy, describe_encoder, study_texts
from inspector.figures.clip import (
    ABOUT,
    ABOUT_ATTENTION,
    ABOUT_HEADS,
    show_attention,
    show_board,
    show_contrast,
    show_encoder,
    show_heads,
    show_phrases,
    show_zero_shot,
)
from inspector.figures.markup import show_info, show_notes
from inspector.images.image_file import PromptImage
from inspector.row.prompt import check_length
from inspector.server.blocks import GuardedBlocks
from inspector.server.inputs import read_event
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from inspector.widgets import Panel, PatchPicker, Sight, answer_sight
from model import InputError
from model.encoders.protocol import ImageTextEncoder

WAITING = '<p class="vi-empty">Press “Compare”: the images of the prompt meet their captions, in one matrix.</p>'
NO_PATCHES = '<p class="vi-empty">Press “Compare” first; then click a patch, and its like in all images lights up.</p>'
NO_ATTENTION = '<p class="vi-empty">Click a patch above: where each head of the encoder looks from it.</p>'
NO_LABEL = '<p class="vi-empty">There is no label to choose from; type two or more above.</p>'
MOST_PHRASES = 6
"""Things named in captions that are looked for by themselves."""
QUICK = 50_000_000
"""Weights of a model up to which the tab fills itself when it is looked at."""


@dataclass(frozen=True)
class EncoderShown:
    """What the tab shows, of which images: ``suggested`` captions are the model's own and go with them. ``used`` is
    the encoder's fingerprint: the name of a model's own stands for whichever answered. ``found`` None: it has no texts.
    """

    encoder: str
    used: str
    images: tuple[PromptImage, ...]
    read: ReadImages
    suggested: str
    found: TextStudy | None = None
    alike: AlikePatches | None = None

    def is_of(self, used: ImageTextEncoder, images: tuple[PromptImage, ...]) -> bool:
        """Whether it was read by that encoder from these images."""
        return self.images == images and self.used == used.fingerprint


@dataclass(frozen=True)
class ClipView:
    sight: Sight
    encoder: gr.Dropdown
    captions: gr.Textbox
    labels: gr.Textbox
    templates: gr.Textbox
    phrases: gr.Textbox
    temperature: gr.Slider
    start: gr.Button
    note: gr.HTML
    matrix: Panel
    zero_shot: Panel
    words: Panel
    board: PatchPicker
    layer: gr.Slider
    attention: Panel
    heads: gr.Button
    heads_panel: Panel
    shown: gr.State
    facts: gr.JSON

    @property
    def asked(self) -> list[Any]:
        """What a person chose and typed."""
        return [self.encoder, self.captions, self.labels, self.templates, self.phrases, self.temperature]

    @property
    def filled(self) -> list[Any]:
        """What comparing fills."""
        return [
            self.sight,
            self.captions,
            self.phrases,
            self.note,
            self.matrix,
            self.zero_shot,
            self.words,
            self.board,
            self.layer,
            self.attention,
            self.shown,
            self.facts,
        ]

    @property
    def fresh(self) -> list[Any]:
        """What :func:`begin` fills."""
        return [self.note, self.matrix, self.zero_shot, self.words, self.board, self.attention, self.facts]


def begin() -> list[Any]:
    """Values for :attr:`ClipView.fresh` when something new was asked: what was compared with other images goes."""
    return ["", _value(WAITING), _value(""), _value(""), NO_PATCHES, _value(NO_ATTENTION), None]


def _value(html: str) -> Any:
    return gr.update(value=html, busy="")


def build_clip(encoders: EncoderStore) -> ClipView:
    gr.HTML(
        '<div class="vi-panel-head"><h3 class="vi-heading">Images and captions in one space</h3>'
        f"{show_info('CLIP', ABOUT)}</div>"
    )
    sight = Sight("row")
    names = list(encoders.names)
    encoder = gr.Dropdown(names, value=OWN, label="Encoder", visible=len(names) > 1, elem_id="clip-encoder")
    with gr.Row(elem_classes="wi-controls", equal_height=True):
        captions = _lines("Captions, one for each image", 3, "clip-captions", "empty: the model writes them")
        labels = _lines("Labels for zero-shot, one a line", 3, "clip-labels", value="\n".join(DEFAULT_LABELS))
        templates = _lines("Templates ({} is the label)", 3, "clip-templates", value=TEMPLATE)
        phrases = _lines("Phrases to look for in the patches", 3, "clip-phrases", "empty: what the captions name")
    with gr.Row(elem_classes="wi-buttons"):
        temperature = gr.Slider(
            0, 1, 0, step=0.005, label="Temperature (0: as it was learned)", min_width=260, elem_id="clip-temperature"
        )
        start = gr.Button("Compare", variant="primary", size="sm", min_width=120, elem_id="clip-start")
    note = gr.HTML(elem_id="clip-note")
    matrix = Panel(WAITING, elem_id="clip-matrix")
    gr.HTML('<h3 class="vi-heading">Zero-shot</h3>')
    zero_shot = Panel(elem_id="clip-zero-shot")
    gr.HTML('<h3 class="vi-heading">Which patch says so</h3>')
    words = Panel(elem_id="clip-words")
    gr.HTML('<h3 class="vi-heading">Patches like this one</h3>')
    board = PatchPicker(NO_PATCHES, elem_id="clip-board")
    gr.HTML(
        '<div class="vi-panel-head"><h3 class="vi-heading">Where the encoder looks from it</h3>'
        f"{show_info('The attention of the encoder', ABOUT_ATTENTION)}</div>"
    )
    layer = gr.Slider(0, 1, 0, step=1, label="Layer of the encoder", min_width=200, elem_id="clip-layer")
    attention = Panel(NO_ATTENTION, elem_id="clip-attention")
    gr.HTML(
        '<div class="vi-panel-head"><h3 class="vi-heading">Linear against MLP head</h3>'
        f"{show_info('Linear against MLP head', ABOUT_HEADS)}</div>"
    )
    with gr.Row(elem_classes="wi-buttons"):
        heads = gr.Button("Train both heads", size="sm", min_width=160, elem_id="clip-heads")
    about = (
        f'<p class="vi-empty">CLIP projects linearly, SimCLR through an MLP. {STEPS} steps of either on the same drawn '
        "scenes take about a minute and leave the model as it is.</p>"
    )
    panel = Panel(about, elem_id="clip-heads-panel")
    return ClipView(
        sight,
        encoder,
        captions,
        labels,
        templates,
        phrases,
        temperature,
        start,
        note,
        matrix,
        zero_shot,
        words,
        board,
        layer,
        attention,
        heads,
        panel,
        gr.State(None),
        gr.JSON(visible=False),
    )


def _lines(label: str, lines: int, elem_id: str, placeholder: str = "", value: str = "") -> gr.Textbox:
    return gr.Textbox(
        value, label=label, lines=lines, max_lines=4, placeholder=placeholder, min_width=200, elem_id=elem_id
    )


@dataclass(frozen=True)
class ClipHandlers:
    """What the tab's events call; ``page`` is what the page shows, ``shown`` what this tab does."""

    store: ModelStore
    encoders: EncoderStore
    bounds: Bounds

    def look(self, page: Shown | None, shown: EncoderShown | None, *asked: Any) -> list[Any]:
        """The tab is looked at: it fills itself where that costs next to nothing."""
        note: Any = gr.skip()
        if page is not None and page.inspection.prompt.images and self.store.get(page.model).n_parameters <= QUICK:
            try:
                return self._compare(page, shown, *asked)
            except InputError as error:  # nobody pressed anything, so nothing pops up
                note = show_notes([str(error)])
        return [answer_sight(), gr.skip(), gr.skip(), note, *[gr.skip()] * 8]

    def compare(
        self,
        page: Shown | None,
        shown: EncoderShown | None,
        encoder: str,
        captions: str,
        labels: str,
        templates: str,
        phrases: str,
        temperature: float,
    ) -> list[Any]:
        """Values for :attr:`ClipView.filled`; the facts are those of ``python -m inspector clip``."""
        try:
            return self._compare(page, shown, encoder, captions, labels, templates, phrases, temperature)
        except InputError as error:
            raise refuse(error) from error

    def _compare(
        self,
        page: Shown | None,
        shown: EncoderShown | None,
        encoder: str,
        captions: str,
        labels: str,
        templates: str,
        phrases: str,
        temperature: float,
    ) -> list[Any]:
        if page is None:
            raise InputError("There is no answer yet; press Ask first.")
        typed = ((captions, "captions"), (labels, "labels"), (templates, "templates"), (phrases, "phrases"))
        for text, what in typed:
            check_length(text, f"The field of {what}", self.bounds)
        vlm, images = self.store.get(page.model), page.inspection.prompt.images
        used = self.encoders.get(encoder, vlm)
        known = shown is not None and shown.images == images
        read = shown.read if shown is not None and shown.is_of(used, images) else read_images(used, images)
        if not used.has_text:
            return self._without_text(used, encoder, images, read, captions)
        suggested = shown.suggested if shown is not None else ""
        # What the model wrote for other images goes; what a person typed stays theirs.
        if not captions.strip() or (captions == suggested and not known):
            written = write_captions(vlm, images)
            fresh = phrases == _name_things(suggested)
            captions = suggested = "\n".join(written)
            phrases = "" if fresh else phrases
        phrases = phrases if phrases.strip() else _name_things(captions)
        asked = TextQuestions(
            split_lines(captions),
            split_lines(labels),
            split_lines(templates) or (TEMPLATE,),
            split_lines(phrases),
            temperature or None,
        )
        found = study_texts(used, read, asked)
        maps = found.phrases.maps[0] if found.phrases else find_alike(read, 0, 0).maps
        return [
            answer_sight(),
            captions,
            phrases,
            show_encoder(used),
            _value(show_contrast(found.contrast, images)),
            _value(NO_LABEL if found.zero_shot is None else show_zero_shot(found.zero_shot, images)),
            _value("" if found.phrases is None else show_phrases(found.phrases, images, used.about_patches)),
            show_board(maps, images),
            gr.update(maximum=max(1, used.n_layers - 1), value=max(0, used.n_layers - 1)),
            _value(NO_ATTENTION),
            EncoderShown(encoder, used.fingerprint, images, read, suggested, found),
            {**describe_encoder(used), **found.to_json()},
        ]

    def _without_text(
        self, used: Any, encoder: str, images: tuple[PromptImage, ...], read: ReadImages, captions: str
    ) -> list[Any]:
        """What is left of an encoder without a text tower."""
        return [
            answer_sight(),
            gr.skip(),
            gr.skip(),
            show_encoder(used),
            _value(""),
            _value(""),
            _value(""),
            show_board(find_alike(read, 0, 0).maps, images),
            gr.update(maximum=max(1, used.n_layers - 1), value=max(0, used.n_layers - 1)),
            _value(NO_ATTENTION),
            EncoderShown(encoder, used.fingerprint, images, read, captions),
            describe_encoder(used),
        ]

    def pick(self, page: Shown | None, shown: EncoderShown | None, layer: int, event: gr.EventData) -> list[Any]:
        """The board, the attention of the chosen patch, what is shown, and its facts."""
        image, patch = read_event(event, "image", int), read_event(event, "patch", int)
        try:
            used, shown = self._check(page, shown)
            alike = find_alike(shown.read, image, patch)
            drawn, facts = self._draw_attention(used, shown, alike, layer)
        except InputError as error:
            raise refuse(error) from error
        shown = replace(shown, alike=alike)
        board = show_board(alike.maps, shown.images, alike)
        return [board, drawn, shown, {"alike": alike.to_json(), **facts}]

    def change_layer(self, page: Shown | None, shown: EncoderShown | None, layer: int) -> list[Any]:
        """The attention of the patch that was chosen, at another layer."""
        try:
            used, shown = self._check(page, shown)
            if shown.alike is None:
                raise InputError("No patch is chosen; click one in an image above.")
            drawn, facts = self._draw_attention(used, shown, shown.alike, layer)
        except InputError as error:
            raise refuse(error) from error
        return [drawn, {"alike": shown.alike.to_json(), **facts}]

    def _check(self, page: Shown | None, shown: EncoderShown | None) -> tuple[ImageTextEncoder, EncoderShown]:
        if page is not None and shown is not None:
            used = self.encoders.get(shown.encoder, self.store.get(page.model))
            if shown.is_of(used, page.inspection.prompt.images):
                return used, shown
        raise InputError("These images aren't compared yet; press Compare first.")

    def _draw_attention(
        self, used: Any, shown: EncoderShown, alike: AlikePatches, layer: int
    ) -> tuple[Any, dict[str, Any]]:
        found = read_encoder_attention(used, shown.read, alike.chosen.image, alike.chosen.patch, int(layer))
        return _value(show_attention(found, alike.maps, shown.images)), {"attention": found.to_json()}

    def train_heads(self, page: Shown | None) -> Iterator[list[Any]]:
        """Both heads from nothing; the panel after every so many steps, and the facts at the end."""
        try:
            if page is None:
                raise InputError("There is no answer yet; press Ask first.")
            yield [gr.update(busy="Drawing scenes …"), gr.skip()]
            for found in compare_heads(self.store.get(page.model)):
                ahead = min(found.steps, found.step + EVERY)
                busy = "" if found.step == found.steps else f"Step {found.step} of {found.steps}, on to {ahead} …"
                yield [gr.update(value=show_heads(found), busy=busy), found.to_json()]
        except InputError as error:
            yield [gr.update(busy=""), gr.skip()]
            raise refuse(error) from error


def _name_things(captions: str) -> str:
    """What is looked for in the patches where nobody says."""
    return "\n".join(suggest_phrases(split_lines(captions))[:MOST_PHRASES])


def wire_clip(view: ClipView, store: ModelStore, encoders: EncoderStore, shown: gr.State, demo: GuardedBlocks) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`."""
    handlers = ClipHandlers(store, encoders, demo.bounds)
    test: dict[str, Any] = {"concurrency_id": Rank.TEST.place, "concurrency_limit": 1}
    asked: list[Any] = [shown, view.shown, *view.asked]
    gr.on(
        [view.start.click, view.temperature.release, view.encoder.input],
        demo.turns.run(Rank.TEST, handlers.compare, demo.bounds.study_s),
        asked,
        view.filled,
        api_name="clip",
        show_progress="minimal",
        show_progress_on=[view.matrix],
        **test,
    )
    view.sight.seen(
        demo.turns.run(Rank.TEST, handlers.look, demo.bounds.study_s),
        asked,
        view.filled,
        api_name="clip_look",
        api_visibility="undocumented",
        show_progress="hidden",
        **test,
    )
    view.board.pick(
        demo.turns.run(Rank.TEST, handlers.pick),
        [shown, view.shown, view.layer],
        [view.board, view.attention, view.shown, view.facts],
        api_name="clip_patch",
        show_progress="hidden",
        trigger_mode="always_last",
        **test,
    )
    view.layer.release(
        demo.turns.run(Rank.TEST, handlers.change_layer),
        [shown, view.shown, view.layer],
        [view.attention, view.facts],
        api_name="clip_layer",
        show_progress="hidden",
        **test,
    )
    view.heads.click(
        demo.turns.run(Rank.EXPERIMENT, handlers.train_heads, demo.bounds.study_s),
        [shown],
        [view.heads_panel, view.facts],
        api_name="clip_heads",
        show_progress="hidden",
        concurrency_id=Rank.EXPERIMENT.place,
        concurrency_limit=1,
    )
