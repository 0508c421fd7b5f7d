"""The gate, around an app that stands in for Gradio's."""

import asyncio
import errno
import json
from types import SimpleNamespace
from typing import Any

import pytest

from inspector.bounds import private_bounds
from inspector.server import gate as module
from inspector.server.gate import HOSTS, Gate
from inspector.server.pages import Pages

STREAMS = ("heartbeat", "queue", "call")


class Inner:
    """Reads the whole body, then answers with what it read; streams wait for the end of the connection."""

    def __init__(self, **bounds: Any) -> None:
        self.cleaned: list[dict[str, str]] = []
        self.abandoned: list[str] = []
        self.bodies: list[bytes] = []
        queue = SimpleNamespace(clean_events=self._clean, abandon=self.abandoned.append)
        self.blocks = SimpleNamespace(
            bounds=private_bounds(**bounds), open_to_all=False, open_pages=Pages(), _queue=queue, fns={}
        )
        self.blocks.fns[0] = SimpleNamespace(api_name="ask")
        self.error: Exception | None = None
        self.seconds = 0.0
        self.cancelled = 0
        self.open = asyncio.Event()

    def get_blocks(self) -> Any:
        return self.blocks

    async def _clean(self, **what: str) -> None:
        self.cleaned.append(what)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.error is not None:
            raise self.error
        await asyncio.sleep(self.seconds)
        if scope["method"] == "GET" and scope["path"].split("/")[2:3] and scope["path"].split("/")[2] in STREAMS:
            self.open.set()
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        body = b""
        try:
            while True:
                message = await receive()
                body += message.get("body", b"")
                if not message.get("more_body"):
                    break
        except Exception:  # as fastapi does: an error of its own of whatever goes wrong with a body
            await self._answer(send, 400)
            return
        self.bodies.append(body)
        await self._answer(send, 200)

    async def _answer(self, send: Any, status: int) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b"inner"})


def send_request(
    gate: Gate,
    inner: Inner,
    path: str,
    method: str = "GET",
    parts: tuple[bytes, ...] = (b"",),
    host: str = "127.0.0.1",
    client: str = "127.0.0.1",
    headers: tuple[tuple[bytes, bytes], ...] = (),
    query: bytes = b"",
) -> tuple[int, str]:
    """Status and text of the answer."""
    scope = {
        "type": "http",
        "path": path,
        "method": method,
        "app": inner,
        "client": (client, 1),
        "query_string": query,
        "headers": [(b"host", host.encode()), *headers],
    }
    waiting = [{"type": "http.request", "body": part, "more_body": n + 1 < len(parts)} for n, part in enumerate(parts)]
    said: list[Any] = []

    async def receive() -> Any:
        return waiting.pop(0) if waiting else {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(gate(scope, receive, send))
    assert [message["type"] for message in said] == ["http.response.start", "http.response.body"]
    return said[0]["status"], said[1]["body"].decode()


@pytest.fixture
def inner() -> Inner:
    return Inner()


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/config",
        "/assets/index.js",
        "/static/fonts/x.woff2",
        "/theme.css",
        "/gradio_api/info",
        "/favicon.ico",
        "/gradio_api/file=/tmp/gradio/x.png",
        "/gradio_api/startup-events",
        "/gradio_api/upload_progress",
        "/manifest.json",
    ],
)
def test_routes_that_the_page_needs(inner, path):
    assert send_request(Gate(inner), inner, path) == (200, "inner")


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring",
        "/monitoring/summary",
        "/monitoring/secret/dashboard",
        "/gradio_api/deep_link",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/gradio_api/proxy=http://example.org",
        "/gradio_api/component_server",
        "/gradio_api/process_recording",
        "/gradio_api/vibe-edit",
        "/gradio_api/vibe-code/",
        "/gradio_api/dev/reload",
        "/gradio_api/run/ask",
        "/gradio_api/api/ask",
        "/gradio_api/stream/x",
        "/gradio_api/heartbeat/a b",
        "/gradio_api/mcp/sse",
        "/docs",
        "/openapi.json",
        "/redoc",
        "/x",
        "//config",
        "/config/../monitoring",
        "/gradio_api/queue/join/x",
        "/gradio_api/profiling/traces",
    ],
)
def test_every_other_route_is_closed(inner, path):
    assert send_request(Gate(inner), inner, path)[0] == 404
    assert inner.bodies == []


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:7860", True),
        ("localhost", True),
        ("LOCALHOST:1", True),
        ("[::1]:7860", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("", False),
        ("localhost.evil.example:7860", False),
        ("192.168.0.7", False),
    ],
)
def test_a_server_of_this_machine_answers_to_its_names_alone(inner, host, allowed):
    status, text = send_request(Gate(inner), inner, "/config", host=host)
    assert status == (200 if allowed else 403)
    if not allowed:
        assert f"“{host}”" in json.loads(text)["detail"]
    inner.blocks.open_to_all = True
    assert send_request(Gate(inner), inner, "/config", host=host)[0] == 200


