"""Putting the prompt together: its images, its turns, its layout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.figures.markup import show_plans
from inspector.server.inputs import read_event
from inspector.server.toasts import inform, refuse
from inspector.server.turns import IMAGES
from inspector.session import ModelStore
from inspector.views.prompt import (
    MAX_TURNS,
    GalleryValue,
    PromptView,
    follow_model,
    place_image,
    plan_images,
    refuse_files,
    remove_image,
    show_turns,
)
from model import InputError

Planned = tuple[Any, str, str, list]
"""Gallery, plans, what was rejected, and the galleries before."""


@dataclass(frozen=True)
class PromptHandlers:
    """What the prompt's events call; ``history`` are the galleries that Undo goes back to, the shown one last."""

    store: ModelStore
    bounds: Bounds

    def plan(self, model: str, gallery: GalleryValue, history: list) -> Planned:
        kept, plans, rejected = plan_images(self.store, model, gallery, self.bounds)
        return kept, plans, rejected, [*history[-19:], kept]

    def add(self, model: str, gallery: GalleryValue, files: list[str], history: list) -> Planned:
        return self.plan(model, [*(gallery or []), *((path, None) for path in files or [])], history)

    def place(self, model: str, gallery: GalleryValue, history: list, event: gr.EventData) -> Planned:
        try:
            placed = place_image(gallery, read_event(event, "start", int), read_event(event, "stop", int))
            return self.plan(model, placed, history)
        except InputError as error:
            raise refuse(error) from error

    def remove(self, model: str, gallery: GalleryValue, history: list, event: gr.EventData) -> Planned:
        return self.plan(model, remove_image(gallery, read_event(event, "index", int)), history)

    def follow(self, model: str, before: list[float], *values: Any) -> list[Any]:
        return follow_model(self.store.get(model), self.bounds, before, values)

    def undo(self, model: str, history: list) -> Planned:
        if len(history) < 2:
            inform("There is nothing to undo.")
            return gr.skip(), gr.skip(), gr.skip(), history
        return *plan_images(self.store, model, history[-2], self.bounds), history[:-1]


def clear_images(history: list) -> Planned:
    return [], show_plans([], [], []), "", [*history[-19:], []]


def refuse_sent(event: gr.EventData) -> str:
    return refuse_files(read_event(event, "files", list))


def add_turn(count: int) -> list[Any]:
    return _resize(count + 1)


def drop_turn(count: int) -> list[Any]:
    return _resize(count - 1)


def _resize(count: int) -> list[Any]:
    count = min(max(count, 1), MAX_TURNS)
    return [count, *show_turns(count)]


def offer_mask(layout: str) -> Any:
    return gr.update(visible=layout == "packed")


def wire_prompt(view: PromptView, store: ModelStore) -> None:
    handlers = PromptHandlers(store, view.bounds)
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    # Opening images takes its time: in a place of their own they can't take all threads, and turns are fair.
    opening: dict[str, Any] = {"concurrency_id": IMAGES, "concurrency_limit": 4, "show_progress": "hidden"}
    # Two clicks in quick succession are two; by default gradio drops those that come while one is on its way.
    in_turn: dict[str, Any] = {"concurrency_limit": 1, "show_progress": "hidden", "trigger_mode": "multiple"}
    images: list[Any] = [view.gallery, view.plans, view.rejected, view.history]
    present: list[Any] = [view.model, view.gallery, view.history]
    added = [view.model, view.gallery, view.add, view.history]
    turns = [view.shown_turns, *view.rows]
    view.gallery.upload(handlers.plan, present, images, api_name="plan_images", **opening)
    view.add.upload(handlers.add, added, images, api_name="add_images", **opening)
    view.plans.move(handlers.place, present, images, api_name="place_image", **opening)
    view.plans.remove(handlers.remove, present, images, api_name="remove_image", **opening)
    view.plans.refuse(refuse_sent, None, view.refused, api_name="refuse_files", **in_turn)
    view.clear.click(clear_images, view.history, images, api_name="clear_images", **free)
    view.undo.click(handlers.undo, [view.model, view.history], images, api_name="undo_images", **opening)
    begun = view.settings[:-1]  # a seed is nobody's but the person's
    view.model.change(handlers.plan, present, images, api_name="pick_model", **opening).success(
        handlers.follow,
        [view.model, view.settings_begun, *begun],
        [view.settings_begun, view.settings_note, *begun],
        api_visibility="private",
        **free,
    )
    view.add_turn.click(add_turn, view.shown_turns, turns, api_name="add_turn", **in_turn)
    view.drop_turn.click(drop_turn, view.shown_turns, turns, api_name="drop_turn", **in_turn)
    view.layout.change(offer_mask, view.layout, view.document_mask, api_name="pick_layout", **free)
