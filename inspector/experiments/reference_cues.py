"""Which cue leads the question to its image: one cue is changed at a time, and the images' effects are measured again.

A share is the effect of one image on log p of the answer that the model gives *then*, over the sum of all images'
effects (an effect is the fall when that image alone is taken away; rises count as 0). Taking the answer then given, and
not the one under study, keeps content from passing for selection: an answer that stands in one image alone depends on
it under any question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from inspector.interventions.continuations import Continuation, RopeShift
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.prefix_cache import PrefixCache
from inspector.interventions.target import Case, image_keys
from inspector.row.embedded_row import reread_row
from inspector.row.layout import ImageBlock
from inspector.row.references import find_pointer
from inspector.which_image.question_contrast import AskedQuestion, Selection, changed_question
from model import Cut, InputError, Row
from model.tokenizer import decode

EXPLANATION = (
    "One cue at a time was edited, hidden from the question and its answer (or from everything behind it), or moved, "
    "and then every image was taken away in turn to see which one the answer rests on now. "
    "A cue that changes nothing is not proved useless, since another cue may stand in for it: each change is a lower "
    "bound."
)

Family = Literal[
    "ordinal",
    "naming",
    "image numbers",
    "region marks",
    "separators",
    "turn boundary",
    "template marks",
    "distance",
    "length",
]
"""What a cue is evidence for. "naming" is a cue that the prompt lacks: the question is made to name an image."""

FAMILY_NAMES: dict[Family, str] = {
    "ordinal": "the ordinal in the question",
    "naming": "an image's number in the question",
    "image numbers": "the `<image: k>` texts",
    "region marks": "the region marks",
    "separators": "the separators",
    "turn boundary": "the boundary of the turn",
    "template marks": "the template's marks",
    "distance": "the distance",
    "length": "the length of the text in between",
}

FAINT = 0.1
"""Nats that all images' effects together must reach for shares of them to mean anything."""
MOVED = 0.2
"""Change of a share that counts as evidence."""
STILL = 0.05
"""Change of a share that is not worth a number of its own."""
FILLER_LENGTHS = (8, 32)
"""Words of neutral text before the question."""
_FILLER = ("here", "is", "a", "question", "that", "you", "can", "answer", "for", "me", "please")


@dataclass(frozen=True)
class Cue:
    """One cue, changed. ``change`` says what was done, in the past tense and without a full stop; ``tokens`` how many
    were edited, hidden, moved or added.

    ``fall``: of log p of the answer under study, nats (mean over the edits, if the question was edited in several
    ways). ``answers``: what the model then says, one for each edit. ``effects`` (image order, nats): fall of log p of
    the answer then given without each image, 0 for images out of reach. ``image``: whose share is followed, the image
    that the answer under study rests on; None if none stands out. ``share_before`` and ``share_after`` are None where
    all effects together are below :data:`FAINT`. ``not_done``: why the cue could not be changed, "" if it was.
    """

    family: Family
    change: str
    image: int | None
    tokens: int = 0
    fall: float | None = None
    answers: tuple[str, ...] = ()
    effects: tuple[float, ...] = ()
    share_before: float | None = None
    share_after: float | None = None
    not_done: str = ""

    @property
    def moved(self) -> float | None:
        """How far the share went down; negative if it went up."""
        if self.share_before is None or self.share_after is None:
            return None
        return self.share_before - self.share_after

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"answers": list(self.answers), "effects": list(self.effects), "moved": self.moved}


@dataclass(frozen=True)
class _Change:
    """``prompt``: ids from the target's start to where the answer begins; ``cuts`` and ``shifts`` as in
    :class:`Continuation`; ``everywhere``: the cuts hold for the whole row, not only for question and answer."""

    prompt: tuple[int, ...]
    cuts: tuple[Cut, ...] = ()
    shifts: tuple[RopeShift, ...] = ()
    everywhere: bool = False


@dataclass(frozen=True)
class _Measured:
    """``logprob`` of the answer under study; ``answer``: what the model says; ``effects`` of the images on that."""

    logprob: float
    answer: str
    effects: tuple[float, ...]


