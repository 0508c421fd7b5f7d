"""From a caption to a question whose answer it is: built-in phrasings, or a language model that the person names.

The language model is any server that speaks OpenAI's chat completions (vLLM, llama.cpp, Ollama, OpenAI, …). It is
asked once per caption; what it answered is kept in a JSONL file beside the data, so a second run asks nothing.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np

from model.errors import InputError

PHRASINGS = (
    "Describe the image.",
    "What does the image show?",
    "What can you see?",
    "Give a short description of the picture.",
    "Write a caption for this image.",
    "What is in the picture?",
    "Say briefly what is shown.",
    "How would you caption this?",
)
"""Questions that any caption answers."""

INSTRUCTION = (
    "You are given the caption of an image. Write one short question about the image that is answered by exactly this "
    "caption. Do not give the answer away. Reply with the question alone."
)
MAX_QUESTION = 300
"""Characters; what is longer is no single question."""

_RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504})


def choose_phrasing(key: str, seed: int) -> str:
    """One of :data:`PHRASINGS`: always the same for the same ``key`` (the image's name) and ``seed``."""
    rng = np.random.default_rng((seed, zlib.crc32(key.encode("utf-8", "surrogatepass"))))
    return PHRASINGS[int(rng.integers(len(PHRASINGS)))]


@dataclass(frozen=True)
class Endpoint:
    """A server of chat completions. ``url`` is its base (“http://localhost:8000/v1”), ``key_variable`` the name of the
    environment variable with its key (empty: none is sent), ``timeout_s`` seconds are waited for one answer, and
    after a passing failure it is asked up to ``attempts`` times in all. InputError if these can't work."""

    url: str
    model: str
    key_variable: str = ""
    timeout_s: float = 60.0
    attempts: int = 4
    parallel: int = 4

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise InputError(f"The endpoint “{self.url}” is no address; write it like http://localhost:8000/v1.")
        if not self.model:
            raise InputError(f"No model is named for the endpoint “{self.url}”; set endpoint_model.")

    def headers(self) -> dict[str, str]:
        """InputError if the variable is not set, or holds what no header can."""
        if not self.key_variable:
            return {}
        key = os.environ.get(self.key_variable, "")
        if not key:
            raise InputError(f"The environment variable {self.key_variable} (the endpoint's key) is not set; set it.")
        if not key.isascii() or not key.isprintable():
            raise InputError(f"The environment variable {self.key_variable} holds no key that can be sent; correct it.")
        return {"Authorization": f"Bearer {key}"}


class QuestionCache:
    """Questions that were answered before, one JSON object a line: ``{"model", "caption", "question"}``. A line that
    is cut off (a run was ended while writing) counts as not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._questions: dict[tuple[str, str], str] = {}
        if not path.exists():
            return
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                self._questions[entry["model"], entry["caption"]] = str(entry["question"])
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, model: str, caption: str) -> str | None:
        return self._questions.get((model, caption))

    def add(self, model: str, caption: str, question: str) -> None:
        """Writes the line at once. InputError if the file can't be written."""
        line = json.dumps({"model": model, "caption": caption, "question": question}, ensure_ascii=False)
        try:
            with self.path.open("ab+") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    whole = file.read() == b"\n"
                    line = line if whole else "\n" + line
                file.write(line.encode("utf-8", "replace") + b"\n")
        except OSError as error:
            raise InputError(
                f"The questions can't be kept in “{self.path.name}” ({error.strerror}); make its folder writable."
            ) from error
        self._questions[model, caption] = question


def write_questions(
    endpoint: Endpoint, captions: Sequence[str], cache: QuestionCache, sleep: Callable[[float], None] = time.sleep
) -> list[str]:
    """One question for each caption, asked of ``endpoint`` where ``cache`` has none. InputError when it can't be
    reached, refuses, or answers with something else; what was answered until then stays in the cache."""
    missing = list(dict.fromkeys(caption for caption in captions if cache.get(endpoint.model, caption) is None))
    if missing:
        # No redirects: the key is meant for this server alone.
        with (
            httpx.Client(timeout=endpoint.timeout_s, headers=endpoint.headers(), follow_redirects=False) as client,
            ThreadPoolExecutor(max(1, endpoint.parallel)) as pool,
        ):
            futures = [pool.submit(_ask, client, endpoint, caption, sleep) for caption in missing]
            try:
                for caption, future in zip(missing, futures, strict=True):
                    cache.add(endpoint.model, caption, future.result())
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    found = [cache.get(endpoint.model, caption) for caption in captions]
    return [question for question in found if question is not None]


def _ask(client: httpx.Client, endpoint: Endpoint, caption: str, sleep: Callable[[float], None]) -> str:
    body = {
        "model": endpoint.model,
        "messages": [{"role": "system", "content": INSTRUCTION}, {"role": "user", "content": caption}],
        "temperature": 0.7,
        "max_tokens": 100,
    }
    failure = ""
    for attempt in range(endpoint.attempts):
        wait = 0.5 * 2**attempt
        try:
            response = client.post(endpoint.url.rstrip("/") + "/chat/completions", json=body)
        except httpx.TransportError as error:
            failure = f"can't be reached ({type(error).__name__}: {error})"
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise InputError(f"The endpoint “{endpoint.url}” can't be asked ({error}); correct its address.") from error
        else:
            if response.status_code == 200:
                return _read_question(response, endpoint)
            failure = f"answered with status {response.status_code}{_message(response)}"
            if response.status_code not in _RETRIED:
                break
            asked = response.headers.get("Retry-After", "")
            wait = min(30.0, max(wait, float(asked))) if asked.isascii() and asked.isdigit() else wait
        if attempt + 1 < endpoint.attempts:
            sleep(wait)
    raise InputError(
        f"The endpoint “{endpoint.url}” {failure}; check its address, the model “{endpoint.model}” and the key, then "
        "start again: questions that came are kept."
    )


def _read_question(response: httpx.Response, endpoint: Endpoint) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
        text = " ".join(content.split()).strip("\"'“”").strip()
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise InputError(
            f"The endpoint “{endpoint.url}” did not answer as a chat-completions server does "
            "(choices[0].message.content is missing); check its address."
        ) from error
    if not text or len(text) > MAX_QUESTION:
        what = "nothing" if not text else f"{len(text):,} characters"
        raise InputError(
            f"The model “{endpoint.model}” answered with {what} where one question of at most {MAX_QUESTION} "
            "characters is due; name another model."
        )
    return text


def _message(response: httpx.Response) -> str:
    """What the server says of its refusal, if it says it in OpenAI's way."""
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return ""
    return f" ({' '.join(str(message).split())[:200]})"
