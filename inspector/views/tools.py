"""What another program's assistant may call as tools: the row of tokens, and the verdict on an answer."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gradio as gr

from inspector.bounds import Bounds
from inspector.facts import write_json
from inspector.files import handed_over
from inspector.images.image_file import SHELF
from inspector.row.ask import GenerationSettings, Inspection, ask_and_inspect
from inspector.row.prompt import Prompt, Turn, check_count, check_pixels
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore
from inspector.which_image.study import study_answer
from model import InputError, InspectableVLM

TOOLS = ("read_tokens", "find_image")
"""Names of the events."""
_KINDS = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "avif")


@dataclass(frozen=True)
class ToolHandlers:
    """Both give JSON as text; nothing of what is asked is kept."""

    store: ModelStore
    bounds: Bounds

    def read_tokens(
        self, images: list[str], questions: list[str], layout: str = "images-first", model: str = ""
    ) -> str:
        """Asks a vision-language model, and gives its answers and the whole row of tokens that it read: ids, texts,
        labels, attention mask, and which tokens are of which image.

        Args:
            images: each as a data URI (data:image/jpeg;base64,…) of at most 150 kB; may be empty
            questions: asked one after the other, each sees the earlier ones and their answers
            layout: images-first, per-turn or packed
            model: one of the server's models; left empty, its first
        """
        try:
            _, inspection = self._ask(images, questions, layout, model)
            answers = [turn.assistant for turn in inspection.prompt.turns]
            return write_json({"answers": answers, "tokens": inspection.table.to_json()})
        except InputError as error:
            raise refuse(error) from error

    def find_image(self, images: list[str], questions: list[str], layout: str = "images-first", model: str = "") -> str:
        """Asks a vision-language model, and tests by interventions which image the answer to the last question depends
        on: images are taken away or exchanged, the question is turned to others. Attention has no say in the verdict.

        Args:
            images: each as a data URI (data:image/jpeg;base64,…) of at most 150 kB
            questions: asked one after the other; the last one's answer is tested
            layout: images-first, per-turn or packed
            model: one of the server's models; left empty, its first
        """
        try:
            vlm, inspection = self._ask(images, questions, layout, model)
            *_, found = study_answer(vlm, inspection)
            answers = [turn.assistant for turn in inspection.prompt.turns]
            return write_json({"answers": answers, **found.to_json()})
        except InputError as error:
            raise refuse(error) from error

    def _ask(
        self, images: Sequence[str], questions: Sequence[str], layout: str, model: str
    ) -> tuple[InspectableVLM, Inspection]:
        vlm = self.store.get(model or self.store.names[0])
        check_count(len(images), self.bounds)
        with handed_over(self.bounds) as folder:
            opened = tuple(SHELF.find(_write_image(text, n, folder)) for n, text in enumerate(images, start=1))
            check_pixels(opened, self.bounds)
            turns = tuple(Turn(text) for text in questions)
            prompt = Prompt(opened, turns, layout, bounds=self.bounds)  # type: ignore[arg-type]
            return vlm, ask_and_inspect(vlm, prompt, GenerationSettings(bounds=self.bounds))


def _write_image(text: str, number: int, folder: Path) -> Path:
    head, comma, coded = text.partition(",")
    kind = head.removeprefix("data:image/").removesuffix(";base64")
    try:
        if not comma or kind not in _KINDS:
            raise ValueError(kind)
        content = base64.b64decode(coded, validate=True)
    except (ValueError, binascii.Error) as error:
        raise InputError(
            f"Image {number} begins with “{text[:40]}”; give a data URI: data:image/png;base64, (for png also "
            f"{', '.join(_KINDS[1:])}) and the file in base64."
        ) from error
    path = folder / f"image-{number}.{kind}"
    path.write_bytes(content)
    return path


def wire_tools(store: ModelStore, demo: GuardedBlocks) -> None:
    handlers, bounds = ToolHandlers(store, demo.bounds), demo.bounds
    ask, test = Rank.ASK, Rank.TEST
    gr.api(demo.turns.run(ask, handlers.read_tokens), api_name=TOOLS[0], concurrency_id=ask.place)
    found = demo.turns.run(test, handlers.find_image, bounds.study_s)
    gr.api(found, api_name=TOOLS[1], concurrency_id=test.place)
