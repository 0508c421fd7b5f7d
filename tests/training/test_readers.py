"""LLaVA, chat and easy-VQA data, what all readers share, and input that is out to break them."""

import base64
import io
import json
from pathlib import Path

import pytest
from PIL import Image

from model import InputError
from model.image import OpenedImage
from model.training.data.readers import READERS, read_source
from model.training.synthetic.easy_vqa import read_easy_vqa


def png(colour="red", size=(8, 6)) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, colour).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("red", "blue", "green"):
        (tmp_path / f"{name}.png").write_bytes(png(name))
    return tmp_path


def write_lines(path: Path, *records) -> Path:
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def llava(question="<image>\nWhat colour?", answer="red", **more):
    return {
        "image": "red.png",
        "conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}],
        **more,
    }


def chat(content="What colour?", answer="red"):
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": answer}]}


def read(folder, source, path, **more):
    return read_source({"source": source, "path": path, **more}, base_folder=folder)


def shown(example):
    """Role, text and the pictures' colours of every message."""
    return [
        (message.role, message.text, [image.pixels.getpixel((0, 0)) for image in message.images])
        for message in example.conversation.messages
    ]


RED, BLUE, GREEN = (255, 0, 0), (0, 0, 255), (0, 128, 0)


# --- LLaVA ---


def test_llava_json_list(folder):
    records = [llava(), {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}]
    (folder / "data.json").write_text(json.dumps(records, indent=1))
    source = read(folder, "llava", "data.json")
    assert len(source) == 2
    assert source.problems == ()
    assert shown(source[0]) == [("user", "What colour?", [RED]), ("assistant", "red", [])]
    assert shown(source[1]) == [("user", "2 + 2?", []), ("assistant", "4", [])]
    assert source[0].source == "data.json record 1 (line 2)"
    assert source[1].source == "data.json record 2 (line 15)"
    assert source[0].families == ()


def test_llava_images_belong_to_the_turn_of_their_mark(folder):
    record = {
        "image": ["red.png", "blue.png", "green.png"],
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "<image>\n<image>\nCompare."},
            {"from": "gpt", "value": "red, blue"},
            {"from": "human", "value": "And\n<image>\nthis?"},
            {"from": "gpt", "value": "green"},
        ],
    }
    source = read(folder, "llava", write_lines(folder / "d.jsonl", record).name)
    assert shown(source[0]) == [
        ("system", "Be brief.", []),
        ("user", "Compare.", [RED, BLUE]),
        ("assistant", "red, blue", []),
        ("user", "And\nthis?", [GREEN]),
        ("assistant", "green", []),
    ]
    assert [(problem.where, problem.kind) for problem in source.problems] == [("d.jsonl line 1", "note")]


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        (llava("no mark"), "1 image.*0"),
        (llava("<image><image>"), "1 image.*2"),
        (llava(image="gone.png"), r"gone\.png"),
        (llava(image=3), "“image”.*a number"),
        (llava(image=[3]), "URI"),
        (llava(image="/etc/passwd"), "/etc/passwd"),
        (llava(image="C:\\x.png"), r"C:\\x\.png"),
        (llava(image="../secret.png"), r"\.\./secret\.png"),
        (llava(image="a/../../secret.png"), "outside"),
        (llava(image="..\\secret.png"), "outside"),
        (llava(image="https://x.org/a.png"), "address"),
        (llava(image=""), "0 images and 1 <image> mark"),
        (llava(answer="  "), "answer in message 2"),
        (llava(answer=None), "value.*turn 2"),
        (llava(conversations=[]), "1 image.*0"),
        ({"conversations": []}, "no answer"),
        (llava(conversations="hi"), "conversations"),
        ({"conversations": ["hi"]}, "turn 1 is text"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "turn 1 .*'robot'"),
        ({"conversations": [{"from": ["gpt"], "value": "x"}]}, r"turn 1 .*\['gpt'\]"),
        ([1, 2], "record is a list"),
    ],
)
def test_llava_records_that_cannot_be_used(folder, record, sentence):
    write_lines(folder / "d.jsonl", llava(), record, llava())
    with pytest.raises(InputError, match=rf"^d\.jsonl line 2.*{sentence}.*on_error"):
        read(folder, "llava", "d.jsonl")
    source = read(folder, "llava", "d.jsonl", on_error="skip")
    assert [example.source for example in source] == ["d.jsonl line 1", "d.jsonl line 3"]
    assert [(problem.where, problem.kind) for problem in source.problems] == [("d.jsonl line 2", "skipped")]


