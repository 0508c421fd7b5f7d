"""The answer as HTML: nothing that a model writes is lost from sight, and none of it is markup."""

import re

from inspector.figures.markup import show_answer
from inspector.row.ask import AnswerToken


def answer(*texts):
    """What stands in the answer's place, token by token."""
    tokens = [AnswerToken(7, text, 0.5) for text in texts]
    html = show_answer([("What?", "".join(texts), tokens, range(len(texts)))])
    return re.findall(r'click selects it">(.*?)</button>', html, re.DOTALL)


def test_blank_tokens_are_named_and_a_run_of_line_breaks_breaks_the_line_once():
    note = '<span class="vi-note">{}</span>'.format
    assert answer("red", "\n", "\n", "\n", "blue", " ", "") == [
        "red",
        note("⏎"),
        note("⏎"),
        note("⏎") + "\n",
        "blue",
        note("·"),
        '<small class="vi-note">end</small>',
    ]


def test_a_blank_that_belongs_to_a_word_stays_a_blank():
    assert answer("red", " circle", ".\nTwo") == ["red", " circle", ".\nTwo"]


def test_what_the_model_writes_is_text():
    assert answer("<b>", "&amp;") == ["&lt;b&gt;", "&amp;amp;"]
    html = show_answer([("<i>", "<u>", [], [])])
    assert "<i>" not in html
    assert "<u>" not in html
