"""A contrastive run's evaluations: the matrix that its tab shows, from what the run wrote down."""

import json

from inspector.figures.training import show_evaluation
from inspector.runs.progress import ProgressReader
from model.training.runs import without_answers

EVENT = {
    "event": "eval",
    "stage": "s",
    "step": 4,
    "loss": 0.5,
    "accuracy": {"caption": 0.5},
    "answers": [
        {"question": "?", "expected": "a <red> circle", "answered": "a <red> circle", "family": "caption"},
        {"question": "?", "expected": "a blue one", "answered": "a <red> circle", "family": "caption"},
    ],
    "shares": [[0.75, 0.25], [0.625, 0.375]],
}


def show(tmp_path, event):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(event) + "\n")
    progress = ProgressReader().read(path)
    return progress, show_evaluation(progress)


def test_the_matrix_is_drawn_and_its_diagonal_framed(tmp_path):
    _, page = show(tmp_path, EVENT)
    assert page.count("cl-own") == 2
    assert all(f'data-copy="{share:.6g}"' in page for row in EVENT["shares"] for share in row)
    assert "<red>" not in page
    assert "1 of 2" in page


def test_texts_go_with_their_data_and_the_numbers_stay(tmp_path):
    _, page = show(tmp_path, without_answers(EVENT))
    assert "red" not in page
    assert page.count("cl-own") == 2


def test_what_is_no_square_is_damaged(tmp_path):
    progress, _ = show(tmp_path, {**EVENT, "shares": [[1.0], [0.5, 0.5]]})
    assert progress.damaged == 1
    assert progress.evaluations == ()