def test_llava_images_folder(folder):
    (folder / "json").mkdir()
    write_lines(folder / "json" / "d.jsonl", llava())
    assert len(read(folder, "llava", "json/d.jsonl", images=".")) == 1
    with pytest.raises(InputError, match=r"red\.png"):
        read(folder, "llava", "json/d.jsonl")
    with pytest.raises(InputError, match="nowhere"):
        read(folder, "llava", "json/d.jsonl", images="nowhere")


# --- chat ---


def test_chat_texts_and_parts(folder):
    uri = "data:image/png;base64," + base64.b64encode(png("blue")).decode()
    parts = [
        {"type": "image_url", "image_url": {"url": uri}},
        {"type": "image", "path": "green.png"},
        {"type": "image", "image": "red.png"},
        {"type": "text", "text": "Which"},
        {"type": "text", "text": "colours?"},
    ]
    write_lines(folder / "d.jsonl", chat(), chat(parts, [{"type": "text", "text": "three"}]))
    source = read(folder, "chat", "d.jsonl")
    assert shown(source[0]) == [("user", "What colour?", []), ("assistant", "red", [])]
    assert shown(source[1]) == [("user", "Which\ncolours?", [BLUE, GREEN, RED]), ("assistant", "three", [])]
    assert source.problems == ()


def test_chat_takes_the_records_images_in_order(folder):
    record = chat([{"type": "image"}, {"type": "text", "text": "a"}, {"type": "image"}]) | {
        "images": ["red.png", "blue.png"]
    }
    source = read(folder, "chat", write_lines(folder / "d.jsonl", record).name)
    assert shown(source[0])[0] == ("user", "a", [RED, BLUE])
    assert [problem.kind for problem in source.problems] == ["note"]
    write_lines(folder / "d.jsonl", record | {"images": ["red.png"]})
    with pytest.raises(InputError, match=r"“images”.*none left"):
        read(folder, "chat", "d.jsonl")
    write_lines(folder / "d.jsonl", record | {"images": ["red.png"] * 3})
    with pytest.raises(InputError, match="1 of its 3 “images”"):
        read(folder, "chat", "d.jsonl")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ([{"type": "image_url", "image_url": {"url": "http://x.org/a.png"}}], "address"),
        ([{"type": "image_url", "image_url": "data:image/png,xx"}], "data:image/png"),
        ([{"type": "image", "image": "data:image/png;base64,%%"}], "base64"),
        ([{"type": "video", "video": "a.mp4"}], "message 1 .*'video'"),
        ([{"type": "text"}], "text part of message 1"),
        (["x"], "a part of message 1"),
        (None, "content of message 1 is missing"),
        (7, "content of message 1 is a number"),
    ],
)
def test_chat_content_that_cannot_be_used(folder, content, sentence):
    write_lines(folder / "d.jsonl", chat(content))
    with pytest.raises(InputError, match=sentence):
        read(folder, "chat", "d.jsonl")


def test_chat_roles(folder):
    write_lines(folder / "d.jsonl", {"messages": [{"role": "tool", "content": "x"}]})
    with pytest.raises(InputError, match=r"message 1 .*'tool'"):
        read(folder, "chat", "d.jsonl")
    write_lines(
        folder / "d.jsonl", {"messages": [{"role": "assistant", "content": [{"type": "image", "image": "red.png"}]}]}
    )
    with pytest.raises(InputError, match=r"message 1 .*user"):
        read(folder, "chat", "d.jsonl")


def test_a_last_question_without_an_answer_is_left_out(folder):
    record = chat()
    record["messages"] += [{"role": "user", "content": "and?"}, {"role": "user", "content": "well?"}]
    source = read(folder, "chat", write_lines(folder / "d.jsonl", record).name)
    assert shown(source[0]) == [("user", "What colour?", []), ("assistant", "red", [])]
    assert len(source.problems) == 1


