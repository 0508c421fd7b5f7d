"""Events that the page has no use for: what a program may want to have as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.export.files import describe_all
from inspector.images.image_file import SHELF
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.prompt import Prompt, Turn, check_count, check_pixels
from inspector.server.blocks import GuardedBlocks
from inspector.server.toasts import refuse
from inspector.server.turns import Rank
from inspector.session import ModelStore, Shown
from model import InputError


def read_tokens(page: Shown | None) -> dict[str, Any]:
    """The row of tokens that this browser or client asked about last."""
    if page is None:
        raise refuse("There are no tokens yet; ask something first.")
    return page.inspection.table.to_json()


def wire_tokens(shown: gr.State) -> None:
    """``shown`` holds a :class:`inspector.session.Shown`."""
    tokens = gr.JSON(visible=False)
    reader = gr.Button(visible=False)
    reader.click(read_tokens, shown, tokens, api_name="tokens", concurrency_limit=None)


@dataclass(frozen=True)
class InspectHandler:
    """Asks without a page; nothing of it is kept."""

    store: ModelStore
    bounds: Bounds

    def inspect(
        self,
        images: list[gr.FileData],
        questions: list[str],
        layout: str = "images-first",
        document_mask: bool = False,
        model: str = "",
        max_new_tokens: int = 32,
    ) -> dict[str, Any]:
        """Asks and returns every fact as JSON, like ``python -m inspector inspect``. ``layout`` is one of
        images-first, per-turn, packed."""
        try:
            vlm = self.store.get(model or self.store.names[0])
            settings = GenerationSettings(max_new_tokens, bounds=self.bounds)
            check_count(len(images), self.bounds)
            opened = tuple(SHELF.find(_path_of(image)) for image in images)
            check_pixels(opened, self.bounds)
            asked = Prompt(opened, tuple(Turn(text) for text in questions), layout, document_mask, self.bounds)  # type: ignore[arg-type]
            inspection = ask_and_inspect(vlm, asked, settings)
            row = inspection.row_that_chose(inspection.first_answer_position)
            return describe_all(vlm, inspection, attend(vlm, inspection, row))
        except InputError as error:
            raise refuse(error) from error


def wire_inspect(store: ModelStore, demo: GuardedBlocks) -> None:
    handler = InspectHandler(store, demo.bounds)
    gr.api(demo.turns.run(Rank.ASK, handler.inspect), api_name="inspect", concurrency_id=Rank.ASK.place)


def _path_of(image: Any) -> str:
    # gradio hands an uploaded file over as a dictionary or as its own class, by the way it came.
    return str(image["path"] if isinstance(image, dict) else image.path)
