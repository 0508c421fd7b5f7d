"""What a person reads, word for word: tables of situations and whole sentences, and rules that hold for all of them.

Every other test holds kinds, numbers and names, so whoever betters a sentence mends this file alone.
"""

import ast
import math
import os
import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image

from inspector.bounds import private_bounds, public_bounds
from inspector.experiments import heads, image_edits, image_order, pathways, prompt_layouts, reference_cues
from inspector.experiments.binding_patching import tell_address
from inspector.row.ask import GenerationSettings
from inspector.row.layout import read_structure, structure_sentences
from inspector.row.prompt import LAYOUTS, Prompt, Turn, check_pixels, prepare_row
from inspector.runs.presets import PRESETS, read_form, write_recipe
from inspector.server.inputs import check_value
from inspector.which_image import attention_agreement
from inspector.which_image.counterfactuals import Counterfactual
from inspector.which_image.image_effects import TurnMatrix, measure_dependence, measure_matrix
from inspector.which_image.question_contrast import AskedQuestion, Selection
from inspector.which_image.self_checks import run_checks
from inspector.which_image.verdict import judge
from model import InputError, OpenedImage, load_vlm, open_image
from model.tokenizer import decode
from model.training.data.readers import read_source
from model.training.recipe import build_recipe, read_recipe
from model.training.runs import RunFolder
from model.training.synthetic.word import read_word_set
from tests.example_cases import example_case, made_up
from tests.inspector.experiments.test_binding_patching import curve
from tests.inspector.experiments.test_heads import heads as made_up_heads
from tests.odd_files import UNUSABLE, USABLE

ROOT = Path(__file__).parent.parent
RED = OpenedImage(Image.new("RGB", (64, 64), "red"))
THREE = (Turn("What is it?", "red"), Turn("And this?", "green"), Turn("Last?", "blue"))


def assert_sentences(text: str) -> None:
    """One or more whole sentences of plain text."""
    assert re.match(r"[A-Z0-9“]|--|\w+[._-]\w+ |[a-z]+ (is|has|of|was|needs) ", text), text
    assert text.endswith("."), text
    assert "  " not in text, text
    assert not re.search(r"\n|&[a-z#0-9]+;|</?(a|b|i|p|br|div|span|img|script|code)\b", text), text
    assert not re.search(r"(?<![\w.:/])/(home|tmp|root|srv|usr|var)\b", text), text


def case_of(*reachable: int) -> SimpleNamespace:
    """A case as far as sentences look at it."""
    target = SimpleNamespace(question=SimpleNamespace(reachable=reachable))
    return SimpleNamespace(turn=1, target=target, reachable=reachable, gives_own_answer=True)


def swap(image: int, flipped: bool, fall: float) -> Counterfactual:
    return Counterfactual(image, f"image {image % 3 + 1}", None, None, "blue", fall, flipped, "red", RED.pixels)


def selection(otherwise: float) -> Selection:
    """Asked about image 2, and about image 1, when image 2 has ``otherwise`` for an effect."""

    def ask(image, value):
        falls = (0.0, value, 0.0)
        source = "as asked" if image == 2 else "ordinal edited"
        return AskedQuestion(f"Image {image}?", image, source, "red", 0.9, falls, falls, (), (), "red", ())

    return Selection((ask(2, 8.0), ask(1, otherwise)), 2, (None, 8.0 - otherwise, None), 8.0 - otherwise)


