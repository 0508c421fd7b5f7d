"""Words on patches against drawn scenes: are a cell's own colour and shape among the top five words?

A cell counts where the drawn shape covers at least half of it, the scene being all that is known of the truth. Chance
is what the same words score when each cell is held against the shape of another scene."""

from __future__ import annotations

import numpy as np

from inspector.experiments.patch_words import TOP, CellWords, Match, measure_words
from inspector.row.ask import inspect
from inspector.row.prompt import Prompt, Turn
from model import STREAMS, InspectableVLM, OpenedImage, load_vlm
from model.training.synthetic import scenes as sc

PICTURES = 120
SEED = 1
COVERED = 0.5


def main(repeats: int) -> None:
    vlm = load_vlm("embedded")
    for seed in range(SEED, SEED + max(1, repeats)):
        rng = np.random.default_rng(seed)
        scenes = [sc.random_scene(rng, sc.SINGLE_TILE, 1) for _ in range(PICTURES)]
        for stream in STREAMS:
            for layer in range(vlm.n_layers):
                cells = [(n, cell) for n, scene in enumerate(scenes) for cell in read_cells(vlm, scene, layer, stream)]
                scores = []
                for words in ("nearest", "lens"):
                    own = [holds(getattr(cell, words), scenes[n]) for n, cell in cells]
                    other = [holds(getattr(cell, words), scenes[n - 1]) for n, cell in cells]
                    scores.append(f"{words} {np.mean(own):.3f} (another scene's shape {np.mean(other):.3f})")
                print(f"seed {seed}, {stream}, layer {layer}, {len(cells)} cells, top {TOP}: {'; '.join(scores)}")


def read_cells(vlm: InspectableVLM, scene: sc.Scene, layer: int, stream: str) -> list[CellWords]:
    """Those that the shape covers."""
    image = OpenedImage(sc.draw(scene))
    inspection = inspect(vlm, Prompt((image,), (Turn("What is this?"),)))
    drawn = sc.label_map(scene) > 0
    found = []
    for cell in measure_words(vlm, inspection, layer, stream).cells:
        box = cell.grid.cell_box(cell.row, cell.col)
        part = drawn[round(box.top) : round(box.bottom), round(box.left) : round(box.right)]
        if part.mean() >= COVERED:
            found.append(cell)
    return found


def holds(words: tuple[Match, ...], scene: sc.Scene) -> bool:
    """Whether the colour and the kind of the scene's shape are both among ``words``."""
    (shape,) = scene.shapes
    said = {word.text.strip().lower() for word in words}
    return shape.colour in said and shape.kind in said
