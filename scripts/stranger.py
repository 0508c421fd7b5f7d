"""A client that sends whatever it likes: gradio's own checks what it sends, and its pages know what they may press."""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

FIRST_QUESTION = 10
"""Among the inputs of /ask: behind model, gallery, turns, layout, mask and five settings."""


class Stranger:
    """One page's worth of a client. ``page`` is its session; ``source`` the address that it connects from."""

    def __init__(self, url: str, source: str = "127.0.0.1") -> None:
        transport = httpx.HTTPTransport(local_address=source)
        self.http = httpx.Client(base_url=url, timeout=300, transport=transport)
        self.page = secrets.token_hex(6)

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Everything that is open breaks off, as where a tab is closed."""
        self.http.close()

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        return self.http.get("/config").json()

    @functools.cached_property
    def events(self) -> dict[str, dict[str, Any]]:
        """Every event that has a function on the server, by its name."""
        return {str(one["api_name"] or one["id"]): one for one in self.config["dependencies"] if one["backend_fn"]}

    def component(self, number: int) -> dict[str, Any]:
        return next(one for one in self.config["components"] if one["id"] == number)

    def defaults(self, event: str) -> list[Any]:
        """What a page that was just opened would send."""
        return [self.component(n)["props"].get("value") for n in self.events[event]["inputs"]]

    def upload(self, file: Path) -> dict[str, Any]:
        answer = self.http.post("/gradio_api/upload", files={"files": (file.name, file.read_bytes())})
        answer.raise_for_status()
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}, "orig_name": file.name}

    def prepare(self, question: str, images: Sequence[dict[str, Any]] = ()) -> list[Any]:
        """What /ask takes: the question with images that :meth:`upload` gave."""
        data = self.defaults("ask")
        gallery = [{"image": image, "caption": None} for image in images]
        data[:4] = ["embedded", gallery, None, "images-first"]
        data[FIRST_QUESTION] = question
        return data

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The page stands in a browser: its connection is held open."""
        with self.http.stream("GET", f"/gradio_api/heartbeat/{self.page}") as beat:
            next(beat.iter_lines())
            yield

    def join(self, event: str, data: list[Any], event_data: Any = None, page: str | None = None) -> httpx.Response:
        body = {
            "data": data,
            "fn_index": self.events[event]["id"],
            "session_hash": page or self.page,
            "event_data": event_data,
            "trigger_id": None,
        }
        return self.http.post("/gradio_api/queue/join", json=body)

    def messages(self, page: str | None = None) -> Iterator[dict[str, Any]]:
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": page or self.page}) as stream:
            for line in stream.iter_lines():
                if line.startswith("data:"):
                    yield json.loads(line[5:])

    def call(self, event: str, data: list[Any], event_data: Any = None) -> dict[str, Any]:
        """The last message of an event: ``success`` and ``output``."""
        joined = self.join(event, data, event_data)
        if joined.status_code != 200:
            return {"success": False, "output": {"error": joined.text}}
        event_id = joined.json()["event_id"]
        for message in self.messages():
            if message.get("event_id") == event_id and message["msg"] == "process_completed":
                return message
        raise AssertionError(f"{event} was never answered")
