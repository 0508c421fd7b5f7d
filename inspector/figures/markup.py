"""Static HTML: plans of images, the answer, the batch table, findings. Everything a person typed is escaped."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from inspector.figures.colours import image_colour, ink_on
from inspector.row.ask import AnswerToken, Inspection
from inspector.row.token_table import Finding, TokenTable
from inspector.which_image.seen import SeenAnswer, SeenToken
from model import Batch, ImagePlan, InspectableVLM, MemoryNeed

END = '<small class="vi-note">end</small>'
"""Stands for the end token, which has no text of its own."""
ABOUT_SEEN = (
    "The answer is read twice behind the same question, with the images and with all of them taken away, as “Which "
    "image?” takes them away; the number is log p with them minus log p without, in nats. Seen means that it is at "
    "least 1. What the model would have bet on anyway can still be read off the images: it follows them if log p falls "
    "by 1 with other pictures in their places, which is tried where that is quick, and by “Which image?”. Each token "
    "is judged behind the same tokens before it: once “blue” stands there, what follows may need no image."
)
DEEPEST_GAIN = 6.0
"""Nats from which on the colour gets no deeper: a factor of 400 in the token's probability."""


def visible(text: str) -> str:
    """Blanks and line breaks made visible."""
    return text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·")


def badge(image: int) -> str:
    """An image's number on its colour."""
    colour = image_colour(image)
    return (
        f'<span class="vi-badge" role="img" style="--image:{colour};background:{colour};color:{ink_on(colour)}" '
        f'aria-label="image {image + 1}">{image + 1}</span>'
    )


def show_share(share: float) -> str:
    """A share of 1 as percent with sensible digits, as the viewer writes it."""
    if share == 0:
        return "0 %"
    return "< 0.01 %" if share < 1e-4 else f"{100 * share:.{2 if share < 0.1 else 1}f} %"


def show_info(what: str, text: str) -> str:
    """The ⓘ of a panel: ``text`` says in two sentences how it was computed and what it can't show. It may hold
    markup and so must not come from a person."""
    return (
        f'<details class="vi-info"><summary aria-label="{what}: how it was computed, and what it can\'t show">'
        f'<span aria-hidden="true">i</span></summary><p>{text}</p></details>'
    )


def show_plans(
    names: Sequence[str],
    plans: Sequence[ImagePlan],
    notes: Sequence[Sequence[str]],
    pictures: Sequence[str] = (),
    beyond: str = "",
) -> str:
    """What each image will be resized to, cut into and cost, beside its small picture (a data URI); an inviting line
    if there is none. ``beyond``: what the model can't make of them."""
    if not plans:
        return (
            '<p class="vi-empty">Drop pictures, or paste them or their address, to see how each is resized, cut into '
            "tiles and counted in tokens. "
            "A prompt without images is fine too.</p>"
        )
    items = []
    for index, (name, plan, extra, picture) in enumerate(zip(names, plans, notes, pictures, strict=True)):
        (width, height), (rows, cols) = plan.original_size, plan.grid
        grid = "1 tile" if plan.tiles == 1 else f"{rows}×{cols} tiles" + (" + thumbnail" if plan.has_thumbnail else "")
        hint = f'<span class="vi-note">{escape("; ".join(extra))}</span>' if extra else ""
        items.append(
            f'<li data-index="{index}" draggable="true" style="--image:{image_colour(index)}">'
            f'<img src="{picture}" alt="" draggable="false"><div><p class="vi-plan-name">{badge(index)} '
            f'<b title="{escape(name, quote=True)}">{escape(name)}</b><span>{plan.tokens:,} tokens</span></p>'
            f"<p>{width}×{height} → {plan.resized_size[0]}×{plan.resized_size[1]} px · {grid} {hint}</p></div>"
            f"{_tools(index, name, len(plans))}</li>"
        )
    total = sum(plan.tokens for plan in plans)
    return (
        f'<ol class="vi-plans">{"".join(items)}</ol>'
        f'<p class="vi-caption">{total:,} tokens for all images. Drop or paste more anywhere on the page.</p>'
        + (f'<p class="vi-beyond" role="note">{escape(beyond)}</p>' if beyond else "")
    )


def show_notes(sentences: Sequence[str]) -> str:
    """What can't be used and why, read out at once by a screen reader; nothing if there is nothing to say."""
    if not sentences:
        return ""
    items = "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences)
    return f'<ul class="vi-refusals" role="alert">{items}</ul>'


def show_asked(sentence: str) -> str:
    """What a checkpoint's settings ask for; nothing if that is nothing."""
    return f'<p class="vi-caption">{escape(sentence)}</p>' if sentence else ""


