"""A prompt taken away whole: unpacked elsewhere, its commands and its notebook give what the page gave."""

import json
import shlex
import zipfile

import pytest
from PIL import Image

from inspector.__main__ import build_parser, run_inspect, run_which_image
from inspector.export.bundle import COMMANDS, FACTS, NAME, NOTEBOOK, name_files, write_bundle
from inspector.facts import write_json
from inspector.images.image_file import ImageFile
from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.prompt import Prompt, Turn
from inspector.which_image.image_effects import measure_dependence
from inspector.which_image.study import study_answer
from model import InputError, OpenedImage

QUESTION = "In image 2, what colour is the shape? \"\\'\n{}"


@pytest.fixture
def bundle(embedded, tmp_path):
    """An image from a file and a drawn one, asked about, packed, and unpacked elsewhere."""
    (tmp_path / "upload").mkdir()
    upload = tmp_path / "upload" / "a.jpg"
    Image.new("RGB", (90, 70), "blue").save(upload)
    images = (ImageFile(upload), OpenedImage(Image.new("RGB", (64, 64), "red")))
    settings = GenerationSettings(max_new_tokens=6, seed=3)
    inspection = ask_and_inspect(embedded, Prompt(images, (Turn(QUESTION),)), settings)
    chooser = inspection.row_that_chose(inspection.first_answer_position)
    path = write_bundle(
        embedded,
        inspection,
        attend(embedded, inspection, chooser),
        model="embedded",
        names=("../../my photo.jpg", "../../my photo.jpg"),
        settings=settings,
        folder=tmp_path,
    )
    assert path == str(tmp_path / NAME)
    folder = tmp_path / "elsewhere"
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
    return inspection, folder, upload


def test_the_images_are_there_as_uploaded(bundle):
    _, folder, upload = bundle
    files = sorted(file.name for file in folder.iterdir())
    assert files == sorted(["1-my_photo.jpg", "2-my_photo.jpg", COMMANDS, FACTS, NOTEBOOK])
    assert (folder / "1-my_photo.jpg").read_bytes() == upload.read_bytes()
    with Image.open(folder / "2-my_photo.jpg") as drawn:
        assert drawn.convert("RGB").getpixel((5, 5)) == (255, 0, 0)


def test_the_commands_give_the_same(bundle, monkeypatch):
    inspection, folder, _ = bundle
    monkeypatch.chdir(folder)
    # A question may have line breaks, and so may a quoted word of a shell.
    words = shlex.split((folder / COMMANDS).read_text())[3:]
    second = words.index("python")
    inspect, which = words[:second], words[second:]
    again = run_inspect(build_parser().parse_args(inspect))
    assert again["turns"][0]["assistant"] == inspection.prompt.turns[0].assistant
    assert json.loads(write_json(again)) == json.loads((folder / FACTS).read_text())
    assert run_which_image(build_parser().parse_args(which[3:]))["answer"] == inspection.prompt.turns[0].assistant


def test_the_notebook_gives_the_same(bundle, embedded, monkeypatch):
    inspection, folder, _ = bundle
    monkeypatch.chdir(folder)
    notebook = json.loads((folder / NOTEBOOK).read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    space = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(cell["source"], space)  # our own text, which a person's question is quoted in
    assert space["inspection"].prompt.turns[0].user == QUESTION
    assert space["inspection"].table.ids == inspection.table.ids
    *_, found = study_answer(embedded, inspection, 1, max_new_tokens=6)
    assert space["facts"]["verdict"] == found.verdict.to_json()
    assert space["facts"]["dependence"]["shapley"] == pytest.approx(
        measure_dependence(open_case(embedded, inspection, max_new_tokens=6)).shapley, abs=1e-4
    )


def test_a_prompt_without_images_or_answers_has_a_notebook_too(embedded, tmp_path):
    inspection = ask_and_inspect(embedded, Prompt((), (Turn("What?"),)), GenerationSettings(2))
    attention = attend(embedded, inspection, 0)
    rest = {"model": "embedded", "names": (), "settings": GenerationSettings(2), "folder": tmp_path}
    with zipfile.ZipFile(write_bundle(embedded, inspection, attention, **rest)) as archive:
        assert "load_vlm('embedded')" in archive.read(NOTEBOOK).decode()


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["C:\\x\\é ö.PNG", "noending", "..", "a/b/.hidden", "x" * 300 + ".jpeg"], ["1-é_ö.PNG", "2-noending.png"]),
        (["con/../<b>.webp", "a.tar.gz!?"], ["1-b.webp", "2-a.tar.gz"]),
    ],
)
def test_names_that_any_system_can_write(names, files):
    found = name_files(names)
    assert found[: len(files)] == files
    assert len(set(found)) == len(found)
    assert all(len(name) < 80 and not set(name) & set('/\\:*?"<>| ') for name in found)


def test_an_image_that_is_gone_is_said(bundle, embedded, tmp_path):
    inspection, _, upload = bundle
    upload.unlink()
    attention = attend(embedded, inspection, 3)
    rest = {"model": "embedded", "names": ("a", "b"), "settings": GenerationSettings(), "folder": tmp_path}
    with pytest.raises(InputError, match="upload it again"):
        write_bundle(embedded, inspection, attention, **rest)
