"""Routes from an image to the answer: they part all edges among them, and the cache gives what whole rows give."""

import json

import pytest

from inspector.experiments.pathways import PARTS, Routes, disjoint_windows, measure_routes, sliding_windows
from inspector.interventions.image_ablation import ImageAblations
from inspector.interventions.target import image_keys
from inspector.which_image.image_effects import measure_dependence
from model import Cut
from model.training.fresh import new_vlm
from tests.example_cases import example_case, whole_row

INTO_QUESTION = {"image → last", "image → question", "marks → question", "earlier turns → question", "question → last"}


@pytest.fixture(scope="module", params=["three", "two", "per-turn", "packed", "packed, document mask"])
def case(embedded, request):
    name, _, mask = request.param.partition(", ")
    return example_case(embedded, name, **({"document_mask": True} if mask else {}))


@pytest.fixture(scope="module")
def found(case) -> Routes:
    return list(measure_routes(case, 0.0))[-1]


def behind(case, image):
    return range(image.stop, case.target.scored[1])


def test_windows_are_a_quarter_of_the_layers_and_cover_all_of_them():
    assert sliding_windows(4) == ((0, 1), (1, 2), (2, 3), (3, 4))
    assert sliding_windows(1) == disjoint_windows(1) == ((0, 1),)
    assert sliding_windows(30) == tuple((n, n + 8) for n in range(0, 24, 2))
    assert sliding_windows(32)[0] == (0, 8)
    assert sliding_windows(32)[-1] == (24, 32)
    assert sliding_windows(18)[-2:] == ((13, 17), (14, 18))
    assert disjoint_windows(30) == ((0, 8), (8, 16), (16, 24), (24, 30))
    assert disjoint_windows(32) == ((0, 8), (8, 16), (16, 24), (24, 32))


def test_everything_is_the_image_taken_away_and_the_whole_row_cut(case, found):
    ablations = ImageAblations(case)
    before = whole_row(case)
    for image in case.reachable:
        route = found.find("image → everything", image.number)
        (removed,) = case.prefix_cache.run([ablations.of_answer(frozenset({image.number}))])
        assert route.whole == pytest.approx(before - removed.logprob, abs=1e-4)
        cut = Cut(behind(case, image), image_keys(image))
        assert route.whole == pytest.approx(before - whole_row(case, [cut]), abs=1e-4)
        assert (route.queries, route.keys) == (len(behind(case, image)), len(image_keys(image)))


def test_every_window_of_every_route_is_a_whole_row_with_these_layers_cut(case, found):
    before = whole_row(case)
    for image in case.reachable:
        rows = {
            "image → last": case.target.last_rows,
            "image → question": case.target.question_rows,
            "image → everything": behind(case, image),
        }
        for edges, queries in rows.items():
            route = found.find(edges, image.number)
            for (start, stop), effect in zip(route.windows, route.effects, strict=True):
                cut = Cut(queries, image_keys(image), layers=frozenset(range(start, stop)))
                assert effect == pytest.approx(before - whole_row(case, [cut]), abs=1e-4)


def test_the_parts_share_no_edge_and_make_up_everything(case, found):
    for image in case.reachable:
        total = found.find("image → everything", image.number)
        parts = [route for edges in PARTS if (route := found.find(edges, image.number)) is not None]
        assert {route.keys for route in parts} == {total.keys}
        assert sum(route.queries for route in parts) == total.queries
        assert [kept.edges for kept in total.kept] == [route.edges for route in parts]
    assert found.find("question → last").keys == len(case.target.question_rows)


def test_what_a_route_keeps_is_the_row_with_all_other_edges_of_the_image_cut(case, found):
    for image in case.reachable:
        total = found.find("image → everything", image.number)
        kept = {kept.edges: kept.nats for kept in total.kept}
        others = [p for p in behind(case, image) if p not in case.target.last_rows]
        alone = whole_row(case, [Cut(others, image_keys(image))])
        removed = whole_row(case, [Cut(behind(case, image), image_keys(image))])
        assert kept["image → last"] == pytest.approx(alone - removed, abs=1e-4)


def test_routes_of_the_row_between_image_and_question(embedded):
    case = example_case(embedded, "per-turn")
    found = list(measure_routes(case, 0.0))[-1]
    first, _, last = case.structure.images
    later = [p for other in case.structure.images[1:] for p in range(other.start, other.stop)]
    turns = [p for p in range(first.stop, case.target.start) if p not in later]
    before = whole_row(case)
    for edges, rows in (("image → later images", later), ("image → earlier turns", turns)):
        route = found.find(edges, 1)
        assert route.whole == pytest.approx(before - whole_row(case, [Cut(rows, image_keys(first))]), abs=1e-4)
        assert route.queries == len(rows)
        assert found.find(edges, last.number) is None


