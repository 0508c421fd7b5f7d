"""The left column (images, turns, layout, settings) and the strip of examples above it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from inspector.bounds import Bounds
from inspector.figures.markup import show_asked, show_info, show_notes, show_plans
from inspector.figures.payload import data_uri, thumbnail_uri
from inspector.images.example_files import PAGE_EXAMPLES, write_example
from inspector.images.image_file import SHELF, ImageFile, PromptImage
from inspector.row.ask import GenerationSettings
from inspector.row.prompt import MAX_IMAGES, Prompt, Turn, check_count, check_pixels
from inspector.session import ModelStore
from inspector.widgets import FilesButton
from inspector.widgets.image_list import ImageList
from model import ImagePlan, InputError, InspectableVLM
from model.values import is_number, name_value

MAX_TURNS = Bounds().turns
MAX_UPLOAD_MB = Bounds().file_bytes >> 20
"""Largest file that the server takes, in MiB; the page refuses larger ones before they are sent."""
LONGEST, HOTTEST, WIDEST, NARROWEST = 128, 2, 100, 0.001
"""How far the form's sliders go: tokens, temperature, top-k, and top-p downwards."""
EMBEDDED_NAME = "embedded"
PHOTO_COLOURS = 1024
"""A picture of 96 px with more colours is a photograph."""
THUMB_PX = 22
"""Height of an example's pictures in its button."""
MAX_REFUSED = 12
"""So many refused files are named; the rest is counted."""

INPUT_NAMES = (
    "model",
    "gallery",
    "turns",
    "layout",
    "document_mask",
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "seed",
    *(f"question_{n + 1}" for n in range(MAX_TURNS)),
    *(f"answer_{n + 1}" for n in range(MAX_TURNS)),
)
"""What a program calls the inputs of /ask."""

ABOUT = (
    "Sizes, grids and token counts follow from each picture's size by the model's own rules, before "
    "anything runs. They tell what the model will be given, not whether it makes use of it."
)

GalleryValue = list[tuple[str, str | None]] | None


@dataclass(frozen=True)
class PromptView:
    """The components; ``inputs`` is what :func:`read_prompt` takes, in order. What can't be used is said beside the
    images (``refused`` before a file is sent, ``rejected`` after it was looked into) and under the Ask button
    (``note``). ``settings_begun`` holds what the settings were when the model was picked, the seed left out (see
    :func:`begin_settings`). ``bounds`` are what the server gives one prompt."""

    model: gr.Dropdown
    gallery: gr.Gallery
    plans: ImageList
    add: FilesButton
    clear: gr.Button
    undo: gr.Button
    refused: gr.HTML
    rejected: gr.HTML
    history: gr.State
    asked: gr.State
    earlier: gr.Dropdown
    questions: tuple[gr.Textbox, ...]
    answers: tuple[gr.Textbox, ...]
    rows: tuple[gr.Group, ...]
    shown_turns: gr.State
    add_turn: gr.Button
    drop_turn: gr.Button
    layout: gr.Radio
    document_mask: gr.Checkbox
    settings: tuple[gr.Component, ...]
    settings_note: gr.HTML
    settings_begun: gr.State
    ask: gr.Button
    stop: gr.Button
    note: gr.HTML
    examples: tuple[gr.Button, ...]
    bounds: Bounds

    @property
    def inputs(self) -> list[Any]:
        """In the order of :data:`INPUT_NAMES`."""
        return [
            self.model,
            self.gallery,
            self.shown_turns,
            self.layout,
            self.document_mask,
            *self.settings,
            *self.questions,
            *self.answers,
        ]

    @property
    def written(self) -> list[Any]:
        """What a person puts together, as Undo and links bring it back: see :func:`fill_contents`."""
        return [
            self.gallery,
            self.shown_turns,
            self.layout,
            self.document_mask,
            *self.questions,
            *self.answers,
        ]

    @property
    def contents(self) -> list[Any]:
        """What :func:`fill_contents` fills."""
        return [
            self.gallery,
            self.plans,
            self.rejected,
            self.shown_turns,
            self.layout,
            self.document_mask,
            *self.questions,
            *self.answers,
            *self.rows,
        ]