def _tools(index: int, name: str, count: int) -> str:
    """What a row of the list is moved by (there is nothing to move among less than two) and taken away with."""
    named = escape(name, quote=True)
    grip = (
        f'<button type="button" class="vi-grip" title="drag, or arrow keys" '
        f'aria-label="Move image {index + 1} of {count}, {named}: arrow keys">⠿</button>'
    )
    return (
        f'<span class="vi-row-tools">{grip if count > 1 else ""}<button type="button" class="vi-remove" '
        f'title="remove" aria-label="Remove image {index + 1}, {named}">×</button></span>'
    )


def show_answer(
    turns: Sequence[tuple[str, str, Sequence[AnswerToken], Sequence[int]]], *, running: bool = False
) -> str:
    """Questions and answers, the last answer large. A turn is question, answer, generated tokens and their positions
    in the row (none while they are coming): each token tells its probability and, if its place is known, selects it."""
    if not turns:
        return '<p class="vi-empty">Ask something: the answer appears here, token by token.</p>'
    parts = []
    for index, (question, answer, tokens, places) in enumerate(turns):
        last = index == len(turns) - 1
        if tokens:
            # A run of line breaks is named token by token and breaks the line once, where words go on.
            goes_on = [*(bool(token.text.strip()) for token in tokens[1:]), False]
            body = "".join(
                _answer_token(token, places[n] if n < len(places) else None, goes_on=goes_on[n])
                for n, token in enumerate(tokens)
            )
            odds = " · ".join(
                f"<code>{escape(visible(token.text)) or 'end'}</code> <span data-copy>{token.probability:.3f}</span>"
                for token in tokens[:8]
            )
            more = f" … {len(tokens) - 8} more" if len(tokens) > 8 else ""
            body += f'<div class="vi-caption">p of each token: {odds}{more}</div>' if last and not running else ""
        else:
            body = f'{escape(answer)} <span class="vi-note">given</span>' if answer else "…"
        parts.append(
            f'<div class="vi-turn{" vi-last" if last else ""}"><div class="vi-question">{escape(question)}</div>'
            f'<div class="vi-answer">{body}</div></div>'
        )
    state = " vi-running" if running else ""
    return f'<div class="vi-answers{state}" aria-live="polite">{"".join(parts)}</div>'


def show_seen(answers: Sequence[SeenAnswer]) -> str:
    """Under the answers: what the images add to log p of each token, as a number and as the depth of its colour. Tokens
    are links to their places in the row."""
    parts = []
    for answer in answers:
        body = "".join(_seen_token(token) for token in answer.tokens) if answer.images else ""
        turn = f"Turn {answer.turn}: " if len(answers) > 1 else ""
        parts.append(
            f"<p>{turn}{escape(answer.sentence)}</p>" + (f'<p class="vi-seen-tokens">{body}</p>' if body else "")
        )
    if not parts:
        return ""
    about = show_info("Seen or guessed", ABOUT_SEEN)
    head = f'<div class="vi-panel-head"><h3 class="vi-heading">Seen or guessed</h3>{about}</div>'
    return f'<div class="vi-seen" role="group" aria-label="Seen or guessed">{head}{"".join(parts)}</div>'


def _seen_token(token: SeenToken) -> str:
    depth = min(100, max(0, round(100 * token.gain / DEEPEST_GAIN)))
    title = (
        f"log p = {token.with_images:.2f} with the images, {token.without_images:.2f} without any; without them the "
        f"likeliest token here is “{visible(token.instead)}”"
    )
    if token.replaced is not None:
        title += f"; {token.replaced:.2f} with other pictures in their places"
    word = token.word
    return (
        f'<button type="button" class="vi-token vi-{word.split()[0]}" data-vlm-position="{token.position}" '
        f'style="--share:{depth}%" title="{escape(title, quote=True)}"><code>{escape(visible(token.text))}</code> '
        f"<span data-copy>{token.gain:+.2f}</span> <small>{word}</small></button>"
    )


def _answer_token(token: AnswerToken, position: int | None, *, goes_on: bool) -> str:
    title = f"p = {token.probability:.4f}, id {token.token_id}"
    text = escape(token.text) or END
    if token.text and not token.text.strip():
        line = "\n" if goes_on and "\n" in token.text else ""
        text = f'<span class="vi-note">{visible(token.text)}</span>{line}'
    if position is None:
        return f'<span class="vi-token" title="{title}">{text}</span>'
    return (
        f'<button type="button" class="vi-token" data-vlm-position="{position}" '
        f'title="{title}, position {position}; click selects it">{text}</button>'
    )


