"""What programs get from a public server: none of its files, none of its paths, and less than a private one gives."""

import json
import os
import re
from dataclasses import asdict

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from inspector.runs.presets import PRESETS, read_form

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

PERSON = {"owner": "a-name-that-nobody-guesses", "jobs": []}
ORDER = (
    "base",
    "data",
    "steps",
    "path",
    "source",
    "vision_rate",
    "projector_rate",
    "decoder_rate",
    "text_rate",
    "kind",
    "lora_rank",
    "packing",
    "batch_rows",
    "eval_every",
    "seed",
)


def fields(**changes):
    """Values of the form's fields, in the page's order; ``changes`` are sent as they are."""
    values = {
        "seed": 0,
        "base": "embedded",
        "path": "",
        "source": "auto",
        **PRESETS["instruction tuning"].values,
        "steps": 1,
        "batch_rows": 2,
    }
    return [{**asdict(read_form(**values)), **changes}[name] for name in ORDER]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return tmp_path_factory.mktemp("secret-runs")


@pytest.fixture(scope="module")
def url(runs):
    from inspector.session import ModelStore
    from inspector.ui import build_ui, launch_options
    from inspector.views.train import jobs_from

    jobs = jobs_from(str(runs), public=True)
    demo = build_ui(ModelStore({"embedded": "embedded"}), jobs)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield address
    demo.close()
    jobs.close()


@pytest.fixture(scope="module")
def client(url):
    return Client(url, verbose=False)


def refusal(client, event, *values):
    with pytest.raises(AppError) as caught:
        client.predict(*values, api_name=event)
    return str(caught.value)


@pytest.mark.parametrize("event", ["/train_start", "/train_check"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "my file", "path": "/etc/passwd"}, "Upload"),
        ({"data": "my file", "path": "/etc/passwd", "source": "captions"}, "Upload"),
        ({"data": "my file", "path": "../uploads", "source": "chat"}, "Upload"),
        ({"data": "a hub data set", "path": "owner/name"}, "Data.*'a hub data set'.*easy-VQA, my file"),
        ({"base": "/etc"}, "Base model.*'/etc'.*embedded, parts, new"),
        ({"base": "../../model/embedded"}, "Base model.*'../../model/embedded'.*embedded, parts, new"),
        ({"base": "owner/name"}, "Base model.*'owner/name'.*embedded, parts, new"),
        ({"base": "run:someone:12345678"}, "Base model.*'run:someone:12345678'.*embedded, parts, new"),
        ({"source": "word"}, "Format.*'word'"),
        ({"data": ["easy-VQA"]}, r"Data.*\['easy-VQA'\]"),
        ({"steps": "many"}, "Steps.*'many'"),
        ({"steps": 601}, "Steps.*601.*600"),
        ({"seed": 2**53}, "Seed.*9007199254740992.*9,007,199,254,740,991"),
        ({"decoder_rate": "1e-3"}, r"Rate: language model \(0: frozen\).*'1e-3'"),
    ],
)
def test_no_field_reaches_a_file_of_the_server_or_more_than_it_gives(client, runs, event, changes, sentence):
    person = (PERSON,) if event == "/train_start" else ()
    said = refusal(client, event, "custom", *person, *fields(**changes))
    assert re.search(sentence, said)
    assert str(runs) not in said
    assert not [folder for folder in runs.iterdir() if (folder / "recipe.toml").exists()]


@pytest.mark.parametrize(
    ("word", "rgb", "sentence"),
    [
        ("../../etc", "", "letters"),
        ("two words", "", "letters"),
        (["purple"], "", "Word.*'purple'"),
        (5, "", "Word.*5"),
        ("blick", "1,2", "'1,2'"),
        ("x" * 10_000, "", "str of 10,000"),
    ],
)
def test_a_word_is_a_word(client, word, rgb, sentence):
    assert re.search(sentence, refusal(client, "/train_teach_word", word, rgb, PERSON))


def test_hub_data_are_not_offered(client, url):
    api = json.dumps(client.view_api(return_format="dict"))
    assert "a hub data set" not in api
    assert "my file" in api


@pytest.mark.parametrize("event", ["/job", "/train_open", "/train_stop", "/train_export"])
@pytest.mark.parametrize("job", ["/etc/passwd", "../uploads", "recipe.toml", "~", "a\0b"])
def test_an_unknown_run_names_no_place(client, runs, event, job):
    said = refusal(client, event, job)
    assert "no run" in said
    for place in (str(runs), os.environ["HOME"] + "/", "site-packages"):
        assert place not in said
