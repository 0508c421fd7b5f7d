"""The same facts without a browser: ``python -m inspector inspect --image A.png --ask "What colour?" --json -``."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from inspector.bounds import format_bounds
from inspector.encoder.head_comparison import compare_heads
from inspector.encoder.inputs import TEMPLATE, read_images
from inspector.encoder.patches import find_alike, find_patch, read_encoder_attention
from inspector.encoder.study import TextQuestions, describe_encoder, read_place, study_texts
from inspector.experiments import image_edits
from inspector.experiments.patch_words import describe_found, find_word, measure_words
from inspector.experiments.prompt_layouts import compare_layouts, tell_layouts
from inspector.export.command_line import write_which_image
from inspector.export.files import describe_all, describe_sides
from inspector.export.report import report, study_whole
from inspector.facts import write_json
from inspector.figures.clip import show_text_study
from inspector.figures.image_edits import show_edits
from inspector.figures.patch_words import show_all_words
from inspector.ground_truth.items import CELLS
from inspector.ground_truth.run import SuiteProgress, run_battery
from inspector.ground_truth.scores import MIN_ITEMS, format_battery
from inspector.interventions.knockout import EXAMPLE, run_lab
from inspector.interventions.target import Case, open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import LAYOUTS, Prompt, Turn
from inspector.row.row_store import ROWS
from inspector.which_image.model_comparison import compare_answers
from inspector.which_image.study import study_answer
from model import STREAMS, InputError, InspectableVLM, load_vlm, open_image, plan_memory
from model.devices import add_placement
from model.encoders.opening import encoder_of, is_encoder, load_encoder
from model.memory import refuse_shortage


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m inspector", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect = commands.add_parser("inspect", help="ask, and print everything the model saw")
    _add_prompt(inspect)
    inspect.add_argument("--temperature", type=float, help="0 is greedy, and the default")
    inspect.add_argument("--top-k", type=int, help="0 is off, and the default")
    inspect.add_argument("--top-p", type=float, help="1 is off, and the default")
    inspect.add_argument(
        "--as-checkpoint",
        action="store_true",
        help="the defaults of these, and of the longest answer, are the checkpoint's own, as on the page",
    )
    inspect.set_defaults(max_new_tokens=None)  # so that one that is given can be told
    inspect.add_argument(
        "--position",
        type=int,
        help="row whose attention is read (default: the one whose output chose the answer's first token)",
    )
    attention = commands.add_parser(
        "attention", help="ask, and print what tokens look at and which later ones look at them"
    )
    _add_prompt(attention)
    attention.add_argument("--first", type=int, help="token (default: the answer's first, or --last)")
    attention.add_argument("--last", type=int, help="token; the mean over all from --first to it (default: --first)")
    attention.add_argument(
        "--own-row",
        action="store_true",
        help="what an answer's token looks at itself, not the one before that chose it",
    )
    which = commands.add_parser("which-image", help="ask, and test which image the answer rests on")
    _add_prompt(which)
    _add_study(which)
    cut = commands.add_parser("cut", help="ask, cut edges of the attention by hand, and answer without them")
    _add_prompt(cut)
    cut.add_argument("--turn", type=int, help="whose answer, from 1 (default: the last)")
    cut.add_argument(
        "--cut", action="append", required=True, metavar="EDGES", help=f"such as “{EXAMPLE}”; repeat for several"
    )
    edit = commands.add_parser("edit", help="ask, edit images, and answer again; beside it, the same tokens cut")
    _add_prompt(edit)
    edit.add_argument("--turn", type=int, help="whose answer, from 1 (default: the last)")
    _add_edits(edit, required=True)
    report = commands.add_parser("report", help="ask, run every test, and write a page that stands for itself")
    _add_prompt(report)
    _add_study(report)
    report.add_argument("--out", required=True, metavar="FILE", help="the page, HTML")
    _add_edits(report)
    report.add_argument("--text", action="append", default=[], metavar="TEXT", help="CLIP: a caption for each image")
    report.add_argument(
        "--label", action="append", default=[], metavar="TEXT", help="CLIP, with --text: zero-shot, two or more"
    )
    layout = commands.add_parser("layout", help="ask in every layout, and compare the answers and what they rest on")
    _add_questions(layout)
    compare = commands.add_parser("compare", help="ask two models the same, and lay their answers side by side")
    _add_prompt(compare, models=True)
    words = commands.add_parser("words", help="what image tokens say at a layer: logit lens and nearest words")
    _add_prompt(words)
    words.add_argument("--layer", type=int, help="from 0 (default: the last)")
    words.add_argument("--stream", choices=STREAMS, default="residual", help="what of the layer is read")
    words.add_argument("--word", default="", metavar="TEXT", help="also: in how many cells of each layer it stands")
    clip = commands.add_parser(
        "clip",
        aliases=["encoder"],
        help="images and captions in one space: similarity matrix, losses, zero-shot labels, patches",
    )
    _add_clip(clip)
    battery = commands.add_parser("battery", help="try the instrument on drawn prompts whose truth is known")
    battery.add_argument("--model", default="embedded", help="“embedded”, a checkpoint folder, or a hub id")
    battery.add_argument("--cell", action="append", choices=CELLS, help="repeat for several (default: all)")
    battery.add_argument("--each", type=int, default=MIN_ITEMS, metavar="N", help="items of every cell")
    battery.add_argument("--seed", type=int, default=1)
    battery.add_argument("--json", metavar="FILE", help="the facts as JSON, - for standard output (default: a table)")
    for command in (inspect, attention, which, cut, edit, report, layout, compare, words, clip, battery):
        add_placement(command)
        command.add_argument("--verbose", action="store_true", help="tell on standard error what was computed and kept")
    commands.add_parser("bounds", help="print what a server gives, public and private, as the README shows it")
    return parser


def _add_prompt(command: argparse.ArgumentParser, *, models: bool = False) -> None:
    _add_questions(command, models=models)
    command.add_argument(
        "--answer",
        action="append",
        default=[],
        metavar="TEXT",
        help="given, not the model's; one for each --ask in order, empty: its own",
    )
    command.add_argument("--layout", choices=LAYOUTS, default="images-first")
    command.add_argument("--document-mask", action="store_true", help="packed samples can't see one another")
    command.add_argument("--seed", type=int, default=0)


def _add_study(command: argparse.ArgumentParser) -> None:
    command.add_argument("--turn", type=int, help="whose answer, from 1 (default: the last)")
    command.add_argument("--reference", default="", metavar="TEXT", help="another answer to measure beside the model's")
    command.add_argument(
        "--contrast",
        action="append",
        default=[],
        metavar="TEXT",
        help="a question about another image to compare with; repeat for several",
    )


def _add_clip(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--model", default="embedded", help="“embedded”, or a folder or hub id of a VLM, of CLIP or of SigLIP"
    )
    command.add_argument("--image", action="append", default=[], metavar="FILE", help="repeat for several images")
    command.add_argument(
        "--text", action="append", default=[], metavar="CAPTION", help="of each image in order; more describe none"
    )
    command.add_argument("--temperature", type=float, metavar="T", help="divides cosines (default: as it was learned)")
    command.add_argument("--label", action="append", default=[], metavar="TEXT", help="zero-shot; repeat, two or more")
    command.add_argument(
        "--template", action="append", default=[], metavar="TEXT", help=f"where labels go, averaged ({TEMPLATE})"
    )
    command.add_argument("--phrase", action="append", default=[], metavar="TEXT", help="to look for in the patches")
    command.add_argument("--patch", metavar="IMAGE:ROW,COL", help="its like in all images, and where it looks")
    command.add_argument(
        "--heads", action="store_true", help="only: train a linear and an MLP head on drawn scenes, side by side"
    )
    command.add_argument("--layer", type=int, help="of the encoder, from 0, for --patch (default: the last)")
    command.add_argument("--json", default="-", metavar="FILE", help="where to write, - for standard output")


def _add_edits(command: argparse.ArgumentParser, *, required: bool = False) -> None:
    command.add_argument(
        "--edit",
        action="append",
        default=[],
        required=required,
        metavar="EDIT",
        help=f"such as “{image_edits.EXAMPLE}”, in pixels; repeat for several, one on top of the other",
    )


def _add_questions(command: argparse.ArgumentParser, *, models: bool = False) -> None:
    """``models``: several may be named."""
    more: dict[str, Any] = {"action": "append", "required": True} if models else {"default": "embedded"}
    command.add_argument(
        "--model",
        help="“embedded”, a checkpoint folder, or a hub id" + ("; name two" if models else ""),
        **more,
    )
    command.add_argument("--image", action="append", default=[], metavar="FILE", help="repeat for several images")
    command.add_argument("--ask", action="append", required=True, metavar="TEXT", help="repeat for several turns")
    command.add_argument("--max-new-tokens", type=int, default=32, help="default: 32")
    command.add_argument("--json", default="-", metavar="FILE", help="where to write, - for standard output")


def open_model(options: argparse.Namespace, source: str | None = None) -> InspectableVLM:
    """The model ``source`` (None: the one that was named), where and as it was asked for; InputError as for
    :func:`model.load_vlm`. With ``--verbose`` what it will take is told first."""
    source = options.model if source is None else source
    placed = {"device": options.device, "dtype": options.dtype, "quantize": options.quantize}
    if options.verbose:
        print(plan_memory(source, **placed), file=sys.stderr)
    return load_vlm(source, **placed)


def read_prompt(options: argparse.Namespace) -> Prompt:
    """InputError for an image that can't be opened, or too much of anything."""
    prompt = read_questions(options)
    if len(options.answer) > len(prompt.turns):
        raise InputError(
            f"There are {len(options.answer)} answers for {len(prompt.turns)} questions; give one "
            "--answer for each --ask at most."
        )
    answers = [*options.answer, *[""] * (len(prompt.turns) - len(options.answer))]
    turns = tuple(replace(turn, assistant=answer) for turn, answer in zip(prompt.turns, answers, strict=True))
    return replace(prompt, turns=turns, layout=options.layout, document_mask=options.document_mask)