def test_further_names_of_this_machine(inner, monkeypatch):
    monkeypatch.setenv(HOSTS, "box.lan, jupyter.example")
    assert send_request(Gate(inner), inner, "/config", host="jupyter.example:8888")[0] == 200
    assert send_request(Gate(inner), inner, "/config", host="evil.example")[0] == 403


def test_one_address_opens_so_many_pages_a_minute():
    inner = Inner(openings_per_minute=3)
    gate = Gate(inner)
    for path in ("/", "/config", "/gradio_api/info"):
        assert send_request(gate, inner, path)[0] == 200
    for path in ("/", "/config/", "/gradio_api/openapi.json", "/gradio_api/call/v2/ask"):
        status, text = send_request(gate, inner, path)
        assert status == 429
        assert " 3 pages" in json.loads(text)["detail"]
    assert send_request(gate, inner, "/theme.css")[0] == 200
    assert send_request(gate, inner, "/", client="2.2.2.2")[0] == 200


def test_a_body_that_is_too_long(inner, monkeypatch):
    monkeypatch.setattr(module, "BODY_BYTES", 10)
    for path in ("/gradio_api/queue/join", "/gradio_api/call/ask", "/gradio_api/cancel", "/login"):
        status, text = send_request(Gate(inner), inner, path, "POST", (b"12345678", b"9012"))
        assert status == 413
        assert " 10 bytes" in text
    assert send_request(Gate(inner), inner, "/gradio_api/queue/join", "POST", (b"12345", b"67890")) == (200, "inner")
    assert inner.bodies == [b"1234567890"]


def test_a_body_of_very_many_small_things(inner, monkeypatch):
    monkeypatch.setattr(module, "BODY_NODES", 5)
    status, text = send_request(Gate(inner), inner, "/gradio_api/queue/join", "POST", (b"[[[", b"{},[]]]]"))
    assert status == 200
    status, text = send_request(Gate(inner), inner, "/gradio_api/queue/join", "POST", (b"[[[", b"{},[],[]]]]"))
    assert status == 413
    assert " 5 " in text
    assert send_request(Gate(inner), inner, "/gradio_api/upload", "POST", (b"[" * 100,))[0] == 200  # a file is no JSON


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://localhost:7860", True),
        ("http://127.0.0.1:1", True),
        ("https://evil.example", False),
        ("null", False),
        ("http://localhost.evil.example", False),
    ],
)
def test_another_sites_page_sends_nothing_to_a_server_of_this_machine(inner, origin, allowed):
    headers = ((b"origin", origin.encode()),)
    status, _ = send_request(Gate(inner), inner, "/gradio_api/upload", "POST", (b"x",), headers=headers)
    assert status == (200 if allowed else 403)
    inner.blocks.open_to_all = True
    assert send_request(Gate(inner), inner, "/gradio_api/upload", "POST", (b"x",), headers=headers)[0] == 200


def test_a_body_that_never_ends(inner, monkeypatch):
    monkeypatch.setattr(module, "BODY_S", 0.01)
    said: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(1000)

    async def send(message: Any) -> None:
        said.append(message)

    scope = {
        "type": "http",
        "path": "/gradio_api/queue/join",
        "method": "POST",
        "app": inner,
        "client": ("1.1.1.1", 1),
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
    }
    asyncio.run(Gate(inner)(scope, receive, send))
    assert said[0]["status"] == 408
    assert " 0.01 s" in said[1]["body"].decode()


def test_uploads_are_counted_by_address_and_together():
    inner = Inner(upload_bytes_per_person=100, upload_bytes=150, cache_hours=2)
    gate = Gate(inner)

    def upload(size: int, client: str, *, declared: bool = True) -> tuple[int, str]:
        headers = ((b"content-length", str(size).encode()),) if declared else ()
        return send_request(gate, inner, "/gradio_api/upload", "POST", (b"x" * size,), client=client, headers=headers)

    assert upload(60, "1.1.1.1")[0] == 200
    status, text = upload(60, "1.1.1.1")
    assert status == 413
    assert "100 bytes in 2 hours" in text
    assert upload(60, "1.1.1.1", declared=False)[0] == 413  # also where nothing says how much comes
    assert upload(40, "1.1.1.1")[0] == 200
    assert upload(50, "2.2.2.2")[0] == 200
    assert "everybody" in upload(10, "3.3.3.3")[1]
    assert [len(body) for body in inner.bodies] == [60, 40, 50]


