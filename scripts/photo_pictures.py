"""Captioned pictures out of Debian's packages, for the recipe “photo”: Tux Paint's stamps, Noto's emoji by their names,
Open Clip Art by the words of its file names. A folder of 224-px pictures with LLaVA's JSON, the same each time.

A picture is held out with everything that shows the same drawing: split first, varied afterwards.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from model.errors import InputError

PACKAGES = ("tuxpaint-stamps-default", "fonts-noto-color-emoji", "unicode-data", "openclipart-svg")
SIDE = 224
HELD_SHARE = {"stamps": 0.2, "emoji": 0.05, "clipart": 0.05}
VERSIONS = {"stamps": 4, "emoji": 3, "clipart": 2}
"""Of each picture that is trained on, so many variations."""
CATEGORIES = (
    "animal",
    "plant",
    "food",
    "person",
    "clothing",
    "vehicle",
    "building",
    "instrument",
    "tool",
    "household",
    "game",
    "sky",
    "symbol",
)
ASK_CATEGORY = "What kind of thing is this? Answer with one word."
ASK_CAPTION = ("What is this?", "What do you see?", "Describe the picture.", "What does the picture show?")

_STAMPS = {
    "animals": "animal",
    "clothes": "clothing",
    "food": "food",
    "hobbies/music": "instrument",
    "household/tools": "tool",
    "household": "household",
    "military/vehicles": "vehicle",
    "people/toys": "game",
    "people": "person",
    "plants": "plant",
    "space": "sky",
    "sports": "game",
    "symbols/chess": "game",
    "symbols/alphabets": "",
    "symbols": "symbol",
    "town/houses": "building",
    "town/monuments": "building",
    "town/cartoon": "building",
    "town/flags": "symbol",
    "town/roadsigns": "symbol",
    "vehicles": "vehicle",
}
"""The category of a stamp by the folder that it lies in; the longest that fits counts, “” and none: it has none."""
_EMOJI = {
    "animal-": "animal",
    "cat-face": "animal",
    "monkey-face": "animal",
    "plant-": "plant",
    "food-": "food",
    "drink": "food",
    "person": "person",
    "family": "person",
    "body-parts": "person",
    "hand": "person",
    "clothing": "clothing",
    "place-building": "building",
    "place-religious": "building",
    "transport-ground": "vehicle",
    "transport-water": "vehicle",
    "transport-air": "vehicle",
    "musical-instrument": "instrument",
    "tool": "tool",
    "household": "household",
    "dishware": "household",
    "sport": "game",
    "game": "game",
    "sky & weather": "sky",
    "transport-sign": "symbol",
    "warning": "symbol",
    "arrow": "symbol",
    "zodiac": "symbol",
    "math": "symbol",
    "currency": "symbol",
}
_CLIPART = {
    "animals": "animal",
    "plants": "plant",
    "food": "food",
    "people/clothing": "clothing",
    "people/smilies": "",
    "people": "person",
    "transportation/roadsigns": "symbol",
    "transportation/aiga-symbols": "symbol",
    "transportation": "vehicle",
    "buildings/homes": "building",
    "buildings/furniture": "household",
    "buildings": "building",
    "recreation/music/CD_Player": "",
    "recreation/music": "instrument",
    "recreation/sports": "game",
    "recreation/games/chess": "game",
    "recreation/games/dice": "game",
    "recreation/toys": "game",
    "tools": "tool",
    "geography/astronomy": "sky",
    "office": "",
    "electronics": "",
    "education": "",
    "containers": "",
}
"""Folders that are read at all; “”: without a category."""
_WORD = re.compile(r"[a-z]+")
_DULL = set(_WORD.findall("a an the of and with in on for to at by from is it this that one some very"))


@dataclass(frozen=True)
class Found:
    """One drawing. ``group``: what is held out together."""

    source: str
    path: str
    picture: bytes | str
    caption: str
    category: str
    group: str


def make_pictures(root: Path, out: Path, seed: int = 0) -> dict[str, int]:
    """Reads the unpacked packages under ``root`` and writes ``out``; what was read, by source. InputError where a
    package is missing."""
    for path in ("tuxpaint/stamps", "fonts/truetype/noto/NotoColorEmoji.ttf", "unicode/emoji", "openclipart/svg"):
        if not (root / path).exists():
            raise InputError(
                f"{root / path} isn't there; unpack Debian's {', '.join(PACKAGES)} and name their usr/share."
            )
    (out / "pictures").mkdir(parents=True, exist_ok=True)
    stamps, emoji = list(_read_stamps(root / "tuxpaint/stamps")), list(_read_emoji(root))
    words = {word for found in (*stamps, *emoji) for word in content_words(found.caption)}
    counts: dict[str, int] = {}
    seen: set[str] = set()
    train: list[dict] = []
    held: list[dict] = []
    for found in (*stamps, *emoji, *_read_clipart(root / "openclipart/svg", words)):
        picture = _open(found)
        if picture is None:
            counts[f"{found.source}: can't be drawn"] = counts.get(f"{found.source}: can't be drawn", 0) + 1
            continue
        content = hashlib.blake2b(picture.tobytes(), digest_size=12).hexdigest()
        if content in seen or not (found.caption or found.category):
            counts[f"{found.source}: there already, or without words"] = (
                counts.get(f"{found.source}: there already, or without words", 0) + 1
            )
            continue
        seen.add(content)
        kept = held if _share(found.group, seed) < HELD_SHARE[found.source] else train
        name = f"{found.source}: " + ("held out" if kept is held else "trained on")
        counts[name] = counts.get(name, 0) + 1
        for version in range(1 if kept is held else VERSIONS[found.source]):
            rng = np.random.default_rng((seed, int(content, 16) % 2**32, version))
            file = f"pictures/{content}-{version}.jpg"
            _vary(picture, rng if version else None).save(out / file, quality=90)
            record = {"image": file, "source": found.source, "caption": found.caption, "category": found.category}
            kept.append({**record, "turns": _ask(found, rng)})
    for name, records in (("train", train), ("held_out", held)):
        rows = [{"image": record["image"], "conversations": record.pop("turns")} for record in records]
        (out / f"{name}.json").write_text(json.dumps(rows, ensure_ascii=False, indent=0))
        lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
        (out / f"{name}.jsonl").write_text("".join(lines))
    return counts


def content_words(text: str) -> list[str]:
    """Words that say something, in their order, without a plural's s."""
    found = [word.removesuffix("s") if len(word) > 3 else word for word in _WORD.findall(text.lower())]
    return [word for word in found if word not in _DULL and len(word) > 2]


