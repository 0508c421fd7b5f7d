"""A prompt to take away whole: its images, what does the same again from a shell or in a notebook, and all facts.

Everything names the images by the names that they have in the archive, so it works where that was unpacked.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inspector.export.command_line import write_inspect, write_which_image
from inspector.export.files import describe_all
from inspector.facts import write_json
from inspector.images.image_file import ImageFile, PromptImage
from inspector.row.ask import GenerationSettings, Inspection
from inspector.row.attention import AttentionMap
from inspector.row.prompt import Prompt
from model import InspectableVLM

NAME = "vlm-inspector.zip"
COMMANDS, NOTEBOOK, FACTS = "commands.txt", "study.ipynb", "inspection.json"
_KEPT = 60
"""Characters of a file's name."""


def write_bundle(
    vlm: InspectableVLM,
    inspection: Inspection,
    attention: AttentionMap,
    *,
    model: str,
    names: Sequence[str],
    settings: GenerationSettings,
    folder: Path,
) -> str:
    """:data:`NAME` in ``folder``. ``names``: the images' file names, in order; ``model``: what a command line calls it.
    InputError for an image whose file is gone, OSError if the archive can't be written."""
    prompt = inspection.prompt
    files = name_files(names)
    answered = [n for n, turn in enumerate(prompt.turns, start=1) if turn.is_answered]
    lines = [write_inspect(prompt, model, files, settings)]
    if answered:
        lines.append(write_which_image(prompt, model, files, settings, answered[-1]))
    path = folder / NAME
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image, file in zip(prompt.images, files, strict=True):
            archive.writestr(file, _read_image(image), zipfile.ZIP_STORED)
        archive.writestr(COMMANDS, "".join(f"{line}\n" for line in lines))
        archive.writestr(NOTEBOOK, write_notebook(prompt, model, files, settings, answered[-1] if answered else None))
        archive.writestr(FACTS, write_json(describe_all(vlm, inspection, attention)) + "\n")
    return str(path)


def name_files(names: Sequence[str]) -> list[str]:
    """A name for each image that any system can write, numbered, so that no two are one."""
    found = []
    for number, name in enumerate(names, start=1):
        stem, dot, ending = re.split(r"[/\\]", name)[-1].rpartition(".")
        stem, ending = (stem, ending) if dot else (ending, "png")
        stem = re.sub(r"[^\w.-]+", "_", stem).strip("._")[:_KEPT] or "image"
        ending = re.sub(r"\W+", "", ending, flags=re.ASCII)[:8] or "png"
        found.append(f"{number}-{stem}.{ending}")
    return found


def _read_image(image: PromptImage) -> bytes:
    """The bytes as uploaded; a drawn image as PNG."""
    if isinstance(image, ImageFile):
        return image.read_bytes()
    buffer = io.BytesIO()
    image.pixels.save(buffer, "PNG")
    return buffer.getvalue()


def write_notebook(
    prompt: Prompt, model: str, files: Sequence[str], settings: GenerationSettings, turn: int | None
) -> str:
    """A Jupyter notebook (nbformat 4.5) that asks the same, looks where the answer looked, and tests which image the
    answer of ``turn`` (from 1) rests on; without the last part where no turn has an answer."""
    turns = "".join(f"    Turn({one.user!r}),\n" for one in prompt.turns)
    given = {name: getattr(settings, name) for name in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    chosen = ", ".join(f"{name}={value!r}" for name, value in given.items())
    cells = [
        (
            "markdown",
            (
                "Made by VLM Inspector. It runs where that is installed, in the folder that this archive was unpacked "
                "into. Answers that were given by hand are left to the model here."
            ),
        ),
        (
            "code",
            (
                "from inspector.row.ask import GenerationSettings, ask_and_inspect, attend\n"
                "from inspector.row.prompt import Prompt, Turn\n"
                "from inspector.which_image.study import study_answer\n"
                "from model import load_vlm, open_image\n\n"
                f"vlm = load_vlm({model!r})\n"
                f"images = tuple(map(open_image, {list(files)!r}))\n"
                f"turns = (\n{turns})\n"
                f"prompt = Prompt(images, turns, {prompt.layout!r}, {prompt.document_mask!r})\n"
                f"settings = GenerationSettings({chosen})\n"
                "inspection = ask_and_inspect(vlm, prompt, settings)\n"
                "[turn.assistant for turn in inspection.prompt.turns]"
            ),
        ),
        ("markdown", "Every token of the row: position, id, text, whether it is trained on."),
        (
            "code",
            (
                "table = inspection.table\n"
                "[(n, number, table.text(n), bool(table.trained[n])) for n, number in enumerate(table.ids)]"
            ),
        ),
    ]
    if turn is not None:
        cells += [
            ("markdown", "Where the row looked that chose the answer's first token: the share of each image."),
            (
                "code",
                (
                    "attention = attend(vlm, inspection, inspection.row_that_chose(inspection.first_answer_position))\n"
                    "attention.image_shares.mean(axis=0).tolist()"
                ),
            ),
            ("markdown", "Which image the answer rests on, by interventions: the verdict, its numbers, its checks."),
            (
                "code",
                (
                    f"*_, found = study_answer(vlm, inspection, {turn}, max_new_tokens=settings.max_new_tokens)\n"
                    "facts = found.to_json()\nfacts"
                ),
            ),
        ]
    return json.dumps(
        {
            "nbformat": 4,
            "nbformat_minor": 5,
            "metadata": {"language_info": {"name": "python"}},
            "cells": [_cell(n, kind, source) for n, (kind, source) in enumerate(cells)],
        },
        indent=1,
    )


def _cell(number: int, kind: str, source: str) -> dict[str, Any]:
    code: dict[str, Any] = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"id": f"cell-{number}", "cell_type": kind, "metadata": {}, "source": source, **code}
