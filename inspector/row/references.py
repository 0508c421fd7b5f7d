"""How a question points at an image: by a number, by an ordinal word, or not at all.

    find_pointer("What colour is the shape in image 2?")  →  digit, image 2, characters 35 to 36
    point_at(question, pointer, 3, n_images=3)            →  "What colour is the shape in image 3?"

English only, and only where a word for an image stands beside the number: “what comes first?” points at nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model import InputError

_SINGULAR = ("image", "picture", "photo", "photograph", "pic", "img", "screenshot", "snapshot")
_PLURAL = tuple(noun + "s" for noun in _SINGULAR)
_ORDINALS = (
    "first",
    "second",
    "third",
    "fourth",
    "fifth",
    "sixth",
    "seventh",
    "eighth",
    "ninth",
    "tenth",
    "eleventh",
    "twelfth",
)
_CARDINALS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)
_LAST = ("last", "final")
_NUMBER_SIGNS = ("#", "no", "nr", "num", "number", "-", "_", "(", ".")
_LINKS = ("and", "or", "&", ",", "/")
_COMPARISONS = ("and", "or", "than", "from", "as", "to", "with", "vs", "versus", "like", "&")
_DETERMINERS = (
    "a",
    "an",
    "the",
    "this",
    "that",
    "each",
    "every",
    "any",
    "one",
    "your",
    "my",
    "which",
    "what",
    "no",
    "some",
    "same",
)
_INDEFINITE = ("a", "an", "each", "every", "another", "any")
# What may follow a number that belongs to the image before it; after any other word it may count something else.
_GOES_ON = (
    "is",
    "are",
    "was",
    "were",
    "has",
    "have",
    "had",
    "does",
    "do",
    "did",
    "show",
    "shows",
    "contain",
    "contains",
    "look",
    "looks",
    "what",
    "which",
    "who",
    "where",
    "how",
    "why",
    "in",
    "on",
    "of",
    "but",
    "compared",
    "differ",
    "differs",
    *_COMPARISONS,
)
_UNITS = ("px", "pixel", "pixels", "times", "cm", "mm", "inch", "inches", "kb", "mb", "megapixel", "megapixels", "x")
_MAX_DIGITS = 2

_TOKEN = re.compile(r"[0-9]+(?:[.,][0-9]+)*|[^\W\d_]+|[^\s]")
_COUNTS_FROM_0 = re.compile(
    r"\b(?:0|zero)[- ]?(?:based|indexed)\b|\b(?:count|number|index|start)[a-z]{0,5} (?:at|from|with) (?:0|zero)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Pointer:
    """The word of a question that says which image is meant.

    ``kind``: "digit" (“image 2”, “2nd image”) or "word" (“the second image”, “picture two”, “the last image”).
    ``number``: the image, counted from 1; None for “last”. ``start`` and ``stop`` are characters of the question.
    ``base`` is 0 where the question counts images from 0: it asks about image 0, says “counted from 0”, or writes
    the renderer's ``<image: k>``.
    """

    kind: Literal["digit", "word"]
    number: int | None
    start: int
    stop: int
    base: Literal[0, 1] = 1

    def image(self, n_images: int) -> int:
        """The image's number among ``n_images``, counted from 1. It may be larger: nobody keeps a person from asking
        about image 7 of 3."""
        return n_images if self.number is None else self.number


@dataclass(frozen=True)
class _Token:
    text: str  # in small letters
    start: int
    stop: int

    @property
    def is_number(self) -> bool:
        return self.text.isascii() and self.text.isdigit()


def find_pointer(question: str) -> Pointer | None:
    """The one word that points at an image; None if there is none or more than one (“are image 1 and image 2 the same
    colour?”), and for a group (“the first two images”)."""
    pointers = find_pointers(question)
    return pointers[0] if len(pointers) == 1 else None


def find_pointers(question: str) -> tuple[Pointer, ...]:
    """Every word that points at an image, in order."""
    tokens = [_Token(match.group().lower(), *match.span()) for match in _TOKEN.finditer(question)]
    found: dict[int, tuple[_Token, bool]] = {}  # by place: the token and whether it is the renderer's own <image: k>
    for place, token in enumerate(tokens):
        if token.text in _SINGULAR or token.text in _PLURAL:
            for at in (*_before(tokens, place), *_of_images(tokens, place), *_after(tokens, place)):
                found[at] = (tokens[at], False)
            marker = _marker(tokens, place)
            if marker is not None:
                found[marker] = (tokens[marker], True)
    if found:
        for at in _unnamed(tokens):
            found.setdefault(at, (tokens[at], False))
    from_0 = bool(_COUNTS_FROM_0.search(question)) or any(
        not own and _value(token) == 0 for token, own in found.values()
    )
    return tuple(_pointer(tokens, at, 0 if own or from_0 else 1) for at, (_, own) in sorted(found.items()))


def point_at(question: str, pointer: Pointer, number: int, n_images: int) -> str:
    """The question with ``pointer`` turned to image ``number`` (from 1) of ``n_images``, in the same style: a digit
    stays a digit, a word a word; “last” becomes an ordinal and stays “last” for the last image.

    A count from 0 that only the digit 0 gave away can't be read off the new question, so keep the number. InputError
    if the pointer is not this question's or there is no such image."""
    if pointer not in find_pointers(question):
        raise InputError("The pointer was found in another question; find it in this one first.")
    if not 1 <= number <= n_images:
        raise InputError(f"The question was to be turned to image {number}; there are images 1 to {n_images}.")
    old = question[pointer.start : pointer.stop]
    return question[: pointer.start] + _restyle(old, pointer, number, n_images) + question[pointer.stop :]