def _share(group: str, seed: int) -> float:
    """A number from 0 to 1 that is the group's own."""
    return int.from_bytes(hashlib.blake2b(f"{seed} {group}".encode(), digest_size=4).digest()) / 2**32


def _ask(found: Found, rng: np.random.Generator) -> list[dict[str, str]]:
    """The category mostly first: behind the caption it could be told from that."""
    pairs = []
    if found.caption:
        pairs.append((str(rng.choice(ASK_CAPTION)), found.caption))
    if found.category:
        pairs.insert(0 if rng.random() < 0.6 else len(pairs), (ASK_CATEGORY, found.category))
    turns = []
    for number, (question, answer) in enumerate(pairs):
        turns.append({"from": "human", "value": ("<image>\n" if not number else "") + question})
        turns.append({"from": "gpt", "value": answer})
    return turns


def _find(table: dict[str, str], folder: str) -> str | None:
    fitting = [name for name in table if folder == name or folder.startswith(f"{name}/")]
    return table[max(fitting, key=len)] if fitting else None


def _read_stamps(root: Path) -> Iterator[Found]:
    for path in sorted((*root.rglob("*.png"), *root.rglob("*.svg"))):
        text = path.with_suffix(".txt")
        folder = str(path.parent.relative_to(root))
        if (
            "_mirror" in path.name
            or "_flip" in path.name
            or folder.startswith("symbols/alphabets")
            or not text.exists()
        ):
            continue
        line = text.read_text(encoding="utf-8", errors="replace").splitlines()[0].strip()
        caption = line.split(". ")[0].split("! ")[0].rstrip(".!") + "."
        stem = re.sub(r"[\d_\-]+|photo|cartoon", "", path.stem.lower())
        yield Found(
            "stamps",
            str(path),
            str(path),
            caption,
            _find(_STAMPS, folder) or "",
            f"stamp {folder.split('/')[0]} {stem}",
        )