@pytest.mark.parametrize("text", ["a <|image|> b", "<|im_end|>", "<row_1_col_2>", "<image: 0>", "x <image> y"])
def test_special_tokens_in_the_text_stay_and_are_noted_once(folder, text):
    write_lines(folder / "d.jsonl", chat(text), chat("plain"), chat("plain", text))
    source = read(folder, "chat", "d.jsonl")
    assert source[0].conversation.messages[0].text == text
    assert source[2].conversation.messages[1].text == text
    (problem,) = source.problems
    assert (problem.where, problem.kind, problem.count) == ("d.jsonl line 1", "note", 2)
    assert "(and 1 more" in str(problem)


# --- files ---


def test_a_line_cut_in_half(folder):
    whole = json.dumps(chat()).encode()
    write_lines(folder / "d.jsonl", whole, whole[: len(whole) // 2], whole, b"", b"{}")
    with pytest.raises(InputError, match=r"d\.jsonl line 2: .*column 43.*\(1 more.*on_error"):
        read(folder, "chat", "d.jsonl")
    source = read(folder, "chat", "d.jsonl", on_error="skip")
    assert [example.source for example in source] == ["d.jsonl line 1", "d.jsonl line 3"]
    assert [problem.where for problem in source.problems] == ["d.jsonl line 2", "d.jsonl line 5"]


def test_a_json_list_cut_in_half_keeps_what_came_before(folder):
    text = json.dumps([llava(), llava(), llava()], indent=1)
    (folder / "d.json").write_text(text[: text.rindex("human")])
    source = read(folder, "llava", "d.json", on_error="skip")
    assert len(source) == 2
    (problem,) = source.problems
    assert problem.where == "d.json record 3 (line 28)"
    (folder / "d.json").write_text(text.replace("},\n {", "}\n {", 1).replace(" },\n {", " }\n {"))
    with pytest.raises(InputError, match=r"d\.json record 1 \(line 2\).*“\{”"):
        read(folder, "llava", "d.json")
    (folder / "d.json").write_text(text.rstrip("]\n"))
    assert len(read(folder, "llava", "d.json", on_error="skip")) == 3
    (folder / "d.json").write_text(json.dumps({"records": []}))
    with pytest.raises(InputError, match=r"d\.json.*“\[”"):
        read(folder, "llava", "d.json")


def test_encodings(folder):
    line = json.dumps(chat("café"), ensure_ascii=False)
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n")
    assert read(folder, "chat", "bom.jsonl")[0].conversation.messages[0].text == "café"
    (folder / "latin.jsonl").write_bytes(json.dumps(chat()).encode() + b"\n" + line.encode("latin-1"))
    with pytest.raises(InputError, match=r"latin\.jsonl.*line 2.*47.*\(0xe9\).*UTF-8"):
        read(folder, "chat", "latin.jsonl")
    assert len(read(folder, "chat", "latin.jsonl", on_error="skip")) == 1
    (folder / "latin.json").write_bytes(b"[\n\n\xe9]")
    with pytest.raises(InputError, match=r"latin\.json.*line 3.*0xe9.*UTF-8"):
        read(folder, "llava", "latin.json")


@pytest.mark.parametrize("line", [b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"nul", b"\x00", b"{'a': 1}"])
def test_hostile_lines_are_problems(folder, line):
    write_lines(folder / "d.jsonl", chat(), line)
    (problem,) = read(folder, "chat", "d.jsonl", on_error="skip").problems
    assert problem.where == "d.jsonl line 2"


def test_a_damaged_picture_is_told_when_its_example_is_taken(folder):
    (folder / "red.png").write_bytes(png()[:40])
    source = read(folder, "llava", write_lines(folder / "d.jsonl", llava()).name)
    with pytest.raises(InputError, match=r"d\.jsonl.*line 1.*red\.png"):
        source[0]


def test_pictures_are_opened_when_taken_and_upright(folder, monkeypatch):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 6), "red").save(folder / "turned.jpg", exif=exif)
    write_lines(folder / "d.jsonl", llava(image="turned.jpg"))
    opened = []
    monkeypatch.setattr(
        "model.training.data.readers.source.open_image", lambda image: opened.append(image) or OpenedImage(image)
    )
    source = read(folder, "llava", "d.jsonl")
    assert opened == []
    source[0]
    assert opened == [folder / "turned.jpg"]
    monkeypatch.undo()
    (image,) = source[0].conversation.messages[0].images
    assert image.pixels.size == (6, 8)
    assert ["EXIF" in note for note in image.notes] == [True]