ALL = case_of(1, 2, 3)
VERDICTS = {
    "The answer “red” can't depend on an image: none stands where question 1 can see it.": lambda: judge(case_of(), made_up()).sentence,
    "The mask alone decides: image 2 is the only one that question 1 can see, and without it log p falls by at least 8.00 nats (noise floor 0.10).": lambda: judge(case_of(2), made_up(0.1, 8.0, 0.2)).sentence,
    "The answer “red” depends on image 2: without it log p falls by at least 8.00 nats (Shapley 8.00, the others at most 0.20; noise floor 0.10).": lambda: judge(ALL, made_up(0.1, 8.0, 0.2)).sentence,
    "The answer “red” depends on image 2: without it log p falls by at least 8.00 nats (Shapley 8.00, the others at most 0.20; noise floor 0.10), and the question selects it: asked about another image, its effect is 1.00 nats (contrast at least 7.00).": lambda: judge(ALL, made_up(0.1, 8.0, 0.2), selection(1.0), []).sentence,
    "The answer “red” depends on image 2: without it log p falls by at least 8.00 nats (Shapley 8.00, the others at most 0.20; noise floor 0.10), whatever is asked: with the question about another image its effect is 7.50 nats on the answer then given and 7.50 on this one (contrast 0.50, and 4.00 would show that the question selects it).": lambda: judge(ALL, made_up(0.1, 8.0, 0.2), selection(7.5), []).sentence,
    "No image needed: without any image log p of the answer “red” falls by 0.40 nats, less than the 1.00 that count (noise floor 0.10).": lambda: judge(ALL, made_up(0.1, 0.2, 0.1)).sentence,
    "The answer “red” depends on several images, 1 and 2, and needs them together (interaction 2.00): Shapley values 1: 4.00, 2: 3.90 nats, each at least (noise floor 0.10).": lambda: judge(ALL, made_up(4.0, 3.9, 0.1, interaction=2.0)).sentence,
    "The answer “red” depends on several images, 1 and 2, and any of them does in part for another (interaction −2.00): Shapley values 1: 4.00, 2: 3.90 nats, each at least (noise floor 0.10).": lambda: judge(ALL, made_up(4.0, 3.9, 0.1, interaction=-2.0)).sentence,
    "Cannot tell: the model gives the answer “red” a probability of 0.12 per token, and below 0.2 a fall means little.": lambda: judge(ALL, made_up(0.1, 8.0, 0.2, logprob=math.log(0.12))).sentence,
    "Cannot tell: all images together are worth 2.70 nats, but no image stands out (largest Shapley value 0.90; noise floor 0.10).": lambda: judge(ALL, made_up(0.9, 0.9, 0.9)).sentence,
    "Cannot tell: knockout names image 2 (Shapley 8.00 nats), but replacing it by image 3 neither changes the answer nor lowers log p by more than 0.02.": lambda: judge(ALL, made_up(0.1, 8.0, 0.2), None, [swap(2, False, 0.02)]).sentence,
    "Cannot tell: knockout names image 2 (Shapley 8.00 nats), but replacing image 1 by image 2 changes the answer to “blue” too.": lambda: judge(ALL, made_up(0.1, 8.0, 0.2), None, [swap(2, True, 9.0), swap(1, True, 9.0)]).sentence,
    "Cannot tell by taking images away: without any image log p of the answer “red” falls by 0.40 nats only (noise floor 0.10), for the model would guess the same without them (p 0.61 per token); yet replacing image 3 by image 1 changes the answer to “blue”.": lambda: judge(ALL, made_up(0.1, 0.2, 0.1), None, [swap(3, True, 9.0)]).sentence,
}  # fmt: skip


def passing(*chooser: bool) -> str:
    return tell_address([curve("question", (True, True, False, False, False)), curve("chooser", chooser)])


def routing(**changes) -> str:
    return heads._conclude(made_up_heads(**changes))


STEERED = (heads.Steered(1, "red", "red", True), heads.Steered(2, "red", "blue", False))


def cue(family: str, change: str, after: float | None, before: float | None = 0.97) -> reference_cues.Cue:
    return reference_cues.Cue(family, change, 2, 1, 0.5, ("red",), (0.1, 3.0), before, after)


CUES = [
    cue("ordinal", "edited the ordinal to image 1", 0.03),
    cue("ordinal", "hid the ordinal", 0.5),
    cue("image numbers", "hid the `<image: k>` texts from the question and its answer", 0.90),
    cue("distance", "moved image 2 to the distance of image 1", 0.96),
    cue("length", "put 8 neutral words before the question", None),
    cue("naming", "named image 1 in the question", 0.25),
]


def layout(name: str, answers: tuple[str, ...], leak: float) -> prompt_layouts.LayoutCell:
    matrix = TurnMatrix(((4.0, 0.0), (leak, 4.0)), ((True, True),) * 2, ((True, False), (False, True)))
    return prompt_layouts.LayoutCell(name, False, True, 90, answers, (0.9, 0.9), matrix)


LAYOUT_CELLS = [
    layout("per-turn", ("red", "blue"), 0.0),
    layout("packed", ("red", "red"), 2.0),
    prompt_layouts.LayoutCell("packed", False, False, not_done="None."),
]


def agreement(badge: str, attended: int | None, causal: int | None, reachable: int = 3) -> str:
    found = SimpleNamespace(
        badge=badge,
        attended=attended,
        causal=causal,
        share=0.25,
        total=0.5,
        sinks=(0,),
        lift=2.0,
        shapley=(5.0, 1.0, 0.0),
        correlation=0.5,
        chooser=SimpleNamespace(leaders=(1, 2, 1, 1)),
    )
    return attention_agreement._say(case_of(*range(1, reachable + 1)), found, 1.0)


def edited(pixels: float, cut: float, tokens: int = 4) -> str:
    found = [image_edits.ChangedAnswer("red", False, change, change) for change in (pixels, cut)]
    return image_edits.EditStep(image_edits.ImageEdit(1, "blur", (0, 0, 9, 9)), *found, tokens, None).sentence


