"""What an answer rests on, as HTML: the verdict in words, and one panel for each test. Page and report share it.

Whatever a person typed or a model said is escaped here. Images and turns count from 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from math import exp

from inspector.figures.charts import (
    Bar,
    HeatRow,
    bars,
    copied,
    heat_cell,
    heat_table,
    show_command,
    table,
    thumbnail,
)
from inspector.figures.colours import image_colour
from inspector.figures.markup import badge
from inspector.images.image_file import PromptImage
from inspector.row.layout import Question, RowStructure, structure_sentences
from inspector.row.numbers import say
from inspector.which_image.attention_agreement import EXPLANATION as GAZE
from inspector.which_image.attention_agreement import AttentionAgreement, AttentionSummary
from inspector.which_image.counterfactuals import Counterfactual
from inspector.which_image.exchange_effects import ExchangeEffects
from inspector.which_image.image_effects import Dependence, TurnMatrix
from inspector.which_image.question_contrast import Measure, Selection
from inspector.which_image.self_checks import Check
from inspector.which_image.study import WhichImage
from inspector.which_image.verdict import Verdict


@dataclass(frozen=True)
class PanelText:
    """What is written on a panel: ``busy`` while it is computed, ``explanation`` in two sentences: what was done, and
    what it can't show."""

    title: str
    busy: str
    explanation: str


PANELS: dict[str, PanelText] = {
    "structure": PanelText(
        "What the row is, and what each question can see",
        "reading the row",
        "Read off the row's tokens and masks alone; no model ran for it. It says which images a question can reach, "
        "not which of them it uses.",
    ),
    "dependence": PanelText(
        "What the answer depends on",
        "taking every set of images away, and putting other pictures in their places",
        "Sets of images were hidden from everything behind them (attention knockout), and the fall of log p of the "
        "answer shared out among them by Shapley values; then other pictures came in their places, which shows what "
        "taking away can't where the model would guess the answer. The mark is the fall without that image alone, "
        "the dotted line the noise floor (95 % of stretches of text taken away in the same way change less). A fall "
        "is a lower bound, because the model may find another way, and it can't show that the question chose the "
        "image: what stands in one image alone falls without it, asked about or not.",
    ),
    "matrix": PanelText(
        "Every answer, every image",
        "taking each image away from each turn",
        "Each image was hidden for each turn's answer, and each cell is the fall of log p of that answer in nats. "
        "Where a question can't see an image, its pixels and ids were changed instead, and the effect must be exactly "
        "0; an effect of another turn's image is leakage. Nothing here says that the question chose.",
    ),
    "selection": PanelText(
        "Does the question select it?",
        "asking about the other images instead",
        "The same images with the question turned to another one: what the model then says, and how far log p of "
        "that answer falls without each image, and with other pictures in its place. Only the difference between the "
        "rows speaks of selection, and only for the questions that were tried.",
    ),
    "swaps": PanelText(
        "Another picture in its place",
        "replacing each image by another picture",
        "One image at a time was replaced by a picture of its size, everything behind it was read again and the "
        "answer generated; whether it changes is told against what the model itself says to the unchanged prompt. It "
        "shows that the answer follows the picture; with one partner for each image it can't show that every other "
        "picture would do the same.",
    ),
    "attention": PanelText(
        "Attention beside it",
        "reading attention",
        GAZE,
    ),
    "checks": PanelText(
        "Does the instrument hold?",
        "running the self-checks",
        "Identities that must hold on this very prompt, with the error that was found. They show that cuts and cache "
        "do what they say; they can't show that a cut is the right question to ask.",
    ),
}

_HEADLINES = {
    "mask": "{images}: the mask alone decides",
    "selected": "{images}, and the question selects it",
    "dependent": "{images}, whatever is asked",
    "several": "{images} together",
    "none": "No image needed",
    "unclear": "Cannot tell",
}