def show_tensors(batch: Batch) -> str:
    """The batch's tensors with shape and dtype."""
    rows = {
        "input_ids": batch.input_ids,
        "labels": batch.labels,
        "attention_mask": batch.attention_mask,
        "segment_ids": batch.segment_ids,
        "position_ids": batch.position_ids,
        "images (tiles)": batch.tiles,
        "tile_owner": batch.tile_owner,
    }
    body = "".join(
        f"<tr><th scope=row>{name}</th><td><code>{list(tensor.shape)}</code></td>"
        f"<td><code>{str(tensor.dtype).removeprefix('torch.')}</code></td></tr>"
        for name, tensor in rows.items()
    )
    return (
        '<table class="vi-table"><thead><tr><th scope=col>tensor</th><th scope=col>shape</th>'
        f"<th scope=col>dtype</th></tr></thead><tbody>{body}</tbody></table>"
    )


def show_rows(batch: Batch, texts: dict[int, str]) -> str:
    """input_ids, labels and attention_mask of every row, aligned; runs of one id and label are folded."""
    blocks = []
    for number in range(batch.input_ids.shape[0]):
        ids, labels = batch.input_ids[number].tolist(), batch.labels[number].tolist()
        mask, segments = batch.attention_mask[number].tolist(), batch.segment_ids[number].tolist()
        runs: list[list[int]] = []
        for position, token_id in enumerate(ids):
            key = (token_id, labels[position], mask[position], segments[position])
            if runs and key == tuple(runs[-1][:4]):
                runs[-1][4] += 1
            else:
                runs.append([*key, 1])
        cells: list[list[str]] = [[], [], [], []]
        for token_id, label, seen, segment, count in runs:
            times = f"<sub>×{count}</sub>" if count > 1 else ""
            css = "pad" if segment == -1 else "sep" if not seen else "on" if label != -100 else "off"
            text = escape(visible(texts.get(token_id, "")))
            cells[0].append(f'<td class="{css}">{text}{times}</td>')
            cells[1].append(f'<td class="{css}">{token_id}{times}</td>')
            cells[2].append(f'<td class="{css}">{label}</td>')
            cells[3].append(f'<td class="{css}">{int(seen)}</td>')
        names = ("token", "input_ids", "labels", "attention_mask")
        body = "".join(
            f"<tr><th scope=row>{name}</th>{''.join(row)}</tr>" for name, row in zip(names, cells, strict=True)
        )
        blocks.append(
            f'<div class="vi-scroll" tabindex="0" role="region" aria-label="row {number + 1} of the batch">'
            f'<table class="vi-rows">{body}</table></div>'
        )
    return "".join(blocks)


def show_findings(findings: Sequence[Finding]) -> str:
    """The lint's list, or that it found nothing."""
    if not findings:
        return '<p class="vi-good">✓ Lint: labels, end tokens and image tokens are as training needs them.</p>'
    items = "".join(
        f'<li class="vi-{finding.severity}"><b>{finding.severity}</b> <code>{finding.rule}</code> '
        f"{escape(finding.sentence)}</li>"
        for finding in findings
    )
    return f'<ul class="vi-findings">{items}</ul>'


def show_looks_needs(sentence: str) -> str:
    """The line under the answer; it begins with a verb, as its subject is the answer. Its button, worked by the page's
    script, opens the tab that tests it."""
    why = '<button type="button" class="vi-why">why?</button>'
    return f'<p class="vi-looks"><span role="status">The answer {escape(sentence)}</span> {why}</p>'


def show_provenance(vlm: InspectableVLM, inspection: Inspection, model: str, memory: MemoryNeed | None = None) -> str:
    """The model chip: which weights answered, and on what; ``memory`` is read when it is pointed at."""
    weights = vlm.n_parameters
    size = f"{weights / 1e6:.1f} M weights" if weights < 1e9 else f"{weights / 1e9:.2f} G weights"
    title = "" if memory is None else f' title="{escape(str(memory))}"'
    note = "" if inspection.faithful else " · the answer's text splits into other tokens than were generated"
    known = "".join(f'<p class="vi-caption">{escape(sentence)}</p>' for sentence in vlm.notes)
    return (
        f'<span class="vi-chip" title="{escape(model)}"><b>{escape(model)}</b> · {escape(vlm.family)} · {size}'
        f'<span class="vi-medium"> · <span{title}>{escape(vlm.placement)}</span></span>'
        f'<span class="vi-wide"> · <code data-copy="{inspection.fingerprint}" title="sha256 over weights and config; '
        f'click copies all of it">#{inspection.fingerprint[:8]}</code></span>{note}</span>{known}'
    )


def describe_token(table: TokenTable, position: int) -> str:
    """“token 214 ‘blue’ (answer · message 2)” as escaped HTML."""
    title = table.titles[table.span_index[position]]
    return f"token {position} <code>{escape(visible(table.text(position)))}</code> ({escape(title)})"
