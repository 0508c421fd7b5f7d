"""The page on models of other families, as a program drives it."""

from pathlib import Path

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError

from app import build_demo, open_models
from inspector.ui import launch_options
from tests import tiny_checkpoints as made

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def url(tiny):
    demo = build_demo(open_models([str(tiny(name).folder) for name in ("idefics3", "llava")]))
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **launch_options())
    yield url
    demo.close()


@pytest.fixture
def pictures(tmp_path: Path) -> list[str]:
    paths = []
    for number, size in enumerate([(120, 80), (60, 60)], start=1):
        paths.append(str(tmp_path / f"{number}.png"))
        made.noise(*size, seed=number).save(paths[-1])
    return paths


@pytest.mark.parametrize("name", ["idefics3", "llava"])
def test_the_page_plans_asks_and_tells(url, pictures, tiny, name):
    client, model = Client(url, verbose=False), tiny(name).folder.name
    gallery = [{"image": handle_file(path), "caption": None} for path in pictures]
    plans = str(client.predict(model, gallery, api_name="/plan_images"))
    expected = tiny(name).vlm.plan_image((120, 80))
    assert f"{expected.tokens:,} tokens" in plans
    assert ("cut off outside" in plans) == (expected.seen is not None)
    client.predict(model=model, gallery=gallery, question_1="What?", max_new_tokens=4, api_name="/ask")
    tokens = client.predict(api_name="/tokens")["tokens"]
    assert sum(token["kind"] == "image" for token in tokens) > 0
    outputs = client.predict(api_name="/which_image")
    facts = next(one for one in outputs if isinstance(one, dict) and "verdict" in one)
    assert [check["ok"] for check in facts["checks"]] == [True] * len(facts["checks"])


def test_no_event_takes_a_device(url):
    client = Client(url, verbose=False)
    events = client.view_api(return_format="dict")["named_endpoints"].values()
    taken = {one["parameter_name"] for event in events for one in event["parameters"]}
    assert "model" in taken
    assert not taken & {"device", "dtype", "quantize", "options"}
    with pytest.raises(AppError, match="cuda"):
        client.predict(model="embedded --device cuda", gallery=[], question_1="What?", api_name="/ask")
