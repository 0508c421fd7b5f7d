"""Data as people bring them: each kind of fault that went wrong without a word, with what is to be made of it."""

import base64
import io
import json
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from inspector.intake.kinds import PICTURES
from inspector.runs.uploads import take_in
from model import InputError
from model.image import open_image
from model.picture import FORMATS
from model.training.data.readers import read_source
from model.training.data.readers.pictures import OTHER_ENDINGS, PICTURE_ENDINGS

RED, BLUE = (255, 0, 0), (0, 0, 255)
ASK = {"role": "user", "content": "Which colour?"}
ANSWER = {"role": "assistant", "content": "red"}


def picture(colour="red", form="png", **options) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, form, **options)
    return stream.getvalue()


def encode(colour="red") -> str:
    return base64.b64encode(picture(colour)).decode()


def chat(*messages, **more):
    return {"messages": list(messages or (ASK, ANSWER)), **more}


def user(content, **more):
    return {"role": "user", "content": content, **more}


def llava(question="<image>\nWhich colour?", answer="red", **more):
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def turn(question, **more):
    return {"user": question, "assistant": "red", **more}


def row(**more):
    return {"texts": [{"user": "Which colour?", "assistant": "red"}], **more}


@pytest.fixture
def folder(tmp_path) -> Path:
    for colour in ("red", "blue"):
        (tmp_path / f"{colour}.png").write_bytes(picture(colour))
    return tmp_path


def read(folder, source, *records, **more):
    (folder / "d.jsonl").write_text("\n".join(map(json.dumps, records)))
    return read_source({"source": source, "path": "d.jsonl", **more}, base_folder=folder)


def shown(example):
    """Role, text, the pictures' colours, and whether it is learnt, of every message."""
    return [
        (message.role, message.text, [image.pixels.getpixel((0, 0)) for image in message.images], message.trained)
        for message in example.conversation.messages
    ]


def colours(example):
    return [colour for _, _, found, _ in shown(example) for colour in found]


def png(colour):
    return {"type": "image", "image": colour}


@pytest.mark.parametrize(
    ("source", "record", "expected"),
    [
        ("chat", chat(image="red.png"), [RED]),
        ("chat", chat(image=["red.png", "blue.png"]), [RED, BLUE]),
        ("chat", chat(image_path="red.png"), [RED]),
        ("chat", chat(imageFile="red.png"), [RED]),
        ("chat", chat(image2="blue.png", image1="red.png"), [RED, BLUE]),
        ("chat", chat(image="red.png", images=["red.png"]), [RED]),
        ("chat", chat(image="red.png", image_id=7, image_width=8, image_caption="a red one"), [RED]),
        ("chat", chat(user("<image>Which?"), ANSWER, images=["red.png"]), [RED]),
        ("chat", chat(user("<image>and<image>"), ANSWER, images=["blue.png", "red.png"]), [BLUE, RED]),
        ("chat", chat(user([{"type": "text", "text": "<image>What?"}]), ANSWER, images=["red.png"]), [RED]),
        ("chat", chat(user("?", images=["red.png"]), ANSWER, user("?", image="blue.png"), ANSWER), [RED, BLUE]),
        ("chat", chat(user([{"image": "red.png"}, {"text": "What?"}]), ANSWER), [RED]),
        ("chat", chat(user([png({"path": "red.png"})]), ANSWER), [RED]),
        ("chat", chat(user([png({"bytes": encode(), "path": None})]), ANSWER), [RED]),
        ("chat", chat(user([{"type": "image", "source": {"type": "base64", "data": encode()}}]), ANSWER), [RED]),
        ("chat", chat(user([png(encode("blue"))]), ANSWER), [BLUE]),
        ("llava", llava(image=encode("blue")), [BLUE]),
        ("llava", llava(image="data:image/png;base64," + encode()[:40] + "\n" + encode()[40:]), [RED]),
        ("llava", llava(image={"path": "red.png", "bytes": None}), [RED]),
        ("llava", llava(file_name="red.png"), [RED]),
        ("rows", row(image="red.png"), [RED]),
        ("rows", row(images=[{"bytes": None, "path": "red.png"}]), [RED]),
        ("rows", row(images=[encode("blue")]), [BLUE]),
        ("rows", row(images=["blue.png", "red.png"], texts=[turn("<image>?"), turn("<image>?")]), [BLUE, RED]),
        ("rows", row(images=["red.png"], texts=[turn("<image><image>?")]), [RED]),
        ("rows", row(images=["red.png"], texts=[turn("?"), turn("?", image="blue.png")]), [RED, BLUE]),
        ("rows", row(texts=[turn("<image>?")]), []),
        ("rows", row(image_b64=encode("blue")), [BLUE]),
        ("chat", chat(user("<image>?"), ANSWER, images_base64=[encode("blue")]), [BLUE]),
        ("llava", {"conversations": chat(user("<image>?"), ANSWER)["messages"], "image": "red.png"}, [RED]),
        ("llava", llava("?", image=""), []),
        (
            "chat",
            chat(user([{"type": "image", "text": None}, {"type": "text", "text": "?"}]), ANSWER, image="red.png"),
            [RED],
        ),
    ],
)
def test_every_name_of_an_image_is_read(folder, source, record, expected):
    assert colours(read(folder, source, record)[0]) == expected