def test_marks_and_earlier_turns(embedded):
    case = example_case(embedded, "per-turn")
    found = list(measure_routes(case, 0.0))[-1]
    asked = range(case.target.question.start, case.target.scored[1])
    turns = [p for q in case.structure.questions[:2] for run in ((q.start, q.stop), q.answer) for p in range(*run)]
    before = whole_row(case)
    cut = whole_row(case, [Cut(case.target.queries, turns)])
    assert found.find("earlier turns → question").whole == pytest.approx(before - cut, abs=1e-4)
    image = case.structure.images[1]
    own = (*range(*image.ordinal), *image.marks)
    cut = whole_row(case, [Cut(asked, own)])
    assert found.find("marks → question", 2).whole == pytest.approx(before - cut, abs=1e-4)
    written = set(range(case.target.question.start)) - {p for i in case.structure.images for p in i.tokens} - set(turns)
    assert found.find("marks → question").keys == len(written) - 1  # the row's first position stays


def test_a_first_turn_has_no_earlier_turns(embedded):
    found = list(measure_routes(example_case(embedded, "three"), 0.0))[-1]
    assert found.find("earlier turns → question") is None


def test_one_set_and_image_at_a_time_cheap_ones_first(embedded):
    steps = list(measure_routes(example_case(embedded, "three"), 0.0))
    assert [len(step.routes) for step in steps] == [*range(1, 17), 16]
    assert {step.planned for step in steps} == {16}
    assert [step.sentence == "" for step in steps] == [True] * 16 + [False]
    cheap = [route.edges in INTO_QUESTION for route in steps[-1].routes]
    assert cheap == sorted(cheap, reverse=True)
    assert [(r.edges, r.image) for r in steps[-1].routes[:3]] == [("image → last", number) for number in (1, 2, 3)]


def test_out_of_reach_images_have_no_route(embedded):
    case = example_case(embedded, "packed", document_mask=True)
    found = list(measure_routes(case, 0.0))[-1]
    assert {route.image for route in found.routes} == {3, None}
    early = list(measure_routes(example_case(embedded, "per-turn", turn=1), 0.0))[-1]
    assert {route.image for route in early.routes} == {1, None}


def test_the_sentence_names_the_narrowest_run_of_layers(embedded):
    case = example_case(embedded, "three")
    found = list(measure_routes(case, measure_dependence(case).noise_floor))[-1]
    narrowest = found.narrowest
    assert narrowest.image == 3
    assert narrowest.share >= 0.5
    assert narrowest.whole == found.find("image → everything", 3).whole
    assert 1 <= narrowest.layers[1] - narrowest.layers[0] <= 4
    assert f"at least {narrowest.effect:.2f} nats" in found.sentence
    assert found.sentence.startswith("Image 3: cutting ")
    cut = Cut(
        behind(case, case.structure.images[2]),
        image_keys(case.structure.images[2]),
        layers=frozenset(range(*narrowest.layers)),
    )
    if narrowest.edges == "image → everything":
        assert narrowest.effect == pytest.approx(whole_row(case) - whole_row(case, [cut]), abs=1e-4)
    described = json.loads(json.dumps(found.to_json()))
    assert described["narrowest"]["layers"] == list(narrowest.layers)
    assert set(described["routes"][-1]["kept"]) == {"image → question", "image → last"}


def test_under_the_noise_floor_no_route_is_named(embedded):
    found = list(measure_routes(example_case(embedded, "three"), 50.0))[-1]
    assert found.narrowest is None
    assert "50.00 nats" in found.sentence
    assert "image 3" in found.sentence


def test_without_an_image_there_is_no_route_of_one(embedded):
    found = list(measure_routes(example_case(embedded, "three", images=()), 0.0))[-1]
    assert {route.image for route in found.routes} == {None}
    assert found.narrowest is None


def test_random_weights_have_no_route():
    """A model that has learnt nothing; its answer is as long as it may be."""
    case = example_case(new_vlm(0), "two")
    found = list(measure_routes(case, 0.0))[-1]
    assert len([route for route in found.routes if route.edges == "image → everything"]) == 2
    assert found.narrowest is None
