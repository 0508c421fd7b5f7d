"""A tiny run through the app's own events: started, followed to its end, used, compared, taken away."""

import time
import zipfile
from dataclasses import asdict

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from inspector.runs.presets import PRESETS, read_form

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

PERSON = {"jobs": []}


def fields(**changes):
    """Values of the form's fields, in the page's order."""
    from inspector.ui import build_ui  # noqa: F401 (the page's module must load)

    values = {
        "seed": 0,
        "base": "embedded",
        "path": "",
        "source": "auto",
        **PRESETS["instruction tuning"].values,
        "steps": 3,
        "batch_rows": 2,
        "eval_every": 2,
        **changes,
    }
    form = asdict(read_form(**values))
    order = (
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
    return [form[name] for name in order]


@pytest.fixture(scope="module")
def url(tmp_path_factory, tiny):
    from inspector.runs.jobs import JobTable
    from inspector.session import ModelStore
    from inspector.ui import build_ui, launch_options

    jobs = JobTable(tmp_path_factory.mktemp("runs"), nice=0, threads=1)
    demo = build_ui(ModelStore({"embedded": "embedded", "smolvlm": str(tiny("smolvlm").folder)}), jobs)
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield address
    jobs.close()
    demo.close()


def follow(client, job, seconds=400):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = client.predict(job, api_name="/job")
        if state["status"] not in ("queued", "starting", "running", "stopping"):
            return state
        time.sleep(1)
    pytest.fail(f"the run didn't end: {state}")


def test_a_tiny_run_from_start_to_export(url):
    client = Client(url, verbose=False)
    modules, job, person, *_ = client.predict("instruction tuning", PERSON, *fields(), api_name="/train_start")
    assert "image encoder" in modules
    assert "frozen" in modules
    assert person["jobs"] == [job]
    state = follow(client, job)
    assert state["status"] == "done", state
    assert state["steps_done"] == 3
    assert len(state["losses"]) == 3
    assert state["fingerprint"] != state["base_fingerprint"]
    # Another session, with the id alone.
    other = Client(url, verbose=False)
    opened = other.predict(job, api_name="/train_open")
    assert any("done" in str(value) for value in opened)
    used = client.predict(job, api_name="/train_use")
    assert state["fingerprint"][:8] in str(used)
    with pytest.raises(AppError, match="model"):
        other.predict([], ["What?"], "images-first", False, f"run:{job[:-1]}:0", 4, api_name="/inspect")
    path = client.predict(job, api_name="/train_export")
    path = path["value"] if isinstance(path, dict) else path
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        assert archive.read("COMMAND.txt").decode() == "python -m model.training run recipe.toml --out RUN\n"
    assert {"model/config.json", "model/model.safetensors", "model/tokenizer.json", "recipe.toml"} <= names


def test_a_run_of_another_family_from_its_preset_to_export(url, tiny):
    client = Client(url, verbose=False)
    filled = client.predict("LoRA", "smolvlm", api_name="/train_preset")
    assert "thin ones" in filled[0]
    values = {**PRESETS["LoRA"].values, "base": "smolvlm", "steps": 2, "batch_rows": 1, "eval_every": 0}
    modules, *_ = client.predict("LoRA", *fields(**values), api_name="/train_check")
    assert "projector" in modules
    _, job, *_ = client.predict("LoRA", PERSON, *fields(**values), api_name="/train_start")
    state = follow(client, job)
    assert state["status"] == "done", state
    used = client.predict(job, api_name="/train_use")
    assert state["fingerprint"][:8] in str(used)
    compared = client.predict(job, "smolvlm", api_name="/train_compare")
    assert "all questions" in compared
    path = client.predict(job, api_name="/train_export")
    path = path["value"] if isinstance(path, dict) else path
    with zipfile.ZipFile(path) as archive:
        texts = {name: archive.read(name).decode() for name in archive.namelist() if "safetensors" not in name}
        assert "model/adapter_model.safetensors" in archive.namelist()
    base = tiny("smolvlm").folder
    assert f'"{base.name}"' in texts["model/adapter_config.json"]
    assert not any(str(base.parent) in text for text in texts.values())
    # What was trained is a base and an adapter, from which nothing more is trained.
    name = next(choice[1] for choice in used[1]["choices"] if choice[1] not in ("embedded", "smolvlm", "new"))
    with pytest.raises(AppError, match="adapter to an adapter"):
        client.predict("LoRA", PERSON, *fields(**{**values, "base": name}), api_name="/train_start")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "Steps.*0.*1,000,000"),
        ({"decoder_rate": 7.0}, r"language model.* 7\.0"),
        ({"decoder_rate": 0.0, "projector_rate": 0.0}, "trains"),
        ({"data": "my file"}, "Upload"),
        ({"data": "a hub data set", "path": "../../etc"}, "the hub"),
        ({"data": "scenes: captioned tiles"}, "contrastive"),
    ],
)
def test_bad_input_is_one_sentence_and_starts_nothing(url, changes, sentence):
    client = Client(url, verbose=False)
    with pytest.raises(AppError, match=sentence):
        client.predict("custom", PERSON, *fields(**changes), api_name="/train_start")