ORDERS = [
    image_order.Permuted((1, 2, 3), None, "", "red", 0.9, None),
    image_order.Permuted((2, 1, 3), "blue", "", "blue", 0.9, True),
    image_order.Permuted((3, 2, 1), "red", "", "green", 0.9, False),
    image_order.Permuted((3, 1, 2), None, "", "red", 0.9, None),
]
UNSHOWN = "No routing heads could be shown on this prompt: "
RESULTS = {
    "The states of “a?” in the choosing row alone, put into “b?”, carry the answer to “red” from before layer 2 on (by 1.00 nats there).": lambda: curve("chooser", (False, False, True, True, True)).sentence,
    "The states of “a?” in the choosing row alone, put into “b?”, carry the answer to “red” at no layer.": lambda: curve("chooser", (False,) * 5).sentence,
    "The states of “a?” in the choosing row alone, put into “b?”, carry the answer to “red” from after the last layer on (by 1.00 nats there).": lambda: curve("chooser", (False, False, False, False, True)).sentence,
    "The states of “a?” in the question's rows, put into “b?”, carry the answer to “red” up to before layer 1 (by 1.00 nats there).": lambda: curve("question", (True, True, False, False, False)).sentence,
    "What decides the answer passes from the question's rows to the choosing row in layer 1 (counted from 0).": lambda: passing(False, False, True, True, True),
    "What decides the answer passes from the question's rows to the choosing row in layers 1 to 3 (counted from 0).": lambda: passing(False, False, False, False, True),
    "Before layer 1 either of them holds what decides the answer (layers count from 0).": lambda: passing(False, True, True, True, True),
    "From before layer 0 to before layer 1 either of them holds what decides the answer (layers count from 0).": lambda: passing(*[True] * 5),
    "2 heads have the largest scores, 0.300 on average: layer 0 head 1, layer 1 head 0. Cutting image 1 in them lowers log p by at least 2.00 nats (25% of the 8.00 nats that all heads together cost), more than in 20 of 20 random draws of as many heads of the same layers (95% of these lower it by at most 1.00; noise floor 0.50, and 1.00 nats count).": lambda: routing(possible=300),
    "No routing heads could be shown on this prompt: 2 heads have the largest scores, 0.300 on average: layer 0 head 1, layer 1 head 0. Their layers have 5 other sets of as many heads, and a comparison needs 20.": lambda: routing(random=(1.0,) * 5),
    "2 heads have the largest scores, 0.300 on average: layer 0 head 1, layer 1 head 0. Cutting image 1 in them lowers log p by at least 2.00 nats (25% of the 8.00 nats that all heads together cost), more than in 20 of 20 other sets, all that there are, of as many heads of the same layers (95% of these lower it by at most 1.00; noise floor 0.50, and 1.00 nats count). Shown another image alone in these heads, the model gives that image's answer in 1 of 2 cases.": lambda: routing(steered=STEERED),
    "No routing heads could be shown on this prompt: no head gives an image a larger share when it is asked about than when another one is.": lambda: routing(top=()),
    UNSHOWN + "it is open which image the answer rests on.": lambda: routing(image=None),
    UNSHOWN + "the questions that were tried ask about image 1 alone, and a contrast needs two images.": lambda: routing(scores=None, asked=(1,)),
    "No routing heads could be shown on this prompt: the questions that were tried ask about no image, and a contrast needs two images.": lambda: routing(scores=None, asked=()),
    "Image 2 has a share of 0.97 in the effects of all images. Editing the ordinal to image 1 moved it to 0.03; hiding the `<image: k>` texts from the question and its answer moved it to 0.90; changing the distance left it within 0.05: on this prompt the evidence favours the ordinal in the question. Lower bounds: other paths may compensate. After 1 of the changes all effects together were below 0.1 nats. Naming another image in the question, a cue that this prompt lacks, moved the share to 0.25.": lambda: reference_cues.compare_cues(ALL, CUES),
    "Image 2 has a share of 0.97 in the effects of all images. Hiding the `<image: k>` texts from the question and its answer moved it to 0.90; changing the distance left it within 0.05: on this prompt no cue moved it by 0.20 or more, so the evidence favours none. Lower bounds: other paths may compensate.": lambda: reference_cues.compare_cues(ALL, CUES[2:4]),
    "No image stands out in the answer, so there is no share that a cue could move.": lambda: reference_cues.compare_cues(ALL, [replace(one, share_before=None) for one in CUES]),
    "The question can see no more than one image: the mask decides, and there is no share that a cue could move.": lambda: reference_cues.compare_cues(case_of(1), CUES),
    "Each costs the old answer at least 1 nat: it needs what this edit took away, and it needs those tokens.": lambda: edited(-2.0, -3.0),
    "Only the pixels cost the old answer at least 1 nat: it stands without those tokens, so others hold the same, or what was put in speaks for another answer.": lambda: edited(-2.0, 0.5),
    "Only the tokens cost the old answer at least 1 nat: they hold something that this edit leaves, or that stands elsewhere in the picture.": lambda: edited(0.0, -1.0),
    "Neither costs the old answer 1 nat: it stands without what this edit took away, and without those tokens.": lambda: edited(2.0, -0.9),
    "There is no token to cut: what this edit takes away has none of its own in the row.": lambda: edited(0.0, 0.0, 0),
    "Other orders tried: 3. Predictions that were right: 1 of 2. The answer changed in 2 of them (67%), and was predicted to in 1; a change that was predicted is no fault.": lambda: image_order.summarise_orders(ORDERS).sentence,
    "Other orders tried: 1. Predictions that were right: none was made. The answer changed in 0 of them (0%); a change that was predicted is no fault.": lambda: image_order.summarise_orders([ORDERS[0], ORDERS[3]]).sentence,
    "Turn 1 is answered “red” in every row. Turn 2 is answered “blue” in per-turn; “red” in packed. Share of the effects that is of other turns' images: 0.00 in per-turn, 0.20 in packed.": lambda: " ".join(prompt_layouts.tell_layouts(LAYOUT_CELLS)),
    "None of the layouts fits the model; see what each says.": lambda: prompt_layouts.tell_layouts(LAYOUT_CELLS[2:])[0],
    "There is no other order to try.": lambda: image_order.summarise_orders(ORDERS[:1]).sentence,
    "Question 1 can see no image, so there is no route from one.": lambda: pathways._conclude(case_of(), SimpleNamespace(noise_floor=0.0), None),
    "Attention agrees: the row that chose the answer looks most at image 1 (0.250 of its attention, all images together 0.500, 1 sink left out; lift 2.00), and the interventions name image 1 (Shapley 5.00 nats); image 1 leads in 3 of 4 layers (0, 2, 3); rank correlation with the Shapley values +0.50 over 3 images.": lambda: agreement("agrees", 1, 1),
    "Attention disagrees: the row that chose the answer looks most at image 1 (0.250 of its attention, all images together 0.500, 1 sink left out; lift 2.00), but the interventions name image 2 (Shapley 1.00 nats); image 2 leads in 1 of 4 layers (1); rank correlation with the Shapley values +0.50 over 3 images.": lambda: agreement("disagrees", 1, 2),
    "No effect to compare with: the row that chose the answer looks most at image 1 (0.250 of its attention, all images together 0.500, 1 sink left out; lift 2.00), and no image has a Shapley value of the 1.00 nats that count.": lambda: agreement("no effect to compare with", 1, None),
    "Too few images to tell: the row that chose the answer looks most at image 1 (0.250 of its attention, all images together 0.500, 1 sink left out; lift 2.00), and the question can see no other.": lambda: agreement("too few images to tell", 1, None, 1),
    "Too few images to tell: the question can see none.": lambda: agreement("too few images to tell", None, None, 0),
}  # fmt: skip