def show_thumbnails(images: Sequence[Image.Image]) -> str:
    """The images side by side, as one small picture that stands in a button: declarations for its style."""
    small = [image.resize((max(1, round(image.width * THUMB_PX / image.height)), THUMB_PX)) for image in images]
    wide = sum(image.width + 2 for image in small) - 2
    sheet, left = Image.new("RGBA", (wide, THUMB_PX)), 0
    for image in small:
        sheet.paste(image, (left, 0))
        left += image.width + 2
    return f"--wide:{wide}px;--thumbs:url({data_uri(sheet)})"


def build_examples() -> tuple[gr.Button, ...]:
    """A strip of prompts that are ready to be looked at; one click fills everything in and asks."""
    with gr.Row(elem_classes="vi-examples"):
        rules = "".join(
            f".gradio-container #example-{example.name}{{{show_thumbnails(example.draw_images())}}}"
            for example in PAGE_EXAMPLES
        )
        gr.HTML(f'<h2 class="vi-heading">Examples</h2><style>{rules}</style>', elem_classes="vi-examples-title")
        with gr.Row(elem_classes="vi-examples-line"):
            return tuple(
                gr.Button(example.title, size="sm", min_width=40, elem_id=f"example-{example.name}")
                for example in PAGE_EXAMPLES
            )


def build_prompt(store: ModelStore, examples: tuple[gr.Button, ...], bounds: Bounds, model: gr.Dropdown) -> PromptView:
    """``model``: the picker, which stands elsewhere."""
    # Above what scrolls, which would cut its note off.
    gr.HTML(f'<div class="vi-panel-head"><h2 class="vi-heading">Prompt</h2>{show_info("Prompt", ABOUT)}</div>')
    with gr.Column(elem_classes="vi-prompt-body"):
        # The list's script lets files in: it looks for their fields inside this column.
        with gr.Column(elem_classes="vi-images"):
            gallery = gr.Gallery(
                label="Images",
                show_label=False,
                type="filepath",
                file_types=["image"],
                columns=4,
                height=132,
                object_fit="contain",
                interactive=True,
                buttons=[],
                elem_id="images",
            )
            with gr.Row(elem_classes="vi-image-buttons"):
                add = FilesButton(
                    "Add images",
                    file_types=["image"],
                    file_count="multiple",
                    size="sm",
                    min_width=90,
                    elem_id="add-images",
                )
                clear = gr.Button("Remove all", size="sm", min_width=80, elem_id="clear-images")
                undo = gr.Button("Undo", size="sm", min_width=60, elem_id="undo-images")
            refused = gr.HTML(elem_id="refused-files")
            rejected = gr.HTML(elem_id="rejected-files")
            plans = ImageList(show_plans([], [], []), limit=MAX_UPLOAD_MB << 20, elem_id="plans")
        # What Undo goes back to, and what was asked on this page.
        history: gr.State = gr.State([])
        former: gr.State = gr.State(())
        shown_turns: gr.State = gr.State(1)
        rows, questions, answers = [], [], []
        for number in range(1, MAX_TURNS + 1):
            with gr.Group(visible=number == 1) as row:
                questions.append(
                    gr.Textbox(
                        "",
                        label=f"Turn {number}: question",
                        lines=1,
                        max_lines=4,
                        elem_id=f"question-{number}",
                        placeholder="What colour is the shape?",
                    )
                )
                answers.append(
                    gr.Textbox(
                        "",
                        label="Answer",
                        lines=1,
                        max_lines=4,
                        elem_id=f"answer-{number}",
                        placeholder="left empty: the model answers",
                    )
                )
            rows.append(row)
        with gr.Row():
            add_turn = gr.Button("Add turn", size="sm", min_width=80, elem_id="add-turn")
            drop_turn = gr.Button("Remove last turn", size="sm", min_width=100, elem_id="drop-turn")
        earlier = gr.Dropdown(
            [],
            value=None,
            label="Asked before on this page",
            visible=False,
            filterable=False,
            elem_id="earlier-prompts",
        )
        layout = gr.Radio(
            [("all images first", "images-first"), ("one image per turn", "per-turn"), ("packed samples", "packed")],
            value="images-first",
            label="Layout",
            elem_id="layout",
        )
        document_mask = gr.Checkbox(
            False,
            label="document mask (packed samples can't see one another; nanoVLM trains without)",
            visible=False,
            elem_id="document-mask",
        )
        begun, asked = begin_settings(store.get(store.names[0]), bounds)
        longest, temperature, top_k, top_p = begun
        with gr.Accordion("Generation settings", open=False):
            settings_note = gr.HTML(asked, elem_id="settings-note")
            settings: tuple[gr.Component, ...] = (
                gr.Slider(1, min(LONGEST, bounds.answer_tokens), longest, step=1, label="Longest answer (tokens)"),
                gr.Slider(0, HOTTEST, temperature, step=0.05, label="Temperature (0 = greedy)"),
                gr.Slider(0, WIDEST, top_k, step=1, label="top-k (0 = off)"),
                gr.Slider(NARROWEST, 1, top_p, step=NARROWEST, label="top-p (1 = off)"),
                gr.Number(0, precision=0, label="Seed"),
            )
        settings_begun: gr.State = gr.State(begun)
    # Below what scrolls, so that it is always in sight.
    with gr.Column(elem_classes="vi-prompt-foot"):
        with gr.Row():
            ask = gr.Button("Ask", variant="primary", elem_id="ask")
            stop = gr.Button("Stop", min_width=60, scale=0, elem_id="stop")
        note = gr.HTML(elem_id="ask-note")
    return PromptView(
        model,
        gallery,
        plans,
        add,
        clear,
        undo,
        refused,
        rejected,
        history,
        former,
        earlier,
        tuple(questions),
        tuple(answers),
        tuple(rows),
        shown_turns,
        add_turn,
        drop_turn,
        layout,
        document_mask,
        settings,
        settings_note,
        settings_begun,
        ask,
        stop,
        note,
        examples,
        bounds,
    )