def test_a_file_that_changed_since(folder):
    path = write_lines(folder / "d.jsonl", chat(), chat())
    source = read(folder, "chat", "d.jsonl")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"d\.jsonl line 2.*again"):
        source[1]


def test_limit_split_slices_and_name(folder):
    write_lines(folder / "train-0.jsonl", chat("a"), chat("b"))
    write_lines(folder / "training.jsonl", chat("not in the split"))
    (folder / "test").mkdir()
    write_lines(folder / "test" / "x.jsonl", chat("c"))
    questions = lambda source: [example.conversation.messages[0].text for example in source]  # noqa: E731
    assert questions(read(folder, "chat", ".", split="train")) == ["a", "b"]
    assert questions(read(folder, "chat", ".", split="test")) == ["c"]
    assert questions(read(folder, "chat", ".", limit=1, split="train")) == ["a"]
    source = read(folder, "chat", "train-0.jsonl")
    assert (source.name, len(source[1:]), source[-1].conversation.messages[0].text) == ("train-0.jsonl", 1, "b")
    assert questions(source[1:]) == ["b"]
    with pytest.raises(IndexError):
        source[2]
    with pytest.raises(InputError, match="split “dev”"):
        read(folder, "chat", ".", split="dev")


# --- tables ---


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ({}, "None.*rows, llava, chat, captions, easy-vqa"),
        ({"source": ["chat"]}, r"\['chat'\]"),
        ({"source": "chat", "path": 3}, "path.*chat.*3"),
        ({"source": "chat", "path": "x", "limt": 3, "foo": 1}, "“foo”, “limt”.*path, split, limit, on_error, images"),
        ({"source": "chat", "path": ".", "limit": True}, "limit.*chat.*True"),
        ({"source": "chat", "path": ".", "on_error": "hide"}, "on_error.*chat.*hide"),
        ({"source": "chat", "path": "."}, r"no \.jsonl or \.json"),
        ({"source": "easy-vqa", "path": "."}, "path.*split, turns, seed, limit"),
        ({"source": "easy-vqa", "turns": 0}, "turns.*easy-vqa.*0.*1"),
        ({"source": "easy-vqa", "split": "dev"}, "split.*easy-vqa.*dev"),
    ],
)
def test_tables_that_cannot_be_read(folder, spec, sentence):
    with pytest.raises(InputError, match=sentence):
        read_source(spec, base_folder=folder)


def test_every_reader_refuses_unknown_keys(folder):
    for name in READERS:
        with pytest.raises(InputError, match="colour"):
            read_source({"source": name, "path": ".", "colour": 1}, base_folder=folder)


# --- easy-VQA ---


def test_easy_vqa(folder):
    source = read_source({"source": "easy-vqa", "split": "test", "turns": 100}, base_folder=folder)
    assert (len(source), source.name) == (1000, "easy-vqa test")
    first = source[0]
    n_turns = len(first.conversation.messages) // 2
    assert len(first.families) == n_turns
    assert [len(message.images) for message in first.conversation.messages] == [1] + [0] * (2 * n_turns - 1)
    assert first.conversation.messages[0].images[0].size == (64, 64)
    few = read_source({"source": "easy-vqa", "split": "test", "turns": 2, "seed": 3, "limit": 7}, base_folder=folder)
    again = read_source({"source": "easy-vqa", "split": "test", "turns": 2, "seed": 3}, base_folder=folder)
    other = read_source({"source": "easy-vqa", "split": "test", "turns": 2, "seed": 4}, base_folder=folder)
    texts = lambda source: [[m.text for m in source[n].conversation.messages] for n in range(7)]  # noqa: E731
    assert len({example.source for example in few}) == 7
    assert {len(example.families) for example in few} == {1, 2}
    chosen = read_easy_vqa("test")[::142][:7]
    met = [m.text for example in few for m in example.conversation.messages if m.role == "user"]
    assert sorted(met) == sorted(question for picture in chosen for question, _, _ in picture.turns)
    same = read_source({"source": "easy-vqa", "split": "test", "turns": 2, "seed": 3}, base_folder=folder)
    assert texts(same) == texts(again) != texts(other)
