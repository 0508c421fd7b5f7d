"""Links: what is written is what is read, and what no link of ours has is refused."""

from urllib.parse import parse_qsl

import pytest

from inspector.bounds import Bounds
from inspector.export.link import LONGEST, ViewLink, read_link
from inspector.row.ask import GenerationSettings
from model import InputError

FULL = ViewLink(
    model="owner/name",
    images="a" * 24,
    turns=(("In image 2, what & why?", ""), ("Und jetzt? 100 % #1", "gelb + rot")),
    layout="packed",
    document_mask=True,
    settings=GenerationSettings(48, 0.35, 20, 0.9, 7),
    tab="Which image?",
    first=3,
    token=11,
    layer="2",
    head="1",
)


def read(written):
    return read_link(dict(parse_qsl(written.removeprefix("?"), keep_blank_values=True)), Bounds())


@pytest.mark.parametrize("link", [FULL, ViewLink(example="three", turns=(("What?", ""),)), ViewLink()])
def test_what_is_written_is_read_again(link):
    assert read(link.write()) == link


def test_a_link_is_no_longer_than_what_gets_through():
    link = ViewLink(turns=(("ä" * (LONGEST // 6), ""),))
    with pytest.raises(InputError, match=f"{LONGEST:,}"):
        link.write()


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"layout": "sideways"}, "sideways"),
        ({"token": "-1"}, "whole number"),
        ({"first": "9" * 30}, "whole number"),
        ({"max_new_tokens": "many", "temperature": "0", "top_k": "0", "top_p": "1", "seed": "0"}, "many"),
        ({"max_new_tokens": "9999", "temperature": "0", "top_k": "0", "top_p": "1", "seed": "0"}, "9999"),
    ],
)
def test_what_no_link_has_is_refused(query, sentence):
    with pytest.raises(InputError, match=sentence):
        read_link(query, Bounds())


def test_more_turns_than_a_prompt_takes_are_not_read():
    assert len(read_link({f"ask{n}": "What?" for n in range(1, 30)}, Bounds()).turns) == Bounds().turns
