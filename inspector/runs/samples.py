"""A small data set in each format that is read, made of drawn scenes: to look at, and to upload. No gradio here."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from pathlib import Path

from PIL import Image

from model.training.synthetic.scene_sets import read_scene_set

COUNT = 4


def write_samples(folder: Path) -> tuple[Path, ...]:
    """chat.zip, llava.zip and captions.zip (records beside their images), and rows.parquet, which holds them."""
    # They take a while to import, and few people ask for these files.
    import pyarrow
    import pyarrow.parquet

    source = read_scene_set({"set": "single", "count": COUNT, "pictures": 16, "turns": 2, "seed": 5})
    chat, llava, captions, rows = [], [], [], []
    images: dict[str, bytes] = {}
    for number in range(COUNT):
        messages = source[number].conversation.messages
        name = f"images/{number + 1}.png"
        images[name] = _write_png(next(image for message in messages for image in message.images))
        pairs = [(messages[n].text, messages[n + 1].text) for n in range(0, len(messages) - 1, 2)]
        asked = [["<image>\n" + question if not n else question, answer] for n, (question, answer) in enumerate(pairs)]
        told = [{"role": role, "content": text} for pair in asked for role, text in zip(_ROLES, pair, strict=True)]
        chat.append({"messages": told, "images": [name]})
        spoken = [{"from": who, "value": text} for pair in asked for who, text in zip(_SPEAKERS, pair, strict=True)]
        llava.append({"id": str(number + 1), "image": name, "conversations": spoken})
        captions.append((name, pairs[0][1]))
        texts = [{"user": question, "assistant": answer} for question, answer in pairs]
        rows.append({"images": [{"bytes": images[name], "path": None}], "texts": texts})
    lines = "".join(json.dumps(record) + "\n" for record in chat)
    found = [
        _write_zip(folder / "chat.zip", "chat.jsonl", lines, images),
        _write_zip(folder / "llava.zip", "llava.json", json.dumps(llava, indent=1), images),
        _write_zip(folder / "captions.zip", "captions.csv", _write_csv(captions), images),
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "rows.parquet")
    return (*found, folder / "rows.parquet")


_ROLES, _SPEAKERS = ("user", "assistant"), ("human", "gpt")


def _write_png(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def _write_csv(captions: list[tuple[str, str]]) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([("file_name", "text"), *captions])
    return out.getvalue()


def _write_zip(path: Path, name: str, text: str, images: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, text)
        for image, data in images.items():
            archive.writestr(image, data)
    return path
