"""Images and texts in one space as page parts: the similarity matrix and its losses, zero-shot labels, heat of patches,
and the attention of the encoder."""

from __future__ import annotations

import io
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from PIL import Image

from inspector.encoder.contrast import Contrast, Matrix
from inspector.encoder.head_comparison import HeadComparison, HeadResult
from inspector.encoder.patches import AlikePatches, EncoderAttention, PatchMap, PhrasePatches
from inspector.encoder.study import TextStudy
from inspector.encoder.zero_shot import CURVE, ZeroShot
from inspector.figures.charts import copied, heat_cell, table
from inspector.figures.markup import badge, show_share
from inspector.figures.payload import data_uri
from inspector.images.image_file import PromptImage
from inspector.row.numbers import say
from model.encoders.protocol import ImageTextEncoder, PatchGrid

HEAT = (224, 0, 122)
"""The house's hue: its alpha is the value over the view's largest."""
ABOUT = (
    "Each image and each text becomes one vector; their cosines, divided by the temperature, go through a softmax over "
    "each row (which caption belongs to this image?) and one over each column (which image to this caption?), and the "
    "mean of both cross-entropies is InfoNCE. A high cosine says that the encoder finds them alike, not that the "
    "language model uses it."
)
ABOUT_PATCHES = (
    "The heat is the cosine of each patch's vector over the largest in view; what is below 0 is clear. Here the vector "
    "is {about}. Every patch has taken from all others inside the encoder, so likeness says what it holds, not only "
    "what its own pixels show."
)
ABOUT_ATTENTION = (
    "The softmax of the encoder itself, from the chosen patch to all patches of its image, head by head. It shows "
    "where a head reads, not what for, and not that the answer depends on it. Where a patch here is an image token, "
    "merged from several patches, their patterns are averaged, and what goes to those of another token is added up."
)
ABOUT_HEADS = (
    "Two text towers begin alike and are trained against the same frozen encoder with the same batches; only the "
    "projections differ: CLIP's linear map, or an MLP with one hidden layer. The encoder itself was trained under a "
    "linear head, an advantage that a trial from nothing would not give it."
)
SHOWN_PX = 360
"""Longest side of a picture under heat."""


def show_encoder(encoder: ImageTextEncoder) -> str:
    """What is at work, and which parts it lacks."""
    missing = f'<p class="vi-empty" role="status">{escape(encoder.missing)}</p>' if encoder.missing else ""
    return f'<p class="vi-caption">Encoder: {escape(encoder.name)}.</p>{missing}'


