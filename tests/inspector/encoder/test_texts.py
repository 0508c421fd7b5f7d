"""Images and texts under the contrastive losses, zero-shot labels and phrases: identities, transformers' numbers, and
what can't be used."""

import math

import pytest
import torch

from inspector.encoder.contrast import measure_contrast
from inspector.encoder.inputs import read_images, suggest_phrases
from inspector.encoder.patches import find_phrases
from inspector.encoder.zero_shot import CURVE, classify
from model import InputError, OpenedImage
from model.encoders.opening import encoder_of
from tests import tiny_checkpoints as made
from tests.example_cases import example_prompt
from tests.tiny_encoders import NAMES, build_encoder

TEXTS = ("a red circle", "a blue one", "x")


@pytest.fixture(scope="module")
def tiny_encoders(tmp_path_factory):
    return {name: build_encoder(name, tmp_path_factory.mktemp(name)) for name in NAMES}


@pytest.fixture(scope="module")
def own(embedded):
    encoder = encoder_of(embedded)
    return encoder, read_images(encoder, example_prompt("three").images)


def pictures(count=3):
    return [made.noise(40 + 10 * n, 40, seed=n) for n in range(count)]


def read(one, count=3):
    return read_images(one.ours, [OpenedImage(picture) for picture in pictures(count)])


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_probabilities_are_transformers_own(tiny_encoders, name):
    one = tiny_encoders[name]
    theirs = one.run(pictures(), list(TEXTS))
    found = measure_contrast(one.ours, read(one), TEXTS)
    loss = found.loss if name == "clip" else found.sigmoid_loss
    assert loss == pytest.approx(float(theirs.loss), abs=1e-5)
    logits = theirs.logits_per_image.double()
    torch.testing.assert_close(torch.tensor(found.logits), logits, atol=1e-5, rtol=0, check_dtype=False)
    shares = torch.tensor(found.image_shares)
    torch.testing.assert_close(shares, logits.softmax(dim=1), atol=1e-5, rtol=0, check_dtype=False)
    answers = classify(one.ours, read(one), TEXTS, ("{}",))
    torch.testing.assert_close(torch.tensor(answers.probabilities), shares)
    if name == "clip":
        assert answers.yes is None
    else:
        torch.testing.assert_close(torch.tensor(answers.yes), logits.sigmoid(), atol=1e-5, rtol=0, check_dtype=False)


def test_infonce_is_the_mean_of_what_the_tables_show(own):
    encoder, images = own
    found = measure_contrast(encoder, images, ("a blue circle", "a blue triangle", "a red rectangle"), 0.5)
    rows, columns = found.image_shares, list(zip(*found.text_shares, strict=True))
    assert all(sum(row) == pytest.approx(1) for row in (*rows, *columns))
    assert found.image_losses == pytest.approx([-math.log(row[n]) for n, row in enumerate(rows)])
    assert found.text_losses == pytest.approx([-math.log(column[n]) for n, column in enumerate(columns)])
    assert found.loss == pytest.approx((sum(found.image_losses) + sum(found.text_losses)) / 6)
    assert found.logits[1][0] == pytest.approx(found.cosines[1][0] / 0.5)
    assert found.guessing == pytest.approx(math.log(3))


def test_a_batch_that_is_all_alike_costs_what_guessing_does(own):
    encoder, images = own
    found = measure_contrast(encoder, images, ("a red circle", "a blue triangle", "a yellow rectangle"), 100)
    assert found.loss == pytest.approx(math.log(3), abs=0.02)  # a temperature at which nothing differs


def test_images_that_share_a_caption_share_its_column(own):
    encoder, images = own
    found = measure_contrast(encoder, images, ("a red circle", "a red circle", "a yellow rectangle"))
    assert found.captions == ("a red circle", "a yellow rectangle")
    assert found.text_of_image == (0, 0, 1)
    column = [row[0] for row in found.text_shares]
    assert found.text_losses[0] == pytest.approx(-(math.log(column[0]) + math.log(column[1])) / 2)
    assert len(found.notes) == 1


def test_more_captions_than_images_are_wrong_answers(own):
    encoder, images = own
    three = ("a red circle", "a blue triangle", "a yellow rectangle")
    alone, beside = (measure_contrast(encoder, images, (*three, *more)) for more in ((), ("a green circle",)))
    assert beside.text_losses[3] is None
    assert beside.text_to_image == pytest.approx(alone.text_to_image)
    assert beside.image_to_text >= alone.image_to_text


