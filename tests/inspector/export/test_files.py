"""What can be taken away of an inspection."""

import json
import shlex
from pathlib import Path

from PIL import Image

from inspector.__main__ import build_parser, run_inspect, run_which_image
from inspector.export.command_line import write_cut, write_inspect, write_which_image
from inspector.export.files import write_facts
from inspector.row.ask import GenerationSettings, ask_and_inspect, attend
from inspector.row.prompt import Prompt, Turn
from model import OpenedImage, open_image


def test_the_command_asks_the_same_again(embedded, tmp_path, monkeypatch):
    names = ("it's red.png", "b.png")
    for name, colour in zip(names, ("red", "blue"), strict=True):
        Image.new("RGB", (64, 64), colour).save(tmp_path / name)
    images = tuple(open_image(tmp_path / name) for name in names)
    turns = (Turn("What color is the shape?"), Turn('say "$HOME" & go'))
    settings = GenerationSettings(max_new_tokens=5, temperature=0.7, top_k=3, top_p=0.9, seed=4)
    made = ask_and_inspect(embedded, Prompt(images, turns, "packed", True), settings)
    line = write_inspect(made.prompt, "embedded", names, settings)
    assert line == (
        "python -m inspector inspect --image 'it'\"'\"'s red.png' --image b.png --ask 'What color is the shape?' "
        "--ask 'say \"$HOME\" & go' --layout packed --document-mask --max-new-tokens 5 --temperature 0.7 --top-k 3 "
        "--top-p 0.9 --seed 4 --json -"
    )
    monkeypatch.chdir(tmp_path)
    again = run_inspect(build_parser().parse_args(shlex.split(line)[3:]))
    assert [turn["assistant"] for turn in again["turns"]] == [turn.assistant for turn in made.prompt.turns]
    assert [token["id"] for token in again["sequence"]["tokens"]] == list(made.table.ids)


def test_usual_settings_are_not_spelled_out_and_another_model_is_named(embedded):
    made = ask_and_inspect(embedded, Prompt((), (Turn("What?"),)), GenerationSettings())
    assert write_inspect(made.prompt, "mine", (), GenerationSettings()) == (
        "python -m inspector inspect --model mine --ask 'What?' --json -"
    )


def test_the_tests_of_an_answer_are_repeated_on_that_answer(embedded, tmp_path, monkeypatch):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    prompt = Prompt((open_image(tmp_path / "a.png"),), (Turn("what color?", "blue"), Turn("-n?", "red")), "per-turn")
    line = write_which_image(prompt, "embedded", ["a.png"], GenerationSettings(max_new_tokens=4), 1, "red", ["-why?"])
    assert line == (
        "python -m inspector which-image --image a.png --ask 'what color?' --answer blue '--ask=-n?' --answer red "
        "--layout per-turn --turn 1 --max-new-tokens 4 --reference red '--contrast=-why?' --json -"
    )
    monkeypatch.chdir(tmp_path)
    facts = run_which_image(build_parser().parse_args(shlex.split(line)[3:]))
    assert (facts["turn"], facts["answer"]) == (1, "blue")


def test_a_cut_by_hand_quotes_what_a_shell_would_read():
    image = OpenedImage(Image.new("RGB", (64, 64), "red"))
    prompt = Prompt((image,), (Turn("What's “it”; $HOME?", "red"), Turn("-n?", "")), "packed", True)
    words = shlex.split(write_cut(prompt, "embedded", ["a b.png"], GenerationSettings(), 1, ["image 1 -> question"]))
    assert words == [
        "python",
        "-m",
        "inspector",
        "cut",
        "--image",
        "a b.png",
        "--ask",
        "What's “it”; $HOME?",
        "--answer",
        "red",
        "--ask=-n?",
        "--answer",
        "",
        "--layout",
        "packed",
        "--document-mask",
        "--turn",
        "1",
        "--cut",
        "image 1 -> question",
        "--json",
        "-",
    ]


def test_facts_are_those_of_the_command_line(embedded, tmp_path):
    made = ask_and_inspect(embedded, Prompt((), (Turn("What?"),)), GenerationSettings())
    path = write_facts(embedded, made, attend(embedded, made, 1), tmp_path)
    facts = json.loads(Path(path).read_text(encoding="utf-8"))
    assert facts["model"]["fingerprint"] == embedded.fingerprint
    assert facts["attention"]["position"] == 1
    assert facts["sequence"]["length"] == len(made.row)