def row(*images: OpenedImage, turns=THREE, layout=LAYOUTS[0], masked=False) -> str:
    vlm = load_vlm(ROOT / "tests" / "golden" / "tiny_vlm")
    sample = prepare_row(vlm, Prompt(images, turns, layout))
    structure = read_structure(sample, document_mask=masked, decode=lambda ids: decode(vlm.tokenizer, ids))
    return " ".join(structure_sentences(structure))


ROWS = {
    "This row is text only. There is no image token in the row.": lambda: row(turns=THREE[:1]),
    "This row has one image. One image is in the row. Question 1 can see image 1 alone: the mask decides; from its end to the first token of the question it is 1 position.": lambda: row(RED, turns=THREE[:1]),
    "This row has 2 images, all before the first question. The text `<image: 0>` stands at position 4: nanoVLM numbers images only when one sample has several. All 2 images stand before the first question, as in one sample of nanoVLM. Question 1 can see images 1 and 2; from their ends to its first token it is 13, 1 positions, in this order. Question 2 can see images 1 and 2; from their ends to its first token it is 32, 20 positions, in this order.": lambda: row(RED, RED, turns=THREE[:2]),
    "This row has 2 images, between the questions of one conversation. The text `<image: 0>` stands at position 4: nanoVLM numbers images only when one sample has several. Images stand between questions, which one sample of nanoVLM never has: it puts all of its images before the first question. Question 1 can see image 1 alone: the mask decides; image 2 is after it in the row; from its end to the first token of the question it is 1 position. Question 2 can see images 1 and 2; from their ends to its first token it is 32, 1 positions, in this order.": lambda: row(RED, RED, turns=THREE[:2], layout="per-turn"),
    "This row is 2 packed samples. Position 24 is `<|im_end|>` with attention mask 0 in the middle of the row: a separator between packed samples. Position 50 is `<|im_end|>` with attention mask 0 at the end of the row: a last separator, or padding on the right. There is no `<image: k>` text, which nanoVLM writes as soon as one sample has several images. Images stand between questions, which one sample of nanoVLM never has: it puts all of its images before the first question. Nothing keeps question 2 from reading the samples before it: there is no document mask, and positions run on. Question 1 can see image 1 alone: the mask decides; image 2 is after it in the row; from its end to the first token of the question it is 1 position. Question 2 can see images 1 and 2; from their ends to its first token it is 26, 1 positions, in this order.": lambda: row(RED, RED, turns=THREE[:2], layout="packed"),
    "This row is 2 packed samples. Position 24 is `<|im_end|>` with attention mask 0 in the middle of the row: a separator between packed samples. Position 50 is `<|im_end|>` with attention mask 0 at the end of the row: a last separator, or padding on the right. There is no `<image: k>` text, which nanoVLM writes as soon as one sample has several images. Images stand between questions, which one sample of nanoVLM never has: it puts all of its images before the first question. A document mask keeps question 2 from reading the samples before it. Question 1 can see image 1 alone: the mask decides; image 2 is after it in the row; from its end to the first token of the question it is 1 position. Question 2 can see image 2 alone: the mask decides; image 1 is in another sample, behind the document mask; from its end to the first token of the question it is 1 position.": lambda: row(RED, RED, turns=THREE[:2], layout="packed", masked=True),
}  # fmt: skip