def read_questions(options: argparse.Namespace) -> Prompt:
    """The images and questions, all images first. InputError as for :func:`read_prompt`."""
    images = tuple(open_image(path) for path in options.image)
    return Prompt(images, tuple(Turn(text) for text in options.ask))


def run_inspect(options: argparse.Namespace) -> dict:
    """The facts of one prompt; InputError for anything that can't be used."""
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "seed")
    given = {name: value for name in names if (value := getattr(options, name)) is not None}
    settings = GenerationSettings(**given)
    prompt = read_prompt(options)
    vlm = open_model(options)
    if options.as_checkpoint:
        settings = replace(GenerationSettings.of_checkpoint(vlm, settings.bounds), **given)
    inspection = ask_and_inspect(vlm, prompt, settings)
    first = inspection.row_that_chose(inspection.first_answer_position)
    position = first if options.position is None else options.position
    if not 0 <= position < len(inspection.row):
        raise InputError(f"--position is {position}; the row has the positions 0 to {len(inspection.row) - 1}.")
    return describe_all(vlm, inspection, attend(vlm, inspection, position))


def run_attention(options: argparse.Namespace) -> dict:
    """Attention from both sides; InputError for anything that can't be used."""
    settings = GenerationSettings(options.max_new_tokens, seed=options.seed)
    prompt = read_prompt(options)
    vlm = open_model(options)
    inspection = ask_and_inspect(vlm, prompt, settings)
    given = [token for token in (options.first, options.last) if token is not None]
    stretch = given or [inspection.first_answer_position]
    return describe_sides(vlm, inspection, stretch[0], stretch[-1], options.own_row)