def show_panel(key: str, body: str, text: PanelText | None = None) -> str:
    """A panel with its title and what can be said of how it was made."""
    text = text or PANELS[key]
    return (
        f'<section class="wi-panel wi-{key}" aria-labelledby="wi-{key}"><h3 id="wi-{key}">{escape(text.title)}</h3>'
        f"{body}<details class=wi-explain><summary>Explain this</summary><p>{escape(text.explanation)}</p></details>"
        "</section>"
    )


def show_waiting(key: str, sentence: str, text: PanelText | None = None) -> str:
    """A panel without a result, and what would bring one."""
    return show_panel(key, f'<p class="vi-empty">{escape(sentence)}</p>', text)


def say_with_code(text: str) -> str:
    """Escaped, with what stands between backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text))


def show_verdict(verdict: Verdict | None, note: str = "", command: str = "") -> str:
    """The verdict, large. ``note``: a plain sentence below it; ``command``: what repeats it from a shell."""
    if verdict is None:
        return f'<p class="vi-empty">{escape(note)}</p>'
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    state = note if verdict.final else f"So far; not all tests are in. {note}"
    return (
        f'<section class="wi-verdict wi-is-{verdict.kind}" aria-live="polite"><p class="wi-headline">'
        f'{headline(verdict)}</p><p class="wi-sentence">{escape(verdict.sentence)}</p>'
        + (f'<ul class="wi-reasons">{reasons}</ul>' if reasons else "")
        + (f'<p class="vi-caption">{escape(state)}</p>' if state else "")
        + (show_command(command) if command and verdict.final else "")
        + "</section>"
    )


def headline(verdict: Verdict) -> str:
    """The verdict in a few words, as HTML."""
    names = [f"{badge(k - 1)} image {k}" if n else f"{badge(k - 1)} Image {k}" for n, k in enumerate(verdict.images)]
    images = ", ".join(names[:-1]) + " and " + names[-1] if len(names) > 1 else "".join(names)
    words = _HEADLINES[verdict.kind]
    if verdict.kind == "dependent" and "whatever is asked" not in verdict.sentence:
        words = "{images}"
    return words.format(images=images)


def draw_panels(
    found: WhichImage, images: Sequence[PromptImage], agreement: AttentionAgreement | None = None
) -> dict[str, str]:
    """The panels of all steps that are done, by their keys. ``agreement`` comes with the step “attention”."""
    drawn = {"structure": show_structure(found.structure, found.turn)}
    if found.dependence is not None:
        drawn["dependence"] = show_dependence(found.dependence, found.structure, found.turn, found.reference)
    if found.matrix is not None:
        drawn["matrix"] = show_matrix(found.matrix, found.structure)
    if found.selection is not None:
        drawn["selection"] = show_selection(found.selection)
    if found.swaps is not None:
        drawn["swaps"] = show_swaps(found.swaps, images, found.verdict)
    if found.attention is not None:
        drawn["attention"] = show_attention(agreement)
    if found.checks is not None:
        drawn["checks"] = show_checks(found.checks)
    return drawn


# --- structure ---


def show_structure(structure: RowStructure, turn: int | None = None) -> str:
    """The pack detector's sentences, the row drawn to scale, and question × image with distances in positions.
    ``turn`` (from 1) is the one under study."""
    what, *reasons = structure_sentences(structure)
    told = "".join(f"<li>{say_with_code(reason)}</li>" for reason in reasons)
    body = f'<p><b>{escape(what)}</b></p><ul class="wi-reasons">{told}</ul>{_row_map(structure)}'
    if structure.images and structure.questions:
        head = ["question", *(badge(image.number - 1) for image in structure.images)]
        rows = [[_question_name(question), *_sights(question)] for question in structure.questions]
        marked = [n for n, question in enumerate(structure.questions) if question.number == turn]
        body += table(head, rows, "which question can see which image", marked=marked)
        body += (
            '<p class="vi-caption">Positions from an image’s last token to the question’s first; – : the question '
            "can't see it.</p>"
        )
    return show_panel("structure", body)


def _question_name(question: Question, limit: int = 60) -> str:
    text = question.text if len(question.text) <= limit else question.text[: limit - 1] + "…"
    return f"{question.number}. {escape(text)}"


def _sights(question: Question) -> list[str]:
    cells = []
    for sight in question.sights:
        if sight.reachable:
            cells.append(
                f'<td class="wi-seen" style="--image:{image_colour(sight.image - 1)}">'
                f"{copied(sight.to_first or 0, 0)}</td>"
            )
        else:
            cells.append(f'<td class="wi-cell wi-none" title="{escape(sight.why)}">– <small>{sight.why}</small></td>')
    return cells


def _row_map(structure: RowStructure) -> str:
    """The row as one line, to scale: images in their colours, questions, answers, separators, padding."""
    marks: list[tuple[int, int, str, str, str]] = []
    for image in structure.images:
        colour = f"--image:{image_colour(image.number - 1)}"
        marks.append((image.start, image.stop, "wi-map-image", colour, f"image {image.number}"))
    for question in structure.questions:
        marks.append((question.start, question.stop, "wi-map-question", "", f"question {question.number}"))
        start, stop = question.answer
        if stop > start:
            marks.append((start, stop, "wi-map-answer", "", f"answer {question.number}"))
    marks += [(p, p + 1, "wi-map-separator", "", "separator, masked") for p in structure.separators]
    marks += [(start, stop, "wi-map-padding", "", "padding, masked") for start, stop in structure.padding]
    parts, at = [], 0
    for start, stop, css, style, name in sorted(marks):
        if start > at:
            parts.append(
                f'<i style="flex-grow:{start - at}" title="written by the chat template, {at} to {start - 1}"></i>'
            )
        label = name.split()[1] if css == "wi-map-image" else ""
        title = f"{name}, positions {start} to {stop - 1}"
        parts.append(f'<i class="{css}" style="flex-grow:{stop - start};{style}" title="{title}">{label}</i>')
        at = max(at, stop)
    if structure.length > at:
        parts.append(f'<i style="flex-grow:{structure.length - at}"></i>')
    return (
        f'<div class="wi-map" role="img" aria-label="the row of {structure.length} positions, to scale">'
        f"{''.join(parts)}</div>"
        f'<p class="vi-caption">The row to scale, {structure.length:,} positions: images in their '
        "colours, questions hatched, answers solid, the rest is the chat template's.</p>"
    )


# --- dependence ---


def show_dependence(
    dependence: Dependence, structure: RowStructure, turn: int, reference: Dependence | None = None
) -> str:
    """Bars of one answer, and of a reference answer below them if there is one."""
    body = _dependence(dependence, structure, turn, "the model's answer" if reference else "the answer")
    if reference is not None:
        body += _dependence(reference, structure, turn, "the reference answer")
    return show_panel("dependence", body)


def _dependence(found: Dependence, structure: RowStructure, turn: int, whose: str) -> str:
    seen = structure.questions[turn - 1].reachable
    rows = []
    for k, value in enumerate(found.shapley):
        if k + 1 not in seen:
            rows.append(Bar(k + 1, None, "out of reach: exactly 0"))
            continue
        error = None if found.standard_errors is None else found.standard_errors[k]
        spread = f" ± {say(error)}" if error is not None else ""
        text = (
            f"<b>{copied(value)}</b>{spread} nats <small>without it {copied(-found.leave_one_out[k], sign=True)}, "
            f"with it alone {copied(found.alone[k], sign=True)}</small>"
        )
        rows.append(Bar(k + 1, value, text, found.leave_one_out[k], error))
    said = f"“{escape(found.answer)}”" if found.answer else "(empty)"
    facts = (
        f"log p of {said} is {copied(found.logprob)} with all images (p = {say(found.probability, 3)} per token) "
        f"and {copied(found.text_only)} without any (p = {say(exp(found.text_only / found.tokens), 3)}): the prior "
        f"that the text alone gives. Noise floor {copied(found.noise_floor, 3)} nats, from {found.noise_draws} "
        f"stretches of {found.noise_size} tokens of text"
        + (f", times {say(found.noise_scale, 1)} for an image's length" if found.noise_scale > 1 else "")
        + ". Beside each bar: by how much log p changes without that image, and with it alone."
    )
    how = f"Exact, {found.runs} runs." if found.exact else f"Sampled: {found.runs} runs, ± one standard error."
    drawn = (
        bars(rows, noise=found.noise_floor, label=f"Shapley value of each image for {whose}")
        if rows
        else ('<p class="vi-empty">There is no image.</p>')
    )
    legend = (
        '<ul class="wi-legend"><li><i class="wi-key"></i>Shapley value</li><li><i class="wi-key wi-key-tick"></i>fall '
        'without that image</li><li><i class="wi-key wi-key-noise"></i>noise floor</li></ul>'
        if rows
        else ""
    )
    title = "" if found.exchange is None else '<p class="wi-measure"><b>Taken away</b></p>'
    return (
        f'<p class="wi-lead">For {whose} {said}</p>{title}{drawn}{legend}{_pairs(found.interactions, seen)}'
        f'<p class="vi-caption">{facts} {how}</p>'
        + ("" if found.exchange is None else _exchange(found, found.exchange, seen, whose))
    )


def _exchange(found: Dependence, exchange: ExchangeEffects, seen: Sequence[int], whose: str) -> str:
    """The same answer with other pictures in the images' places."""
    rows = []
    for k, value in enumerate(exchange.shapley):
        if k + 1 not in seen:
            rows.append(Bar(k + 1, None, "out of reach: exactly 0"))
            continue
        error = None if exchange.spread is None else exchange.spread[k]
        spread = f" ± {say(error)}" if error is not None else ""
        text = (
            f"<b>{copied(value)}</b>{spread} nats <small>with this one alone replaced "
            f"{copied(-exchange.leave_one_out[k], sign=True)}</small>"
        )
        rows.append(Bar(k + 1, value, text, exchange.leave_one_out[k], error))
    drawn = bars(rows, noise=found.noise_floor, label=f"Shapley value of each image for {whose}, images replaced")
    names = "".join(
        f"<li>{badge(k)} {escape('; '.join(partners))}</li>" for k, partners in enumerate(exchange.partners) if partners
    )
    games = (
        f"Means over {exchange.games} pictures each, ± standard error over them" if exchange.games > 1 else "One each"
    )
    how = f"{games}; {'every set of images' if exchange.exact else 'sets of images drawn'}, {exchange.runs} runs."
    return (
        f'<p class="wi-measure"><b>Other pictures in their places</b></p>{drawn}'
        f"{_pairs(exchange.interactions, seen, ' with images replaced')}"
        f'<p class="vi-caption">log p is {copied(exchange.replaced)} with all of them replaced. {how}</p>'
        f"<details class=wi-explain><summary>What they were replaced by</summary><ul>{names}</ul></details>"
    )


