"""Putting the prompt together: its images, its turns, its layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from inspector.bounds import Bounds
from inspector.figures.markup import show_plans
from inspector.images.example_files import recognise_example
from inspector.server.inputs import read_event
from inspector.server.toasts import inform, refuse
from inspector.server.turns import IMAGES
from inspector.session import ModelStore
from inspector.views.prompt import (
    MAX_TURNS,
    GalleryValue,
    PromptView,
    fill_contents,
    follow_model,
    paths_of,
    place_image,
    plan_images,
    refuse_files,
    remove_image,
    show_turns,
)
from model import InputError

Planned = tuple[Any, str, str]
"""Gallery, plans, and what was rejected."""
REMEMBERED = 20
"""So many changes can be undone."""


def remember(history: list, *written: Any) -> list:
    """``history`` with what the prompt was before a change, values of :attr:`PromptView.written`."""
    entry = [written[0] or [], *written[1:]]
    return history if history and history[-1] == entry else [*history[1 - REMEMBERED :], entry]


@dataclass(frozen=True)
class PromptHandlers:
    """What the prompt's events call. ``folder``: where the examples' pictures lie."""

    store: ModelStore
    bounds: Bounds
    folder: Path

    def plan(self, model: str, gallery: GalleryValue) -> Planned:
        return plan_images(self.store, model, gallery, self.bounds)

    def add(self, model: str, gallery: GalleryValue, files: list[str]) -> Planned:
        """Behind the images that are there; in the place of an example's, if one of them can be opened."""
        before, added = gallery or [], [(path, None) for path in files or []]
        try:
            is_example = recognise_example(paths_of(before), self.folder) is not None
        except InputError:
            is_example = False  # of a file that is gone the plan says so
        if is_example:
            planned = self.plan(model, added)
            if planned[0]:
                return planned
        return self.plan(model, [*before, *added])

    def place(self, model: str, gallery: GalleryValue, event: gr.EventData) -> Planned:
        try:
            placed = place_image(gallery, read_event(event, "start", int), read_event(event, "stop", int))
            return self.plan(model, placed)
        except InputError as error:
            raise refuse(error) from error

    def remove(self, model: str, gallery: GalleryValue, event: gr.EventData) -> Planned:
        return self.plan(model, remove_image(gallery, read_event(event, "index", int)))

    def follow(self, model: str, before: list[float], *values: Any) -> list[Any]:
        return follow_model(self.store.get(model), self.bounds, before, values)

    def undo(self, model: str, history: list, *written: Any) -> list[Any]:
        """Values for :attr:`PromptView.contents`, and the history that is left: back to the last prompt that was
        another one. ``written``: what it is now."""
        now, left = [written[0] or [], *written[1:]], list(history)
        while left and left[-1] == now:
            left.pop()
        if not left:
            inform("There is nothing to undo.")
            return [*[gr.skip()] * (len(now) + 2 + MAX_TURNS), left]
        return [*fill_contents(self.store, model, left[-1], self.bounds), left[:-1]]


def clear_images() -> Planned:
    return [], show_plans([], [], []), ""


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


def wire_prompt(view: PromptView, store: ModelStore, folder: Path) -> None:
    """``folder``: where the examples' pictures lie."""
    handlers = PromptHandlers(store, view.bounds, folder)
    free: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden"}
    # Opening images takes its time: in a place of their own they can't take all threads, and turns are fair.
    opening: dict[str, Any] = {"concurrency_id": IMAGES, "concurrency_limit": 4, "show_progress": "hidden"}
    # Two clicks in quick succession are two; by default gradio drops those that come while one is on its way.
    in_turn: dict[str, Any] = {"concurrency_limit": 1, "show_progress": "hidden", "trigger_mode": "multiple"}
    several: dict[str, Any] = {**free, "trigger_mode": "multiple"}
    images: list[Any] = [view.gallery, view.plans, view.rejected]
    present: list[Any] = [view.model, view.gallery]
    turns = [view.shown_turns, *view.rows]
    # An event of its own, with what the page holds when another one changes it.
    pressed = [view.clear.click, view.drop_turn.click, view.earlier.input, *(one.click for one in view.examples)]
    for change in (view.add.upload, view.plans.move, view.plans.remove, partial(gr.on, pressed)):
        change(remember, [view.history, *view.written], view.history, api_visibility="private", **several)
    view.gallery.upload(handlers.plan, present, images, api_name="plan_images", **opening)
    view.add.upload(handlers.add, [*present, view.add], images, api_name="add_images", **opening)
    view.plans.move(handlers.place, present, images, api_name="place_image", **opening)
    view.plans.remove(handlers.remove, present, images, api_name="remove_image", **opening)
    view.plans.refuse(refuse_sent, None, view.refused, api_name="refuse_files", **in_turn)
    view.clear.click(clear_images, None, images, api_name="clear_images", **free)
    view.undo.click(
        handlers.undo,
        [view.model, view.history, *view.written],
        [*view.contents, view.history],
        api_name="undo_images",
        **opening,
    )
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
