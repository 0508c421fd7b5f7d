"""Clients that do what no page does: cancel twice, read twice, send slowly, say nothing, or fill the disk."""

import resource
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from PIL import Image

from scripts.public_server import PublicServer
from scripts.stranger import Stranger

SLOW_S = 60.0


@contextmanager
def connect(server: PublicServer, *sent: bytes) -> Iterator[socket.socket]:
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port), timeout=SLOW_S) as connection:
        for part in sent:
            connection.sendall(part)
        yield connection


def is_answered(server: PublicServer) -> bool:
    """Whether somebody else is served meanwhile."""
    return httpx.get(f"{server.url}/theme.css", timeout=10).status_code == 200


@pytest.mark.parametrize("number", [-1, 99_999, 10**30, 1e308, 1.5, None, "x", [], {}])
def test_odd_numbers_of_events(stranger: Stranger, number: Any):
    body = {"data": [], "fn_index": number, "session_hash": stranger.page}
    answer = stranger.http.post("/gradio_api/queue/join", json=body)
    assert answer.status_code in (400, 422)
    if isinstance(number, int):
        assert "number" in answer.json()["detail"]
    body = {"session_hash": stranger.page, "fn_index": number, "event_id": "x"}
    assert stranger.http.post("/gradio_api/cancel", json=body).status_code in (200, 422)


@pytest.mark.parametrize("path", ["call/nobody", "call/v2/nobody"])
def test_odd_names_of_events(stranger: Stranger, path: str):
    answer = stranger.http.post(f"/gradio_api/{path}", json={"data": []})
    assert answer.status_code == 404
    assert "name" in answer.json()["detail"]


def test_odd_values_of_a_call_by_names(stranger: Stranger):
    for body in ({"nobody": 1}, {}):
        answer = stranger.http.post("/gradio_api/call/v2/ask", json=body)
        assert answer.status_code in (200, 400)
    assert answer.json().keys() <= {"event_id", "detail", "error"}


def test_what_is_cancelled_twice_ends_once_for_all(stranger: Stranger):
    data = stranger.prepare("What colour is it?")
    joined = [stranger.join("ask", data).json()["event_id"] for _ in range(4)]
    body = {"session_hash": stranger.page, "fn_index": stranger.events["ask"]["id"]}
    for event in (*joined, *joined, *reversed(joined)):
        assert stranger.http.post("/gradio_api/cancel", json={**body, "event_id": event}).status_code == 200
    ended = {message["event_id"] for message in stranger.messages() if message["msg"] == "process_completed"}
    assert ended == set(joined)
    assert stranger.call("ask", data)["success"]


def test_nobody_cancels_what_is_somebody_elses(server: PublicServer):
    with Stranger(server.url) as one, Stranger(server.url) as two:
        number = one.events["ask"]["id"]
        joined = one.join("ask", one.prepare("What colour is it?")).json()["event_id"]
        body = {"session_hash": two.page, "fn_index": number, "event_id": "guessed-" + secrets.token_hex(8)}
        assert two.http.post("/gradio_api/cancel", json=body).status_code == 200
        ends = [m for m in one.messages() if m["msg"] == "process_completed" and m["event_id"] == joined]
        assert [end["success"] for end in ends] == [True]


def test_a_page_is_read_by_one_connection_at_a_time(stranger: Stranger, tmp_path: Path):
    # Questions about many images: twelve short ones are over before the second connection has waited for the first.
    files = []
    for n in range(8):
        Image.effect_noise((192, 192), 40 + n).convert("RGB").save(path := tmp_path / f"{n}.png")
        files.append(stranger.upload(path))
    data = stranger.prepare("What colour is it?", files)
    joined = [stranger.join("ask", data).json()["event_id"] for _ in range(12)]
    reading = stranger.messages()
    next(reading)
    answer = stranger.http.get("/gradio_api/queue/data", params={"session_hash": stranger.page})
    assert answer.status_code == 409
    assert "connection" in answer.json()["detail"]
    ended = [message["event_id"] for message in reading if message["msg"] == "process_completed"]
    assert sorted(ended) == sorted(joined)  # none of them went elsewhere
    assert stranger.call("ask", data)["success"]


