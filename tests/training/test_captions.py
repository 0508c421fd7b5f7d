"""Captions as questions: the source of pairs, the built-in phrasings, and a language model behind a local server."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from model import InputError
from model.training.data.captions import PHRASINGS, Endpoint, QuestionCache, choose_phrasing, write_questions
from model.training.data.readers import read_source


def png(colour="red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), colour).save(stream, "png")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(png())
    return tmp_path


def read(folder, path=".", **more):
    return read_source({"source": "captions", "path": path, **more}, base_folder=folder)


def texts(source):
    return [tuple(message.text for message in example.conversation.messages) for example in source]


# --- pairs ---


def test_pictures_with_text_files(folder):
    for name in ("a", "b", "c"):
        (folder / f"{name}.txt").write_text(f" Caption {name}.\n", encoding="utf-8-sig")
    source = read(folder)
    assert [answer for _, answer in texts(source)] == ["Caption a.", "Caption b.", "Caption c."]
    assert all(question in PHRASINGS for question, _ in texts(source))
    assert source[0].families == ("caption",)
    assert source[0].source == "a.png"
    assert source[0].conversation.messages[0].images[0].pixels.size == (8, 6)
    (folder / "b.txt").unlink()
    (folder / "c.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InputError, match=r"^b\.png.*b\.txt.*\(1 more"):
        read(folder)
    source = read(folder, on_error="skip")
    assert [problem.where for problem in source.problems] == ["b.png", "c.png"]


def test_metadata_as_in_imagefolder(folder):
    rows = [{"file_name": "a.png", "text": "A"}, {"file_name": "../b.png", "text": "B"}, {"file_name": "c.png"}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = read(folder, on_error="skip", question="What?")
    assert texts(source) == [("What?", "A")]
    assert [problem.where for problem in source.problems] == [
        "metadata.jsonl line 2",
        "metadata.jsonl line 3",
        "b.png",  # which no row names
    ]
    assert "caption_column" in source.problems[1].sentence


def test_csv_with_quoted_line_breaks_and_its_faults(folder):
    (folder / "d.csv").write_bytes(
        b'\xef\xbb\xbfimage,caption\r\na.png,"two\r\nlines, and a comma"\r\n\r\nb.png,B,more\r\n'
        b"c.png,\r\ngone.png,G\r\n"
    )
    source = read(folder, "d.csv", on_error="skip", question="?")
    assert texts(source) == [("?", "two\r\nlines, and a comma")]
    assert [problem.where for problem in source.problems] == ["d.csv line 5", "d.csv line 6", "d.csv line 7"]


def test_csv_columns_by_name(folder):
    (folder / "d.csv").write_text("id,pic,alt\n1,a.png,A\n")
    assert texts(read(folder, "d.csv", image_column="pic", caption_column="alt", question="?")) == [("?", "A")]
    with pytest.raises(InputError, match=r"d\.csv.*line 2.*file_name"):
        read(folder, "d.csv")
    with pytest.raises(InputError, match=r"d\.csv.*line 2.*nope"):
        read(folder, "d.csv", image_column="nope")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"d\.csv.*\(0 bytes\)"),
        (b"\n\n", r"d\.csv.*columns"),
        (b"image,caption\n", r"d\.csv.*no example"),
        (b"image,image\na,b\n", r"d\.csv line 1.*\(image, image\)"),
        (b'image,caption\na.png,"never closed\n', r"d\.csv.*line 2.*CSV"),
        (b"image,caption\na.png,caf\xe9\n", r"d\.csv.*line 2.*0xe9.*UTF-8"),
    ],
)
def test_csv_files_that_cannot_be_read(folder, content, sentence):
    (folder / "d.csv").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(folder, "d.csv")


def test_paths_and_splits(folder):
    (folder / "train").mkdir()
    (folder / "train" / "x.png").write_bytes(png())
    (folder / "train" / "x.txt").write_text("X")
    assert texts(read(folder, split="train", question="?")) == [("?", "X")]
    with pytest.raises(InputError, match="dev"):
        read(folder, split="dev")
    with pytest.raises(InputError, match=r"a\.png"):
        read(folder, "a.png")


def test_phrasings_depend_on_seed_and_name_alone():
    names = [f"{number}.png" for number in range(200)]
    first = [choose_phrasing(name, 1) for name in names]
    assert first == [choose_phrasing(name, 1) for name in names]
    assert first != [choose_phrasing(name, 2) for name in names]
    assert set(first) == set(PHRASINGS)


# --- a language model ---


class Server:
    """A chat-completions server that hands out `replies` (status, body, headers), then questions of its own."""

    def __init__(self):
        self.replies = []
        self.requests = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.requests.append((self.path, self.headers.get("Authorization"), body))
                caption = body["messages"][-1]["content"]
                message = {"role": "assistant", "content": f' "What about {caption}?"\n'}
                usual = 200, {"choices": [{"message": message}]}, {}
                status, reply, headers = outer.replies.pop(0) if outer.replies else usual
                data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(data)))
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def close(self):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = Server()
    yield server
    server.close()


def endpoint(server, **more):
    return Endpoint(server.url, "tiny", **{"parallel": 1, **more})


def test_questions_are_asked_once_and_kept(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret")
    cache = tmp_path / "q.jsonl"
    asked = endpoint(server, key_variable="MY_KEY", parallel=3)
    questions = write_questions(asked, ["a cat", "a dog", "a cat"], QuestionCache(cache))
    assert questions == ["What about a cat?", "What about a dog?", "What about a cat?"]
    assert len(server.requests) == 2
    path, key, body = server.requests[0]
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer secret", "tiny")
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert [json.loads(line) for line in cache.read_text().splitlines()] == [
        {"model": "tiny", "caption": "a cat", "question": "What about a cat?"},
        {"model": "tiny", "caption": "a dog", "question": "What about a dog?"},
    ]
    assert "secret" not in cache.read_text()
    assert write_questions(asked, ["a dog"], QuestionCache(cache)) == ["What about a dog?"]
    assert len(server.requests) == 2


def test_a_cache_cut_off_while_writing_goes_on(server, tmp_path):
    cache = tmp_path / "q.jsonl"
    write_questions(endpoint(server), ["a", "b"], QuestionCache(cache))
    cache.write_bytes(cache.read_bytes()[:-10])
    assert write_questions(endpoint(server), ["a", "b"], QuestionCache(cache)) == ["What about a?", "What about b?"]
    assert len(server.requests) == 3
    assert QuestionCache(cache).get("tiny", "b") == "What about b?"


def test_passing_failures_are_asked_again(server, tmp_path):
    server.replies = [(503, b"", {}), (429, b"", {"Retry-After": "7"}), (500, b"", {"Retry-After": "soon"})]
    waits = []
    assert write_questions(endpoint(server), ["a"], QuestionCache(tmp_path / "q"), sleep=waits.append) == [
        "What about a?"
    ]
    assert waits == [0.5, 7.0, 2.0]


@pytest.mark.parametrize(
    ("replies", "sentence", "requests"),
    [
        ([(503, b"", {})] * 4, "503.*tiny", 4),
        ([(401, {"error": {"message": "bad key"}}, {})], "401", 1),
        ([(404, b"<html>", {})], "404", 1),
        ([(307, b"", {"Location": "http://127.0.0.1:1/"})], "307", 1),
        ([(200, b"<html>", {})], "chat-completions", 1),
        ([(200, {"choices": []}, {})], "chat-completions", 1),
        ([(200, [1], {})], "chat-completions", 1),
        ([(200, {"choices": [{"message": {"content": None}}]}, {})], "chat-completions", 1),
        ([(200, {"choices": [{"message": {"content": ' ""\n'}}]}, {})], "nothing", 1),
        ([(200, {"choices": [{"message": {"content": "a " * 400}}]}, {})], "799", 1),
    ],
)
def test_servers_that_fail(server, tmp_path, replies, sentence, requests):
    server.replies = list(replies)
    with pytest.raises(InputError, match=sentence):
        write_questions(endpoint(server), ["a"], QuestionCache(tmp_path / "q"), sleep=lambda seconds: None)
    assert len(server.requests) == requests


def test_what_came_before_a_failure_is_kept(server, tmp_path):
    server.replies = [(200, {"choices": [{"message": {"content": "First?"}}]}, {}), (401, b"", {})]
    with pytest.raises(InputError, match="401"):
        write_questions(endpoint(server), ["a", "b", "c"], QuestionCache(tmp_path / "q"))
    assert QuestionCache(tmp_path / "q").get("tiny", "a") == "First?"


def test_a_server_that_is_not_there(tmp_path):
    waits = []
    nowhere = Endpoint("http://127.0.0.1:9/v1", "tiny", attempts=2)
    with pytest.raises(InputError, match=r"127\.0\.0\.1:9/v1.*\(ConnectError"):
        write_questions(nowhere, ["a"], QuestionCache(tmp_path / "q"), sleep=waits.append)
    assert waits == [0.5]


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "file:///etc/passwd"])
def test_addresses_that_are_none(url):
    with pytest.raises(InputError, match="http://localhost"):
        Endpoint(url, "tiny")


def test_keys(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(InputError, match=r"MY_KEY .* not set"):
        Endpoint("http://x/v1", "m", "MY_KEY").headers()
    monkeypatch.setenv("MY_KEY", "a\nb")
    with pytest.raises(InputError, match="no key"):
        Endpoint("http://x/v1", "m", "MY_KEY").headers()
    with pytest.raises(InputError, match="No model"):
        Endpoint("http://x/v1", "")


def test_an_endpoint_in_a_table(server, folder):
    (folder / "d.csv").write_text("image,caption\na.png,a cat\nb.png,a dog\n")
    source = read(folder, "d.csv", endpoint=server.url, endpoint_model="tiny")
    assert texts(source) == [("What about a cat?", "a cat"), ("What about a dog?", "a dog")]
    assert len((folder / "d.csv.questions.jsonl").read_text().splitlines()) == 2
    with pytest.raises(InputError, match="a question and"):
        read(folder, "d.csv", endpoint=server.url, endpoint_model="tiny", question="?")
    with pytest.raises(InputError, match=r"^endpoint_model"):
        read(folder, "d.csv", endpoint_model="tiny")