def measure_cues(case: Case, selection: Selection, ablations: ImageAblations | None = None) -> Iterator[Cue]:
    """Yields cue after cue. ``selection`` of the same case brings the edited questions; its ``image`` (the image that
    the answer rests on; else the one that the question names) is the one whose share is followed."""
    image = selection.image or selection.asked[0].image
    bench = _Bench(case, image if image in case.target.question.reachable else None, ablations or ImageAblations(case))
    yield _edit_ordinal(bench, selection)
    yield _hide_ordinal(bench)
    for family, keys, what, absent in _marks(case):
        if not keys:
            yield Cue(family, f"hid {what}", bench.image, not_done=absent)
            continue
        yield bench.hide(family, f"hid {what} from the question and its answer", keys)
        if any(key < case.target.start for key in keys):
            yield bench.hide(family, f"hid {what} from everything behind them", keys, everywhere=True)
    yield _move_image(bench)
    for words in FILLER_LENGTHS:
        yield _add_filler(bench, words)


def compare_cues(case: Case, cues: Sequence[Cue]) -> str:
    """What each kind of cue did to the image's share, with the numbers, and which kind the evidence favours. The
    strongest change of a kind stands for it."""
    if len(case.reachable) < 2:
        return (
            "The question can see no more than one image: the mask decides, and there is no share that a cue could "
            "move."
        )
    told = [cue for cue in cues if cue.share_before is not None]
    if not told:
        return "No image stands out in the answer, so there is no share that a cue could move."
    strongest: dict[Family, Cue] = {}
    for cue in sorted(told, key=lambda cue: -(cue.moved or 0.0)):
        if cue.moved is not None:
            strongest.setdefault(cue.family, cue)
    naming = strongest.pop("naming", None)
    ranked = list(strongest.values())
    still = [cue for cue in ranked if abs(cue.moved or 0.0) < STILL]
    parts = [f"{_gerund(cue.change)} moved it to {cue.share_after:.2f}" for cue in ranked if cue not in still]
    if still:
        parts.append(f"changing {_list([FAMILY_NAMES[cue.family] for cue in still])} left it within {STILL:.2f}")
    top = max((cue.moved or 0.0 for cue in ranked), default=0.0)
    favoured = [FAMILY_NAMES[cue.family] for cue in ranked if (cue.moved or 0.0) >= max(MOVED, top / 2)]
    judged = (
        f"the evidence favours {_list(favoured)}"
        if favoured
        else f"no cue moved it by {MOVED:.2f} or more, so the evidence favours none"
    )
    sentences = [
        f"Image {told[0].image} has a share of {told[0].share_before:.2f} in the effects of all images.",
        f"{_capital('; '.join(parts))}: on this prompt {judged}." if parts else _capital(f"{judged}."),
        "Lower bounds: other paths may compensate.",
    ]
    gone = sum(cue.share_after is None for cue in told)
    if gone:
        sentences.append(f"After {gone} of the changes all effects together were below {FAINT} nats.")
    if naming is not None:
        sentences.append(
            "Naming another image in the question, a cue that this prompt lacks, moved the share to "
            f"{naming.share_after:.2f}."
        )
    return " ".join(sentences)


def _list(names: Sequence[str]) -> str:
    return " and ".join(part for part in (", ".join(names[:-1]), names[-1]) if part)


def filler_text(words: int) -> str:
    """So many plain words that say nothing about images; "" for none."""
    if not words:
        return ""
    return _capital(" ".join(_FILLER[n % len(_FILLER)] for n in range(words))) + ". "


def _gerund(change: str) -> str:
    first, _, rest = change.partition(" ")
    return f"{_GERUNDS[first]} {rest}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


_GERUNDS = {"edited": "editing", "named": "naming", "hid": "hiding", "moved": "moving", "put": "putting"}


