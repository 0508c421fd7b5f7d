"""The study of one answer: what each of its steps draws, and what is said where there is nothing to study."""

import json
from dataclasses import replace
from html import unescape
from pathlib import Path

import gradio as gr
import pytest

from inspector.bounds import Bounds
from inspector.encoder.store import OWN, EncoderStore
from inspector.experiments.image_edits import run_edits
from inspector.export.experiments import EXPERIMENTS
from inspector.interventions.target import open_case
from inspector.views.clip import ClipHandlers
from inspector.views.patch_words import PatchWordsHandlers
from inspector.views.which_image import STOPPED, STOPPED_WITHIN, WhichImageHandlers
from inspector.which_image.study import STEPS


@pytest.fixture(scope="module")
def handlers(page, store):
    return WhichImageHandlers(page.which, store, EncoderStore(), Bounds())


@pytest.fixture(scope="module")
def steps(handlers, shown):
    return list(handlers.run_study(shown, None, None, "", ""))


def test_each_step_fills_its_panel_and_the_second_has_the_verdict(handlers, steps):
    view = handlers.view
    assert [step[view.study].found.step for step in steps] == list(STEPS)
    assert ["image 3" in step.get(view.verdict, "") for step in steps[:2]] == [False, True]
    assert all(step[view.panels[key]]["busy"] == "" for key, step in zip(STEPS, steps, strict=True))
    assert set().union(*steps) <= set(view.outputs)


def test_an_experiment_runs_the_study_first_and_only_where_it_has_to(handlers, shown, steps):
    view, where = handlers.view, EXPERIMENTS[0]
    known = steps[-1][view.study]
    after = list(handlers.run_experiments((where,), shown, known, 1, "", ""))
    assert not any(view.verdict in step for step in after)
    assert where.key in after[-1][view.study].facts
    assert (view.study in after[0], view.study in after[-1]) == (False, True)
    first = next(handlers.run_experiments((where,), shown, None, 1, "", ""))
    assert first[view.study].found.step == STEPS[0]


@pytest.mark.parametrize(("contrast", "turn", "sentence"), [("", 2, "Turn 2"), ("x" * 100_000, 1, "contrast")])
def test_what_cannot_be_studied_is_said_where_it_was_asked(handlers, shown, contrast, turn, sentence):
    said = []
    with pytest.raises(gr.Error, match=sentence) as refused:
        said.extend(handlers.guarded(handlers.run_study)(shown, None, turn, contrast, ""))
    assert not refused.value.visible
    # `extend` keeps what came before the error.
    assert sentence in said[-1][handlers.view.note]
    assert not any(handlers.view.verdict in step for step in said)


def test_without_an_answer_there_is_nothing_to_study_or_to_report(handlers, shown, steps):
    run = handlers.guarded(handlers.run_study)(None, None)
    assert "Ask" in next(run)[handlers.view.note]
    with pytest.raises(gr.Error, match="Ask"):
        next(run)
    for known in (None, steps[0][handlers.view.study]):
        with pytest.raises(gr.Error, match="verdict"):
            handlers.make_report(shown, known, None, None, None, "", "")
    made = handlers.make_report(shown, steps[-1][handlers.view.study], None, None, None, "", "")
    assert "three-3.png" in Path(made["value"]).read_text("utf-8")


def test_the_report_tells_of_edits(handlers, store, shown, steps):
    edited = run_edits(open_case(store.get("embedded"), shown.inspection), ["image 3: black 0,0,64,64"])
    made = handlers.make_report(shown, steps[-1][handlers.view.study], edited, None, None, "", "")
    text = Path(made["value"]).read_text("utf-8")
    assert text.count("<code>image 3: black 0,0,64,64</code>") == 1


def test_the_report_tells_of_words_on_patches_and_of_clip_where_they_are_of_the_same_images(handlers, shown, steps):
    *_, words = PatchWordsHandlers(handlers.store, Bounds()).read(shown, 1, "logit lens", "residual", "")
    clip = ClipHandlers(handlers.store, handlers.encoders, Bounds())
    compared = clip.compare(shown, None, OWN, "a red circle\na blue triangle\na yellow square", "", "", "", 0)[-2]
    known = steps[-1][handlers.view.study]

    def read_report(compared):
        made = handlers.make_report(shown, known, None, words, compared, "", "")
        text = unescape(Path(made["value"]).read_text("utf-8"))
        return text, json.loads(text[text.rindex("<pre") :].partition(">")[2].partition("</pre>")[0])

    text, facts = read_report(compared)
    assert text.count("<h3>Words on patches</h3>") == text.count("<h3>CLIP</h3>") == 1
    assert facts["words"] == words.to_json()
    assert facts["clip"] == compared.found.to_json()
    for other in (replace(compared, used="another model"), replace(compared, images=compared.images[:2])):
        text, facts = read_report(other)
        assert "<h3>CLIP</h3>" not in text
        assert "clip" not in facts


def test_what_was_stopped_is_told_from_what_was_run(handlers, steps):
    view = handlers.view
    stopped = handlers.stop(steps[1][view.study], "where")
    assert "value" not in stopped[view.panels["dependence"]]
    assert STOPPED in stopped[view.panels["checks"]]["value"]
    assert stopped[view.panels["where"]]["note"] == STOPPED_WITHIN
    assert STOPPED in handlers.stop(None, "")[view.verdict]
