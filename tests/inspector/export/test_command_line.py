"""`python -m inspector inspect`, as a program calls it."""

import json
import re

import pytest
from PIL import Image

from inspector.__main__ import main


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (100, 37), "red").save(path)
    return str(path)


def test_facts_on_standard_output(picture, capsys):
    assert main(["inspect", "--image", picture, "--ask", "What is it?", "--json", "-"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["images"][0]["resized_size"] == [128, 64]
    assert facts["images"][0]["grid"] == [1, 2]
    assert facts["answer"] == facts["turns"][0]["assistant"]
    spans = facts["sequence"]["spans"]
    assert [span["start"] for span in spans] == [0, *(span["stop"] for span in spans[:-1])]
    assert facts["attention"]["image_share"] == pytest.approx(
        sum(facts["attention"]["image_shares_layer"][layer][0] for layer in range(4)) / 4, abs=1e-4
    )


def test_file_output(picture, tmp_path):
    out = tmp_path / "facts.json"
    assert (
        main(
            [
                "inspect",
                "--image",
                picture,
                "--image",
                picture,
                "--ask",
                "a",
                "--ask",
                "b",
                "--layout",
                "packed",
                "--json",
                str(out),
            ]
        )
        == 0
    )
    assert json.loads(out.read_text())["layout"] == "packed"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspect", "--image", "/nowhere.png", "--ask", "x"], r"nowhere\.png"),
        (["inspect", "--ask", ""], "question"),
        (["inspect", "--model", "/nowhere", "--ask", "x"], "folder"),
        (["inspect", "--ask", "x", "--temperature", "-1"], "temperature.*-1"),
        (["inspect", "--ask", "x", "--position", "100000"], "--position.*100000"),
        (["inspect", "--ask", "x " * 9000], "most 4,096"),
        (["layout", "--ask", ""], "question"),
        (["layout", "--ask", "x", "--max-new-tokens", "0"], "0 tokens"),
        (["layout", "--ask", "x", "--image", "/nowhere.png"], r"nowhere\.png"),
        (["cut", "--ask", "x", "--cut", "image 1 -> question"], "image 1"),
        (["cut", "--ask", "x", "--cut", "nonsense"], "no cut"),
        (["cut", "--ask", "x", "--answer", "a", "--answer", "b", "--cut", "question 1 -> answer"], "2 answers"),
        (["cut", "--ask", "x", "--turn", "4", "--cut", "question 1 -> answer"], "Turn 4"),
        (["report", "--ask", "x", "--out", "/nowhere/report.html"], r"report\.html.*written"),
        (["report", "--ask", "", "--out", "report.html"], "question"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert re.search(words, error)
    assert error.count("\n") == 1


def test_attention_from_both_sides_has_the_numbers_of_inspect_and_of_its_own_passes(picture, capsys):
    prompt = ["--image", picture, "--ask", "What is it?", "--answer", "red", "--json", "-"]
    assert main(["inspect", *prompt]) == 0
    inspected = json.loads(capsys.readouterr().out)
    assert main(["attention", *prompt]) == 0
    sides = json.loads(capsys.readouterr().out)
    assert sides["attention"] == inspected["attention"]
    token = sides["tokens"][0]["position"]
    assert (sides["readers"]["first"], sides["readers"]["position"]) == (token, token)
    layers = sides["readers"]["received_layer_head"]
    mean = sum(map(sum, layers)) / sum(map(len, layers))
    assert sides["readers"]["received"] == pytest.approx(mean, abs=1e-5)
    last = inspected["sequence"]["spans"][-1]["stop"] - 1
    assert main(["attention", "--first", "3", "--last", str(last - 1), *prompt]) == 0
    readers = json.loads(capsys.readouterr().out)["readers"]
    assert readers["readers"] == 1
    assert [top["position"] for top in readers["top"]] == [last]


@pytest.mark.parametrize("stretch", [["--first", "9", "--last", "3"], ["--first", "-1"], ["--last", "99999"]])
def test_a_stretch_that_isn_t_there_is_one_line(picture, capsys, stretch):
    assert main(["attention", "--image", picture, "--ask", "What is it?", *stretch]) == 2
    assert "the row has the tokens 0 to" in capsys.readouterr().err
