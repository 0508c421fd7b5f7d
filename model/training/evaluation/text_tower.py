"""How well a text tower tells drawn pictures and captions apart: retrieval among different captions, and zero-shot
colours and shapes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from model.clip import DualEncoder
from model.families.nanovlm import VLM
from model.losses import retrieval_accuracy
from model.training.evaluation.card import StageCurve
from model.training.synthetic import scenes as sc
from model.training.synthetic.easy_vqa import read_easy_vqa
from model.training.synthetic.scene_sets import name_easy_shape

BATCH = 48
"""Different captions among which an image's own is looked for."""
TEMPLATE = "a {}"
"""Captions have an article before what they name; a bare word is none that the tower was trained on."""
SEED = 90_101
HEADING = "## The text tower"


@dataclass(frozen=True)
class TowerScore:
    """A share of ``cases`` that are right, and what was ``wanted``."""

    name: str
    cases: int
    accuracy: float
    wanted: float | None = None


def draw_different(rng: np.random.Generator, count: int) -> list[tuple[Image.Image, str]]:
    """Fresh scenes, every fourth of several tiles, no two with the same caption."""
    found: dict[str, Image.Image] = {}
    while len(found) < count:
        large = len(found) % 4 == 3
        scene = sc.random_scene(rng, sc.large_canvas(len(found))) if large else sc.random_scene(rng)
        if sc.has_clear_order(scene):
            found.setdefault(sc.caption(scene), sc.draw(scene))
    return [(picture, caption) for caption, picture in found.items()]


@torch.no_grad()
def embed_pictures(vlm: VLM, dual: DualEncoder, pictures: Sequence[Image.Image]) -> Tensor:
    """Unit vectors ``[picture width]``; of several tiles the thumbnail stands for the picture, as in training."""
    tiles = torch.stack([vlm.process_image(picture).tiles[0] for picture in pictures]).to(vlm.device, vlm.dtype)
    return torch.cat([dual.embed_images(vlm.vision_encoder(part).float()) for part in tiles.split(64)])


@torch.no_grad()
def measure_retrieval(vlm: VLM, dual: DualEncoder, batches: int, seed: int = SEED) -> tuple[float, float]:
    """In batches of :data:`BATCH` different captions: the share of images whose nearest caption is theirs, and of
    captions whose nearest image is."""
    rng = np.random.default_rng(seed)
    own, shares = torch.arange(BATCH, device=vlm.device), []
    for _ in range(batches):
        pictures, captions = zip(*draw_different(rng, BATCH), strict=True)
        images, texts = embed_pictures(vlm, dual, pictures), dual.embed_texts(captions)
        shares.append((retrieval_accuracy(images, texts, own), retrieval_accuracy(texts, images, own)))
    of_images, of_texts = np.mean(shares, axis=0)
    return float(of_images), float(of_texts)


@torch.no_grad()
def measure_tower(vlm: VLM, dual: DualEncoder, *, batches: int = 20, n_each: int = 600) -> list[TowerScore]:
    """``n_each``: scenes of one shape for the zero-shot answers; easy-VQA's test split is asked whole."""
    of_images, of_texts = measure_retrieval(vlm, dual, batches)
    scores = [
        TowerScore(f"scenes: the image's own caption among {BATCH}", batches * BATCH, of_images, 0.95),
        TowerScore(f"scenes: the caption's own image among {BATCH}", batches * BATCH, of_texts, 0.95),
    ]
    rng = np.random.default_rng(SEED + 1)
    drawn = [sc.random_scene(rng, n_shapes=1) for _ in range(n_each)]
    known = [(scene.shapes[0].colour, scene.shapes[0].kind) for scene in drawn]
    pictures = [sc.draw(scene) for scene in drawn]
    scores += _classify(vlm, dual, "scenes", pictures, known, (0.95, 0.95))
    easy = [(picture, named) for picture in read_easy_vqa("test") if (named := name_easy_shape(picture)) is not None]
    pictures, known = [picture.open() for picture, _ in easy], [named for _, named in easy]
    return [*scores, *_classify(vlm, dual, "easy-VQA, test", pictures, known, (0.90, 0.90))]


def _classify(
    vlm: VLM,
    dual: DualEncoder,
    name: str,
    pictures: Sequence[Image.Image],
    known: Sequence[tuple[str, str]],
    wanted: tuple[float, float],
) -> Iterator[TowerScore]:
    images = embed_pictures(vlm, dual, pictures)
    for place, (what, words) in enumerate((("colour", sc.COLOUR_NAMES), ("shape", sc.SHAPE_NAMES))):
        right = torch.tensor([words.index(one[place]) for one in known], device=images.device)
        for template, least in ((TEMPLATE, wanted[place]), ("{}", None)):
            texts = dual.embed_texts([template.replace("{}", word) for word in words])
            asked = f"{name}: {what} of {len(words)}, as “{template}”"
            yield TowerScore(asked, len(known), retrieval_accuracy(images, texts, right), least)


def write_section(scores: Sequence[TowerScore], curve: StageCurve, commands: Sequence[str], nbytes: int) -> str:
    """What the card says of a tower that was trained in the stage ``curve``, in Markdown; ``commands`` made it."""
    return "\n".join(
        [
            HEADING,
            "",
            (
                "The encoder's stage trained a text tower with the encoder and threw it away; the one that ships was "
                "trained against the encoder as it is, frozen, with the same objective and data (locked-image tuning, "
                f"Zhai et al. 2022). {curve.trained.replace('text ', '')} weights, {nbytes / 1e6:.1f} MB, "
                f"{curve.steps:,} steps in {curve.seconds / 60:.0f} minutes on one thread, other work beside it; loss "
                f"{curve.losses[0][1]:.3f} → {curve.losses[-1][1]:.3f}, held out {curve.held_out[-1][1]:.3f} nats "
                "(captions and phrases together)."
            ),
            "",
            "```",
            *commands,
            "```",
            "",
            "| on fresh pictures | cases | wanted | reached |",
            "| --- | ---: | ---: | ---: |",
            *(f"| {score.name} | {score.cases:,} | {_format_reached(score)} |" for score in scores),
            "",
            (
                "Captions have an article before every shape, and the tower knows no other text: a bare “circle” is "
                "found far less often than “a circle”."
            ),
        ]
    )


def _format_reached(score: TowerScore) -> str:
    if score.wanted is None:
        return f"– | {score.accuracy:.3f}"
    return f"{score.wanted:.2f} | {score.accuracy:.3f}{' (missed)' if score.accuracy < score.wanted else ''}"


def put_section(card: str, section: str) -> str:
    """The card with the section, which begins with its heading, before the last one; what stood there under the same
    heading goes."""
    parts = re.split(r"(?m)^(?=## )", card)
    kept = [part for part in parts if not part.startswith(section.partition("\n")[0] + "\n")]
    return "".join([*kept[:-1], f"{section}\n\n", kept[-1]])
