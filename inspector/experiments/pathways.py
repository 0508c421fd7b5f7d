"""Which way an image reaches the answer: edges of one kind cut in some layers, and how far log p falls.

Attention knockout by edge set and window of layers (Geva et al. 2023, arXiv 2304.14767; for images and text, Zhang et
al. 2024, arXiv 2411.18620). An effect is log p of the answer uncut less cut, in nats: at least that much went this way.
It can't show what a route could carry by itself, because what one loses another may bring: beside the cuts stands what
each route keeps when all others of its image are closed.

Routes into the question and the answer compute these few positions again and have windows of a quarter of the layers,
a sixteenth apart. Routes into what stands before the question compute everything behind the image again, a whole pass
for each window on a long row, so their windows don't overlap.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from inspector.interventions.target import Case, image_keys
from inspector.row.layout import ImageBlock
from inspector.row.numbers import say
from inspector.which_image.image_effects import STRONG
from model import Cut

EXPLANATION = (
    "The model reads in layers, and in each layer a word or an image can look at what stands before it; here one kind "
    "of look, say from the question at image 2, is forbidden in some layers, and the figure is by how much the answer "
    "then becomes less likely. "
    "It shows which ways were in use and not how much each could carry: when one is closed another may step in, so a "
    "small number does not prove that a way is unused."
)

Layers = tuple[int, int]
"""A half-open run of layers (start, stop), from 0."""

Edges = Literal[
    "image → last",
    "image → question",
    "image → later images",
    "image → earlier turns",
    "image → everything",
    "marks → question",
    "earlier turns → question",
    "question → last",
]
PARTS: tuple[Edges, ...] = ("image → question", "image → last", "image → later images", "image → earlier turns")
"""No two of these share an edge, and together they are all edges that leave an image: “image → everything”."""

HALF = 0.5


@dataclass(frozen=True)
class PathwayShare:
    """``nats`` of the answer's log p that an image keeps with the route ``edges`` alone left open, above the image cut
    everywhere."""

    edges: Edges
    nats: float


@dataclass(frozen=True)
class Route:
    """One edge set, of one image (from 1) or of none in particular.

    ``effects``: falls of log p in nats, one for each of ``windows``; ``whole``: cut in all layers. ``queries`` and
    ``keys`` count the positions on either side. ``kept`` is there for “image → everything” only: what each part of it
    does alone.
    """

    edges: Edges
    image: int | None
    windows: tuple[Layers, ...]
    effects: tuple[float, ...]
    whole: float
    queries: int
    keys: int
    kept: tuple[PathwayShare, ...] = ()


@dataclass(frozen=True)
class Narrowest:
    """The smallest run of layers whose cut costs at least half of what image ``image`` is worth when it is cut
    everywhere (``whole``, nats); ``share`` is effect / whole."""

    edges: Edges
    image: int
    layers: Layers
    effect: float
    whole: float

    @property
    def share(self) -> float:
        return self.effect / self.whole


@dataclass(frozen=True)
class Routes:
    """What is measured so far: ``routes`` grows to ``planned`` of them. ``sentence`` is empty until all are there;
    ``narrowest`` is None if nothing counts. ``layers``: of the model. ``noise_floor``: nats, of the dependence."""

    layers: int
    noise_floor: float
    routes: tuple[Route, ...]
    planned: int
    narrowest: Narrowest | None = None
    sentence: str = ""

    def find(self, edges: Edges, image: int | None = None) -> Route | None:
        """The route if it is measured and has any edges on this prompt."""
        return next((route for route in self.routes if (route.edges, route.image) == (edges, image)), None)

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": self.layers,
            "noise_floor": self.noise_floor,
            "routes": [
                asdict(route) | {"kept": {kept.edges: kept.nats for kept in route.kept}} for route in self.routes
            ],
            "narrowest": None if self.narrowest is None else asdict(self.narrowest) | {"share": self.narrowest.share},
            "sentence": self.sentence,
        }


@dataclass(frozen=True)
class _Plan:
    """``start``: the first position that has to be computed again. ``parts``: the cuts that make up the edges, by the
    set that each belongs to."""

    edges: Edges
    image: int | None
    start: int
    cut: Cut
    windows: tuple[Layers, ...]
    parts: tuple[tuple[Edges, Cut], ...] = ()


def sliding_windows(layers: int) -> tuple[Layers, ...]:
    """A quarter of the layers wide, a sixteenth apart, each at least 1; the last ends at the last layer."""
    width, stride = max(1, round(layers / 4)), max(1, round(layers / 16))
    starts = list(range(0, layers - width + 1, stride))
    if starts[-1] != layers - width:
        starts.append(layers - width)
    return tuple((start, start + width) for start in starts)


def disjoint_windows(layers: int) -> tuple[Layers, ...]:
    """A quarter of the layers wide, side by side; the last may be narrower."""
    width = max(1, round(layers / 4))
    return tuple((start, min(start + width, layers)) for start in range(0, layers, width))


def measure_routes(case: Case, noise_floor: float) -> Iterator[Routes]:
    """Yields after every edge set and image, and once more with the sentence. Images out of reach have no routes, and
    a set without edges on this prompt (nothing before the question, no later image) is left out."""
    layers = case.vlm.n_layers
    plans = tuple(_plan(case))
    found = Routes(layers, noise_floor, (), len(plans))
    for plan in plans:
        found = replace(found, routes=(*found.routes, _measure(case, plan)))
        yield found
    narrowest = _narrow(case, found, plans)
    yield replace(found, narrowest=narrowest, sentence=_conclude(case, found, narrowest))


def _plan(case: Case) -> Iterator[_Plan]:
    """Cheap sets first. Those without an edge are left out."""
    for plan in _all_plans(case):
        if plan.cut.queries and plan.cut.keys:
            yield plan


def _all_plans(case: Case) -> Iterator[_Plan]:
    structure, target, seen = case.structure, case.target, case.reachable
    layers = case.vlm.n_layers
    sliding, apart = sliding_windows(layers), disjoint_windows(layers)
    question, last = target.question_rows, target.last_rows
    into_question: tuple[tuple[Edges, range], ...] = (("image → last", last), ("image → question", question))
    for edges, rows in into_question:
        for image in seen:
            yield _Plan(edges, image.number, target.start, Cut(rows, image_keys(image)), sliding)
    yield _Plan("question → last", None, target.start, Cut(last, question), sliding)
    asked = range(target.question.start, target.scored[1])
    for image in seen:
        own = (*image.marks, *range(*(image.ordinal or (0, 0))))
        yield _Plan("marks → question", image.number, target.start, Cut(asked, own), sliding)
    yield _Plan("marks → question", None, target.start, Cut(asked, _marks(case)), sliding)
    earlier = [
        p
        for turn in structure.questions
        if turn.number < target.question.number
        for run in ((turn.start, turn.stop), turn.answer)
        for p in range(*run)
    ]
    earlier = _of_sample(case, earlier, target.start)
    yield _Plan("earlier turns → question", None, target.start, Cut(target.queries, earlier), sliding)
    for image in seen:
        later, turns = _between(case, image)
        keys = image_keys(image)
        if later:
            yield _Plan("image → later images", image.number, later[0], Cut(later, keys), apart)
        if turns:
            yield _Plan("image → earlier turns", image.number, turns[0], Cut(turns, keys), apart)
    for image in seen:
        later, turns = _between(case, image)
        keys = image_keys(image)
        rows_of: dict[Edges, Sequence[int]] = {
            "image → question": question,
            "image → last": last,
            "image → later images": later,
            "image → earlier turns": turns,
        }
        parts = tuple((edges, Cut(rows, keys)) for edges, rows in rows_of.items() if rows)
        behind = range(image.stop, target.scored[1])
        yield _Plan("image → everything", image.number, image.stop, Cut(behind, keys), apart, parts)


def _marks(case: Case) -> tuple[int, ...]:
    """Everything before the question's text that is written to set things apart: ``<image: k>``, region marks,
    separators, role and special marks. The row's first position is left out: in most models it soaks up attention that
    has nowhere to go, and cutting it breaks the model instead of closing a route."""
    structure, stop = case.structure, case.target.question.start
    first = structure.padding[-1][1] if structure.padding else 0
    found = set(structure.separators)
    for image in structure.images:
        found |= {*image.marks, *range(*(image.ordinal or (0, 0)))}
    for mark in structure.marks:
        found |= set(range(mark.start, mark.stop))
    return tuple(_of_sample(case, sorted(p for p in found if first < p < stop), stop))


def _of_sample(case: Case, positions: Sequence[int], position: int) -> list[int]:
    """Those that no document mask parts from ``position``."""
    segments = case.prefix_cache.row.segment_ids
    apart = case.structure.document_mask
    return [p for p in positions if not apart or segments[p] == segments[position]]


def _between(case: Case, image: ImageBlock) -> tuple[list[int], list[int]]:
    """What stands between an image and the question: blocks of later images, and everything else."""
    behind = _of_sample(case, range(image.stop, case.target.start), image.start)
    later = {p for other in case.structure.images for p in range(other.start, other.stop)}
    return [p for p in behind if p in later], [p for p in behind if p not in later]


def _measure(case: Case, plan: _Plan) -> Route:
    everywhere = _falls(case, plan, [(0, case.vlm.n_layers), *plan.windows])
    kept: tuple[PathwayShare, ...] = ()
    if plan.parts:
        base = case.prefix_cache.continuation(plan.start, case.target.scored, stop=case.target.scored[1])
        open_ = [base.cutting(*(cut for other, cut in plan.parts if other != edges)) for edges, _ in plan.parts]
        before, *after = case.prefix_cache.run([base, *open_])
        kept = tuple(
            PathwayShare(edges, everywhere[0] - (before.logprob - outcome.logprob))
            for (edges, _), outcome in zip(plan.parts, after, strict=True)
        )
    return Route(
        plan.edges,
        plan.image,
        plan.windows,
        everywhere[1:],
        everywhere[0],
        len(plan.cut.queries),
        len(plan.cut.keys),
        kept,
    )


def _falls(case: Case, plan: _Plan, windows: Sequence[Layers]) -> tuple[float, ...]:
    """Of log p, nats, for the plan's edges cut in each of the windows. The uncut twin is computed from the same
    position on, so that both round alike."""
    base = case.prefix_cache.continuation(plan.start, case.target.scored, stop=case.target.scored[1])
    cuts = [replace(plan.cut, layers=frozenset(range(*window))) for window in windows]
    before, *after = case.prefix_cache.run([base, *(base.cutting(cut) for cut in cuts)])
    return tuple(before.logprob - outcome.logprob for outcome in after)


def _leading(found: Routes) -> Route | None:
    """“image → everything” of the image that costs most, if that counts."""
    bar = max(found.noise_floor, STRONG)
    totals = [route for route in found.routes if route.edges == "image → everything" and route.whole >= bar]
    return max(totals, key=lambda route: route.whole, default=None)


def _narrow(case: Case, found: Routes, plans: Sequence[_Plan]) -> Narrowest | None:
    """Half of the effect of all layers together, not of the windows' sum: where layers stand in for one another each
    window alone costs little, and a sum of little says nothing.

    A single route is named before all of an image's edges, a narrow run of layers before a wide one, and among equals
    the one that costs more. Runs of several windows are measured only if no window will do."""
    total = _leading(found)
    if total is None or total.image is None:
        return None
    whole, image = total.whole, total.image
    parts = [route for edges in PARTS if (route := found.find(edges, image)) is not None]
    wide = [route for route in parts if route.whole >= HALF * whole]
    for routes, runs in ((parts, False), (wide, True), ([total], False), ([total], True)):
        holding = [
            (route, layers, effect)
            for route in routes
            for layers, effect in _effects(case, route, plans, found.layers if runs else None)
            if effect >= HALF * whole
        ]
        if holding:
            route, layers, effect = min(holding, key=lambda one: (one[1][1] - one[1][0], -one[2]))
            return Narrowest(route.edges, image, layers, effect, whole)
    return None


def _effects(case: Case, route: Route, plans: Sequence[_Plan], layers: int | None) -> list[tuple[Layers, float]]:
    """Of the windows; or, where the model's number of ``layers`` is given, of runs of them and of all layers."""
    if layers is None:
        return list(zip(route.windows, route.effects, strict=True))
    plan = next(plan for plan in plans if (plan.edges, plan.image) == (route.edges, route.image))
    runs = _runs(layers)
    return [*zip(runs, _falls(case, plan, runs), strict=True), ((0, layers), route.whole)]