def share_of(effects: Sequence[float], image: int | None) -> float | None:
    """Effect of ``image`` over all images' effects, rises counted as 0; None without an image or below
    :data:`FAINT`."""
    clipped = [max(0.0, effect) for effect in effects]
    if image is None or sum(clipped) < FAINT:
        return None
    return clipped[image - 1] / sum(clipped)


@dataclass
class _Bench:
    """Measures changes of one case; ``image`` is the one whose share is followed."""

    case: Case
    image: int | None
    ablations: ImageAblations
    base: _Measured = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.measure(_Change(self.prompt))

    @property
    def prompt(self) -> tuple[int, ...]:
        """The question's own ids, up to where the answer begins."""
        return self.case.prefix_cache.ids[self.case.target.start : self.case.target.scored[0]]

    def measure(self, change: _Change) -> _Measured:
        case, start = self.case, self.case.target.start
        end = start + len(change.prompt)
        prefix_cache = case.prefix_cache
        if change.everywhere:
            prefix_cache = self._read_again(change.cuts)
        open_ended = Continuation(start, change.prompt, (end, end), change.cuts, change.shifts)
        answer = replace(case, prefix_cache=prefix_cache).answer([open_ended])[0]
        given, found = (_ending(open_ended, ids) for ids in (case.answer_ids, answer))
        logprob, full = (outcome.logprob for outcome in prefix_cache.run([given, found]))
        effects = [0.0] * len(case.structure.images)
        falls = self._without_moved(found) if change.shifts else self._without(prefix_cache, change, found)
        for image, value in falls:
            effects[image.number - 1] = full - value
        return _Measured(logprob, case.text(answer), tuple(effects))

    def report(self, family: Family, change: str, tokens: int, measured: _Measured) -> Cue:
        return Cue(
            family,
            change,
            self.image,
            tokens,
            fall=self.base.logprob - measured.logprob,
            answers=(measured.answer,),
            effects=measured.effects,
            share_before=share_of(self.base.effects, self.image),
            share_after=share_of(measured.effects, self.image),
        )

    def hide(self, family: Family, change: str, keys: Sequence[int], *, everywhere: bool = False) -> Cue:
        """Cuts the edges from ``keys`` into the question and its answer, or into all that is behind them. They go on
        seeing one another, so that no position is left with nothing to see."""
        hidden = frozenset(keys)
        first = 0 if everywhere else self.case.target.start
        stop = self.case.target.scored[0] + max(self.case.max_new_tokens, len(self.case.answer_ids))
        queries = [p for p in range(first, stop) if p not in hidden]
        cut = Cut(queries, sorted(hidden))
        return self.report(
            family, change, len(hidden), self.measure(_Change(self.prompt, (cut,), everywhere=everywhere))
        )

    def _read_again(self, cuts: Sequence[Cut]) -> PrefixCache:
        """The row without some edges, its images encoded already."""
        read = self.case.prefix_cache
        length = len(read.row)
        within = [Cut([q for q in cut.queries if q < length], cut.keys, cut.layers, cut.heads) for cut in cuts]
        return PrefixCache(self.case.vlm, reread_row(self.case.vlm, read.read_row, within))

    def _without(
        self, prefix_cache: PrefixCache, change: _Change, found: Continuation
    ) -> list[tuple[ImageBlock, float]]:
        """log p of ``found``'s answer without each image. What stands behind an image is read again and keeps the
        change's cuts."""
        parents: dict[int, Continuation] = {}

        def under(continuation: Continuation) -> Continuation:
            if id(continuation) not in parents:
                parent = None if continuation.parent is None else under(continuation.parent)
                parents[id(continuation)] = replace(
                    continuation, cuts=(*continuation.cuts, *change.cuts), parent=parent
                )
            return parents[id(continuation)]

        images = self.case.reachable
        removed = [
            self.ablations.of_ending(frozenset({image.number}), self.case.target, found.ids, found.scored)
            for image in images
        ]
        outcomes = prefix_cache.run([under(continuation) for continuation in removed])
        return [(image, outcome.logprob) for image, outcome in zip(images, outcomes, strict=True)]

    def _without_moved(self, found: Continuation) -> Iterator[tuple[ImageBlock, float]]:
        """The same where keys are moved: they are the cache's, so the row is read again without each image."""
        for image in self.case.reachable:
            keys = image_keys(image)
            hidden = frozenset(keys)
            cut = Cut([p for p in range(found.stop) if p not in hidden], keys)
            (outcome,) = self._read_again([cut]).run([found.cutting(cut)])
            yield image, outcome.logprob