def paths_of(gallery: GalleryValue) -> list[str]:
    return [path for path, _ in gallery or []]


def read_prompt(
    gallery: GalleryValue, shown: int, layout: str, document_mask: bool, texts: Sequence[str], bounds: Bounds
) -> tuple[Prompt, list[str]]:
    """The prompt and its images' names. InputError names what can't be used or is beyond the server's ``bounds``."""
    questions, answers = texts[:MAX_TURNS], texts[MAX_TURNS:]
    paths = paths_of(gallery)
    check_count(len(paths), bounds)
    turns = tuple(Turn(questions[n] or "", (answers[n] or "").strip()) for n in range(int(shown)))
    images = tuple(SHELF.find(path) for path in paths)
    prompt = Prompt(images, turns, layout, bool(document_mask), bounds)  # type: ignore[arg-type]
    check_pixels(images, bounds)
    return prompt, [Path(path).name for path in paths]


@dataclass(frozen=True)
class AskedPrompt:
    """A prompt that was asked on a page: values of :attr:`PromptView.written` behind its number."""

    number: int
    written: list[Any]

    @property
    def label(self) -> str:
        gallery, turns, _, _, *texts = self.written
        images = len(gallery)
        return f"{images} {'image' if images == 1 else 'images'} · {texts[turns - 1]}"


def write_prompt(prompt: Prompt) -> list[Any]:
    """:func:`write_contents` of a prompt that was asked; what the model answered is left to it."""
    turns = [(turn.user, "" if turn.answer_ids is not None else turn.assistant) for turn in prompt.turns]
    paths = [image.path for image in prompt.images if isinstance(image, ImageFile)]
    return write_contents(paths, turns, prompt.layout, prompt.document_mask)