def run_which_image(options: argparse.Namespace) -> dict:
    """What the answer of one turn rests on; InputError for anything that can't be used."""
    settings = GenerationSettings(options.max_new_tokens, seed=options.seed)
    prompt = read_prompt(options)
    vlm = open_model(options)
    inspection = ask_and_inspect(vlm, prompt, settings)
    *_, found = study_answer(
        vlm,
        inspection,
        options.turn,
        reference=options.reference,
        typed=options.contrast,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    return found.to_json()


def _ask_case(options: argparse.Namespace) -> Case:
    """What is asked, and the answer to be explained."""
    settings = GenerationSettings(options.max_new_tokens, seed=options.seed)
    prompt = read_prompt(options)
    vlm = open_model(options)
    inspection = ask_and_inspect(vlm, prompt, settings)
    return open_case(vlm, inspection, options.turn, max_new_tokens=options.max_new_tokens, seed=options.seed)


def run_cut(options: argparse.Namespace) -> dict:
    """The answer without the edges that were named; InputError for anything that can't be used."""
    return run_lab(_ask_case(options), options.cut).to_json()


def run_edit(options: argparse.Namespace) -> dict:
    """The answer to edited images; InputError for anything that can't be used."""
    return image_edits.run_edits(_ask_case(options), options.edit).to_json()


def run_report(options: argparse.Namespace) -> dict:
    """Every test of one answer, written as a page; InputError for anything that can't be used."""
    settings = GenerationSettings(options.max_new_tokens, seed=options.seed)
    prompt = read_prompt(options)
    vlm = open_model(options)
    inspection = ask_and_inspect(vlm, prompt, settings)
    edited = None
    if options.edit:  # before what takes long, for one of them may be refused
        case = open_case(vlm, inspection, options.turn, max_new_tokens=options.max_new_tokens, seed=options.seed)
        edited = image_edits.run_edits(case, options.edit)
    matched = None
    if options.text or options.label:
        encoder = encoder_of(vlm)
        asked = TextQuestions(tuple(options.text), tuple(options.label), (TEMPLATE,))
        matched = study_texts(encoder, read_images(encoder, inspection.prompt.images), asked)
    known = study_whole(
        vlm,
        inspection,
        options.turn,
        reference=options.reference,
        typed=options.contrast,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    if edited is not None:
        known = known.adding("edits", show_edits(edited, inspection), edited.to_json())
    if inspection.prompt.images:
        words = measure_words(vlm, inspection)
        known = known.adding("words", show_all_words(words, inspection.prompt.images), words.to_json())
    if matched is not None:
        known = known.adding("clip", show_text_study(matched, inspection.prompt.images, encoder), matched.to_json())
    names = [Path(image).name for image in options.image]
    command = write_which_image(
        inspection.prompt, options.model, options.image, settings, known.found.turn, options.reference, options.contrast
    )
    try:
        Path(options.out).write_text(report(vlm, inspection, options.model, names, known, command), encoding="utf-8")
    except OSError as error:
        raise InputError(f"{options.out} can't be written ({error.strerror}); name another file.") from error
    return {"report": options.out, "verdict": known.facts["verdict"]}


def run_layout(options: argparse.Namespace) -> dict:
    """The same images and questions in every layout; InputError for anything that can't be used."""
    # A length out of range is refused in the same words everywhere.
    settings = GenerationSettings(options.max_new_tokens)
    prompt = read_questions(options)
    cells = list(compare_layouts(open_model(options), prompt, max_new_tokens=settings.max_new_tokens))
    return {
        "questions": [turn.user for turn in prompt.turns],
        "cells": [cell.to_json() for cell in cells],
        "sentences": list(tell_layouts(cells)),
    }


def run_compare(options: argparse.Namespace) -> dict:
    """The same prompt to two models; InputError for anything that can't be used."""
    if len(options.model) != 2:
        raise InputError(f"{len(options.model)} models came by --model; name two, each with a --model of its own.")
    settings = GenerationSettings(options.max_new_tokens, seed=options.seed)
    prompt = read_prompt(options)
    before, after = (open_model(options, model) for model in options.model)
    *_, found = compare_answers(before, after, prompt, settings)
    return found.to_json()


def run_words(options: argparse.Namespace) -> dict:
    """The words on every image token; InputError for anything that can't be used."""
    settings = GenerationSettings(options.max_new_tokens, seed=options.seed)
    prompt = read_prompt(options)
    vlm = open_model(options)
    inspection = ask_and_inspect(vlm, prompt, settings)
    facts = measure_words(vlm, inspection, options.layer, options.stream).to_json()
    if options.word:
        facts["found"] = describe_found(options.word, find_word(vlm, inspection, options.word, options.stream))
    return facts


def run_clip(options: argparse.Namespace) -> dict:
    """What an encoder of images and texts makes of them; InputError for anything that can't be used."""
    if options.heads:
        *_, compared = compare_heads(open_model(options))
        return {"heads": compared.to_json()}
    images = tuple(open_image(path) for path in options.image)
    if is_encoder(options.model):
        encoder = load_encoder(options.model, device=options.device, dtype=options.dtype)
    else:
        encoder = encoder_of(open_model(options))
    read = read_images(encoder, images)
    facts = describe_encoder(encoder)
    # Without any text there is still what can be said of patches alone.
    if options.text or options.label or options.phrase or not options.patch:
        templates = tuple(options.template) or (TEMPLATE,)
        texts, labels, phrases = map(tuple, (options.text, options.label, options.phrase))
        facts |= study_texts(
            encoder, read, TextQuestions(texts, labels, templates, phrases, options.temperature)
        ).to_json()
    if options.patch:
        image, row, col = read_place(options.patch)
        patch = find_patch(read, image, row, col)
        facts["alike"] = find_alike(read, image, patch).to_json()
        if encoder.n_layers:
            facts["attention"] = read_encoder_attention(encoder, read, image, patch, options.layer).to_json()
    return facts


def run_battery_command(options: argparse.Namespace) -> dict | str:
    """The battery's result, as a table unless JSON is asked for; what is being tried goes to standard error. Ctrl+C
    ends it, and what was found until then is the result. InputError if that is nothing."""
    vlm = open_model(options)
    cells = options.cell or CELLS
    last: SuiteProgress | None = None
    try:
        for last in run_battery(vlm, cells=cells, n_each=options.each, seed=options.seed):
            report_progress(last)
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
    if last is None:
        raise InputError("The battery was stopped before its first item; there is nothing to show.")
    return last.battery.to_json() if options.json else format_battery(last.battery)


def report_progress(progress: SuiteProgress) -> None:
    print(
        f"\r{progress.done}/{progress.total} {progress.cell:<24}",
        end="\n" if not progress.cell else "",
        file=sys.stderr,
        flush=True,
    )


def describe_kept() -> str:
    """What this process encoded, read and keeps, in a sentence each."""
    features, rows = FEATURES.counts(), ROWS.counts()
    return (
        f"Image features: {features.encoded:,} parts of images encoded, {features.found:,} found again; "
        f"{features.parts:,} kept, {features.nbytes / 1e6:,.1f} MB of at most {FEATURES.kept.limit / 1e6:,.0f}.\n"
        f"Rows: {rows.read:,} read, {rows.found:,} found again; {rows.rows:,} kept with keys and values, "
        f"{rows.nbytes / 1e6:,.1f} MB of at most {ROWS.kept.limit / 1e6:,.0f}."
    )


RUNS: dict[str, Callable[[argparse.Namespace], dict | str]] = {
    "inspect": run_inspect,
    "attention": run_attention,
    "which-image": run_which_image,
    "cut": run_cut,
    "edit": run_edit,
    "report": run_report,
    "layout": run_layout,
    "compare": run_compare,
    "words": run_words,
    "clip": run_clip,
    "encoder": run_clip,
    "battery": run_battery_command,
}


def main(arguments: list[str] | None = None) -> int:
    logging.basicConfig(level=logging.WARNING)
    options = build_parser().parse_args(arguments)
    if options.command == "bounds":
        print(format_bounds())
        return 0
    try:
        with refuse_shortage():
            found = RUNS[options.command](options)
        if options.verbose:
            print(describe_kept(), file=sys.stderr)
        text = found if isinstance(found, str) else write_json(found)
        if options.json in (None, "-"):
            print(text)
        else:
            Path(options.json).write_text(text + "\n", encoding="utf-8")
    except InputError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.json} can't be written ({error.strerror}); name another file.", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
