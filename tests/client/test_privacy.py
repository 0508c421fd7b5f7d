"""What programs get from a public server: none of its files, none of its paths, and less than a private one gives."""

import json
import os
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


DATA = (
    "choose of scenes: one picture, scenes: several pictures, scenes: captions, scenes: captioned tiles, easy-VQA, "
    "my file."
)
BASES = "choose of embedded, new."


@pytest.mark.parametrize("event", ["/train_start", "/train_check"])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"data": "my file", "path": "/etc/passwd"}, "Upload a file first."),
        ({"data": "my file", "path": "/etc/passwd", "source": "captions"}, "Upload a file first."),
        ({"data": "my file", "path": "../uploads", "source": "chat"}, "Upload a file first."),
        ({"data": "a hub data set", "path": "owner/name"}, f"“Data” is 'a hub data set'; {DATA}"),
        ({"base": "/etc"}, f"“Base model” is '/etc'; {BASES}"),
        ({"base": "../../model/embedded"}, f"“Base model” is '../../model/embedded'; {BASES}"),
        ({"base": "owner/name"}, f"“Base model” is 'owner/name'; {BASES}"),
        ({"base": "run:someone:12345678"}, f"“Base model” is 'run:someone:12345678'; {BASES}"),
        ({"source": "word"}, "“Format” is 'word'; choose of auto, rows, llava, chat, captions."),
        ({"data": ["easy-VQA"]}, f"“Data” is ['easy-VQA']; {DATA}"),
        ({"steps": None}, "Steps is empty; give a number."),
        ({"steps": "many"}, "“Steps” is 'many'; it takes a number."),
        ({"steps": [1]}, "“Steps” is [1]; it takes a number."),
        ({"steps": 1.5}, "Steps is 1.5; it must be a whole number."),
        ({"steps": 10**30}, "“Steps” is 1000000000000000000000000000000; it takes a number."),
        ({"steps": 601}, "Steps is 601; it must be a whole number from 1 to 600."),
        ({"batch_rows": 512}, "Rows per batch is 512; it must be a whole number from 1 to 64."),
        ({"lora_rank": 256}, "LoRA rank is 256; it must be a whole number from 0 to 64."),
        ({"seed": 2**64}, "“Seed” is 18446744073709551616; it takes a number."),
        ({"seed": 2**53}, "Seed is 9007199254740992; it must be a whole number from 0 to 9,007,199,254,740,991."),
        ({"decoder_rate": "1e-3"}, "“Rate: language model (0: frozen)” is '1e-3'; it takes a number."),
        ({"projector_rate": -1}, "The projector's learning rate is -1; it must be a number from 0 to 1."),
    ],
)
def test_no_field_reaches_a_file_of_the_server_or_more_than_it_gives(client, runs, event, changes, sentence):
    person = (PERSON,) if event == "/train_start" else ()
    said = refusal(client, event, "custom", *person, *fields(**changes))
    assert sentence in said
    assert str(runs) not in said
    assert not [folder for folder in runs.iterdir() if (folder / "recipe.toml").exists()]


@pytest.mark.parametrize(
    ("word", "rgb", "sentence"),
    [
        ("../../etc", "", "small letters"),
        (["purple"], "", "“Word” is ['purple']; it takes text."),
        (5, "", "“Word” is 5; it takes text."),
        ("blick", "1,2", "The RGB value is '1,2'"),
        ("x" * 10_000, "", "The word is a str of 10,000"),
    ],
)
def test_a_word_is_a_word(client, word, rgb, sentence):
    assert sentence in refusal(client, "/train_teach_word", word, rgb, PERSON)


def test_hub_data_are_not_offered(client, url):
    api = json.dumps(client.view_api(return_format="dict"))
    assert "a hub data set" not in api
    assert "my file" in api


@pytest.mark.parametrize("event", ["/job", "/train_open", "/train_stop", "/train_export"])
@pytest.mark.parametrize("job", ["/etc/passwd", "../uploads", "recipe.toml", "~", "a\0b"])
def test_an_unknown_run_names_no_place(client, runs, event, job):
    said = refusal(client, event, job)
    assert "There is no run" in said
    for place in (str(runs), os.environ["HOME"] + "/", "site-packages"):
        assert place not in said