def test_who_sends_slowly_keeps_nobody_waiting(server: PublicServer):
    head = (
        b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
        b"Content-Length: 100000\r\n\r\n--b\r\nContent-Disposition: form-data; name=files; filename=x.png\r\n\r\n"
    )
    ends = threading.Event()

    def drip(connection: socket.socket) -> None:
        while not ends.wait(0.1):
            connection.sendall(b"x")

    open_ones = [connect(server, head) for _ in range(50)]
    connections = [one.__enter__() for one in open_ones]
    drips = [threading.Thread(target=drip, args=(connection,)) for connection in connections]
    for thread in drips:
        thread.start()
    with Stranger(server.url, "127.0.0.21") as one:
        assert is_answered(server)
        began = time.monotonic()
        assert one.call("ask", one.prepare("What colour is it?"))["success"]
        assert time.monotonic() - began < SLOW_S
    ends.set()
    for thread in drips:
        thread.join(30)
    for connection in open_ones:
        connection.__exit__(None, None, None)


def test_who_says_nothing_is_let_go(server: PublicServer):
    with connect(server) as nothing, connect(server, b"GET /config HTTP/1.1\r\nHost: x\r\nX-A: ") as half:
        assert is_answered(server)
        for connection in (nothing, half):
            with suppress(ConnectionResetError):
                assert connection.recv(100) == b""


def test_no_client_says_under_which_host_it_was_asked(stranger: Stranger):
    said = {
        "X-Forwarded-Host": "evil.example",
        "X-Gradio-Server": "http://evil.example/x",
        "X-Forwarded-For": "6.6.6.6",
    }
    for path in ("/", "/config"):
        answer = stranger.http.get(path, headers=said)
        assert answer.status_code == 200
        assert "evil.example" not in answer.text
        assert "6.6.6.6" not in answer.text
    assert stranger.http.get("/config", headers=said).json()["root"] == str(stranger.http.base_url).rstrip("/")


def test_one_address_opens_so_many_pages_a_minute(server: PublicServer):
    with Stranger(server.url, "127.0.0.22") as many, Stranger(server.url, "127.0.0.23") as one:
        statuses, ends = [], time.monotonic() + SLOW_S
        while 429 not in statuses and time.monotonic() < ends:
            answer = many.http.post("/gradio_api/call/add_turn", json={"data": [1]})
            statuses.append(answer.status_code)
            if answer.status_code == 400:  # so many wait; they are soon done
                time.sleep(0.2)
        assert statuses.count(200) >= 400
        assert "400 pages" in answer.json()["detail"]
        assert one.call("ask", one.prepare("What colour is it?"))["success"]


def test_a_disk_that_takes_no_more(server: PublicServer, tmp_path):
    """No file may grow beyond 100 kB for a while: what is sent is refused, and all else goes on."""
    path = tmp_path / "noise.png"
    Image.effect_noise((600, 600), 90).convert("RGB").save(path)
    assert path.stat().st_size > 200_000
    with Stranger(server.url, "127.0.0.24") as one:
        before = resource.prlimit(server.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, (100_000, before[1]))
        try:
            answer = one.http.post("/gradio_api/upload", files={"files": (path.name, path.read_bytes())})
            assert answer.status_code >= 400
            assert str(server.temporary) not in answer.text
            assert "disk" in answer.json()["error"]
            assert one.call("ask", one.prepare("What colour is it?"))["success"]
        finally:
            resource.prlimit(server.pid, resource.RLIMIT_FSIZE, before)
        assert one.call("ask", one.prepare("What is in image 1?", [one.upload(path)]))["success"]