def _read_emoji(root: Path) -> Iterator[Found]:
    font = ImageFont.truetype(str(root / "fonts/truetype/noto/NotoColorEmoji.ttf"), 109)
    subgroup = ""
    for line in (root / "unicode/emoji/emoji-test.txt").read_text(encoding="utf-8").splitlines():
        if line.startswith("# subgroup: "):
            subgroup = line.removeprefix("# subgroup: ")
        match = re.match(r"([0-9A-F ]+); fully-qualified +# (\S+) E[\d.]+ (.+)", line)
        if not match or subgroup in ("country-flag", "subdivision-flag", "skin-tone", "keycap", "alphanum"):
            continue
        letters, name = match[2], match[3]
        if "skin tone" in name or ("\u200d" in letters and subgroup.startswith(("person", "family", "hand"))):
            continue
        canvas = Image.new("RGBA", (136, 128), (0, 0, 0, 0))
        ImageDraw.Draw(canvas).text((0, 0), letters, font=font, embedded_color=True)
        if canvas.getbbox() is None:
            continue
        file = io.BytesIO()
        canvas.save(file, "PNG")
        name = name.split(": ")[-1].replace("“", "").replace("”", "")
        category = next((kind for start, kind in _EMOJI.items() if subgroup.startswith(start)), "")
        yield Found("emoji", letters, file.getvalue(), _sentence(name), category, f"emoji {name}")


def _read_clipart(root: Path, words: set[str]) -> Iterator[Found]:
    for path in sorted(root.rglob("*.svg")):
        folder = str(path.parent.relative_to(root))
        category = _find(_CLIPART, folder)
        if category is None:
            continue
        known = [word for word in content_words(path.stem.replace("_", " ")) if word in words][:3]
        caption = _sentence(" ".join(known)) if known else ""
        stem = re.sub(r"[\d_\-]+|bw", "", path.stem.lower())
        yield Found("clipart", str(path), str(path), caption, category, f"clipart {stem}")


def _sentence(name: str) -> str:
    article = "An" if name[:1].lower() in "aeiou" else "A"
    return f"{article} {name}."


def _open(found: Found) -> Image.Image | None:
    """The drawing, cut to what is drawn, on nothing; None where it can't be drawn."""
    if isinstance(found.picture, bytes):
        data = found.picture
    elif found.picture.endswith(".png"):
        data = Path(found.picture).read_bytes()
    else:
        try:
            from resvg_py import svg_to_bytes

            data = bytes(svg_to_bytes(svg_path=found.picture, width=2 * SIDE))
        except ImportError:
            try:
                data = subprocess.run(
                    ["rsvg-convert", "-w", str(2 * SIDE), found.picture], capture_output=True, check=True, timeout=60
                ).stdout
            except FileNotFoundError:
                raise InputError("Nothing here draws SVG files; install resvg-py or Debian's librsvg2-bin.") from None
            except subprocess.SubprocessError:
                return None
        except ValueError:
            return None
    try:
        picture = Image.open(io.BytesIO(data)).convert("RGBA")
    except (OSError, ValueError):
        return None
    box = picture.getchannel("A").point(lambda value: 255 * (value > 8)).getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 8:
        return None
    picture = picture.crop(box)
    picture.thumbnail((2 * SIDE, 2 * SIDE))
    return picture


def _vary(picture: Image.Image, rng: np.random.Generator | None) -> Image.Image:
    """The drawing in the middle of a white square; with ``rng`` turned a little, mirrored, at some size and place, on
    some pale colour, its own colours a little stronger or weaker."""
    size, turn, paper, dx, dy = 0.9, 0.0, (255, 255, 255), 0.5, 0.5
    if rng is not None:
        size, turn = rng.uniform(0.55, 1.0), rng.uniform(-18, 18)
        dx, dy = rng.uniform(0, 1, 2)
        paper = tuple(int(value) for value in rng.integers(150, 256, 3)) if rng.random() < 0.6 else paper
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        picture = picture.rotate(turn, Image.Resampling.BICUBIC, expand=True)
    scale = size * SIDE / max(picture.size)
    picture = picture.resize([max(1, round(side * scale)) for side in picture.size], Image.Resampling.LANCZOS)
    page = Image.new("RGB", (SIDE, SIDE), paper)
    place = (round((SIDE - picture.width) * dx), round((SIDE - picture.height) * dy))
    page.paste(picture, place, picture)
    if rng is not None:
        page = ImageEnhance.Color(page).enhance(rng.uniform(0.5, 1.4))
        page = ImageEnhance.Brightness(page).enhance(rng.uniform(0.75, 1.15))
    return page