@dataclass(frozen=True)
class MatrixHead:
    """How a row is called; HTML."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]


def show_matrix(
    title: str,
    values: Matrix,
    names: MatrixHead,
    own: Sequence[int],
    *,
    shares: bool,
    side: Sequence[str] = (),
    foot: Sequence[str] = (),
    side_name: str = "",
) -> str:
    """``values [image][text]`` as viridis cells with their numbers (``shares``: from 0 to 1, else from the least to the
    largest), the right text of each row framed. ``side`` and ``foot``: a last column and row of their own."""
    low, top = (0.0, 1.0) if shares else (min(map(min, values)), max(map(max, values)))
    rows = []
    for n, (name, row) in enumerate(zip(names.rows, values, strict=True)):
        cells = [name]
        for column, value in enumerate(row):
            cell = heat_cell(value, top, shares=True, low=low)
            cells.append(cell.replace('"wi-cell ', '"wi-cell cl-own ') if own[n] == column else cell)
        rows.append([*cells, *([side[n]] if side else [])])
    if foot:
        rows.append([*foot, *([""] if side else [])])
    head = ["", *names.columns, *([side_name] if side else [])]
    return f'<figure class="cl-matrix"><figcaption>{title}</figcaption>{table(head, rows, title)}</figure>'


def name_images(images: Sequence[PromptImage]) -> tuple[str, ...]:
    """Badge and small picture of each."""
    return tuple(
        f'<span class="cl-name">{badge(n)}<img src="{_small(image)}" alt=""></span>' for n, image in enumerate(images)
    )


def _small(image: PromptImage) -> str:
    picture = image.preview.convert("RGB")
    picture.thumbnail((40, 40))
    return data_uri(picture)


def name_texts(texts: Sequence[str]) -> tuple[str, ...]:
    """Column heads: the beginning of each text, all of it in its title."""
    return tuple(f'<span class="cl-text" title="{escape(text, quote=True)}">{escape(text)}</span>' for text in texts)


def show_contrast(found: Contrast, images: Sequence[PromptImage]) -> str:
    """Matrix, both softmaxes with their losses, and how InfoNCE is made of them."""
    names = MatrixHead(name_images(images), name_texts(found.captions))
    own = found.text_of_image
    of_images = [_nats(loss) for loss in found.image_losses]
    of_texts = ["−" if loss is None else _nats(loss) for loss in found.text_losses]
    tables = (
        show_matrix("Cosine of image and caption", found.cosines, names, own, shares=False),
        show_matrix(
            "Softmax over each row: which caption?",
            found.image_shares,
            names,
            own,
            shares=True,
            side=of_images,
            side_name="−ln p, nats",
        ),
        show_matrix(
            "Softmax over each column: which image?",
            found.text_shares,
            names,
            own,
            shares=True,
            foot=["−ln p, nats", *of_texts],
        ),
    )
    count, described = len(of_images), sum(loss is not None for loss in found.text_losses)
    right = f"{found.right} of {count} images have their own caption nearest."
    learned = "as it was learned" if found.temperature == found.learned else f"learned: {say(found.learned, 3)}"
    notes = "".join(f'<p class="vi-caption">{escape(note)}</p>' for note in found.notes)
    bias = "its own" if found.bias else "SigLIP's first, for this encoder has learned none"
    return (
        f'<div class="cl-matrices">{"".join(tables)}</div>'
        f'<dl class="cl-sums">'
        f"<dt>temperature</dt><dd>{copied(found.temperature, 3)} <small>({learned}); cosines are divided by it: "
        f"× {say(1 / found.temperature, 1)}</small></dd>"
        f"<dt>image → text</dt><dd>{_nats(found.image_to_text)} nats <small>mean of the {count} numbers at "
        "the right of the row softmax</small></dd>"
        f"<dt>text → image</dt><dd>{_nats(found.text_to_image)} nats <small>mean of the {described} numbers "
        "under the column softmax</small></dd>"
        f"<dt>InfoNCE</dt><dd><b>{_nats(found.loss)} nats</b> <small>mean of both; who knows nothing has ln "
        f"{count} = {say(found.guessing, 3)}, in a batch of 32,768 ln 32,768 = 10.397</small></dd>"
        f"<dt>sigmoid loss</dt><dd>{_nats(found.sigmoid_loss)} nats <small>SigLIP's: every pair a yes or no "
        f"by itself, bias {say(found.sigmoid_bias, 1)} ({bias})</small></dd></dl>"
        f'<p class="vi-caption">{right}</p>{notes}'
    )


def show_text_study(found: TextStudy, images: Sequence[PromptImage], encoder: ImageTextEncoder) -> str:
    """Everything that was asked, one below the other: a panel that stands for itself."""
    labels = "" if found.zero_shot is None else show_zero_shot(found.zero_shot, images)
    phrases = "" if found.phrases is None else show_phrases(found.phrases, images, encoder.about_patches)
    return (
        f'<section class="wi-panel"><h3>CLIP</h3><p class="vi-caption">Read by: {escape(encoder.name)}.</p>'
        f"{show_contrast(found.contrast, images)}{labels}{phrases}</section>"
    )


def _nats(loss: float) -> str:
    """With so many digits that a loss of nearly nothing isn't written as none."""
    return copied(loss, 3) if loss >= 0.0005 or loss <= 0 else f'<span data-copy="{loss:.6g}">{loss:.0e}</span>'


def show_zero_shot(found: ZeroShot, images: Sequence[PromptImage]) -> str:
    """Probabilities of the labels, and how the likeliest one's moves with the temperature."""
    rows, names = name_images(images), MatrixHead(name_images(images), name_texts(found.labels))
    best = [max(range(len(row)), key=row.__getitem__) for row in found.probabilities]
    parts = [
        show_matrix("Probability of each label", found.probabilities, names, best, shares=True),
        show_matrix(
            "The likeliest label's probability at other temperatures",
            tuple(tuple(at[n][label] for at in found.curve) for n, label in enumerate(best)),
            MatrixHead(
                tuple(f"{row} {escape(found.labels[label])}" for row, label in zip(rows, best, strict=True)),
                tuple(f"{temperature:g}" for temperature in CURVE),
            ),
            [-1] * len(rows),
            shares=True,
        ),
    ]
    if found.yes is not None:
        parts.insert(1, show_matrix("Each label by itself (sigmoid)", found.yes, names, best, shares=True))
    used = ", ".join(f"“{escape(template)}”" for template in found.templates)
    mean = "the mean of its texts in" if len(found.templates) > 1 else "its text in"
    return (
        f'<p class="vi-caption">A label\'s vector is {mean} {used}, at temperature {say(found.temperature, 3)}.</p>'
        f'<div class="cl-matrices">{"".join(parts)}</div>'
    )


