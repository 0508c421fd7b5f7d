"""Good data files with a few bytes or values changed: they are read, or refused with a sentence, and nothing else."""

import io
import json
import random
import zipfile

import pytest

from inspector.intake import Refusal
from inspector.intake.__main__ import take_in
from model import InputError
from model.training.data.readers import read_source

TRIES = 120
PICTURE = {"type": "image", "path": "a.png"}
CHAT = [
    {
        "messages": [
            {"role": "user", "content": [PICTURE, {"type": "text", "text": "whé?"}]},
            {"role": "assistant", "content": "😀"},
        ]
    },
] * 3
LLAVA = [
    {
        "id": 1,
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "yes"}],
    }
] * 3
ROWS = [{"images": ["a.png"], "texts": [{"user": "q", "assistant": "a"}], "relevance_ratings": [3]}] * 3
CAPTIONS = [{"file_name": "a.png", "caption": "a cat"}] * 3
VALUES = [
    None,
    True,
    -1,
    1e308,
    float("nan"),
    10**40,
    "",
    "\ud800",
    "a" * 5000,
    "é" * 300,
    [],
    {},
    [[]],
    [1, None],
    {"url": 5},
    "../../x",
    "/etc/passwd",
    "data:image/png;base64,AAAA",
    "data:,",
    "http://x/y",
    "\0",
    "a.png\0",
    "<image>" * 50,
    "C:\\x",
]
BYTES = [b'"', b"[", b"{", b"\\ud800", b"NaN", b"9" * 6000, b"[" * 3000, b"\0", b"\xff", b",", b"\xef\xbb\xbf", b"\r"]


def lines(records):
    return "\n".join(json.dumps(record) for record in records).encode()


def pack(method):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        archive.writestr("set/d.jsonl", lines(CHAT))
        archive.writestr("set/a.png", "x")
    return buffer.getvalue()


FILES = {
    "chat.jsonl": lines(CHAT),
    "chat.json": json.dumps(CHAT).encode(),
    "llava.json": json.dumps(LLAVA).encode(),
    "rows.jsonl": lines(ROWS),
    "captions.jsonl": lines(CAPTIONS),
    "captions.csv": b'file_name,text\r\na.png,"a, ""cat"""\r\na.png,b\r\n',
    "deflate.zip": pack(zipfile.ZIP_DEFLATED),
    "stored.zip": pack(zipfile.ZIP_STORED),
    "bz2.zip": pack(zipfile.ZIP_BZIP2),
    "lzma.zip": pack(zipfile.ZIP_LZMA),
}


def change_bytes(rng, data):
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(5)
        if how == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            del data[at : at + rng.randrange(1, 40)]
        elif how == 2:
            data[at:at] = rng.randbytes(rng.randrange(1, 20))
        elif how == 3:
            data[at:at] = rng.choice(BYTES)
        else:
            del data[at:]
    return bytes(data)


def change_values(rng, value, top=True):
    if not top and rng.random() < 0.15:
        return rng.choice(VALUES)
    if isinstance(value, list):
        return [change_values(rng, item, False) for item in value if rng.random() > 0.05]
    if isinstance(value, dict):
        names = {key: "\ud800" if rng.random() < 0.03 else key for key in value if rng.random() > 0.06}
        return {names[key]: change_values(rng, value[key], False) for key in names}
    return value


@pytest.mark.parametrize("name", FILES)
def test_a_changed_file_is_read_or_refused(tmp_path, name):
    rng = random.Random(name)
    ending = name.rpartition(".")[2]
    for number in range(TRIES):
        data = FILES[name]
        if ending == "jsonl" and rng.random() < 0.5:
            data = lines([change_values(rng, json.loads(line)) for line in data.split(b"\n")])
        elif ending == "json" and rng.random() < 0.5:
            data = json.dumps(change_values(rng, json.loads(data))).encode()
        else:
            data = change_bytes(rng, data)
        folder = tmp_path / str(number) / "data"
        folder.mkdir(parents=True)
        file = (folder.parent if ending == "zip" else folder) / name
        file.write_bytes(data)
        if ending != "zip":
            (folder / "a.png").write_bytes(b"x")
        task = {"file": str(file), "name": name, "folder": str(folder), "bytes": 1 << 20, "files": 50}
        try:
            told = take_in(task)
        except Refusal as error:
            check_sentence(str(error), folder)
            if ending == "zip":
                continue
            # A recipe may name what an upload would not.
            told = {"path": name, "source": name.partition(".")[0]}
        for on_error in ("skip", "stop"):
            spec = {"source": told["source"], "path": str(folder / told["path"]), "on_error": on_error}
            try:
                source = read_source(spec, base_folder=folder)
            except InputError as error:
                check_sentence(str(error), folder)
                continue
            for problem in source.problems:
                check_sentence(str(problem), folder)
            for index in range(len(source)):
                try:
                    messages = source[index].conversation.messages
                except InputError as error:
                    check_sentence(str(error), folder)
                else:
                    json.dumps([message.text for message in messages], ensure_ascii=False).encode("utf-8")


def check_sentence(sentence, folder):
    sentence.encode("utf-8")
    assert len(sentence) < 900
    assert str(folder) not in sentence