def _runs(layers: int) -> list[Layers]:
    """Two, then three neighbouring windows, but not all layers."""
    windows = disjoint_windows(layers)
    runs = [(windows[n][0], windows[n + size - 1][1]) for size in (2, 3) for n in range(len(windows) - size + 1)]
    return [run for run in runs if run != (0, layers)]


# --- in words ---


def _conclude(case: Case, found: Routes, narrowest: Narrowest | None) -> str:
    floor = f"noise floor {say(found.noise_floor)}"
    bar = max(found.noise_floor, STRONG)
    if not case.reachable:
        return f"Question {case.turn} can see no image, so there is no route from one."
    total = _leading(found)
    if total is None or narrowest is None:
        largest = max(found.routes, key=lambda route: route.whole if route.image else float("-inf"))
        return (
            f"No image has an effect of the {say(bar)} nats that count, cut everywhere in all layers ({floor}; the "
            f"largest of any route is {largest.edges} of image {largest.image}, {say(largest.whole)} nats), so "
            "there is no route to name."
        )
    k = narrowest.image
    routes = [(edges, route) for edges in PARTS if (route := found.find(edges, k)) is not None]
    layers = _name_layers(narrowest.layers, found.layers)
    wide = narrowest.layers not in total.windows and narrowest.layers not in sliding_windows(found.layers)
    single = narrowest.edges != "image → everything"
    what = f"cutting {narrowest.edges}" if single else "cutting every edge that leaves it"
    first = (
        f"Image {k}: {what} in {layers} lowers log p by at least {say(narrowest.effect)} nats, "
        f"against {say(narrowest.whole)} nats when that is cut everywhere and in all layers "
        f"({narrowest.share:.0%} of it; {floor})"
        + ("; nothing narrower that was measured holds half." if wide else ".")
    )
    alone = {kept.edges: kept.nats for kept in total.kept}
    numbers = "; ".join(
        f"{edges} {say(route.whole)} (left as the only way, {say(alone[edges])} nats of the answer stay)"
        for edges, route in routes
    )
    able = [edges for edges, _ in routes if alone[edges] >= HALF * narrowest.whole]
    second = f" Cut in all layers, in nats: {numbers}."
    if single:
        return first + second
    if len(able) > 1:
        second += f" So no single route is needed, and any of these will do: {', '.join(able)}."
    elif not able:
        second += " So no single route holds half and none suffices alone: they work together."
    else:
        second += f" So no single route is needed, and {able[0]} suffices."
    return first + second


def _name_layers(layers: Layers, count: int) -> str:
    if layers == (0, count):
        return f"all {count} layers"
    if layers[1] - layers[0] == 1:
        return f"layer {layers[0]} alone"
    return f"layers {layers[0]} to {layers[1] - 1}"