@pytest.mark.parametrize(("sentence", "situation"), [*VERDICTS.items(), *RESULTS.items(), *ROWS.items()])
def test_results(sentence, situation):
    assert situation() == sentence
    assert_sentences(sentence)


# --- errors ---

STAGE = {
    "name": "one",
    "kind": "instruction",
    "steps": 1,
    "learning_rates": {"MP": 1e-3},
    "data": [{"source": "scenes"}],
}
FORM = {"seed": 0, "base": "embedded", "path": "", "source": "auto", **PRESETS["instruction tuning"].values}
FILES = {
    "empty.jsonl": b"",
    "blank.jsonl": b"\n \n",
    "cut.jsonl": b'{"messages": [\n{"messages": 3}',
    "none.jsonl": b"{}\n{}",
    "role.jsonl": b'{"messages": [{"role": "tool", "content": "x"}]}',
    "gone.jsonl": b'{"image": "gone.png", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]}',
    "out.jsonl": b'{"image": "../x.png", "conversations": [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "a"}]}',
    "wide.jsonl": "é".encode("utf-16"),
    "latin.json": b"[\n\n\xe9]",
    "object.json": b"{}",
    "d.csv": b"id,pic\n1,a.png",
    "d.parquet": b"PAR1 not really",
    "both/metadata.csv": b"",
    "both/metadata.jsonl": b"",
    "bad.toml": b"a = ",
    "last.jsonl": b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}',
    "tokens.jsonl": b'{"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "b"}]}',
    "moved.jsonl": b'{"image": "dot.png", "conversations": [{"from": "human", "value": "a <image> b"}, {"from": "gpt", "value": "a"}]}',
    "rated.jsonl": b'{"texts": [{"user": "a", "assistant": "b"}], "relevance_ratings": [1]}\n{"texts": [{"user": "a", "assistant": "b"}]}',
    "dot.png": USABLE["dot.png"],
    "run/run.json": b'{"format": 0}',
    **UNUSABLE,
}


@pytest.fixture(scope="module")
def here(tmp_path_factory) -> Path:
    """A folder of unusable files."""
    folder = tmp_path_factory.mktemp("here")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "pipe.png")
    with (folder / "large.png").open("wb") as file:
        file.truncate((40 << 20) + 1)
    return folder


def read(here: Path, source: str, path: str, **more) -> object:
    return read_source({"source": source, "path": path, **more}, base_folder=here)


def stage(here: Path, **changes) -> object:
    return build_recipe({"stages": [{**STAGE, **changes}]}, here)


def form(**changes) -> object:
    return write_recipe(read_form(**{**FORM, **changes}), "embedded", "a run", public_bounds())


def prompt(*turns: str, images=(), **options) -> Prompt:
    return Prompt(images, tuple(map(Turn, turns)), **options)


