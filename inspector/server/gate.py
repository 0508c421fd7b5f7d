"""Every HTTP request before Gradio sees it: which routes there are, who may come, and how much may be sent.

An ASGI middleware, handed to ``launch`` in :func:`inspector.ui.launch_options`. What it must know of the page (bounds,
queue) it finds at the app that the request is for.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from inspector.bounds import MIB, Bounds, format_bound
from inspector.persons import believe, count_proxies
from inspector.server.inputs import FAILED, UNUSABLE
from inspector.server.rate import Rate, refuse_opening

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]

HOSTS = "VLM_INSPECTOR_HOSTS"
"""Environment variable: further names, joined by commas, under which a server on one's own machine may be asked."""
BODY_BYTES = 2 * MIB
"""Of a request that is no upload: six turns of the longest texts are half of that."""
BODY_NODES = 30_000
"""Lists and objects in such a request: half a million small ones, which is not much text, would take seconds."""
BODY_S = 300.0
"""A request must have been sent whole by then."""
ANSWER_S = 120.0
"""An answer that is no file and no stream must have been taken by then."""
READER_S = 2.0
"""How long a page's new stream waits for the end of its last one."""

# What the page and gradio's clients need. Gradio has more: dashboards, a proxy, code editing, recordings, links that
# store a page's state on this server, direct calls that go round the queue, streams that put new data into an event.
_PAGE = re.compile(
    r"/(config/?|assets/.*|static/.*|svelte/.*|theme\.css|favicon\.ico|robots\.txt|manifest\.json|"
    r"pwa_icon(/\d+)?|login/?|logout/?|user/?|login_check/?|token/?)?"
)
_API = re.compile(
    r"/gradio_api/(info/?|openapi\.json|app_id/?|startup-events|user/?|login_check/?|token/?|theme\.css|"
    r"heartbeat/[\w-]{1,64}|queue/(join|data|status)|call/(v2/)?[^/]+(/[^/]+)?|cancel|reset/?|upload|"
    r"upload_progress|file=.*|file/.*|custom_component/.*)"
)
# Where tools are offered: one way of speaking the protocol, of which each call is an event like any other.
_TOOLS = re.compile(r"/gradio_api/mcp/?")
# Each of these makes the whole page, or its description, anew: a twentieth to an eighth of a second of the processor.
_OPENING = re.compile(r"/(config/?)?|/gradio_api/(info/?|openapi\.json|call/v2/.*)")
_CALL = re.compile(r"/gradio_api/call/(?:v2/)?([^/]+)/?")
_FOLLOWED = ("/gradio_api/queue/data", "/gradio_api/heartbeat/", "/gradio_api/call/")
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONG = ("/gradio_api/file", "/gradio_api/upload_progress")
_LOCAL = ("localhost", "127.0.0.1", "[::1]")


@dataclass
class _Intake:
    """What one address, or everybody, has uploaded lately: (when, bytes)."""

    entries: deque[tuple[float, int]] = field(default_factory=deque)
    total: int = 0

    def add(self, size: int) -> None:
        self.entries.append((time.monotonic(), size))
        self.total += size

    def forget(self, seconds: float) -> None:
        while self.entries and time.monotonic() - self.entries[0][0] > seconds:
            self.total -= self.entries.popleft()[1]


class TooMuch(Exception):
    """What a client sends goes beyond a bound; said with a status of HTTP."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


class _Exchange:
    """One request's ``send``. Whoever reads a body makes an error of its own of what it meets there, so a refusal is
    noted here as well and takes the place of any answer that hasn't begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._begun = False
        self.refusal: TooMuch | None = None

    def refuse(self, status: int, sentence: str) -> TooMuch:
        self.refusal = TooMuch(status, sentence)
        return self.refusal

    async def send(self, message: AsgiMessage) -> None:
        if self.refusal is None or self._begun:
            self._begun = True
            await self._send(message)

    async def finish(self) -> None:
        if self.refusal is not None and not self._begun:
            await _answer(self._send, self.refusal.status, str(self.refusal))