def test_uploads_are_forgotten_when_they_are_deleted(monkeypatch):
    inner = Inner(upload_bytes_per_person=100, upload_bytes=150, cache_hours=2)
    gate, clock = Gate(inner), [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    one = (b"x" * 90,)
    assert send_request(gate, inner, "/gradio_api/upload", "POST", one)[0] == 200
    assert send_request(gate, inner, "/gradio_api/upload", "POST", one)[0] == 413
    clock[0] = 7201.0
    assert send_request(gate, inner, "/gradio_api/upload", "POST", one)[0] == 200


def test_a_cancelled_event_is_given_up(inner):
    body = b'{"session_hash": "s", "fn_index": 1, "event_id": "e1"}'
    assert send_request(Gate(inner), inner, "/gradio_api/cancel", "POST", (body,)) == (200, "inner")
    assert inner.abandoned == ["e1"]
    assert inner.bodies == [body]
    for odd in (b"", b"[", b"[]", b"{}", b'{"event_id": null}', b"[" * 20_000):
        assert send_request(Gate(inner), inner, "/gradio_api/cancel", "POST", (odd,))[0] == 200


@pytest.mark.parametrize(
    ("path", "query", "cleaned"),
    [
        ("/gradio_api/queue/data", b"session_hash=abc", {"session_hash": "abc"}),
        ("/gradio_api/heartbeat/abc", b"", {"session_hash": "abc"}),
        ("/gradio_api/call/ask/e17", b"", {"event_id": "e17"}),
    ],
)
def test_a_stream_that_ends_gives_up_what_it_waited_for(path, query, cleaned):
    async def visit() -> Inner:
        inner = Inner()
        gone = asyncio.Event()

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError(message)

        scope = {
            "type": "http",
            "path": path,
            "method": "GET",
            "app": inner,
            "client": ("1.1.1.1", 1),
            "query_string": query,
            "headers": [(b"host", b"localhost")],
        }
        visiting = asyncio.create_task(Gate(inner)(scope, receive, send))
        await inner.open.wait()
        assert inner.cleaned == []
        assert inner.blocks.open_pages.is_open("abc") == ("heartbeat" in path)
        gone.set()
        await visiting
        return inner

    inner = asyncio.run(visit())
    assert inner.cleaned == [cleaned]
    assert inner.cancelled == 1
    assert not inner.blocks.open_pages.is_open("abc")


def test_so_many_streams_of_one_address():
    async def visit() -> list[int]:
        inner = Inner(streams_per_address=2)
        gate, gone, statuses = Gate(inner), asyncio.Event(), []

        async def receive() -> Any:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        def open_one(client: str) -> asyncio.Task[None]:
            scope = {
                "type": "http",
                "path": "/gradio_api/heartbeat/p",
                "method": "GET",
                "app": inner,
                "client": (client, 1),
                "query_string": b"",
                "headers": [(b"host", b"localhost")],
            }
            return asyncio.create_task(gate(scope, receive, send))

        first = [open_one("1.1.1.1"), open_one("1.1.1.1")]
        await asyncio.sleep(0)
        await open_one("1.1.1.1")
        other = open_one("2.2.2.2")
        await asyncio.sleep(0)
        gone.set()
        await asyncio.gather(*first, other)
        assert gate._streams == {}
        return statuses

    assert asyncio.run(visit()) == [429]


def test_events_that_there_are_none_of(inner):
    for path in ("/gradio_api/call/nobody", "/gradio_api/call/v2/nobody"):
        status, text = send_request(Gate(inner), inner, path, "POST")
        assert status == 404
        assert "name" in json.loads(text)["detail"]
    assert send_request(Gate(inner), inner, "/gradio_api/call/v2/ask", "POST") == (200, "inner")


@pytest.mark.parametrize(("method", "path"), [("GET", "/config"), ("POST", "/gradio_api/upload")])
def test_what_nobody_thought_of_is_one_sentence(inner, method, path, caplog):
    inner.error = ValueError("a path of this machine")
    status, text = send_request(Gate(inner), inner, path, method)
    assert status == 500
    assert "a path of this machine" not in text
    assert "a path of this machine" in caplog.text


def test_an_answer_that_is_not_taken_ends(inner, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_S", 0.01)
    inner.seconds = 0.1
    status, text = send_request(Gate(inner), inner, "/config")
    assert status == 408
    assert " 0.01 s" in text
    assert send_request(Gate(inner), inner, "/gradio_api/file=x.zip") == (200, "inner")  # a large one takes long


def test_a_full_disk_is_said_to_be_one(inner):
    inner.error = OSError(errno.ENOSPC, "No space left on device", "/a/path/of/this/machine")
    status, text = send_request(Gate(inner), inner, "/gradio_api/upload", "POST")
    assert status == 507
    assert "/a/path" not in text


def test_websockets_are_refused(inner):
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    asyncio.run(Gate(inner)({"type": "websocket", "path": "/", "headers": []}, None, send))  # type: ignore[arg-type]
    assert said == [{"type": "websocket.close", "code": 1008}]
