"""A path that comes from a client opens nothing but what was uploaded, over every event, and tells nothing else."""

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from inspector.server.admission import admit_file, admit_files
from model import InputError
from scripts.stranger import Stranger


def shapes_of(path: str) -> list[Any]:
    """The ways in which an event can name a file."""
    bare: dict[str, Any] = {"path": path}
    said = {**bare, "meta": {"_type": "gradio.FileData"}}
    return [
        bare,
        said,
        [bare],
        [{"image": bare, "caption": None}],
        [{"image": {**bare, "url": None}}],
        [{"video": bare, "caption": None}],
        {"value": bare},
        {"files": [{"deep": {"er": bare}}]},
    ]


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that nobody uploaded, marked as not read since 2001."""
    path = tmp_path_factory.mktemp("elsewhere") / "secret.png"
    Image.new("RGB", (8, 8), "red").save(path)
    os.utime(path, (978_307_200, path.stat().st_mtime))
    return path


def test_no_event_opens_a_file_that_was_not_uploaded(stranger: Stranger, secret: Path):
    missing = secret.with_name("missing.png")
    refused, tried = 0, 0
    for name, event in stranger.events.items():
        inputs = len(event["inputs"])
        for shape in range(len(shapes_of(""))):
            if inputs:
                answers = [
                    stranger.call(name, [shapes_of(str(path))[shape]] * inputs, {"path": str(path)})
                    for path in (secret, missing)
                ]
                said = [str(answer["output"].get("error")).replace("missing", "secret") for answer in answers]
                tried += 1
                assert said[0] == said[1], (name, shape)  # no telling which of them is there
                assert not answers[0]["success"], (name, shape)
                assert "base64" not in str(answers[0])
                refused += "is no file that was uploaded here" in said[0]
        if not inputs:
            stranger.call(name, [], {"path": str(secret), "files": [{"path": str(secret), "name": "x", "size": 1}]})
    assert refused == tried > 500
    assert secret.stat().st_atime == 978_307_200


def test_the_clock_of_reading_works(secret: Path):
    secret.read_bytes()
    assert secret.stat().st_atime > 978_307_200


@pytest.mark.parametrize(
    "path",
    [
        "/dev/zero",
        "/dev/ptmx",
        "/dev/stdin",
        "/proc/self/environ",
        "/",
        "",
        ".",
        "..",
        "../../etc/hostname",
        "\0",
        "a\0b",
        "x" * 5000,
        "http://127.0.0.1:1/x.png",
        "file:///etc/hostname",
        "~/.ssh/id_rsa",
        "C:\\x.png",
        "/etc/hostname\n",
        7,
        None,
        [],
        {},
        True,
    ],
)
def test_odd_paths_get_the_same_sentence(stranger: Stranger, path: Any):
    answer = stranger.call("plan_images", ["embedded", [{"image": {"path": path}}], []])
    assert "uploaded" in answer["output"]["error"]


def test_what_was_uploaded_is_opened(stranger: Stranger, tmp_path: Path):
    path = tmp_path / "blue.png"
    Image.new("RGB", (64, 64), "blue").save(path)
    answer = stranger.call("plan_images", ["embedded", [{"image": stranger.upload(path), "caption": None}], []])
    assert answer["success"]
    assert "blue.png" in str(answer["output"])


def test_another_address_of_a_file_served_by_the_app_is_refused(stranger: Stranger, secret: Path):
    for path in (str(secret), "/etc/hostname", str(secret.with_name("missing.png")), "/proc/self/environ"):
        answer = stranger.http.get(f"/gradio_api/file={path}")
        assert answer.status_code in (403, 404)
    texts = {
        stranger.http.get(f"/gradio_api/file={path}").text.replace(str(path), "…")
        for path in (secret, secret.with_name("missing.png"))
    }
    assert len(texts) == 1  # the same word for what is there and what isn't


class TestAdmission:
    """The one function, without a server."""

    def test_files_in_the_folder(self, tmp_path: Path):
        file = tmp_path / "a" / "b.png"
        file.parent.mkdir()
        file.write_bytes(b"x")
        assert admit_file(str(file), tmp_path) == file.resolve()
        admit_files([{"image": {"path": str(file), "url": "/file=…"}}, "text", 3, None], tmp_path)

    def test_an_address_is_no_file(self, tmp_path: Path):
        with pytest.raises(InputError, match="That"):
            admit_files({"url": "http://example.org/x.png"}, tmp_path)

    def test_deep_nesting_is_walked(self, tmp_path: Path):
        value: Any = {"path": "/etc/hostname"}
        for _ in range(50_000):
            value = [value]
        with pytest.raises(InputError, match="“hostname”"):
            admit_files(value, tmp_path)