# --- heat over images ---


def show_phrases(found: PhrasePatches, images: Sequence[PromptImage], about: str) -> str:
    """For each phrase, its heat over all images."""
    rows = []
    for phrase, maps in zip(found.phrases, found.maps, strict=True):
        top = max(max(one.cosines) for one in maps)
        best = max(maps, key=lambda one: max(one.cosines)).image
        figures = "".join(_show_heat(one, top) for one in maps)
        where = f"most in {badge(best)} {copied(top, 2)}" if top > 0 else "nowhere: no cosine is above 0"
        rows.append(
            f'<div class="cl-phrase"><p><b>{escape(phrase)}</b> <small>{where}</small></p>'
            f'<div class="cl-maps">{figures}</div></div>'
        )
    about = f'<p class="vi-caption">{ABOUT_PATCHES.format(about=escape(about))}</p>'
    return f'{about}<div style="{_crop_all(found.maps[0], images)}">{"".join(rows)}</div>'


def show_board(maps: Sequence[PatchMap], images: Sequence[PromptImage], found: AlikePatches | None = None) -> str:
    """The images, to click a patch in; with ``found``, under the heat of what is like it. ``maps``: any of each
    image, for their grids."""
    if found is None:
        said = "Click a patch, or move with the arrow keys: its like in all images lights up."
        body = "".join(_show_pick(one, 0.0, None) for one in maps)
    else:
        others = [cosine for _, cosine in found.nearest]
        top = max([*others, 1e-9])
        body = "".join(_show_pick(one, top, found) for one in found.maps)
        place, cosine = found.nearest[0] if found.nearest else (found.chosen, 1.0)
        said = (
            f"Patch in row {found.chosen.row}, column {found.chosen.col} of {badge(found.chosen.image)}; most like it: "
            f"{badge(place.image)} row {place.row}, column {place.col}, cosine {copied(cosine, 3)}."
        )
    return (
        f'<p class="vi-caption">{said}</p><div class="cl-maps cl-board" style="{_crop_all(maps, images)}">{body}</div>'
    )


def show_attention(found: EncoderAttention, maps: Sequence[PatchMap], images: Sequence[PromptImage]) -> str:
    """A small map for each head of the layer."""
    image = found.chosen.image
    pictures = _crop_all([one for one in maps if one.image == image], images)
    figures = []
    for head, shares in enumerate(found.heads):
        one = PatchMap(image, found.grids, shares)
        top = max(shares)
        caption = f"head {head} <small>at most {show_share(top)}</small>"
        figures.append(_show_heat(one, top, caption))
    return (
        f'<p class="vi-caption">Layer {found.layer} of 0 to {found.n_layers - 1}, from row {found.chosen.row}, column '
        f"{found.chosen.col} of {badge(image)}; alpha is the share over the head's largest.</p>"
        f'<div class="cl-maps cl-small" style="{pictures}">{"".join(figures)}</div>'
    )


def _crop_all(maps: Sequence[PatchMap], images: Sequence[PromptImage]) -> str:
    """Style of what stands around heat: the part of its image that each grid covers, once for any number of maps."""
    return ";".join(
        f"{_name_part(one.image, grid)}:url({_crop(images[one.image], grid)})" for one in maps for grid in one.grids
    )


def _name_part(image: int, grid: PatchGrid) -> str:
    return f"--part-{image}-{grid.start}"


def _crop(image: PromptImage, grid: PatchGrid) -> str:
    box = grid.box
    # A preview may be smaller than the original, in whose pixels the box is.
    across, down = (shown / whole for shown, whole in zip(image.preview.size, image.size, strict=True))
    corners = (box.left * across, box.top * down, box.right * across, box.bottom * down)
    part = image.preview.convert("RGB").crop(tuple(map(round, corners)))  # type: ignore[arg-type]
    part.thumbnail((SHOWN_PX, SHOWN_PX))
    return data_uri(part)


