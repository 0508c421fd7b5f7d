"""Images replaced behind the kept prefix: the same as reading the changed prompt anew; pictures encoded once."""

import numpy as np
import pytest
import torch

from inspector.interventions.image_exchange import ImageExchanges
from inspector.row.feature_store import FEATURES
from inspector.row.prompt import prepare_row
from model import OpenedImage
from model.image import process_image
from model.training.synthetic.scenes import SINGLE_TILE, draw, random_scene
from tests.example_cases import example_case


@pytest.fixture(scope="module", params=["three", "per-turn", "tiles", "packed"])
def case(embedded, request):
    return example_case(embedded, request.param)


def read_anew(case, pictures):
    """log p of the answer to the prompt with processed pictures (by image number) in place, from its pixels on."""
    replaced = {number - 1: picture for number, picture in pictures.items()}
    row = prepare_row(case.vlm, case.prompt, replaced=replaced)
    assert tuple(row.input_ids.tolist()) == case.prefix_cache.ids
    batch = case.vlm.collate([row], document_mask=case.prefix_cache.document_mask)
    with torch.no_grad():
        logprobs = case.vlm(batch)[0].log_softmax(dim=-1)
    return sum(logprobs[p - 1, case.prefix_cache.ids[p]].item() for p in range(*case.target.scored))


def test_replaced_is_read_anew(case):
    """Every set of images, other pictures in their places, pixels and all."""
    exchanges = ImageExchanges(case)
    target = case.target
    ids = case.prefix_cache.ids[target.start : target.scored[1]]
    pictures, features = {}, {}
    for image in case.reachable:
        size = case.prompt.images[image.number - 1].size
        picture = draw(random_scene(np.random.default_rng(image.number), SINGLE_TILE, 1)).resize(size)
        pictures[image.number] = process_image(OpenedImage(picture), case.vlm.config)
        features[image.number] = exchanges.fit(image, OpenedImage(picture), "another").features
    for chosen in range(1, 2 ** len(case.reachable)):
        numbers = [image.number for n, image in enumerate(case.reachable) if chosen >> n & 1]
        one = {number: features[number] for number in numbers}
        (outcome,) = case.prefix_cache.run([exchanges.of_ending(one, target, ids, target.scored)])
        assert outcome.logprob == pytest.approx(read_anew(case, {k: pictures[k] for k in numbers}), abs=1e-4)


def test_nothing_replaced_is_the_row(case):
    exchanges = ImageExchanges(case)
    target = case.target
    ids = case.prefix_cache.ids[target.start : target.scored[1]]
    ending, base = exchanges.of_ending({}, target, ids, target.scored), case.base
    one, other = case.prefix_cache.run([ending, base])
    assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
    assert torch.equal(exchanges.embed_replaced({}), case.prefix_cache.embeds)


def test_pictures_are_encoded_once_and_the_prompt_s_own_never(embedded):
    case = example_case(embedded, "three")
    exchanges = ImageExchanges(case)
    before = FEATURES.counts()
    first = [exchanges.partners(image, 2) for image in case.reachable]
    asked = FEATURES.counts()
    again = [exchanges.partners(image, 2) for image in case.reachable]
    # Three drawn pictures; the prompt's own are in the row.
    assert asked.encoded + asked.found - before.encoded - before.found == 3
    assert FEATURES.counts() == asked
    assert [[one.number for one in some] for some in first] == [[2, None], [3, None], [1, None]]
    for some, other in zip(first, again, strict=True):
        assert all(one is two for one, two in zip(some, other, strict=True))
    names = [some[1].name for some in first]
    assert len(set(names)) == 3
    assert not any("yellow" in name for name in names)  # the answer


def test_the_same_picture_twice_is_no_exchange(embedded):
    case = example_case(embedded, "two")
    picture = case.prompt.images[0]
    twice = example_case(embedded, "two", images=(picture, picture))
    exchanges = ImageExchanges(twice)
    assert [one.number for one in exchanges.partners(twice.reachable[0], 2)] == [None, None]