class Gate:
    """The middleware. ``app`` is the next one inwards."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self.app = app
        self._intakes: dict[str, _Intake] = {}
        self._all = _Intake()
        self._streams: dict[str, int] = {}
        self._readers: dict[str, asyncio.Event] = {}
        self._opened = Rate()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # nothing here speaks websockets
            await send({"type": "websocket.close", "code": 1008})
            return
        blocks = scope["app"].get_blocks()
        path, headers = scope["path"], _read_headers(scope)
        if not blocks.open_to_all and not _is_local(headers.get("host", "")):
            await _answer(
                send,
                403,
                f"This server answers on this machine only; name it in {HOSTS} to ask it as "
                f"“{headers.get('host', '')[:80]}”.",
            )
            return
        # A page elsewhere can't read what it is answered here, but could fill the disk or have something computed.
        if not blocks.open_to_all and not _is_local(headers.get("origin", "//localhost").partition("//")[2]):
            await _answer(send, 403, "This server takes nothing that another site's page sends.")
            return
        tools = _TOOLS.fullmatch(path) and blocks.mcp_server
        if not (_PAGE.fullmatch(path) or _API.fullmatch(path) or tools):
            await _answer(send, 404, "There is nothing at this address.")
            return
        address = believe(scope, count_proxies())
        exchange = _Exchange(send)
        try:
            await self._serve(blocks, scope, address, headers, receive, exchange)
        except TooMuch:
            pass  # it is noted in the exchange
        except Exception as error:
            if isinstance(error, OSError) and error.errno in _FULL:
                logger.warning("The request %s %s found no room: %s", scope["method"], path[:200], error)
                exchange.refuse(507, "The server's disk is full; try again later, and tell its owner.")
            elif path.startswith("/gradio_api/call/v2/"):  # gradio puts the values into order here
                logger.info("The request %s can't be read: %s", path[:200], error)
                exchange.refuse(400, UNUSABLE)
            else:
                logger.exception("The request %s %s failed.", scope["method"], path[:200])
                exchange.refuse(500, FAILED)
        await exchange.finish()

    async def _serve(
        self, blocks: Any, scope: Scope, address: str, headers: dict[str, str], receive: Receive, exchange: _Exchange
    ) -> None:
        path, method, send = scope["path"], scope["method"], exchange.send
        most = blocks.bounds.openings_per_minute
        if _OPENING.fullmatch(path) and not self._opened.take(address, most):
            raise exchange.refuse(429, refuse_opening(most))
        if method == "POST" and (named := _CALL.fullmatch(path)) and not _has_event(blocks, named[1]):
            raise exchange.refuse(404, "There is no event of this name; compare it with the API's description.")
        # Each stays open as long as the client likes: streams, bodies that are sent slowly, answers that are.
        if self._streams.get(address, 0) >= blocks.bounds.streams_per_address:
            raise exchange.refuse(429, f"{self._streams[address]} requests of your address are open; close some pages.")
        self._streams[address] = self._streams.get(address, 0) + 1
        try:
            if method == "POST" and path == "/gradio_api/upload":
                await self.app(scope, self._take_in(blocks.bounds, address, headers, receive, exchange), send)
            elif method == "POST" and path == "/gradio_api/cancel":
                body = await _read_body(_limit(receive, BODY_BYTES, exchange))
                blocks._queue.abandon(_event_of(body))
                await self.app(scope, _prefix_cache(body, receive), send)
            elif method == "POST":
                await self.app(scope, _limit(receive, BODY_BYTES, exchange), send)
            elif path.startswith("/gradio_api/queue/data"):
                async with self._read(_page_of(scope), exchange):
                    await self._follow(blocks, scope, receive, send)
            elif path.startswith(_FOLLOWED):
                await self._follow(blocks, scope, receive, send)
            else:
                try:
                    async with asyncio.timeout(None if path.startswith(_LONG) else ANSWER_S):
                        await self.app(scope, receive, send)
                except TimeoutError:
                    sentence = f"The answer was not taken within {ANSWER_S:g} s; ask again."
                    raise exchange.refuse(408, sentence) from None
        finally:
            self._streams[address] -= 1
            if not self._streams[address]:
                del self._streams[address]

    @asynccontextmanager
    async def _read(self, page: str, exchange: _Exchange) -> AsyncIterator[None]:
        """One connection at a time reads what a page is sent: of two, each would get a part of it."""
        while (other := self._readers.get(page)) is not None:
            try:  # the page may ask again before the end of its last stream has come through
                await asyncio.wait_for(other.wait(), READER_S)
            except TimeoutError:
                sentence = "Another connection reads what this page is sent; close that one, or reload the page."
                raise exchange.refuse(409, sentence) from None
        mine = self._readers[page] = asyncio.Event()
        try:
            yield
        finally:
            del self._readers[page]
            mine.set()

    def _take_in(
        self, bounds: Bounds, address: str, headers: dict[str, str], receive: Receive, exchange: _Exchange
    ) -> Receive:
        """Counts an upload as it comes, for its address and for all, over the hours that uploads are kept."""
        seconds = 3600 * bounds.cache_hours
        for name, intake in list(self._intakes.items()):
            intake.forget(seconds)
            if not intake.entries:
                del self._intakes[name]
        self._all.forget(seconds)
        mine = self._intakes.setdefault(address, _Intake())

        def check(size: int) -> None:
            for used, allowed, whose in (
                (mine.total, bounds.upload_bytes_per_person, "yours"),
                (self._all.total, bounds.upload_bytes, "everybody's"),
            ):
                if used + size > allowed:
                    raise exchange.refuse(
                        413,
                        f"Uploads may have {format_bound(allowed, 'bytes')} in {bounds.cache_hours:g} hours, and "
                        f"{whose} have {used / MIB:,.0f} MiB already; come back later, or send smaller files.",
                    )

        declared = headers.get("content-length", "")
        check(int(declared) if declared.isdecimal() else 0)
        limited = _limit(receive, bounds.upload_bytes_per_person, exchange, raw=True)

        async def count() -> AsgiMessage:
            message = await limited()
            size = len(message.get("body", b""))
            check(size)
            mine.add(size)
            self._all.add(size)
            return message

        return count

    async def _follow(self, blocks: Any, scope: Scope, receive: Receive, send: Send) -> None:
        """A stream that stays open: its end is noticed at once, and what it was waiting for is given up."""
        page = _page_of(scope)
        heartbeat = scope["path"].startswith("/gradio_api/heartbeat/")
        gone = asyncio.Event()

        async def wait() -> AsgiMessage:
            # Gradio looks here again and again whether somebody is still there, and must not be kept from its work.
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        if heartbeat:
            blocks.open_pages.open(page)
        serving = asyncio.ensure_future(self.app(scope, wait, send))
        watching = asyncio.ensure_future(watch())
        try:
            await asyncio.wait((serving, watching), return_when=asyncio.FIRST_COMPLETED)
            if gone.is_set() and not serving.done():
                one = scope["path"].startswith("/gradio_api/call/")
                await blocks._queue.clean_events(**{"event_id" if one else "session_hash": page})
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
            else:
                await serving
        finally:
            watching.cancel()
            serving.cancel()
            if heartbeat:
                blocks.open_pages.close(page)


def _read_headers(scope: Scope) -> dict[str, str]:
    """By lower-case name; several of one name are joined by commas, in order."""
    found: dict[str, str] = {}
    for raw, value in scope["headers"]:
        name, text = raw.decode("latin-1").lower(), value.decode("latin-1")
        found[name] = f"{found[name]}, {text}" if name in found else text
    return found


def _is_local(host: str) -> bool:
    """Whether a browser of this machine meant this server. A page elsewhere can have its own name lead to 127.0.0.1 and
    would otherwise read everything here; the name still stands in the request."""
    name = re.sub(r":\d+$", "", host.strip().lower())
    others = (entry.strip().lower() for entry in os.environ.get(HOSTS, "").split(","))
    return name in (*_LOCAL, *filter(None, others))


def _page_of(scope: Scope) -> str:
    if scope["path"].startswith("/gradio_api/queue/data"):
        return (parse_qs(scope["query_string"].decode("latin-1")).get("session_hash") or [""])[0]
    return scope["path"].rstrip("/").rpartition("/")[2]


def _has_event(blocks: Any, name: str) -> bool:
    return any(function.api_name == name for function in blocks.fns.values())


def _event_of(body: bytes) -> str:
    try:
        return str(json.loads(body)["event_id"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""  # Gradio says what is wrong with it


def _limit(receive: Receive, most: int, exchange: _Exchange, raw: bool = False) -> Receive:
    """The same messages until they hold more than ``most`` bytes or too many lists and objects, or take longer than
    they may. ``raw``: what is sent is no JSON."""
    got, nodes, deadline, whole = 0, 0, time.monotonic() + BODY_S, False

    async def limited() -> AsgiMessage:
        nonlocal got, nodes, whole
        if whole:  # what comes now is the end of the connection, for which there is no hurry
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(deadline - time.monotonic(), 0.001))
        except TimeoutError:
            raise exchange.refuse(408, f"The request was not sent within {BODY_S:g} s; send it again.") from None
        body = message.get("body", b"")
        got += len(body)
        nodes += 0 if raw else body.count(b"[") + body.count(b"{")
        whole = not message.get("more_body", False)
        if got > most:
            raise exchange.refuse(413, f"The request is larger than {format_bound(most, 'bytes')}; send less.")
        if nodes > BODY_NODES:
            raise exchange.refuse(413, f"The request holds more than {BODY_NODES:,} lists and objects; send fewer.")
        return message

    return limited


async def _read_body(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return b"".join(parts)


def _prefix_cache(body: bytes, receive: Receive) -> Receive:
    first = True

    async def again() -> AsgiMessage:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def _answer(send: Send, status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence, "error": sentence}, ensure_ascii=False).encode()
    headers = [(b"content-type", b"application/json; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