ERRORS = {
    "There is no question; write one and press Ask.": lambda here: prompt(),
    "Turn 2 has no question; write one or remove the turn.": lambda here: prompt("x", " "),
    "The layout is 'sideways'; choose one of images-first, per-turn, packed.": lambda here: prompt("x", layout="sideways"),
    "Turn 1 has 100,000 characters of text; at most 20,000 are allowed.": lambda here: prompt("x" * 100_000),
    "There are 99 images; at most 12 fit one prompt, remove some.": lambda here: prompt("x", images=(RED,) * 99),
    "The images have 4 million pixels together; at most 3 million fit one prompt, scale them down or remove some.": lambda here: check_pixels([OpenedImage(Image.new("1", (2000, 2000)))], private_bounds(prompt_pixels=3_000_000)),
    "The temperature is nan; allowed are 0 (greedy) to 5.": lambda here: GenerationSettings(temperature=math.nan),
    "top-p is 1.5; it must be above 0 and at most 1 (off).": lambda here: GenerationSettings(top_p=1.5),
    "The answer may be 0 tokens long; allowed are 1 to 512.": lambda here: GenerationSettings(max_new_tokens=0),
    "The seed is a whole number of 16610 bits; it must be a whole number from 0 to 2⁶⁴ − 1.": lambda here: GenerationSettings(seed=10**5000),
    "“pipe.png” is not a file; choose a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture.": lambda here: open_image(here / "pipe.png"),
    "“large.png” has 40.00 MiB; at most 40 are taken, scale it.": lambda here: open_image(here / "large.png"),
    "“words.png” is not an image that can be opened; choose a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture.": lambda here: open_image(here / "words.png"),
    "“cut.png” is damaged or cut off (image file is truncated); save it again and upload the new file.": lambda here: open_image(here / "cut.png"),
    "“empty.png” is empty (0 bytes); choose a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF picture.": lambda here: open_image(here / "empty.png"),
    "“bomb.png” is too large; at most 89 million pixels are allowed, scale it down first.": lambda here: open_image(here / "bomb.png"),
    "“nowhere.png” can't be read (No such file or directory); choose another file.": lambda here: open_image(here / "nowhere.png"),
    "There is no data source 'webdataset'; allowed are rows, llava, chat, captions, easy-vqa.": lambda here: read(here, "webdataset", "."),
    "The source “chat” needs a path; name the file or folder of its data.": lambda here: read_source({"source": "chat"}, base_folder=here),
    "There is no file or folder “gone”; correct the path of the data.": lambda here: read(here, "chat", "gone"),
    "The source “chat” does not know “limt”; its keys are path, split, limit, on_error, images.": lambda here: read(here, "chat", "x", limt=3),
    "limit of the source “chat” is -1; it must be a whole number from 0 to 10,000,000.": lambda here: read(here, "chat", ".", limit=-1),
    "“words.png” can't be read as data; allowed are .jsonl, .json.": lambda here: read(here, "chat", "words.png"),
    "“empty.jsonl” is empty (0 bytes); choose another file.": lambda here: read(here, "chat", "empty.jsonl"),
    "“blank.jsonl” holds no record; check that it is the right file.": lambda here: read(here, "chat", "blank.jsonl"),
    'cut.jsonl line 1: it is cut off or no valid JSON (expecting value at column 15) (1 more record can\'t be used either); correct the data, or set on_error = "skip" to leave such records out.': lambda here: read(here, "chat", "cut.jsonl"),
    "“none.jsonl” holds no example that can be used (the first: none.jsonl line 1: it has no “messages”; it has nothing).": lambda here: read(here, "chat", "none.jsonl", on_error="skip"),
    "role.jsonl line 1: message 1 has the role 'tool'; allowed are system, user, assistant; correct the data, or set on_error = \"skip\" to leave such records out.": lambda here: read(here, "chat", "role.jsonl"),
    'gone.jsonl line 1: the image “gone.png” is not there; correct the data, or set on_error = "skip" to leave such records out.': lambda here: read(here, "llava", "gone.jsonl"),
    'out.jsonl line 1: the image “../x.png” lies outside the data\'s folder; move it there; correct the data, or set on_error = "skip" to leave such records out.': lambda here: read(here, "llava", "out.jsonl"),
    "“wide.jsonl” is UTF-16 or UTF-32 text; save it as UTF-8.": lambda here: read(here, "chat", "wide.jsonl"),
    "“latin.json” line 3: byte 0xe9 is not UTF-8; save the file as UTF-8.": lambda here: read(here, "llava", "latin.json"),
    "“object.json” does not begin with “[”; it must be a JSON list of records (or use .jsonl).": lambda here: read(here, "llava", "object.json"),
    'd.csv line 2: it has no image column; the usual names are file_name, image, image_path, path, filename, image_name, it has id, pic (set image_column); correct the data, or set on_error = "skip" to leave such records out.': lambda here: read(here, "captions", "d.csv"),
    "“both” has metadata.jsonl and metadata.csv; delete one, or name it as the path.": lambda here: read(here, "captions", "both"),
    "The folder “run” holds no picture (.apng, .avif, .avifs, .bmp, .gif, .jfif, .jpe, .jpeg, .jpg, .mpo, .png, "
    ".tif, .tiff, .webp); choose another.": lambda here: read(here, "captions", "run"),
    "“d.parquet” is on this machine; “subset” is only for data from the hub.": lambda here: read(here, "rows", "d.parquet", subset="x"),
    "The recipe “HERE/none.toml” can't be read (No such file or directory); name a file, or control, embedded, freezing, llava, nanovlm, photo, teach_word, text_tower.": lambda here: read_recipe(here / "none.toml"),
    "The recipe HERE/bad.toml is no valid TOML (Invalid value (at end of document)); correct it.": lambda here: read_recipe(here / "bad.toml"),
    "Stage “one”: steps is 0; it must be a whole number from 1 to 10,000,000.": lambda here: stage(here, steps=0),
    "Stage “one”: learning_rates is empty, so nothing trains; name vision_encoder, MP, decoder.": lambda here: stage(here, learning_rates={}),
    "Stage “one”: learning_rates names “lm”; instruction trains vision_encoder, MP, decoder.": lambda here: stage(here, learning_rates={"lm": 1e-3}),
    "Stage “one” has the unknown key learning_rate; allowed are accumulate, batch_rows, batch_tokens, betas, checkpointing, clip, data, decay, eval_every, eval_examples, final_rate, head, held_out, kind, leak_share, learning_rates, lora_alpha, lora_rank, lora_targets, name, packing, row_tokens, save_every_s, steps, warmup_steps, weight_decay.": lambda here: stage(here, learning_rate=1e-3),
    "Stage “one”: a step has batch_rows × accumulate = 262,144 rows; at most 65,536 are taken, lower one of them.": lambda here: stage(here, batch_rows=4096, accumulate=64),
    "The recipe has no stage; add a [[stages]] table.": lambda here: build_recipe({"stages": []}, here),
    "Steps is 601; it must be a whole number from 1 to 600.": lambda here: form(steps=601),
    "Steps is empty; give a number.": lambda here: form(steps=None),
    "Rows per batch is 'many'; it must be a whole number.": lambda here: form(batch_rows="many"),
    "There are no data “none”; choose one of scenes: one picture, scenes: several pictures, scenes: captions, scenes: captioned tiles, easy-VQA, my file.": lambda here: form(data="none"),
    "Stage is 5; it must be a text of at most 1000 letters.": lambda here: form(kind=5),
    "The model knows “red” already; choose another word, such as “purple” or “star”.": lambda here: read_word_set({"word": "red"}),
    "The word is 'Purple'; give one word of 2 to 20 small letters, such as “purple”.": lambda here: read_word_set({"word": "Purple"}),
    "Nobody knows what “zorp” looks like; give its RGB value, such as 128, 0, 128.": lambda here: read_word_set({"word": "zorp"}),
    "RGB (240, 0, 0) is too near to red (255, 0, 0) to be told apart; choose a colour further away.": lambda here: read_word_set({"word": "crimson", "rgb": [240, 0, 0]}),
    "HERE/run was written by another version (format 0, this one reads 1); start the run anew from its recipe.toml.": lambda here: RunFolder(here / "run").read_run(),
    "“Colour” is 'green'; choose of red, blue.": lambda here: check_value(gr.Radio(["red", "blue"]), "green", "Colour", 100, False),
    "“Size” is 0; it takes a number from 1 to 128.": lambda here: check_value(gr.Number(minimum=1, maximum=128), 0, "Size", 100, False),
    "“Question” is 5; it takes text.": lambda here: check_value(gr.Textbox(), 5, "Question", 100, False),
    "“Question” has 101 characters; at most 100 are taken, shorten it.": lambda here: check_value(gr.Textbox(), "x" * 101, "Question", 100, False),
    "“Mask” is 1; it takes true or false.": lambda here: check_value(gr.Checkbox(), 1, "Mask", 100, False),
}  # fmt: skip