@pytest.mark.parametrize(
    ("source", "record", "sentence"),
    [
        ("llava", llava("<video>\nWhat?", video="a.mp4"), "“video”"),
        ("llava", llava("<video>\nWhat?"), "begins with <video>"),
        ("chat", chat(videos=["a.mp4"]), "“videos”"),
        ("chat", chat(clip_path="talk.wav"), "“clip_path”"),
        ("rows", row(source_clip="a.webm"), "“source_clip”"),
        ("llava", llava("Picture 1: <img>red.png</img> What?"), r"“red\.png” in <img>"),
        ("chat", chat(image="red.png", images=["blue.png"]), "“image” and “images”"),
        ("chat", chat(thumbnail="red.png"), "“thumbnail”"),
        ("chat", chat(attachment=encode()), "“attachment”"),
        ("chat", chat(image="red.png", image_source="blue.png"), "“image_source”"),
        ("chat", chat(user([png({"path": "red.png"})]), ANSWER, images=["blue.png"]), "1 of its 1 “images”"),
        ("chat", chat(user("<image><image>?"), ANSWER, images=["red.png"]), "more <image> marks"),
        ("chat", chat(tools=[{"name": "f"}]), "“tools”"),
        ("chat", chat(ASK, {**ANSWER, "tool_calls": [{"id": 1}]}), "message 2 names tools"),
        ("chat", chat(weight=0.5), r"“weight” \(0\.5\)"),
        ("chat", chat(train=False), "not to be learnt"),
        ("chat", chat(ASK, {**ANSWER, "weight": 0.3}), "message 2 has “weight”"),
        ("chat", chat(ASK, {**ANSWER, "weight": 0}), "none of its answers"),
        ("chat", chat(ASK, {**ANSWER, "weight": 1, "train": False}), "both"),
        ("chat", chat(loss_mask=[0, 1]), "“loss_mask”"),
        ("chat", chat(assistant_masks=[0, 1]), "“assistant_masks”"),
        ("chat", chat(ASK, {**ANSWER, "train_detail": [{"train": False}]}), "“train_detail”"),
        ("chat", chat(ASK, {**ANSWER, "no_train": True}), "none of its answers"),
        ("chat", chat(ASK, {**ANSWER, "ignore": 1}), "none of its answers"),
        ("chat", chat(label=False), "not to be learnt"),
        ("llava", llava(image="red.png", frames=["blue.png"]), "“frames”"),
        ("chat", chat(user("<image>Find <ref-object>"), images=["red.png"], objects={"ref": ["a"]}), "<ref-object>"),
        ("chat", chat(user("<start_of_image>?"), ANSWER, images=["red.png"]), "<start_of_image>.*no image here"),
        ("llava", llava("<ImageHere>?", image="red.png"), r"0 <image> marks \(<ImageHere> is none here"),
        ("chat", chat(user('[{"type": "text", "text": "?"}]'), ANSWER), "a list of parts as text"),
        ("chat", chat(user([{"type": "text", "text": "?", "image": "red.png"}]), ANSWER), "a part of its own"),
        ("chat", chat(user([{"type": "image", "image": "red.png", "url": "blue.png"}]), ANSWER), "keep one"),
        ("chat", {"prompt": "?", "completion": "!"}, "no “messages”; it has “prompt”, “completion”"),
        ("rows", row(source="\ud83d"), r"U\+D83D"),
        ("rows", row(images=[{"bytes": "", "path": ""}]), "“bytes”, “path” or “url”"),
        ("chat", chat({"role": "system", "content": "A"}, ASK, ANSWER, system="B"), "two system prompts"),
        ("chat", chat(system=["A"]), "“system”.*a list"),
        ("chat", chat(ANSWER), "no question"),
        ("chat", chat(user("\ud83d?"), ANSWER), r"message 1.*U\+D83D"),
        ("chat", chat(ASK, {**ANSWER, "content": "a\x00"}), r"message 2.*U\+0000"),
        ("llava", llava(image="x" * 300 + ".png"), "304 letters"),
        ("rows", row(images=[None]), "missing"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(folder, source, record, sentence):
    with pytest.raises(InputError, match=rf"d\.jsonl line 1: .*{sentence}"):
        read(folder, source, record)
    plain = {"chat": chat(), "llava": llava("?"), "rows": row()}[source]
    left = read(folder, source, record, plain, on_error="skip")
    assert (len(left), left.read, [problem.kind for problem in left.problems]) == (1, 2, ["skipped"])


@pytest.mark.parametrize("key", ["weight", "loss", "train"])
def test_an_answer_that_is_not_to_be_learnt_is_read_and_has_no_labels(folder, embedded, key):
    first, second = {**ANSWER, "content": "five", key: 0}, {**ANSWER, "content": "four", key: True}
    source = read(folder, "chat", chat(user("two plus two?"), first, user("sure?"), second))
    assert [trained for role, _, _, trained in shown(source[0]) if role == "assistant"] == [False, True]
    sample = embedded.prepare(source[0].conversation)
    assert int(sample.loss_mask.sum()) == len(embedded.renderer.encode_answer("four")) + 2
    assert [problem.kind for problem in source.problems] == ["note"]


@pytest.mark.parametrize("key", ["system", "system_prompt", "systemPrompt"])
@pytest.mark.parametrize(("source", "record"), [("chat", chat()), ("llava", llava("?")), ("rows", row())])
def test_a_system_prompt_beside_the_turns_comes_first(folder, key, source, record):
    assert shown(read(folder, source, record | {key: "Be brief."})[0])[0] == ("system", "Be brief.", [], True)


def test_an_answer_to_no_question_is_left_out(folder):
    source = read(folder, "chat", chat({**ANSWER, "content": "the end of another talk"}, ASK, ANSWER))
    assert [text for _, text, _, _ in shown(source[0])] == ["Which colour?", "red"]
    assert source.problems[0].sentence == "an answer before the first question is left out"


@pytest.mark.parametrize(
    ("messages", "sentence"),
    [
        ((ASK, ANSWER, ASK), "a question without an answer at the end is left out"),
        ((ASK, ANSWER, {"role": "system", "content": "x"}), "a system prompt behind the last answer is left out"),
        ((user(" "), ANSWER), "a question has neither text nor image"),
    ],
)
def test_what_nothing_is_learnt_from_is_told(folder, messages, sentence):
    source = read(folder, "chat", chat(*messages))
    assert [problem.sentence for problem in source.problems] == [sentence]
    assert [role for role, *_ in shown(source[0])] == ["user", "assistant"]


def test_what_is_in_no_place_comes_before_the_first_question(folder):
    source = read(folder, "chat", chat(user("one"), ANSWER, user("two"), ANSWER, image="red.png"))
    assert [len(found) for _, _, found, _ in shown(source[0])] == [1, 0, 0, 0]
    assert [problem.kind for problem in source.problems] == ["note"]


def test_marks_of_a_record_without_images_are_text(folder):
    assert shown(read(folder, "chat", chat(user("a <image> b"), ANSWER))[0])[0][1] == "a <image> b"


@pytest.mark.parametrize("name", ["._a", ".a", ".ipynb_checkpoints/a", "__MACOSX/a"])
def test_hidden_files_are_no_data(tmp_path, name):
    for stem, colour in (("a", "red"), (name, "blue")):
        place = tmp_path / f"{stem}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(picture(colour))
        place.with_suffix(".txt").write_text(colour)
        place.with_suffix(".jsonl").write_text(json.dumps(chat(ASK, {**ANSWER, "content": colour})))
    for source in ("captions", "chat"):
        found = read_source({"source": source, "path": "."}, base_folder=tmp_path)
        assert [example.conversation.messages[-1].text for example in found] == ["red"]


def test_every_picture_that_opens_is_read_and_the_rest_is_told(tmp_path):
    Image.init()
    opened = {ending for ending, form in Image.registered_extensions().items() if form in (*FORMATS, "MPO")}
    assert opened == PICTURE_ENDINGS == set(PICTURES)
    assert not PICTURE_ENDINGS & OTHER_ENDINGS
    for number, (ending, form) in enumerate((("png", "png"), ("jfif", "jpeg"), ("avif", "avif"), ("JPG", "jpeg"))):
        (tmp_path / f"{number}.{ending}").write_bytes(picture(form=form))
        (tmp_path / f"{number}.txt").write_text(str(number))
    (tmp_path / "4.heic").write_bytes(b"x")
    (tmp_path / "4.txt").write_text("4")
    source = read_source({"source": "captions", "path": "."}, base_folder=tmp_path)
    assert [example.conversation.messages[-1].text for example in source] == ["0", "1", "2", "3"]
    assert [(problem.where, problem.kind) for problem in source.problems] == [("4.heic", "note"), ("4.txt", "note")]


@pytest.mark.parametrize(("stored", "named"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_name_is_the_same_composed_or_not(tmp_path, stored, named):
    (tmp_path / unicodedata.normalize(stored, "é")).mkdir()
    (tmp_path / unicodedata.normalize(stored, "é") / unicodedata.normalize(stored, "ü.png")).write_bytes(picture())
    assert colours(read(tmp_path, "llava", llava(image=unicodedata.normalize(named, "é/ü.png")))[0]) == [RED]


def test_conversations_among_captions_name_the_source_that_reads_them(folder):
    (folder / "metadata.jsonl").write_text(json.dumps(llava(file_name="red.png")))
    with pytest.raises(InputError, match=r"“conversations”.*“llava”"):
        read_source({"source": "captions", "path": "."}, base_folder=folder)


def test_folders_with_a_table_each(tmp_path):
    for name, table in (("cats", "metadata.jsonl"), ("dogs", "metadata.csv"), ("owls", "metadata.parquet")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(picture())
        if table.endswith("jsonl"):
            (tmp_path / name / table).write_text(json.dumps({"file_name": "a.png", "text": name}))
        elif table.endswith("csv"):
            (tmp_path / name / table).write_text(f"file_name,text\na.png,{name}\n")
        else:
            pq.write_table(pa.Table.from_pylist([{"file_name": "a.png", "text": name}]), tmp_path / name / table)
    source = read_source({"source": "captions", "path": ".", "question": "?"}, base_folder=tmp_path)
    assert [example.conversation.messages[-1].text for example in source] == ["cats", "dogs", "owls"]
    assert all(colours(example) == [RED] for example in source)


def test_parquet_files_whose_columns_differ(tmp_path):
    texts = [{"user": "?", "assistant": "a"}]
    image = {"bytes": picture("blue"), "path": None}
    for number, columns in enumerate(({"images": [image]}, {"image": image, "score": 1.5}, {"score": "high"})):
        pq.write_table(pa.Table.from_pylist([{**columns, "texts": texts}]), tmp_path / f"{number}.parquet")
    source = read_source({"source": "rows", "path": ".", "cache": str(tmp_path / "kept")}, base_folder=tmp_path)
    assert [colours(example) for example in source] == [[BLUE], [BLUE], []]
    assert [example.source for example in source] == ["0.parquet row 1", "1.parquet row 1", "2.parquet row 1"]


@pytest.mark.parametrize(
    ("source", "record", "names"),
    [
        ("chat", chat(rejected={"content": "blue"}), "rejected"),
        ("chat", chat(ASK, {**ANSWER, "reasoning_content": "hm"}, margin=0.5), "margin, reasoning_content"),
        ("chat", chat(user([png("red.png") | {"min_pixels": 9}, {"type": "text", "text": "?"}]), ANSWER), "min_pixels"),
        ("llava", llava(image="red.png", id=7, source="x", 图片="blue.png"), "图片"),
        ("llava", llava(image="red.png", id=7, width=8, data_source="x", license=None, extra=[]), ""),
        ("rows", row(images=["red.png"], texts=[turn("?", hint="x")], pixel_values=[0.5]), "pixel_values, hint"),
        ("captions", {"file_name": "red.png", "text": "a", "caption": "b", "height": 6}, "caption"),
        ("captions", {"file_name": "red.png", "text": "a", "label": False}, "label"),
        ("chat", chat(is_correct=False, image_sha256="ab.png", sha1="x"), "is_correct"),
        ("chat", chat(**{f"k{letter}": 1 for letter in "abcdefgh"}), "ka, kb, kc, kd, ke, kf and 2 more"),
    ],
)
def test_keys_that_nothing_reads_are_told(folder, source, record, names):
    found = [problem.sentence for problem in read(folder, source, record).problems]
    assert found == ([f"nothing is read from {names}"] if names else [])


def test_what_stands_behind_a_list_is_told(folder):
    (folder / "d.json").write_text(json.dumps([chat()]) + "\n" + json.dumps([chat()]))
    source = read_source({"source": "chat", "path": "d.json", "on_error": "skip"}, base_folder=folder)
    assert (len(source), source.read) == (1, 2)
    assert str(source.problems[0]).startswith("d.json record 2 (line 2): it stands behind the end of the list")


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("d.csv", "file_name;text\nred.png;a, b\n"),
        ("d.csv", "image_name| comment_number| comment\nred.png| 0| a, b\n"),
        ("d.csv", "sep=;\nfile_name;text\nred.png;a, b\n"),
        ("d.tsv", "file_name\ttext\nred.png\ta, b\n"),
    ],
)
def test_tables_with_other_marks_between_cells(folder, name, table):
    (folder / name).write_text(table)
    source = read_source({"source": "captions", "path": name}, base_folder=folder)
    assert [(example.conversation.messages[1].text, colours(example)) for example in source] == [("a, b", [RED])]


def test_what_of_a_folder_is_not_used_is_told(folder):
    (folder / "blue.txt").write_text("blue")
    (folder / "red.txt").write_text("red")
    (folder / "red.jpg").write_bytes(picture(form="jpeg"))
    (folder / "more.tar").write_bytes(b"x")
    source = read_source({"source": "captions", "path": ".", "on_error": "skip"}, base_folder=folder)
    assert {(problem.where, problem.kind) for problem in source.problems} == {
        ("red.png", "skipped"),  # its caption is the other's
        ("more.tar", "note"),
    }
    (folder / "Metadata.JSONL").write_text(json.dumps({"file_name": "red.png", "text": "a"}))
    source = read_source({"source": "captions", "path": "."}, base_folder=folder)
    assert [(problem.where, problem.count) for problem in source.problems] == [("blue.png", 2)]


def test_parquet_without_rows_and_with_captions(tmp_path):
    texts = pa.array([], pa.list_(pa.struct([("user", pa.string()), ("assistant", pa.string())])))
    pq.write_table(pa.table({"texts": texts}), tmp_path / "none.parquet")
    with pytest.raises(InputError, match=r"“none\.parquet” holds no row"):
        read_source({"source": "rows", "path": "none.parquet"}, base_folder=tmp_path)
    pq.write_table(pa.table({"image": [picture()], "text": ["a"]}), tmp_path / "some.parquet")
    with pytest.raises(InputError, match="read it as captions"):
        read_source({"source": "rows", "path": "some.parquet", "cache": str(tmp_path)}, base_folder=tmp_path)


# --- uploads ---


def upload(tmp_path, files):
    import zipfile

    with zipfile.ZipFile(tmp_path / "u.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    found = take_in(tmp_path / "u.zip", tmp_path / "shelf")
    spec = {"source": found.source, "path": str(found.path), "images": str(found.images)}
    return found.source, read_source(spec, base_folder=Path())


@pytest.mark.parametrize(
    ("files", "source", "count"),
    [
        ({"cats/a.png": picture(), "cats/a.txt": "a", "dogs/b.png": picture(), "dogs/b.txt": "b"}, "captions", 2),
        ({"metadata.jsonl": json.dumps({"file_name": "a.png", "text": "a"}), "a.png": picture()}, "captions", 1),
        (
            {
                f"{name}/{file}": content
                for name in ("x", "y")
                for file, content in (("metadata.csv", "file_name,text\na.png,a\n"), ("a.png", picture()))
            },
            "captions",
            2,
        ),
        ({"a.png": picture(), "a.txt": "a", "b.jfif": picture(form="jpeg"), "b.txt": "b"}, "captions", 2),
        ({"annotations/d.json": json.dumps([llava(image="a.png")]), "images/a.png": picture()}, "llava", 1),
        ({"x/d.json": json.dumps([llava(image="../i/a.png")]), "i/a.png": picture()}, "llava", 1),
        ({"d.json": json.dumps([llava(image="coco/train/a.png")]), "i/train/a.png": picture()}, "llava", 1),
        ({"d.jsonl": json.dumps(chat(image="a.png")), "img/a.png": picture(), ".x/e.jsonl": "{}"}, "chat", 1),
        ({"t/d.jsonl": json.dumps(row(images=["a.png"])), "i/a.png": picture()}, "rows", 1),
    ],
)
def test_archives_are_read_whole(tmp_path, files, source, count):
    found, examples = upload(tmp_path, files)
    assert (found, len(examples)) == (source, count)
    assert all(colours(example) in ([RED], [(254, 0, 0)]) for example in examples)


def test_a_name_that_several_files_have_is_not_guessed(tmp_path):
    files = {"t/d.json": json.dumps([llava(image="a.png")]), "i/a.png": picture(), "j/a.png": picture("blue")}
    with pytest.raises(InputError, match="2 files in other folders"):
        upload(tmp_path, files)


# --- pictures ---


def saved(image, form, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("image", "key"),
    [
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.new("L", (4, 4), 9), 9),
        (Image.new("P", (4, 4), 0), 0),
        (Image.fromarray(np.full((4, 4), 40_000, np.uint16)), 40_000),
    ],
)
def test_a_transparent_colour_is_laid_over_white(image, key):
    opened = open_image(saved(image, "png", transparency=key))
    assert opened.pixels.getextrema() == ((255, 255),) * 3
    assert "transparency laid over white" in opened.notes


@pytest.mark.parametrize(("value", "turned"), [(0, 0), (1, 0), (2, 1), (6, 1), (8, 1), (9, 0), (300, 0)])
def test_only_a_turn_is_told_as_one(value, turned):
    exif = Image.Exif()
    exif[0x0112] = value
    assert len(open_image(saved(Image.new("RGB", (8, 4)), "jpeg", exif=exif)).notes) == turned


@pytest.mark.parametrize(
    ("values", "dark"),
    [
        (np.linspace(0, 4095, 4096).astype(np.uint16), True),
        (np.linspace(0, 65535, 4096).astype(np.uint16), False),
        (np.where(np.arange(4096) == 7, 2**30, 4000).astype(np.int32), True),
        (np.linspace(0, 2**30, 4096).astype(np.int32), False),
        (np.where(np.arange(4096) == 7, 1e6, 1.0).astype(np.float32), True),
        (np.linspace(0, 1, 4096).astype(np.float32), False),
    ],
)
def test_a_picture_that_comes_out_nearly_black_says_so(values, dark):
    notes = open_image(saved(Image.fromarray(values.reshape(64, 64)), "tiff")).notes
    assert [note.startswith("nearly black") for note in notes] == [False, *[True] * dark]