def _pairs(interactions: Sequence[Sequence[float]] | None, seen: Sequence[int], how: str = "") -> str:
    """Interactions of pairs, folded."""
    if interactions is None or len(seen) < 2:
        return ""
    rows = [
        HeatRow(badge(a - 1), tuple(None if a == b else interactions[a - 1][b - 1] for b in seen), "itself")
        for a in seen
    ]
    drawn = heat_table(["", *(badge(b - 1) for b in seen)], rows, f"Shapley interactions of pairs{how}, nats")
    return (
        f"<details class=wi-explain><summary>Pairs{how}</summary><p>Above 0: needed together; below 0: either will do "
        f"(Shapley interaction, nats).</p>{drawn}</details>"
    )


# --- matrix, selection ---


def show_matrix(matrix: TurnMatrix, structure: RowStructure) -> str:
    """Turn × image."""
    rows = []
    for question, effects, seen in zip(structure.questions, matrix.effects, matrix.reachable, strict=True):
        cells = [None if effects is None or not reachable else effects[k] for k, reachable in enumerate(seen)]
        answer = f" “{escape(question.answer_text)}”" if question.answer_text else ""
        rows.append(
            HeatRow(
                f"turn {question.number}{answer}",
                tuple(cells),
                "no answer" if effects is None else "out of reach: exactly 0",
            )
        )
    head = ["fall of log p, nats", *(badge(image.number - 1) for image in structure.images)]
    body = (
        heat_table(head, rows, "effect of each image on each answer")
        if structure.images
        else ('<p class="vi-empty">There is no image.</p>')
    )
    notes = [f"Largest effect of an image that a question can't see: {copied(matrix.beyond_reach, 2)} (must be 0)."]
    if matrix.leakage is not None and any(not mine for row in matrix.own for mine in row):
        notes.append(
            f"Leakage: {copied(matrix.leakage * 100, 0)} % of all effects are of images that another turn brought."
        )
    return show_panel("matrix", f'{body}<p class="vi-caption">{" ".join(notes)}</p>')


