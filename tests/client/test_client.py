"""The app's own events, driven by gradio_client as a program would."""

import sys

import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from inspector.ui import warm_up

# gradio's and httpx's sockets are closed by the garbage collector, at a time of its own.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def client(app_url):
    return Client(app_url, verbose=False)


def test_every_event_has_a_name(client):
    names = client.view_api(return_format="dict")["named_endpoints"]
    assert {"/ask", "/inspect", "/tokens", "/plan_images", "/select_token", "/arrange_batch", "/batch_files"} <= set(
        names
    )
    assert client.view_api(return_format="dict")["unnamed_endpoints"] == {}


def test_upload_ask_and_read_tokens(client, tmp_path):
    paths = []
    for colour in ("red", "blue"):
        path = tmp_path / f"{colour}.png"
        Image.new("RGB", (64, 64), colour).save(path)
        paths.append(handle_file(str(path)))
    facts = client.predict(paths, ["In image 2, what colour is it?"], api_name="/inspect")
    assert [image["grid"] for image in facts["images"]] == [[1, 1], [1, 1]]
    assert facts["sequence"]["length"] == len(facts["sequence"]["tokens"])
    kinds = [token["kind"] for token in facts["sequence"]["tokens"]]
    assert kinds.count("image") == 32


def test_tokens_belong_to_the_one_who_asked(app_url):
    one, two = Client(app_url, verbose=False), Client(app_url, verbose=False)
    one.predict(question_1="What is 2?", max_new_tokens=2, api_name="/ask")
    mine = one.predict(api_name="/tokens")
    assert mine["length"] == len(mine["tokens"]) > 0
    with pytest.raises(AppError, match="tokens"):
        two.predict(api_name="/tokens")
    two.predict(question_1="What color is the sky above the sea?", max_new_tokens=2, api_name="/ask")
    assert [token["id"] for token in two.predict(api_name="/tokens")["tokens"]] != [t["id"] for t in mine["tokens"]]
    assert one.predict(api_name="/tokens") == mine


def test_warming_up_asks_and_leaves_the_model_as_it_is(embedded):
    before = embedded.fingerprint
    warm_up(embedded)
    assert embedded.fingerprint == before
    assert "plotly.graph_objs._scatter" in sys.modules
