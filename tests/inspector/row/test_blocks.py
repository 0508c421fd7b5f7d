"""Images whose tokens see one another, later ones too, as some families have them: every road keeps to it."""

from dataclasses import replace

import pytest
import torch

from inspector.interventions.target import open_case
from inspector.row.ask import GenerationSettings, ask_and_inspect
from inspector.row.embedded_row import grow_row, read_row, see
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import prepare_row
from inspector.which_image.study import study_answer
from model import VLM
from tests.example_cases import example_prompt


@pytest.fixture
def vlm(embedded, monkeypatch):
    """The embedded model, as if each of its images saw all of itself."""
    place = VLM.place

    def place_blocks(self, sample):
        row = place(self, sample)
        blocks = torch.full((len(row),), -1)
        for span in row.spans:
            if span.kind == "image":
                blocks[span.start : span.stop] = span.image
        return replace(row, blocks=blocks)

    monkeypatch.setattr(VLM, "place", place_blocks)
    return embedded


def test_an_image_sees_all_of_itself_and_the_text_the_past_alone(vlm):
    row = prepare_row(vlm, example_prompt("three"), answering=0)
    visible = see(row, False)
    inside = torch.tensor([n for n, block in enumerate(row.blocks.tolist()) if block == 0])
    assert bool(visible[inside[:, None], inside].all())
    text = torch.tensor([n for n, block in enumerate(row.blocks.tolist()) if block < 0])
    assert not bool(visible[text].triu(1)[text[:, None] < torch.arange(len(row))].any())


def test_every_check_holds(vlm):
    inspection = ask_and_inspect(vlm, example_prompt("three"), GenerationSettings(8))
    *_, found = study_answer(vlm, inspection)
    assert [(check.name, check.value) for check in found.checks if not check.ok] == []


def test_a_kept_beginning_is_not_cut_inside_an_image(vlm):
    row = prepare_row(vlm, example_prompt("three"), answering=0)
    features = FEATURES.encode(vlm, row.images)
    before = read_row(vlm, row, features)
    changed = [part.clone() for part in features]
    changed[1][5] += 1  # from the middle of the second image on it is another
    grown, anew = grow_row(vlm, before, row, changed), read_row(vlm, row, changed)
    torch.testing.assert_close(grown.hidden, anew.hidden, rtol=0, atol=1e-4)


def test_other_continuations_are_read_as_text(vlm):
    case = open_case(vlm, ask_and_inspect(vlm, example_prompt("three"), GenerationSettings(8)))
    (outcome,) = case.prefix_cache.run([case.base])
    assert outcome.logprob == pytest.approx(sum(outcome.logprobs))
