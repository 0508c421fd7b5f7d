"""“Which image?” as a program drives it: the events of the tab, and the commands that need no browser."""

import json
import re
import shlex
from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from inspector.__main__ import main
from model.training.synthetic.examples import EXAMPLES

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

THREE = next(example for example in EXAMPLES if example.name == "three")
QUESTION = "In image 3, what colour is the shape?"
PANELS = ["structure", "dependence", "matrix", "selection", "swaps", "attention", "checks"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("three")
    paths = []
    for number, picture in enumerate(THREE.draw_images(), start=1):
        paths.append(folder / f"three-{number}.png")
        picture.save(paths[-1])
    return [str(path) for path in paths]


def ask(url, pictures, *questions, layout="images-first"):
    """A client of its own that has asked."""
    client = Client(url, verbose=False)
    for _ in questions[1:]:
        client.predict(api_name="/add_turn")
    texts = {f"question_{n}": text for n, text in enumerate(questions, start=1)}
    gallery = [{"image": handle_file(path), "caption": None} for path in pictures]
    client.predict(gallery=gallery, layout=layout, **texts, api_name="/ask")
    return client


def facts_of(outputs):
    """The JSON among an event's outputs."""
    return next(one for one in outputs if isinstance(one, dict) and "verdict" in one)


def html_of(outputs):
    return " ".join(one.get("value", "") if isinstance(one, dict) else str(one) for one in outputs)


def test_the_verdict_comes_with_every_panel(app_url, pictures):
    client = ask(app_url, pictures, QUESTION)
    found = client.predict(api_name="/which_image")
    facts = facts_of(found)
    assert facts["answer"] == "yellow"
    assert (facts["verdict"]["kind"], facts["verdict"]["image"]) == ("selected", 3)
    assert facts["verdict"]["final"] is True
    assert sum(facts["dependence"]["shapley"]) == pytest.approx(
        facts["dependence"]["logprob"] - facts["dependence"]["text_only"], abs=1e-4
    )
    assert [check["ok"] for check in facts["checks"]] == [True] * len(facts["checks"])
    assert facts["gaze"]["badge"] in ("agrees", "disagrees")
    html = html_of(found)
    assert [key for key in PANELS if f'id="wi-{key}"' in html] == PANELS
    assert re.search(r"wi-sentence\">[^<]*“yellow”[^<]*image 3[^<]*\d\.\d\d nats", html)


def test_a_reference_answer_and_a_typed_contrast(app_url, pictures):
    client = ask(app_url, pictures, QUESTION)
    contrast = "What is the colour in the first picture?"
    facts = facts_of(client.predict(1, contrast, "blue", api_name="/which_image"))
    assert facts["reference"]["answer"] == "blue"
    assert contrast in [asked["question"] for asked in facts["selection"]["asked"]]


def test_a_test_of_its_own_runs_the_verdict_first(app_url, pictures):
    client = ask(app_url, pictures, QUESTION)
    facts = facts_of(client.predict(api_name="/which_permutations"))
    assert facts["verdict"]["image"] == 3
    assert facts["permutations"]["summary"]["orders"] == 5
    report = client.predict(api_name="/which_report")
    path = report["value"] if isinstance(report, dict) else report
    text = Path(path).read_text(encoding="utf-8")
    for part in ("permutations", "verdict"):
        assert facts[part].get("summary", facts[part])["sentence"] in text


def test_cuts_by_hand_add_up_and_are_taken_back(app_url, pictures):
    client = ask(app_url, pictures, QUESTION)
    one = client.predict("image 1 → question", api_name="/lab_cut")[-1]
    assert (one["answer"], one["new_answer"], one["cuts"][0]["cut"]) == ("yellow", "yellow", "image 1 -> question")
    two = client.predict("Image 3 -> later", api_name="/lab_cut")[-1]
    assert two["new_answer"] != "yellow"
    assert two["change"] < -1
    assert [trial["cuts"] for trial in two["trials"]] == [0, 1, 2]
    back = client.predict("", api_name="/lab_undo")[-1]
    assert back["new_answer"] == "yellow"
    assert back["change"] == pytest.approx(one["change"], abs=1e-6)
    with pytest.raises(AppError, match="image 9"):
        client.predict("image 9 -> question", api_name="/lab_cut")
    assert client.predict("", api_name="/lab_clear")[-1]["cuts"] == []
    with pytest.raises(AppError, match="undo"):
        client.predict("", api_name="/lab_undo")


def test_two_people_at_once(app_url, pictures):
    one, two = ask(app_url, pictures, QUESTION), ask(app_url, pictures[::-1], QUESTION)
    jobs = [person.submit(api_name="/which_image") for person in (one, two)]
    assert [facts_of(job.result())["answer"] for job in jobs] == ["yellow", "red"]


def test_the_command_that_the_lab_gives_repeats_it(app_url, pictures, capsys, monkeypatch):
    client = ask(app_url, pictures, QUESTION)
    seen = client.predict("image 3 -> question @layers 0-1 @heads 0,2", api_name="/lab_cut")[-1]
    words = shlex.split(seen["command"])
    assert words[:4] == ["python", "-m", "inspector", "cut"]
    monkeypatch.chdir(Path(pictures[0]).parent)
    assert main(words[3:]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["cuts"] == seen["cuts"]
    assert again["new_answer"] == seen["new_answer"]
    assert again["change"] == pytest.approx(seen["change"], abs=1e-4)


def test_the_command_that_an_edit_gives_repeats_it(app_url, pictures, capsys, monkeypatch):
    client = ask(app_url, pictures, QUESTION)
    client.predict("image 3: blur 0,0,48,48", api_name="/edit")
    seen = client.predict("image 3: paste 16,16,64,64 from image 1", api_name="/edit")[-1]
    assert len(seen["edits"]) == 2
    words = shlex.split(seen.pop("command"))
    assert words[:4] == ["python", "-m", "inspector", "edit"]
    monkeypatch.chdir(Path(pictures[0]).parent)
    assert main(words[3:]) == 0
    again = json.loads(capsys.readouterr().out)
    for mine, theirs in zip(again["edits"], seen["edits"], strict=True):
        for way in ("pixels", "cut"):
            assert mine[way].pop("change") == pytest.approx(theirs[way].pop("change"), abs=1e-4)
            assert mine[way].pop("logprob") == pytest.approx(theirs[way].pop("logprob"), abs=1e-4)
        assert mine == theirs
    with pytest.raises(AppError, match="no size"):
        client.predict("image 3: blur 16,16,16,64", api_name="/edit")
    back = client.predict(api_name="/edit_undo")[-1]
    assert [one["edit"] for one in back["edits"]] == ["image 3: blur 0,0,48,48"]
    gallery = [{"image": handle_file(path), "caption": None} for path in pictures]
    client.predict(gallery=gallery, question_1="In image 1, what colour is the shape?", api_name="/ask")
    anew = client.predict("image 3: blur 0,0,48,48", api_name="/edit")[-1]
    assert (anew["answer"], len(anew["edits"])) == ("red", 1)


def test_the_report_stands_for_itself(pictures, tmp_path, capsys):
    out = tmp_path / "report.html"
    images = [word for path in pictures for word in ("--image", path)]
    question = "In image 3, what colour is the shape? <script>alert(1)</script>"
    more = ["--edit", "image 3: black 0,0,64,64", "--label", "a <b>", "--label", "red"]
    more += [word for text in ("<i>", "a blue circle", "something") for word in ("--text", text)]
    assert main(["report", *images, "--ask", question, *more, "--out", str(out)]) == 0
    told = json.loads(capsys.readouterr().out)
    text = out.read_text(encoding="utf-8")
    assert told["verdict"]["sentence"].split("“")[0] in text
    assert "<script" not in text
    assert "<h3>CLIP</h3>" in text
    assert "<h3>Words on patches</h3>" in text
    assert "a <b>" not in text
    assert re.findall(r'(?:src|href)="(?!data:image/)', text) == []
    assert re.findall(r"url\((?!data:image/)|@import", text) == []
    assert text.count('<section class="wi-panel') == 17


def test_ten_images_are_sampled_and_say_so(app_url, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ten")
    paths = []
    for number in range(10):
        paths.append(str(folder / f"{number}.png"))
        Image.new("RGB", (64, 64), ("red", "blue")[number % 2]).save(paths[-1])
    found = ask(app_url, paths, "In image 2, what colour is the shape?").predict(api_name="/which_image")
    facts = facts_of(found)
    assert facts["dependence"]["exact"] is False
    assert len(facts["dependence"]["standard_errors"]) == 10
    assert "Sampled: " in html_of(found)
    assert all(check["ok"] for check in facts["checks"])