def show_selection(selection: Selection) -> str:
    """Each question, what it gets, and what the images are worth to that answer."""
    body = _asked_table(selection, "ablation", "taken away")
    if selection.asked[0].exchange_effects:
        body += _asked_table(selection, "exchange", "other pictures in their places")
    if len(selection.asked) < 2:
        body += (
            '<p class="vi-empty">No question about another image could be made from this one; type one in '
            "“Contrast with”.</p>"
        )
    notes = [escape(sentence) for sentence in selection.sentences]
    if selection.contrast is not None:
        notes.append(
            f"Contrast of image {selection.image}: {copied(selection.contrast)} nats taken away"
            + (f", {copied(selection.exchange_contrast)} replaced" if selection.exchange_contrast is not None else "")
            + "; each the smaller of two (on each question's own answer, and on the answer under study)."
        )
    notes.append("Cells: fall of log p of the row's own answer without that image, or with others in its place, nats.")
    return show_panel("selection", f'{body}<p class="vi-caption">{" ".join(notes)}</p>')


def _asked_table(selection: Selection, measure: Measure, title: str) -> str:
    """Question × image by one measure."""
    effects = [asked.effects_by(measure) for asked in selection.asked]
    top = max((abs(effect) for row in effects for effect in row), default=0.0)
    rows = []
    for asked, row in zip(selection.asked, effects, strict=True):
        about = badge(asked.image - 1) if asked.image else "–"
        name = f"{escape(asked.question)} <small>{asked.source}</small>"
        cells = [f"“{escape(asked.answer)}”", copied(asked.probability, 3), about]
        rows.append([name, *cells, *(heat_cell(effect, top) for effect in row)])
    head = [f"asked; images {title}", "answer", "p", "about"]
    head += [badge(k - 1) for k in range(1, len(selection.contrasts) + 1)]
    return table(head, rows, f"questions about each image, and the effects of the images, {title}", marked=[0])


