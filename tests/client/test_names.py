"""A run's id gives the right to steer the run: nothing that shows or writes down its model's name has the id in it."""

import json
import shutil
from pathlib import Path

import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from inspector.runs.jobs import JobState, JobTable
from inspector.session import ModelStore
from inspector.ui import build_ui, launch_options
from model.checkpoint import EMBEDDED

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

JOB = "Id_of-a-run-that-steers"
TITLE = "Teach it a word: <b>purple</b>"
SHOWN = "Teach it a word: &lt;b&gt;purple&lt;/b&gt;"


class OneRun(JobTable):
    """Has one run, which is over; its model is the embedded one."""

    def read(self, job):
        if job != JOB:
            return super().read(job)
        return JobState(JOB, TITLE, 0.0, "done", run={"fingerprint": "079258fb"}, has_model=True)

    def run_folder(self, job):
        return self.root / JOB / "run" if job == JOB else super().run_folder(job)


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    shutil.copytree(EMBEDDED, root / JOB / "run" / "model")
    demo = build_ui(ModelStore({"embedded": "embedded"}), OneRun(root))
    _, address, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield address
    demo.close()


def written(path):
    return Path(path["value"] if isinstance(path, dict) else path).read_text("utf-8")


def test_the_picker_of_models_knows_a_run_by_another_name(url):
    client = Client(url, verbose=False)
    picker, bases = client.predict(JOB, api_name="/train_use")
    label, key = picker["choices"][-1]
    assert label == f"{TITLE} #079258fb"
    assert key == picker["value"]
    assert JOB not in json.dumps([picker, bases])


def test_header_share_report_export_lab_and_battery_name_the_runs_title(url):
    client = Client(url, verbose=False)
    picker, _ = client.predict(JOB, api_name="/train_use")
    asked = client.predict(
        model=picker["value"],
        gallery=[],
        layout="images-first",
        document_mask=False,
        max_new_tokens=4,
        temperature=0,
        top_k=0,
        top_p=1,
        seed=0,
        question_1="What color is the shape?",
        **{f"question_{n}": "" for n in range(2, 7)},
        **{f"answer_{n}": "" for n in range(1, 7)},
        layer="mean",
        head="mean",
        own_row=False,
        exclude_sinks=False,
        own_scale=False,
        api_name="/ask",
    )
    header = next(value for value in asked if "vi-chip" in str(value))
    assert f"<b>{SHOWN}</b>" in header
    assert "#079258fb" in header
    shared = client.predict(api_name="/share")[0]
    shared = shared["value"] if isinstance(shared, dict) else shared
    assert shared == (
        "python -m inspector inspect --model RUN/model --ask 'What color is the shape?' --max-new-tokens 4 --json -"
    )
    exported = written(client.predict(api_name="/export")[0])
    studied = client.predict(turn=1, contrast="", reference="", api_name="/which_image")
    command = (
        "python -m inspector which-image --model RUN/model --ask &#x27;What color is the shape?&#x27; "
        "--answer green --max-new-tokens 4 --json -"
    )
    assert command in str(studied)
    report = written(client.predict(contrast="", reference="", api_name="/which_report"))
    assert f"{SHOWN}, 2.7 M weights, float32" in report
    assert command in report
    cut = client.predict(cut="template -> question", turn=1, api_name="/lab_cut")
    assert "inspector cut --model RUN/model" in str(cut)
    card = client.predict(model=picker["value"], api_name="/battery_card")
    assert f"{SHOWN} · #079258fb" in str(card)
    for what in (asked, shared, exported, studied, report, cut, card):
        assert JOB not in str(what)


def test_a_sentence_about_a_runs_model_that_is_gone_has_no_name_in_it(url):
    client = Client(url, verbose=False)
    with pytest.raises(AppError) as caught:
        client.predict([], ["What?"], "images-first", False, f"run:{JOB}", 4, api_name="/inspect")
    assert "embedded" in str(caught.value)
    assert JOB not in str(caught.value)
