"""Models that a person trained and picked: they come back after a reload."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from inspector.runs.jobs import JobTable
from inspector.server.toasts import warn
from inspector.session import SECRET, ModelStore
from inspector.views.train_form import list_bases
from inspector.views.train_result import admit_run
from model import InputError

REMEMBERED = 4
"""So many come back; each is loaded for that."""


@dataclass(frozen=True)
class OwnModels:
    """``kept`` is what a browser remembers: the run of each such model by its name, and the name that was picked."""

    store: ModelStore
    jobs: JobTable

    def keep(self, model: str, job: str, kept: Any) -> dict[str, Any]:
        """What the browser is to remember now that ``model`` is picked; ``job``: the run that is followed, whose model
        a new one is."""
        runs, _ = _read(kept)
        if model.startswith(SECRET):
            runs = {model: runs.get(model, (job or "").strip()), **runs}
        return {"runs": dict(list(runs.items())[:REMEMBERED]), "picked": model}

    def bring_back(self, kept: Any) -> tuple[list[tuple[str, str]], str]:
        """Labels and names of the models that are still here, and the name of the picked one, "" for none of them."""
        runs, picked = _read(kept)
        own, current = [], ""
        for former, job in runs.items():
            try:
                name = admit_run(self.store, self.jobs, job)
                label = f"{self.store.title_of(name)} #{self.store.get(name).fingerprint[:8]}"
            except InputError as error:
                if former == picked:
                    warn(f"The model that was picked here is gone: {error}")
                continue
            own.append((label, name))
            current = name if former == picked else current
        return own, current

    def offer(self, own: list[tuple[str, str]]) -> list[Any]:
        """The person's own models, and the list of models that training begins from."""
        if not own:
            return [gr.skip(), gr.skip()]
        return [own, gr.update(choices=[*own, *list_bases(self.store.names)])]


def _read(kept: Any) -> tuple[dict[str, str], str]:
    """Whatever else a browser sends is left out."""
    found = kept if isinstance(kept, dict) else {}
    runs, picked = found.get("runs"), found.get("picked")
    listed = list(runs.items())[:REMEMBERED] if isinstance(runs, dict) else []
    texts = {name: job for name, job in listed if isinstance(name, str) and isinstance(job, str)}
    return texts, picked if isinstance(picked, str) else ""


def wire_own_models(
    models: OwnModels,
    picker: gr.Dropdown,
    folded: gr.Accordion,
    own: gr.State,
    job: gr.Textbox,
    kept: gr.BrowserState,
) -> None:
    """``folded``: what the picker stands in, hidden while there is nothing to pick. ``own``: labels and names of the
    person's models. ``job`` names the run that is followed; ``kept`` as :class:`OwnModels` has it, declared at the top
    level of the Blocks."""
    private: dict[str, Any] = {"api_visibility": "private", "concurrency_limit": None, "show_progress": "hidden"}
    # A picker that was never unfolded tells of no change.
    gr.on([picker.change, own.change], models.keep, [picker, job, kept], kept, **private)
    own.change(lambda own: gr.update(visible=True) if own else gr.skip(), own, folded, **private)
