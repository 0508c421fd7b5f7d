"""What leaves a run: no path of the machine, no text of uploads, nobody's token."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from inspector.runs import delivery
from inspector.runs.delivery import pack_run, push_run
from inspector.runs.discretion import hide_paths
from inspector.runs.presets import PRESETS, describe_recipe, read_form, write_recipe
from model import InputError
from model.training.recipe import read_recipe
from model.training.runs import forget_answers

RUN = {
    "created": "2026-01-01",
    "status": "done",
    "base_fingerprint": "b" * 64,
    "fingerprint": "f" * 64,
    "command": "python -m model.training run /srv/secret/recipe.toml",
}
ANSWERS = [{"question": "Where is Ada?", "expected": "in Paris", "answered": "in /home/ada", "family": ""}]


@pytest.fixture
def make_run(tmp_path):
    """A run's folder in a table of jobs, as it is when it has ended."""

    def make(base="embedded", **form):
        root = tmp_path / "secret place" / "jobs"
        folder = root / "SECRETJOB" / "run"
        (folder / "model").mkdir(parents=True)
        (folder / "adapter").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(b"weights")
        config = {
            "lm_hidden_dim": 8,
            "lm_tokenizer": str(root / "tok"),
            "vlm_checkpoint_path": "~/mine/checkpoints",
            "lm_chat_template": "{{ '/not/a/path' }}",
        }
        (folder / "model" / "config.json").write_text(json.dumps(config))
        adapter = {"base_model_name_or_path": str(root / "b")}
        (folder / "adapter" / "adapter_config.json").write_text(json.dumps(adapter))
        values = {"seed": 0, "base": "embedded", "path": "", "source": "auto", **PRESETS["instruction tuning"].values}
        recipe = write_recipe(read_form(**{**values, **form}), base, "a run")
        (folder / "recipe.toml").write_text(recipe.to_toml())
        start = {"event": "start", "stage": "s", "data": {str(root / "uploads" / "x" / "rows.jsonl"): 30}}
        evaluated = {
            "event": "eval",
            "stage": "s",
            "step": 3,
            "loss": 1.5,
            "accuracy": {"all": 0.5},
            "answers": ANSWERS,
        }
        failed = {"event": "failed", "stage": "s", "error": f"Stage “s” can't read “{root}/uploads/x/rows.jsonl”."}
        (folder / "metrics.jsonl").write_text(
            "".join(json.dumps(event) + "\n" for event in (start, evaluated, failed)) + '{"event": "ste'
        )
        return folder

    return make


def read_zip(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def upload_to(folder, *parts):
    path = folder.parent.parent.joinpath("uploads", "SECRETUPLOAD", *parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n' * 30)
    return path


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        (("rows.jsonl",), "rows.jsonl"),
        (("my set", "rows.jsonl"), "my set/rows.jsonl"),
        (("data", "rows.jsonl"), "rows.jsonl"),
    ],
)
def test_an_archive_names_data_as_they_lay_in_the_upload_and_holds_none_of_their_texts(make_run, tmp_path, parts, name):
    path = upload_to(tmp_path / "secret place" / "jobs" / "SECRETJOB" / "run", *parts)
    folder = make_run(data="my file", source="rows", path=str(path))
    found = read_zip(pack_run(folder, RUN))
    everything = "\n".join(found.values())
    for secret in (
        "secret place",
        "SECRETJOB",
        "SECRETUPLOAD",
        str(tmp_path),
        os.environ["HOME"],
        "~/mine",
        "Paris",
        "Ada",
        ".converted",
        "/srv",
    ):
        assert secret not in everything, secret
    (tmp_path / "again").mkdir()
    (tmp_path / "again" / "recipe.toml").write_text(found["recipe.toml"])
    recipe = read_recipe(tmp_path / "again" / "recipe.toml")
    assert dict(recipe.stages[0].data[0]) == {"source": "rows", "path": name, "on_error": "skip"}
    assert recipe.base == "embedded"
    assert found["COMMAND.txt"] == "python -m model.training run recipe.toml --out RUN\n"
    start, evaluated, failed = (json.loads(line) for line in found["metrics.jsonl"].splitlines())
    assert start["data"] == {"rows.jsonl": 30}
    assert (evaluated["loss"], evaluated["accuracy"], "answers" in evaluated) == (1.5, {"all": 0.5}, False)
    assert failed["error"] == "Stage “s” can't read “rows.jsonl”."
    config = json.loads(found["model/config.json"])
    assert (config["lm_tokenizer"], config["vlm_checkpoint_path"]) == ("tok", "checkpoints")
    assert config["lm_chat_template"] == "{{ '/not/a/path' }}"
    assert json.loads(found["adapter/adapter_config.json"]) == {"base_model_name_or_path": "b"}
    # What the run itself needs to go on is as it was.
    assert read_recipe(folder / "recipe.toml").stages[0].data[0]["path"] == str(path)