@pytest.mark.parametrize("sentence", ERRORS)
def test_errors(here, sentence):
    with pytest.raises(InputError) as caught:
        ERRORS[sentence](here)
    assert str(caught.value).replace(str(here), "HERE") == sentence
    assert_sentences(sentence)
    assert_advises(sentence)


NOTES = {
    "turned upright by its EXIF tag": lambda here: open_image(USABLE["turned.jpg"]).notes[0],
    "first of 2 frames": lambda here: open_image(USABLE["moving.gif"]).notes[0],
    "last.jsonl line 1: a question without an answer at the end is left out": lambda here: str(read(here, "chat", "last.jsonl").problems[0]),
    "tokens.jsonl line 1: the text holds what some models read as a special token; here it stays plain text": lambda here: str(read(here, "chat", "tokens.jsonl").problems[0]),
    "moved.jsonl line 1: an image in the middle or at the end of its message is moved to the message's front": lambda here: str(read(here, "llava", "moved.jsonl").problems[0]),
    "rated.jsonl line 1: every turn is rated below the thresholds, so it is left out": lambda here: str(read(here, "rows", "rated.jsonl", on_error="skip", relevance_min_rating=3).problems[0]),
}  # fmt: skip


@pytest.mark.parametrize("note", NOTES)
def test_notes_on_data(here, note):
    assert NOTES[note](here) == note


def test_self_checks(embedded):
    case = example_case(embedded, "packed", document_mask=True)
    assert [check.name for check in run_checks(case, measure_dependence(case), measure_matrix(case))] == [
        "an empty knockout, read from the cache = the whole row read at once",
        "Shapley values add up to log p with all images − without any",
        "effects of images that a question can't see",
        "with every image cut, other pixels change nothing",
        "image 3 taken away = its positions deleted from the row, the others kept",
        "image 3 replaced behind the kept prefix = the row read anew with the other picture",
        "padding before the row, which nobody sees, changes nothing",
        "the packed row with a document mask = the sample alone",
    ]


# --- sentences whose situation takes a server, a process or minutes, as they stand in the code ---