def begin_settings(vlm: InspectableVLM, bounds: Bounds) -> tuple[list[float], str]:
    """What the form's settings are, all but the seed, until a person changes them: what the model's checkpoint asks
    for, as far as the sliders go; and a line that says what it asks for."""
    asked = GenerationSettings.of_checkpoint(vlm, bounds)
    begun = [
        min(asked.max_new_tokens, LONGEST),
        min(asked.temperature, HOTTEST),
        min(asked.top_k, WIDEST),
        max(asked.top_p, NARROWEST),
    ]
    named = ", ".join(f"{name} {value:g}" for name, value in vlm.generation_defaults.items())
    return begun, show_asked(f"The checkpoint asks for {named}; that is where these begin." if named else "")


def follow_model(vlm: InspectableVLM, bounds: Bounds, before: Sequence[float], values: Sequence[Any]) -> list[Any]:
    """For ``settings_begun``, ``settings_note`` and the settings but the seed, when another model is picked: what a
    person has changed stays."""
    begun, note = begin_settings(vlm, bounds)
    pairs = zip(values, before, begun, strict=True)
    return [begun, note, *(new if value == old else gr.skip() for value, old, new in pairs)]


def read_settings(values: Sequence[Any], bounds: Bounds) -> GenerationSettings:
    """From the form's numbers, in order; a field that was emptied is 0. InputError as for
    :class:`inspector.row.ask.GenerationSettings`."""
    # A slider sends 32 as 32.0 now and then.
    numbers = [int(value) if isinstance(value, float) and value.is_integer() else value or 0 for value in values]
    max_new_tokens, temperature, top_k, top_p, seed = numbers
    return GenerationSettings(max_new_tokens, temperature, top_k, top_p, seed, bounds)


def plan_images(store: ModelStore, model: str, gallery: GalleryValue, bounds: Bounds) -> tuple[GalleryValue, str, str]:
    """The pictures that can be opened, what they will cost, and a sentence for each that can't be used or is beyond
    the server's ``bounds``."""
    vlm = store.get(model).for_images(len(gallery or []))
    kept: list[tuple[str, str | None]] = []
    plans: list[ImagePlan] = []
    notes: list[tuple[str, ...]] = []
    pictures: list[str] = []
    sentences: list[str] = []
    photographed = False
    left_out: list[str] = []
    pixels = 0
    for path in paths_of(gallery):
        if len(kept) == MAX_IMAGES:
            left_out.append(f"“{Path(path).name}”")
            continue
        try:
            image = SHELF.find(path)
            if pixels + image.count_pixels() > bounds.prompt_pixels:  # before any of them is decoded
                most = f"{bounds.prompt_pixels / 1e6:,.0f} million pixels"
                raise InputError(f"“{Path(path).name}” is left out: all images may have {most} together; scale it.")
            pixels += image.count_pixels()
            plan = vlm.plan_image(image.size)
        except InputError as error:
            sentences.append(str(error))
            continue
        kept.append((path, None))
        plans.append(plan)
        notes.append((*image.notes, *plan.notes))
        pictures.append(thumbnail_uri(image))
        photographed = photographed or is_photograph(image)
    if left_out:
        named = ", ".join(left_out[:3]) + (f" and {len(left_out) - 3} more" if len(left_out) > 3 else "")
        sentences.append(
            f"At most {MAX_IMAGES} images fit one prompt; {named} {'was' if len(left_out) == 1 else 'were'} left out."
        )
    beyond = say_beyond(store, model) if photographed and store.argument_of(model) == EMBEDDED_NAME else ""
    names = [Path(path).name for path, _ in kept]
    return kept, show_plans(names, plans, notes, pictures, beyond), show_notes(sentences)


def is_photograph(image: PromptImage) -> bool:
    """Whether a picture has more colours than drawn shapes and their soft edges have."""
    picture = image.preview.convert("RGB")
    picture.thumbnail((96, 96))
    return picture.getcolors(PHOTO_COLOURS) is None


def say_beyond(store: ModelStore, model: str) -> str:
    """What the page can show of a photograph that its model can't name, and which model to pick."""
    others = [name for name in store.names if name != model and store.argument_of(name) != EMBEDDED_NAME]
    pick = (
        f"pick {others[0]} under Models"
        if others
        else "start the app with --model HuggingFaceTB/SmolVLM-256M-Instruct (16 GB, no GPU)"
    )
    return (
        "This model knows drawn shapes and nothing of photographs. The page still shows how a photograph is resized, "
        f"cut and laid out in the row, and where attention goes; its answer will be a guess. To have it named, {pick}."
    )