def _show_heat(one: PatchMap, top: float, caption: str = "") -> str:
    body = "".join(
        f'<div class="cl-map" style="{_place(one, grid)}"><img class="cl-heat" src="{_paint(one, grid, top)}" '
        f'alt="heat on image {one.image + 1}"></div>'
        for grid in one.grids
    )
    return f"<figure><figcaption>{caption or badge(one.image)}</figcaption>{body}</figure>"


def _show_pick(one: PatchMap, top: float, found: AlikePatches | None) -> str:
    parts = []
    for grid in one.grids:
        heat = "" if found is None else f'<img class="cl-heat" src="{_paint(one, grid, top)}" alt="">'
        row, col = 0, 0
        chosen = (
            found is not None
            and found.chosen.image == one.image
            and 0 <= found.chosen.patch - grid.start < grid.rows * grid.cols
        )
        if found is not None and chosen:
            row, col = found.chosen.row, found.chosen.col
        parts.append(
            f'<div class="cl-map cl-pick{" cl-chosen" if chosen else ""}" tabindex="0" role="application" '
            f'aria-roledescription="grid of patches" data-image="{one.image}" data-start="{grid.start}" '
            f'data-rows="{grid.rows}" data-cols="{grid.cols}" data-row="{row}" data-col="{col}" '
            f'aria-label="image {one.image + 1}, {grid.rows} rows and {grid.cols} columns of patches; arrows choose" '
            f'style="{_place(one, grid)};--row:{row};--col:{col};--rows:{grid.rows};--cols:{grid.cols}">'
            f"{heat}<i></i></div>"
        )
    return f"<figure><figcaption>{badge(one.image)}</figcaption>{''.join(parts)}</figure>"


def _place(one: PatchMap, grid: PatchGrid) -> str:
    """Style of a grid: its picture, and the sides that it has."""
    sides = f"{grid.box.right - grid.box.left:.0f}/{grid.box.bottom - grid.box.top:.0f}"
    return f"aspect-ratio:{sides};background-image:var({_name_part(one.image, grid)})"


def _paint(one: PatchMap, grid: PatchGrid, top: float) -> str:
    """A pixel for each patch: the house's hue, its alpha the value over ``top``, nothing below 0."""
    values = np.array(one.cosines[grid.start : grid.start + grid.rows * grid.cols]).reshape(grid.rows, grid.cols)
    pixels = np.empty((grid.rows, grid.cols, 4), np.uint8)
    pixels[..., :3] = HEAT
    pixels[..., 3] = np.round(255 * np.clip(values / top if top > 0 else 0 * values, 0, 1))
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(buffer, "PNG")
    return f"data:image/png;base64,{b64encode(buffer.getvalue()).decode('ascii')}"


def show_heads(found: HeadComparison) -> str:
    """Both heads side by side: how far, accuracies, and the matrix of the same held-out pictures."""
    rows = [
        [
            f"<b>{_HEADS[one.head]}</b>",
            f"{one.weights:,}",
            f"{one.image_accuracy:.1%}",
            f"{one.text_accuracy:.1%}",
            copied(one.loss, 3),
            copied(one.temperature, 3),
        ]
        for one in found.results
    ]
    head = ["head", "weights that train", "image → its caption", "caption → its image", "InfoNCE, nats", "temperature"]
    figures = "".join(_show_head(one, found) for one in found.results)
    listed = " · ".join(f"{n}: {escape(caption)}" for n, caption in enumerate(found.captions, start=1))
    said = f'<p>{escape(found.sentence)}</p><p class="vi-caption">Held-out captions {listed}</p>'
    return f'{table(head, rows, "linear against MLP head")}{said}<div class="cl-matrices">{figures}</div>'


_HEADS = {"linear": "linear", "mlp": "MLP"}


def _show_head(one: HeadResult, found: HeadComparison) -> str:
    pictures = tuple(f'{n} <img src="{data_uri(picture)}" alt="">' for n, picture in enumerate(found.pictures, start=1))
    numbers = tuple(
        f'<span title="{escape(caption, quote=True)}">{n}</span>' for n, caption in enumerate(found.captions, start=1)
    )
    names = MatrixHead(pictures, numbers)
    title = f"{_HEADS[one.head]}: softmax over each row"
    return show_matrix(title, one.shares, names, range(len(pictures)), shares=True)
