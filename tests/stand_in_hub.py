"""A hub that answers as the real one does, as far as fetching a checkpoint asks it; on this machine."""

import contextlib
import hashlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """``repos``: name → folder, or a status. ``sent``: bytes of each file that went out; ``break_after``: the
    connection is cut behind so many bytes of a file of weights, once."""

    def __init__(self) -> None:
        self.repos: dict[str, Path | int] = {}
        self.sent: dict[str, int] = {}
        self.break_after: int | None = None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(False)

            def do_GET(self):
                self.answer(True)

            def answer(self, whole):
                parts = self.path.split("?")[0].strip("/").split("/")
                if parts[:2] == ["api", "models"]:
                    self.describe("/".join(parts[2:4]), parts[4:5] == ["tree"])
                else:
                    self.send_file("/".join(parts[:2]), "/".join(parts[4:]), whole)

            def refuse(self, status):
                self.send_response(status)
                codes = {404: "RepoNotFound", 403: "GatedRepo"}
                if status in codes:
                    self.send_header("X-Error-Code", codes[status])
                self.send_header("Content-Length", "0")
                self.end_headers()

            def describe(self, name, tree):
                found = hub.repos.get(name, 404)
                if isinstance(found, int):
                    self.refuse(found)
                    return
                siblings = [
                    {"rfilename": str(path.relative_to(found)), "size": path.stat().st_size}
                    for path in sorted(found.rglob("*"))
                    if path.is_file()
                ]
                listed = [
                    {"type": "file", "path": one["rfilename"], "size": one["size"], "oid": "0" * 40} for one in siblings
                ]
                body = json.dumps(listed if tree else {"id": name, "sha": COMMIT, "siblings": siblings}).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def send_file(self, name, file, whole):
                found = hub.repos.get(name, 404)
                if isinstance(found, int):
                    self.refuse(found)
                    return
                data = (found / file).read_bytes()
                first = int(self.headers["Range"].split("=")[1].split("-")[0]) if "Range" in self.headers else 0
                self.send_response(206 if first else 200)
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
                self.send_header("Accept-Ranges", "bytes")
                if first:
                    self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
                self.send_header("Content-Length", str(len(data) - first))
                self.end_headers()
                if not whole:
                    return
                rest = data[first:]
                if hub.break_after is not None and file.endswith(".safetensors"):
                    rest, hub.break_after = rest[: hub.break_after], None
                with contextlib.suppress(ConnectionError):  # who stops hangs up
                    self.wfile.write(rest)
                hub.sent[file] = hub.sent.get(file, 0) + len(rest)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
