"""What a running public server does with requests that no page sends."""

import json
import socket
import threading
import time
from urllib.parse import urlsplit

import pytest
from PIL import Image

from scripts.public_server import PublicServer
from scripts.stranger import Stranger


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/runs",
        "/docs",
        "/gradio_api/proxy=https://example.org/",
        "/gradio_api/run-history/buckets",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
        "/openapi.json",
        "/gradio_api/mcp/",
    ],
)
def test_closed_routes(stranger: Stranger, path: str):
    assert stranger.http.get(path).status_code == 404


@pytest.mark.parametrize("path", ["run/ask", "api/ask", "component_server", "process_recording", "vibe-edit"])
def test_no_way_round_the_queue(stranger: Stranger, path: str):
    assert stranger.http.post(f"/gradio_api/{path}", json={"data": []}).status_code == 404


@pytest.mark.parametrize("page", ["", "x<gradio-sep>y<gradio-sep>", "y" * 5000])
def test_an_odd_page_ends_nothing(stranger: Stranger, page: str):
    data = stranger.prepare("What colour is it?")
    assert stranger.join("ask", data).status_code == 200
    body = {"data": data, "fn_index": stranger.events["ask"]["id"], "session_hash": page}
    for _ in range(3):
        assert stranger.http.post("/gradio_api/queue/join", json=body).status_code == 400
    assert stranger.call("ask", data)["success"]  # the queue lives


def test_an_event_gets_no_new_data(stranger: Stranger):
    data = stranger.prepare("What colour is it?")
    event = stranger.join("ask", data).json()["event_id"]
    body = {"data": data, "fn_index": stranger.events["ask"]["id"], "session_hash": stranger.page}
    assert stranger.http.post(f"/gradio_api/stream/{event}", json=body).status_code == 404


def test_a_body_is_bounded(stranger: Stranger):
    answer = stranger.http.post("/gradio_api/queue/join", content=b'{"data": ["' + b"x" * (3 << 20) + b'"]}')
    assert answer.status_code == 413
    assert "2 MiB" in answer.json()["detail"]


def test_an_upload_is_refused_before_it_is_sent(server: PublicServer):
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
            b"Content-Length: 99999999999\r\n\r\n"
        )
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"Uploads may have 200 MiB in 2 hours" in answer + connection.recv(4096)


def test_one_page_may_wait_with_so_many(stranger: Stranger):
    data = stranger.prepare("What colour is it?")
    answers = [stranger.join("ask", data) for _ in range(30)]
    taken = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code == 400]
    assert len(taken) + len(refused) == 30
    assert 12 <= len(taken) < 30
    assert "of this page" in refused[-1].json()["detail"]


def test_somebody_elses_question_does_not_wait_for_them(server: PublicServer):
    with Stranger(server.url, "127.0.0.7") as many, Stranger(server.url, "127.0.0.8") as one:
        data = many.prepare("What colour is it?")
        waiting = [many.join("ask", data).json()["event_id"] for _ in range(10)]
        done: list[str] = []

        def follow() -> None:
            for message in many.messages():
                if message["msg"] == "process_completed":
                    done.append(message["event_id"])
                    if len(done) == len(waiting):
                        return

        follower = threading.Thread(target=follow)
        follower.start()
        assert one.call("ask", one.prepare("What colour is it?"))["success"]
        assert len(done) < len(waiting)
        follower.join(300)
        assert sorted(done) == sorted(waiting)


def test_a_question_is_answered_while_another_page_tests(server: PublicServer, tmp_path):
    path = tmp_path / "noise.png"
    Image.effect_noise((192, 192), 40).convert("RGB").save(path)
    with Stranger(server.url, "127.0.0.9") as tester, Stranger(server.url, "127.0.0.10") as one:
        files = [tester.upload(path)] * 6
        assert tester.call("ask", tester.prepare("In image 2, what colour is the shape?", files))["success"]
        tester.join("which_all", [None, None, 1, "", ""])
        stream = tester.messages()
        assert any(message["msg"] == "process_generating" for message in stream)
        assert one.call("ask", one.prepare("What colour is it?"))["success"]
        # The test had not ended, and what it found next comes now.
        assert next(stream)["msg"] in ("process_generating", "heartbeat")
        # A question of the same page ends it, with a sentence.
        joined = tester.join("ask", tester.prepare("In image 1, what colour is the shape?", files)).json()["event_id"]
        ends = {}
        for message in stream:
            if message["msg"] == "process_completed":
                ends[message["event_id"]] = message
                if len(ends) == 2:
                    break
        assert ends.pop(joined)["success"]
        (ended,) = ends.values()
        assert "something new" in ended["output"]["error"]


def test_a_closed_page_frees_its_place(server: PublicServer, tmp_path):
    path = tmp_path / "noise.png"
    Image.effect_noise((192, 192), 40).convert("RGB").save(path)
    with Stranger(server.url, "127.0.0.11") as leaving, Stranger(server.url, "127.0.0.12") as waiting:
        for one in (leaving, waiting):
            files = [one.upload(path)] * 12
            assert one.call("ask", one.prepare("In image 2, what colour is the shape?", files))["success"]
        leaving.join("which_all", [None, None, 1, "", ""])
        looking = leaving.messages()  # held on to: where it is dropped, its connection ends
        assert any(message["msg"] == "process_generating" for message in looking)
        waiting.join("which_all", [None, None, 1, "", ""])
        stream = waiting.messages()
        assert next(stream)["msg"] == "estimation"  # it waits
        leaving.close()
        # “Run all” of twelve images takes minutes; the place is free at the next block of the model.
        began = time.monotonic()
        assert any(message["msg"] == "process_starts" for message in stream)
        assert time.monotonic() - began < 60


def test_who_names_a_page_of_somebody_else_gets_nothing(server: PublicServer):
    with Stranger(server.url) as one, Stranger(server.url) as two:
        with one.opened():
            assert one.call("ask", one.prepare("What colour is it?"))["success"]
            assert one.call("tokens", [None])["success"]
        answer = two.call("tokens", [None])
        assert "tokens" in answer["output"]["error"]


def test_the_server_says_nothing_of_what_it_refused(server: PublicServer):
    said = server.output.read_text("utf-8")
    assert "Traceback" not in said, said[-3000:]
    assert json.dumps("secret") not in said