def refuse_files(files: list[Any]) -> str:
    """What is said of files that the page didn't send: each a dictionary of name and size in bytes. InputError if it
    is none."""
    sentences = []
    for file in files[:MAX_REFUSED]:
        name, size = (file.get("name"), file.get("size")) if isinstance(file, dict) else (None, None)
        if not isinstance(name, str) or not isinstance(size, int | float) or not is_number(size):
            raise InputError(f"A file is described by {name_value(file)}; give its name and its size in bytes.")
        shown = name if len(name) <= 80 else f"{name[:80]}…"
        if file.get("fetched") is False:
            sentences.append(f"“{shown}” can't be fetched from there by a page; save the picture and drop the file.")
        elif size > MAX_UPLOAD_MB << 20:
            # Decimals enough that a file just above the limit doesn't read as if it were at it.
            sentences.append(f"“{shown}” has {size / 2**20:,.2f} MiB; at most {MAX_UPLOAD_MB} are taken, scale it.")
        else:
            sentences.append(f"“{shown}” is not an image; choose a PNG, JPEG, WebP, GIF, BMP or TIFF picture.")
    if len(files) > MAX_REFUSED:
        sentences.append(f"And {len(files) - MAX_REFUSED:,} more files can't be used either.")
    return show_notes(sentences)


def place_image(gallery: GalleryValue, start: int, stop: int) -> GalleryValue:
    """The image at index ``start`` put at ``stop``, or at the end that is beyond. InputError if there is no such image
    (the list on the page may be older than the gallery)."""
    images = list(gallery or [])
    if not 0 <= start < len(images):
        raise InputError(f"There is no image {start + 1} to move; the prompt has {len(images)}.")
    stop = min(max(stop, 0), len(images) - 1)
    images.insert(stop, images.pop(start))
    return images


def remove_image(gallery: GalleryValue, index: int) -> GalleryValue:
    """All images but the one at ``index``; all of them if it is gone already."""
    return [image for number, image in enumerate(gallery or []) if number != index]


def show_turns(count: int) -> list[Any]:
    """Visibility of each turn's fields."""
    return [gr.update(visible=number < count) for number in range(MAX_TURNS)]


def fill_contents(store: ModelStore, model: str, written: Sequence[Any], bounds: Bounds) -> list[Any]:
    """Values for :attr:`PromptView.contents` from those of :attr:`PromptView.written`."""
    gallery, turns, layout, document_mask, *texts = written
    return [
        *plan_images(store, model, gallery, bounds),
        turns,
        layout,
        gr.update(value=document_mask, visible=layout == "packed"),
        *texts,
        *show_turns(turns),
    ]


def write_contents(
    paths: Sequence[str | Path],
    turns: Sequence[tuple[str, str]],
    layout: str = "images-first",
    document_mask: bool = False,
) -> list[Any]:
    """Values of :attr:`PromptView.written`; ``turns``: question and given answer of each."""
    blank = [""] * (MAX_TURNS - len(turns))
    questions, answers = [question for question, _ in turns], [answer for _, answer in turns]
    gallery = [(str(path), None) for path in paths]
    return [gallery, len(turns), layout, document_mask, *questions, *blank, *answers, *blank]


def write_example_contents(index: int, folder: Path) -> list[Any]:
    """:func:`write_contents` of an example; its pictures are drawn into ``folder``."""
    example = PAGE_EXAMPLES[index]
    return write_contents(write_example(example, folder), [(turn, "") for turn in example.turns], example.layout)


def load_example(store: ModelStore, model: str, index: int, folder: Path) -> list[Any]:
    """Values for :attr:`PromptView.contents`. Pictures are drawn into ``folder``."""
    return fill_contents(store, model, write_example_contents(index, folder), Bounds())  # pictures of our own are small