WRITTEN = """
{} needs more memory to open than an image may take; scale it down or save it again as PNG or JPEG.
{} takes too long to open; save it again as PNG or JPEG.
{} was not opened in time, the server is busy with other images; try again.
“{}” is no whole parquet file ({}); get it again.
{} takes longer than {} s to read; use fewer or smaller rows.
{} takes more than {} of memory to read; use fewer or smaller rows.
{} pages of your address are kept here; close some of them and wait two minutes.
{} requests are waiting on this server; try again in a minute.
{} requests from your address are waiting; try again in a minute.
{} requests of this page are waiting; wait until some of them are answered.
More than {} of answers to this page wait to be fetched; fetch them and ask again.
Nobody's turn came within {} s, so many are asking; try again in a minute.
Stopped after {} s, which is what this server gives to one such test; ask with fewer or smaller images, or run it from the command line.
Stopped, for something new was asked on this page.
The answer was not taken within {} s; ask again.
The request is larger than {}; send less.
The server's disk is full; try again later, and tell its owner.
“{}” happens in the browser alone; a program can't call it.
“{}” is no file that was uploaded here, or it was too long ago; upload it again.
No turn has an answer yet; press Ask first.
The model is #{} now, and the answer was given by #{}; press Ask again.
There are no tokens yet; ask something first.
There is no batch yet; ask something first.
There is no model of that run here now; press “Use this model” at the run, or {}
There is no verdict yet; press “Which image?” first.
Turn {} has no answer; choose one of {}.
The pointer was not patched: every question of equal length gets the same answer.
The pointer was not patched: there is no question about another image.
The row has no `<image: k>` text to leave out.
The same row as {}.
Turn {} brings {} images: which it is about is not known.
No other image can be named in the question.
No other image is in reach.
The question does not name one image.
The model itself says “{}” to this prompt, not “{}”; whether an answer changes is told against what it says itself.
There is no answer yet; press Ask first.
There is nothing to undo.
There is no edit to undo; draw a rectangle and press Edit first.
There is no edit; draw a rectangle on an image, or write one as “{}”.
There are {} edits; at most {} are taken, undo some.
The rectangle {} has no size; left must be below right and top below bottom, in whole pixels.
The rectangle {} reaches outside image {}, which has {} × {} px; give one within 0,0,{},{}.
“{}” is no way to edit an image; choose one of {}.
Image {} can't be pasted into image {}; choose one of {}.
“{}” names no single image that can be seen, so it is no contrast and is not counted.
The run can't be written ({}); nothing was started.
The run needs more {}; take fewer rows or shorter ones.
The run's time was over and it didn't end within {} s.
The stretch goes from token {} to token {}; the row has the tokens 0 to {}, give the earlier one first.
A stretch needs a first and a last token; fill in both numbers.
There is no {} {}; the model has {}, counted from 0, and −1 is the mean.
There is no attention to tell of yet; ask something first.
The server was ended while this run trained.
There is no run “{}” here; it was removed, or the link is cut off.
This run has no weights yet; wait until it has ended, or stop it and keep what is there.
This run was written by another version of this app; start it anew.
This run's saved state is damaged, so it can't go on; start it anew.
You have a run that isn't over ({}); stop it first, this server gives each person {} at a time.
{} runs are waiting already; try again in a few minutes.
No position of the step has a label, so there is nothing to learn; check the data's answers.
The memory doesn't suffice for stage “{}”{}; {}{}.
The model can't be saved ({}); the one before it is kept.
The {} of stage “{}”; {}. Lower the learning rates.
Another process is training in {}; stop it first.
{} holds a run already; add --resume to go on with it, or name another folder.
"""


def as_text(node: ast.AST) -> str:
    """A string of the code, with {} for what is put in; "" for anything else."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


@cache
def parsed() -> list[tuple[Path, ast.Module]]:
    files = [ROOT / "app.py", *sorted((ROOT / "inspector").rglob("*.py")), *sorted((ROOT / "model").rglob("*.py"))]
    return [(file, ast.parse(file.read_text("utf-8"))) for file in files]


@cache
def written() -> frozenset[str]:
    return frozenset(as_text(node) for _, tree in parsed() for node in ast.walk(tree))


@pytest.mark.parametrize("sentence", WRITTEN.strip().splitlines())
def test_sentences_as_they_are_written(sentence):
    assert sentence in written()


# --- rules ---

NOTHING_TO_DO = ("A run that is {} can't be {}.", "There is no cut to undo.", "The row has no position {}.")


def assert_advises(sentence: str) -> None:
    """It says what to do, what would be right or what is kept, or ends with what is put in and says so itself."""
    assert re.search(r"[;:] |[a-z”)}]\. [A-Z]|must be|, or |, lower |\{\}\)?[.”]*$", sentence), sentence


def test_every_refusal_is_whole_sentences_that_say_what_to_do():
    raised = {
        as_text(node.exc.args[0])
        for _, tree in parsed()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args
        if ast.unparse(node.exc.func).split(".")[-1] in ("InputError", "Refusal", "refuse")
    }
    assert len(raised) > 250
    for sentence in sorted(raised - {"", *NOTHING_TO_DO}):
        assert_sentences(re.sub(r"\{\}$", "X.", sentence).replace("{}", "X"))
        assert_advises(sentence)


def test_explanations_are_two_sentences():
    """What was done, and what it can't show."""
    texts = [
        ast.literal_eval(node.value)
        for _, tree in parsed()
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("ABOUT", "ABOUT_ANSWER", "EXPLANATION")
    ]
    assert len(texts) > 10
    for text in texts:
        assert_sentences(text)
        assert len(re.findall(r"\. [A-Z]", text)) == 1, text