# --- swaps ---


def show_swaps(swaps: Sequence[Counterfactual], images: Sequence[PromptImage], verdict: Verdict | None) -> str:
    """One card for each image: the picture before and after, what should come, what came."""
    if not swaps:
        return show_waiting("swaps", "The question can see no image, so there is none to replace.")
    named = () if verdict is None else verdict.images
    cards = "".join(_swap_card(swap, images[swap.image - 1], swap.image in named) for swap in swaps)
    right = sum(_as_predicted(swap, swap.image in named)[1] is True for swap in swaps)
    known = sum(_as_predicted(swap, swap.image in named)[1] is not None for swap in swaps)
    summary = f'<p class="wi-lead">{right} of {known} as predicted.</p>' if known else ""
    summary += f'<p class="vi-caption">To the unchanged prompt the model says “{escape(swaps[0].before)}”.</p>'
    return show_panel("swaps", f'{summary}<ul class="wi-cards">{cards}</ul>')


def _as_predicted(swap: Counterfactual, named: bool) -> tuple[str, bool | None]:
    """What the verdict predicts for a swap, and whether it came; None where it predicts nothing."""
    if not named:
        return "the same answer", not swap.flipped
    if swap.predicted is not None:
        return f"“{swap.predicted}”", swap.answer.strip() == swap.predicted.strip()
    return "another answer", swap.flipped