def test_a_first_batch_leaves_where_its_data_are_nobody_s(make_run, tmp_path):
    path = upload_to(tmp_path / "secret place" / "jobs" / "SECRETJOB" / "run", "rows.jsonl")
    kept = json.dumps({"stage": "s", "rows": [{"text": "<|im_start|>", "images": []}]})
    for number, form in enumerate(({}, {"data": "my file", "source": "chat", "path": str(path)})):
        shutil.rmtree(tmp_path / "secret place" / "jobs" / "SECRETJOB", ignore_errors=True)
        folder = make_run(**form)
        (folder / "first_batch").mkdir()
        (folder / "first_batch" / "0.json").write_text(kept)
        assert read_zip(pack_run(folder, RUN)).get("first_batch/0.json") == (kept, None)[number]


def test_answers_to_drawn_scenes_are_nobody_s_and_stay(make_run):
    evaluated = json.loads(read_zip(pack_run(make_run(), RUN))["metrics.jsonl"].splitlines()[1])
    assert evaluated["answers"] == ANSWERS


@pytest.mark.parametrize(
    ("base", "name", "command"),
    [
        ("new", "new", ""),
        ("owner/model", "owner/model", ""),
        ("/srv/secret/my model", "my model", " --set base=FOLDER"),
        ("/srv/secret/jobs/OTHERJOB/run/model", "run #bbbbbbbb", " --set base=FOLDER"),
    ],
)
def test_a_base_is_called_by_its_name_and_another_run_by_its_weights(make_run, base, name, command):
    folder = make_run(base)
    found = read_zip(pack_run(folder, RUN))
    assert f'base = "{name}"\n' in found["recipe.toml"]
    assert found["COMMAND.txt"] == f"python -m model.training run recipe.toml --out RUN{command}\n"
    assert not any("secret" in text or "OTHERJOB" in text for text in found.values())
    assert "OTHERJOB" not in str(describe_recipe(read_recipe(folder / "recipe.toml")))


def test_a_push_holds_what_an_archive_holds(make_run, tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, name, **options):
            return f"https://hub/{name}"

        def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
            for file in Path(folder_path).iterdir():
                if file.name not in ignore_patterns:
                    sent[file.name] = file.read_bytes()

        def upload_file(self, repo_id, path_or_fileobj, path_in_repo):
            sent[path_in_repo] = path_or_fileobj

    monkeypatch.setattr(delivery, "HfApi", Api)
    path = upload_to(tmp_path / "secret place" / "jobs" / "SECRETJOB" / "run", "rows.jsonl")
    folder = make_run(data="my file", source="chat", path=str(path))
    assert push_run(folder, RUN, "owner/name", " hf_mine ") == "https://hub/owner/name"
    assert set(sent) == {"token", "model.safetensors", "config.json", "recipe.toml"}
    assert sent["token"] == "hf_mine"
    for name in ("config.json", "recipe.toml"):
        assert "secret" not in sent[name].decode().lower()

    def refuse(*args, **options):
        raise OSError(f"[Errno 2] No such file: '{folder}/x' with hf_mine")

    monkeypatch.setattr(Api, "create_repo", refuse)
    with pytest.raises(InputError) as caught:
        push_run(folder, RUN, "owner/name", "hf_mine")
    assert "(\\[Errno 2] No such file: 'x' with …)".replace("\\", "") in str(caught.value)


def test_answers_are_forgotten_with_the_data(make_run):
    folder = make_run()
    forget_answers(folder)
    text = (folder / "metrics.jsonl").read_text()
    assert "Paris" not in text
    assert [json.loads(line)["event"] for line in text.splitlines()] == ["start", "eval", "failed"]
    assert json.loads(text.splitlines()[1])["accuracy"] == {"all": 0.5}
    forget_answers(folder / "nothing here")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "There is no file “/tmp/a b/uploads/x/rows 1.jsonl”; correct it.",
            "There is no file “rows 1.jsonl”; correct it.",
        ),
        ("/srv/jobs/J0B/run holds a run already.", "run holds a run already."),
        ("[Errno 13] Permission denied: '/root/.cache/huggingface/x.lock'", "[Errno 13] Permission denied: 'x.lock'"),
        ('File "/usr/lib/python3.11/json/x.py", line 3', 'File "x.py", line 3'),
        (
            "file:///etc/passwd, x=/etc/passwd, ~/a/b, (/srv/a b/c), C:\\Users\\me\\a.txt",
            "passwd, x=passwd, b, (c), a.txt",
        ),
        (f"{Path(__file__).parents[3]}/model/families/nanovlm.py can't be read.", "nanovlm.py can't be read."),
        (
            "see https://huggingface.co/api/datasets/owner/name for owner/name, and/or 1/2 at 10 tokens/s of “/ask”",
            "see https://huggingface.co/api/datasets/owner/name for owner/name, and/or 1/2 at 10 tokens/s of “/ask”",
        ),
        ("“../../etc” is no data set of the hub", "“../../etc” is no data set of the hub"),
        ("", ""),
    ],
)
def test_a_path_is_shown_by_its_last_part(text, shown):
    assert hide_paths(text) == shown
    assert hide_paths(shown) == shown