def test_one_image_and_one_caption_cost_nothing(embedded):
    encoder = encoder_of(embedded)
    images = read_images(encoder, example_prompt("single").images)
    found = measure_contrast(encoder, images, ("anything",))
    assert found.loss == 0
    assert "is 0 whatever they show" in found.notes[0]


@pytest.mark.parametrize(
    ("captions", "sentence"),
    [
        ((), "no caption for 3 images"),
        (("a", "b"), "2 captions for 3 images"),
        (("a", " ", "b"), "must be a text"),
        (("a", "b", "c" * 10_240), "10,240 characters"),
        (("a",) * 65, "at most 64"),
        (("a", "b", "\ud800"), "half a character"),
    ],
)
def test_captions_that_cannot_be_used(own, captions, sentence):
    with pytest.raises(InputError, match=sentence):
        measure_contrast(*own, captions)


@pytest.mark.parametrize("temperature", [0, -1, float("nan"), 1e9, "0.1"])
def test_temperatures_that_cannot_divide(own, temperature):
    with pytest.raises(InputError, match="temperature"):
        measure_contrast(*own, TEXTS, temperature)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ((), "no label"),
        (("red",), "one label"),
        (("red", "blue", "red"), "twice"),
        (("red", "b" * 10_240), "10,240 characters"),
        (tuple(map(str, range(49))), "at most 48"),
    ],
)
def test_labels_that_cannot_be_used(own, labels, sentence):
    with pytest.raises(InputError, match=sentence):
        classify(*own, labels, ("a {}",))


@pytest.mark.parametrize("templates", [(), ("a label",), ("{} and {}",), ("{x}",), ("{} {",)])
def test_templates_that_have_no_place(own, templates):
    with pytest.raises(InputError, match=r"\{\}"):
        classify(*own, ("red", "blue"), templates)


def test_zero_shot_names_the_colour_and_warmth_evens_it_out(own):
    found = classify(*own, ("red", "yellow", "green", "blue"), ("a {}", "a {} circle"))
    best = [max(range(4), key=row.__getitem__) for row in found.probabilities]
    assert [found.labels[n] for n in best] == ["red", "blue", "yellow"]
    for image, label in enumerate(best):
        shares = [at[image][label] for at in found.curve]
        assert shares == sorted(shares, reverse=True)
    assert len(found.curve) == len(CURVE)


def test_templates_are_averaged_as_vectors(own):
    encoder, images = own
    texts = [encoder.encode_texts([f"a {label}" for label in ("red", "blue")]) for _ in range(1)]
    texts.append(encoder.encode_texts([f"a {label} circle" for label in ("red", "blue")]))
    mean = torch.nn.functional.normalize(sum(texts), dim=-1)
    found = classify(encoder, images, ("red", "blue"), ("a {}", "a {} circle"))
    expected = torch.stack([image.embedding for image in images.encoded]) @ mean.T
    torch.testing.assert_close(torch.tensor(found.cosines), expected, check_dtype=False, atol=1e-6, rtol=0)


def test_a_phrase_lights_up_in_its_own_image(own):
    found = find_phrases(*own, ("red circle", "blue triangle", "yellow rectangle"))
    best = [max(range(3), key=lambda n: max(maps[n].cosines)) for maps in found.maps]
    assert best == [0, 1, 2]
    with pytest.raises(InputError, match="no phrase"):
        find_phrases(*own, ())


def test_phrases_are_what_captions_name():
    captions = ("a red circle and a blue triangle", "An apple, the dog and sand.", "a red circle")
    assert suggest_phrases(captions) == ("red circle", "blue triangle", "An apple", "dog", "sand")


def test_without_images_or_a_tower_it_is_said_what_is_left(embedded, tiny):
    with pytest.raises(InputError, match="no image"):
        read_images(encoder_of(embedded), ())
    vlm = tiny("llava").vlm
    encoder = encoder_of(vlm)
    images = read_images(encoder, [OpenedImage(made.noise(40, 40))])
    for ask in (
        lambda: measure_contrast(encoder, images, ("a",)),
        lambda: classify(encoder, images, ("a", "b"), ("{}",)),
        lambda: find_phrases(encoder, images, ("a",)),
    ):
        with pytest.raises(InputError, match="what is left: patches compared with patches"):
            ask()
