"""One line for a shell that does the same again as the page did; its images' files stand in it by name."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from inspector.row.ask import GenerationSettings
from inspector.row.prompt import Prompt

SETTINGS = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")


def write_inspect(prompt: Prompt, model: str, files: Sequence[str], settings: GenerationSettings) -> str:
    """Asks the same again. Answers that a person gave aren't in it: the command lets the model answer every turn."""
    return _line([*_words("inspect", prompt, model, files, answers=False), *_settings(settings, SETTINGS)])


def write_which_image(
    prompt: Prompt,
    model: str,
    files: Sequence[str],
    settings: GenerationSettings,
    turn: int,
    reference: str = "",
    contrasts: Sequence[str] = (),
) -> str:
    """Tests the same answer again. Answers are written out, so that it explains the same ones whatever they were
    generated with."""
    words = _words("which-image", prompt, model, files, answers=True) + _turn(prompt, turn)
    words += _settings(settings, ("max_new_tokens",))
    words += _option("--reference", reference) if reference else []
    for contrast in contrasts:
        words += _option("--contrast", contrast)
    return _line(words)


def write_cut(
    prompt: Prompt, model: str, files: Sequence[str], settings: GenerationSettings, turn: int, cuts: Sequence[str]
) -> str:
    """Repeats cuts made by hand; answers are written out as for :func:`write_which_image`."""
    return _write_changes("cut", prompt, model, files, settings, turn, cuts)


def write_edit(
    prompt: Prompt, model: str, files: Sequence[str], settings: GenerationSettings, turn: int, edits: Sequence[str]
) -> str:
    """Repeats edits of images; answers are written out as for :func:`write_which_image`."""
    return _write_changes("edit", prompt, model, files, settings, turn, edits)


def _write_changes(
    command: str,
    prompt: Prompt,
    model: str,
    files: Sequence[str],
    settings: GenerationSettings,
    turn: int,
    changes: Sequence[str],
) -> str:
    """Each change stands behind an option that is called as the command is."""
    words = _words(command, prompt, model, files, answers=True) + _turn(prompt, turn)
    words += _settings(settings, ("max_new_tokens",))
    for change in changes:
        words += [f"--{command}", change]
    return _line(words)


def _words(command: str, prompt: Prompt, model: str, files: Sequence[str], *, answers: bool) -> list[str]:
    words = ["python", "-m", "inspector", command]
    words += ["--model", model] if model != "embedded" else []
    for file in files:
        words += ["--image", file]
    for turn in prompt.turns:
        words += _option("--ask", turn.user)
        words += _option("--answer", turn.assistant) if answers else []
    words += ["--layout", prompt.layout] if prompt.layout != "images-first" else []
    return words + (["--document-mask"] if prompt.document_mask else [])


def _option(name: str, text: str) -> list[str]:
    # Text that begins with a dash would pass for an option.
    return [f"{name}={text}"] if text.startswith("-") else [name, text]


def _turn(prompt: Prompt, turn: int) -> list[str]:
    return [] if turn == len(prompt.turns) else ["--turn", str(turn)]


def _settings(settings: GenerationSettings, names: Sequence[str]) -> list[str]:
    """Only what isn't usual is written out."""
    usual, words = GenerationSettings(), []
    for name in names:
        value = getattr(settings, name)
        words += [f"--{name.replace('_', '-')}", f"{value:g}"] if value != getattr(usual, name) else []
    return words


def _line(words: Sequence[str]) -> str:
    return shlex.join([*words, "--json", "-"])