def _ending(open_ended: Continuation, answer: tuple[int, ...]) -> Continuation:
    return replace(open_ended, ids=(*open_ended.ids, *answer), scored=(open_ended.stop, open_ended.stop + len(answer)))


def _differing(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are left of the longer one without the beginning and the end that both have."""
    shorter, longer = sorted((one, other), key=len)
    begin = next((n for n, (a, b) in enumerate(zip(shorter, longer, strict=False)) if a != b), len(shorter))
    backwards = zip(shorter[begin:][::-1], longer[begin:][::-1], strict=False)
    end = next((n for n, (a, b) in enumerate(backwards) if a != b), len(shorter) - begin)
    return len(longer) - begin - end


# --- the cues ---


def _edit_ordinal(bench: _Bench, selection: Selection) -> Cue:
    """The questions about other images that the selection has asked already."""
    own = selection.asked[0]
    edited = [asked for asked in selection.asked[1:] if asked.source in ("ordinal edited", "image named")]
    if not edited:
        return Cue(
            "ordinal",
            "edited the ordinal in the question",
            bench.image,
            not_done="No other image can be named in the question.",
        )
    continuations = [
        _ending(Continuation(bench.case.target.start, asked.prompt_ids, (0, 0)), bench.case.answer_ids)
        for asked in edited
    ]
    logprobs = [outcome.logprob for outcome in bench.case.prefix_cache.run(continuations)]
    shares = [share for asked in edited if (share := share_of(asked.effects, bench.image)) is not None]
    named = ", ".join(str(asked.image) for asked in edited)
    has_ordinal = edited[0].source == "ordinal edited"
    return Cue(
        "ordinal" if has_ordinal else "naming",
        f"edited the ordinal to image {named}" if has_ordinal else f"named image {named} in the question",
        bench.image,
        max(_differing(own.prompt_ids, asked.prompt_ids) for asked in edited),
        fall=bench.base.logprob - sum(logprobs) / len(logprobs),
        answers=tuple(asked.answer for asked in edited),
        effects=_mean_effects(edited),
        share_before=share_of(bench.base.effects, bench.image),
        share_after=sum(shares) / len(shares) if shares else None,
    )


def _mean_effects(asked: Sequence[AskedQuestion]) -> tuple[float, ...]:
    return tuple(sum(column) / len(asked) for column in zip(*(one.effects for one in asked), strict=True))


def _hide_ordinal(bench: _Bench) -> Cue:
    change = "hid the ordinal in the question from the rest of it and from the answer"
    keys = pointing_positions(bench.case)
    if not keys:
        return Cue("ordinal", change, bench.image, not_done="The question does not name one image.")
    return bench.hide("ordinal", change, keys)


def pointing_positions(case: Case) -> tuple[int, ...]:
    """The tokens of the word that points at an image in the case's question; empty if no single word does."""
    question = case.target.question
    pointer = find_pointer(question.text)
    if pointer is None:
        return ()
    ids = case.prefix_cache.ids[question.start : question.stop]
    ends = [len(decode(case.vlm.tokenizer, ids[: n + 1])) for n in range(len(ids))]
    return tuple(
        question.start + n
        for n, (begin, end) in enumerate(zip([0, *ends], ends, strict=False))
        if begin < pointer.stop and end > pointer.start
    )


def _marks(case: Case) -> Iterator[tuple[Family, tuple[int, ...], str, str]]:
    """(family, positions, what they are, what to say if there are none) of the marks that the question can see.

    The row's first position is left out: in most models it soaks up attention that has nowhere to go, and hiding it
    breaks the model rather than takes a cue away."""
    structure, question = case.structure, case.target.question
    attended = case.prefix_cache.row.attention_mask.tolist()
    segments = case.prefix_cache.row.segment_ids.tolist()
    seen = [
        p
        for p in range(question.start)
        if attended[p] and not (structure.document_mask and segments[p] != segments[question.start])
    ]
    visible = frozenset(seen[1:])

    def kept(positions: Sequence[int]) -> tuple[int, ...]:
        return tuple(p for p in sorted(positions) if p in visible)

    numbered = [image.ordinal for image in case.reachable if image.ordinal is not None]
    yield (
        "image numbers",
        kept([p for start, stop in numbered for p in range(start, stop)]),
        "the `<image: k>` texts",
        "The question can see no `<image: k>` text.",
    )
    yield (
        "region marks",
        kept([p for image in case.reachable for p in image.marks]),
        "the region marks",
        "The question can see no region mark.",
    )
    # Nobody attends to a separator as it is: this must change nothing, and shows that it does not.
    yield (
        "separators",
        tuple(p for p in structure.separators if p < question.start),
        "the separators",
        "No separator stands before the question.",
    )
    template = {p for mark in structure.marks for p in range(mark.start, mark.stop)}
    boundary, rest = kept(_boundary(case, template)), kept(list(template))
    yield (
        "turn boundary",
        boundary,
        "the marks where its turn begins",
        "No mark stands where the question's turn begins.",
    )
    yield (
        "template marks",
        () if rest == boundary else rest,
        "the template's marks before the question",
        "They are the marks where its turn begins." if rest else "There is none.",
    )


def _boundary(case: Case, template: set[int]) -> list[int]:
    """The run of template marks and separators right before what the question's message brings."""
    question = case.target.question
    brought = [image.start for image in case.structure.images if image.message == question.message]
    found = []
    place = min([question.start, *brought]) - 1
    while place in template or place in case.structure.separators:
        found.append(place)
        place -= 1
    return found


def _move_image(bench: _Bench) -> Cue:
    """View-shift: the image and the one whose distance differs most, each seen by the question and its answer as if
    it ended where the other does (rotary positions only)."""
    case = bench.case
    own = next((image for image in case.reachable if image.number == bench.image), None)
    others = [image for image in case.reachable if image is not own]
    if own is None or not others:
        missing = "No other image is in reach." if own is not None else "No image stands out that could be moved."
        return Cue("distance", "moved the image's distance to the question", bench.image, not_done=missing)
    other = max(others, key=lambda image: abs(image.stop - own.stop))
    try:
        measured = bench.measure(_Change(bench.prompt, shifts=exchange(case.prefix_cache.row, own, other)))
    except InputError:
        raise
    except ValueError as error:  # this model's positions can't be moved
        return Cue("distance", "moved the image's distance to the question", bench.image, not_done=str(error))
    change = f"moved image {own.number} to the distance of image {other.number} and the other way round"
    return bench.report("distance", change, len(image_keys(own)) + len(image_keys(other)), measured)


def exchange(row: Row, one: ImageBlock, other: ImageBlock) -> tuple[RopeShift, RopeShift]:
    """The keys of two images of ``row`` (tokens and region marks) seen as if each ended where the other does. How far
    that is, rotary positions say: where they have several axes an image takes fewer of them than it has tokens, and
    as all its axes count from one number, moving them alike is what standing elsewhere would be."""
    ends = [int(row.position_ids[:, image.stop - 1].amax()) for image in (one, other)]
    by = ends[1] - ends[0]
    return RopeShift(image_keys(one)[0], one.stop, by), RopeShift(image_keys(other)[0], other.stop, -by)


def _add_filler(bench: _Bench, words: int) -> Cue:
    change = f"put {words} neutral words before the question"
    question = bench.case.prompt.turns[bench.case.turn - 1].user
    try:
        prompt = changed_question(bench.case, filler_text(words) + question)
        measured = bench.measure(_Change(prompt))
    except InputError as error:
        return Cue("length", change, bench.image, not_done=str(error))
    return bench.report("length", change, len(prompt) - len(bench.prompt), measured)