def _restyle(old: str, pointer: Pointer, number: int, n_images: int) -> str:
    plain = old.lower()
    if plain.isdigit():
        return str(number - 1 + pointer.base)
    if plain[0].isdigit():
        new = f"{number}{_suffix(number)}"
    elif plain in _CARDINALS:
        new = _word(_CARDINALS, number - 1 + pointer.base)
    elif plain in _LAST and number == n_images:
        new = plain
    else:
        new = _word(_ORDINALS, number - 1)
    if len(plain) > 1 and old.isupper():
        return new.upper()
    return new.capitalize() if old[0].isupper() else new


def _word(words: Sequence[str], index: int) -> str:
    if index >= len(words):
        raise InputError(f"Images are named in words up to the {_ORDINALS[-1]}; use a digit for more.")
    return words[index]


def _suffix(number: int) -> str:
    if 10 <= number % 100 <= 20:
        return "th"
    return {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")


# --- where a pointer can stand, as places in the list of tokens ---


def _before(tokens: Sequence[_Token], noun: int) -> list[int]:
    """“the second image”, “the 2nd and the 3rd image”."""
    found: list[int] = []
    place = _ordinal_ending_at(tokens, noun - 1)
    while place is not None:
        if _text(tokens, place - 1) in _INDEFINITE:
            break  # “is there a second image?” asks whether there is one
        found.append(place)
        back = place - 1
        if _text(tokens, back) == "the":
            back -= 1
        if _text(tokens, back) not in _LINKS:
            break
        while _text(tokens, back) in _LINKS:
            back -= 1
        place = _ordinal_ending_at(tokens, back)
    return found


def _of_images(tokens: Sequence[_Token], noun: int) -> list[int]:
    """“the last of the three pictures”."""
    if tokens[noun].text not in _PLURAL:
        return []
    place = noun - 1
    if _text(tokens, place) in _CARDINALS or (place >= 0 and tokens[place].is_number):
        place -= 1
    if _text(tokens, place) in ("the", "these", "those", "my", "your", "all"):
        place -= 1
    if _text(tokens, place) != "of":
        return []
    place -= 1
    if _text(tokens, place) == "one":
        place -= 1
    ordinal = _ordinal_ending_at(tokens, place)
    return [] if ordinal is None else [ordinal]


def _after(tokens: Sequence[_Token], noun: int) -> list[int]:
    """“image 2”, “picture no. 2”, “photo two”, “images 1, 2 and 3”."""
    place, signed = noun + 1, False
    while _text(tokens, place) in _NUMBER_SIGNS and place <= noun + 2:
        signed = signed or _text(tokens, place) in ("#", "no", "nr", "num", "number")
        place += 1
    if _text(tokens, noun + 1) == ".":
        return []  # a sentence ended there
    plural = tokens[noun].text in _PLURAL
    # “in the image 2 dogs play” and “the image one sees”: the number need not be the image's.
    strict = not plural and not signed and _text(tokens, noun - 1) in _DETERMINERS
    found: list[int] = []
    while _is_number_of_image(tokens, place, strict):
        found.append(place)
        link = place + 1
        # Behind one image, a comma begins something else: “in image 2, 3 circles …”.
        if not (_text(tokens, link) in _LINKS and (plural or _text(tokens, link) not in (",", "/"))):
            break
        while _text(tokens, link) in _LINKS:
            link += 1
        place = link
    return found


def _is_number_of_image(tokens: Sequence[_Token], place: int, strict: bool) -> bool:
    if place >= len(tokens):
        return False
    token = tokens[place]
    if not (token.text in _CARDINALS or (token.is_number and len(token.text) <= _MAX_DIGITS)):
        return False
    if place + 1 == len(tokens):
        return True
    after = tokens[place + 1]
    if after.start == token.stop and (after.text[0].isalnum() or after.text in ("%", "°", "×", "-", "_")):
        return False  # 2x, 3D, 20%, 2-tone
    if after.text in _UNITS:
        return False
    return not strict or not after.text[0].isalnum() or after.text in _GOES_ON


def _marker(tokens: Sequence[_Token], noun: int) -> int | None:
    """``<image: 1>``, as the renderer writes it."""
    around = [_text(tokens, place) for place in (noun - 1, noun, noun + 1, noun + 3)]
    if around == ["<", "image", ":", ">"] and tokens[noun + 2].is_number and len(tokens[noun + 2].text) <= _MAX_DIGITS:
        return noun + 2
    return None


def _unnamed(tokens: Sequence[_Token]) -> list[int]:
    """“… the same as the second?”: an ordinal that compares with the image named elsewhere."""
    found = []
    for place in range(2, len(tokens)):
        ordinal = _ordinal_ending_at(tokens, place)
        if ordinal is None or _text(tokens, ordinal - 1) != "the" or _text(tokens, ordinal - 2) not in _COMPARISONS:
            continue
        after = _text(tokens, place + 1)
        if not after[:1].isalnum() or after == "one" or after in _GOES_ON:
            found.append(ordinal)
    return found


def _ordinal_ending_at(tokens: Sequence[_Token], place: int) -> int | None:
    """The place of the ordinal whose last token is at ``place``: a word, or a number with its st, nd, rd or th."""
    text = _text(tokens, place)
    if text in _ORDINALS or text in _LAST:
        return place
    if text in ("st", "nd", "rd", "th") and place > 0:
        number = tokens[place - 1]
        if number.is_number and number.stop == tokens[place].start and len(number.text) <= _MAX_DIGITS:
            return place - 1 if int(number.text) > 0 and _suffix(int(number.text)) == text else None
    return None


def _text(tokens: Sequence[_Token], place: int) -> str:
    return tokens[place].text if 0 <= place < len(tokens) else ""


def _value(token: _Token) -> int | None:
    """The number as it is written; None for an ordinal word."""
    if token.is_number:
        return int(token.text)
    return _CARDINALS.index(token.text) if token.text in _CARDINALS else None


def _pointer(tokens: Sequence[_Token], place: int, base: Literal[0, 1]) -> Pointer:
    token, text = tokens[place], tokens[place].text
    if text in _LAST:
        return Pointer("word", None, token.start, token.stop)
    if text in _ORDINALS:
        return Pointer("word", _ORDINALS.index(text) + 1, token.start, token.stop)
    if _ordinal_ending_at(tokens, place + 1) == place:
        return Pointer("digit", int(text), token.start, tokens[place + 1].stop)
    written = _value(token)
    assert written is not None  # every other place was found by its number
    return Pointer("digit" if token.is_number else "word", written + 1 - base, token.start, token.stop, base)
