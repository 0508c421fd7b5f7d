"""How an image becomes tiles and tokens, and what it means that there are several."""

from __future__ import annotations

from inspector.lessons.shown_prompt import ShownPrompt, count_of, list_of, size_of
from inspector.row.layout import structure_sentences
from model import InputError

_NONE = "This prompt has no image; add one, or load the example of this question."
_LARGE = 1 << 14
"""Pixels: a side that every model shrinks."""


def describe_marker(shown: ShownPrompt) -> str:
    whole = None
    for block in shown.structure.images:
        for tile in block.tiles:
            if tile.mark is not None and block.grid == (1, 1):
                whole = whole or (block.number, tile.mark, tile)
            elif tile.mark is not None and tile.name != "thumbnail":
                return (
                    f"{_text(shown, tile.mark)} at position {tile.mark:,} says which tile of image {block.number} "
                    f"comes next: row and column in a grid of {block.grid[0]} × {block.grid[1]}. Behind it stand the "
                    f"tile's {count_of(tile.stop - tile.start, 'image token')}, {tile.start:,} to {tile.stop - 1:,}."
                )
    if not shown.images:
        return _NONE
    if whole is not None:
        number, mark, tile = whole
        size = size_of(shown.inspection.row.images[number - 1].original_size)
        return (
            "It says which tile comes next, by row and column. No image of this prompt is cut into several tiles: "
            f"{_text(shown, mark)} at position {mark:,} says that image {number} ({size}) comes whole, in "
            f"{count_of(tile.stop - tile.start, 'image token')}, {tile.start:,} to {tile.stop - 1:,}."
        )
    return (
        "No tile has a marker in this row: "
        + ("every image is one tile, or " if all(b.grid == (1, 1) for b in shown.structure.images) else "")
        + f"the format ({shown.vlm.format_version}) writes none here."
    )


def describe_regions(shown: ShownPrompt) -> str:
    try:
        plan = shown.vlm.plan_image((_LARGE, _LARGE))
    except InputError:
        plan = None
    most = (
        f"a square image of {size_of((_LARGE, _LARGE))} would be cut into {plan.grid[0]} × {plan.grid[1]} tiles by "
        "this model's rules"
        if plan is not None
        else "how far is in the model's rules"
    )
    if not shown.images:
        return f"A region is a tile, a rectangle that is encoded by itself: {most}. {_NONE}"
    grids = dict.fromkeys(image.grid for image in shown.inspection.row.images)
    whose = "the image of this prompt is" if shown.images == 1 else "the images of this prompt are"
    cut = f"cut into {list_of([f'{rows} × {columns}' for rows, columns in grids])} tiles"
    if set(grids) == {(1, 1)}:
        cut = "not cut and one tile" if shown.images == 1 else "not cut, one tile each"
    return (
        f"A region is a tile, a rectangle that is encoded by itself: {whose} {cut}, and {most}. The post's notebook "
        "allows 4 × 4 = 16, and nanoVLM has markers for up to 8 × 8."
    )


def describe_resizing(shown: ShownPrompt) -> str:
    if not shown.images:
        return _NONE
    steps: dict[str, list[str]] = {}
    for number, image in enumerate(shown.inspection.row.images, start=1):
        thumbnail = " and a thumbnail of the whole" if image.has_thumbnail else ""
        across, down = (new / old for new, old in zip(image.resized_size, image.original_size, strict=True))
        stretch = max(across, down) / min(across, down) - 1
        stretched = f", {stretch:.0%} stretched" if stretch > 0.005 else ""
        tiles = "1 tile" if image.grid == (1, 1) else f"{image.grid[0]} × {image.grid[1]} tiles"
        way = (
            f"{size_of(image.original_size)} → resized to {size_of(image.resized_size)}{stretched} → {tiles}{thumbnail}"
        )
        steps.setdefault(way, []).append(str(number))
    parts = [f"image{'s' if len(same) > 1 else ''} {list_of(same)}: {way}" for way, same in steps.items()]
    return (
        f"I{'; '.join(parts)[1:]}. That follows from the sizes alone, before the model runs. nanoVLM's rule: the "
        "longer side to at most its limit, then both sides to whole tiles (an image may be stretched a bit), then "
        "it is cut."
    )


def describe_image_string(shown: ShownPrompt) -> str:
    if not shown.images:
        return _NONE
    block = shown.structure.images[0]
    tiles = [f"{count_of(tile.stop - tile.start, 'token')} ({tile.name})" for tile in block.tiles[:4]]
    more = f" and {len(block.tiles) - 4} more tiles" if len(block.tiles) > 4 else ""
    number = f"{block.ordinal_text.strip()} before it" if block.ordinal else "no number before it"
    return (
        f"Image 1 fills positions {block.start:,} to {block.stop - 1:,}: {number}, "
        f"{count_of(len(block.marks), 'marker')}, and {count_of(len(block.tokens), 'image token')}: "
        f"{', '.join(tiles)}{more}. The processor writes that string before anything is encoded; the features are put "
        "in afterwards."
    )


def describe_several(shown: ShownPrompt) -> str:
    what, *reasons = structure_sentences(shown.structure)[: 1 + len(shown.structure.row.reasons)]
    if shown.images == 1:
        block = shown.structure.images[0]
        return (
            f"{what} It fills positions {block.start:,} to {block.stop - 1:,}; a second image would have a stretch of "
            "its own in the same row. Add one to see where."
        )
    # Of many separators the first says enough.
    said = reasons if len(reasons) <= 3 else [reasons[0], *reasons[-2:]]
    return " ".join([what, *said])


def describe_which_image(shown: ShownPrompt) -> str:
    if not shown.images:
        return _NONE
    question = shown.structure.questions[-1] if shown.structure.questions else None
    seen = question.reachable if question else ()
    shares = shown.attention.image_shares.mean(axis=0).tolist()
    most = max(range(len(shares)), key=shares.__getitem__)
    if shown.images == 1:
        return (
            f"With one image there is none to choose: {shares[0]:.0%} of the attention (mean over layers and heads) is "
            "on it. “Which image?” takes it away and puts others in its place, and says with a number how far the "
            "answer depends on it. With a second image, the question is which."
        )
    return (
        f"First, the mask: this question can see {len(seen)} of {count_of(shown.images, 'image')}. Then the model "
        f"looks most at image {most + 1} ({shares[most]:.0%} of its attention, mean over layers and heads), and "
        "looking is not needing: “Which image?” takes each image away and puts others in its place, and says which "
        "one the answer depends on, with the number."
    )


def _text(shown: ShownPrompt, position: int) -> str:
    return f"“{shown.inspection.table.text(position)}”"