def _swap_card(swap: Counterfactual, before: PromptImage, named: bool) -> str:
    predicted, right = _as_predicted(swap, named)
    mark = {True: "✓", False: "✗", None: ""}[right]
    css = {True: "wi-right", False: "wi-wrong", None: ""}[right]
    return (
        f'<li class="{css}" style="--image:{image_colour(swap.image - 1)}"><div class="wi-pictures">'
        f"{badge(swap.image - 1)}{thumbnail(before.preview, f'image {swap.image}')}<span aria-label=becomes>→</span>"
        f"{thumbnail(swap.picture, swap.partner)}</div><p>Image {swap.image} replaced by "
        f"{escape(swap.partner)}. Predicted: {escape(predicted)}. Said: <b>“{escape(swap.answer)}”</b> {mark}</p>"
        f'<p class="vi-caption">log p of the old answer falls by {copied(swap.fall)} nats</p></li>'
    )


# --- attention, checks ---


def show_attention(agreement: AttentionAgreement | None) -> str:
    """Share per image, then layer × image three ways; whether attention names the image that the interventions name."""
    if agreement is None:
        return show_waiting("attention", "There is no image to attend to.")
    look = agreement.chooser
    means = [sum(column) / len(look.without_sinks) for column in zip(*look.without_sinks, strict=True)]
    rows = [Bar(k + 1, share, f"<b>{copied(share * 100, 1)}</b> %") for k, share in enumerate(means)]
    css = {"agrees": "wi-agrees", "disagrees": "wi-disagrees"}.get(agreement.badge, "")
    body = (
        f'<p class="wi-lead"><span class="wi-tag">correlational</span> '
        f'<span class="wi-tag {css}">{agreement.badge}</span> '
        f"{escape(agreement.sentence)}</p>"
        + bars(rows, label="share of attention per image, sinks left out")
        + _look_tables(look)
    )
    if agreement.question is not None:
        body += (
            f"<details class=wi-explain><summary>The question's own rows</summary>"
            f"{_look_tables(agreement.question)}</details>"
        )
    return show_panel("attention", body)


def _look_tables(look: AttentionSummary) -> str:
    """Layer × image: share without sinks, lift, and what the images bring by its length."""
    images = range(1, len(look.shares[0]) + 1)
    whose = "the row that chose the answer" if look.rows == "chooser" else "the question's rows, their mean"
    parts = (
        ("share", look.without_sinks, 3, "share of attention, sinks left out"),
        ("lift", look.lifts, 2, "lift over an even spread"),
        ("by length", look.norm_shares, 3, "share of what images bring, by length"),
    )
    tables = [
        heat_table(
            [name, *(badge(k - 1) for k in images)],
            [HeatRow(f"layer {n}", row) for n, row in enumerate(values)],
            f"{what}, {whose}",
            digits=digits,
            shares=True,
        )
        for name, values, digits, what in parts
    ]
    return (
        f'<div class="wi-tables">{"".join(tables)}</div><p class="vi-caption">Of {whose}, mean over heads: share of '
        "all attention without its sinks; lift (1: as much as its number of tokens would get); share of what the "
        "images bring through the heads, by its length.</p>"
    )


def show_checks(checks: Sequence[Check]) -> str:
    """Name, error, limit, and whether it holds."""
    passed = sum(check.ok for check in checks)
    rows = [
        [
            escape(check.name),
            f'<span data-copy="{check.value!r}">{_error(check.value)}</span>',
            _error(check.limit),
            f'<span class="{"wi-right" if check.ok else "wi-wrong"}">{"✓ holds" if check.ok else "✗ fails"}</span>',
        ]
        for check in checks
    ]
    body = table(["what must hold", "error, nats", "allowed", ""], rows, "self-checks of this very prompt")
    return show_panel("checks", f'<p class="wi-lead">{passed} of {len(checks)} hold.</p>{body}')


def _error(value: float) -> str:
    return f"{value:.0e}" if value else "0"
