"""A local HTTP server that speaks as much of the Hugging Face hub's protocol as a download needs."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """One repository and how it misbehaves; `requests` records (method, path, Range header)."""

    repository: str
    files: dict[str, bytes]
    revisions: tuple[str, ...] = ("main",)
    api_error: tuple[int, str] | None = None  # (status, X-Error-Code) of every answer of the API
    file_error: tuple[int, str] | None = None  # the same of every file
    absent: tuple[str, ...] = ()  # listed, yet not there
    reset_after: dict[str, int] = field(default_factory=dict)  # break the connection once, after so many bytes
    short: dict[str, int] = field(default_factory=dict)  # send only so many bytes once, as a whole answer
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    endpoint: str = ""

    def fetched(self) -> set[str]:
        """Names of the files whose content was asked for."""
        return {path.split(f"/resolve/{COMMIT}/")[1] for method, path, _ in self.requests if self.is_get(method, path)}

    def ranges(self, name: str) -> list[str | None]:
        """The Range header of every GET of a file, in order."""
        return [span for method, path, span in self.requests if method == "GET" and path.endswith(f"/{name}")]

    @staticmethod
    def is_get(method: str, path: str) -> bool:
        return method == "GET" and "/resolve/" in path

    @contextmanager
    def serve(self) -> Iterator["FakeHub"]:
        """Serve on 127.0.0.1 and set `endpoint`."""

        class Handler(_Handler):
            hub = self

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        self.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    # HTTP/1.0: one request a connection, so that no connection outlives the server.
    protocol_version = "HTTP/1.0"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: object) -> None:
        """Keep the test output quiet."""

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        repository = re.escape(self.hub.repository)
        if found := re.fullmatch(rf"/api/models/{repository}/(revision|tree)/(.+)", path):
            self._answer_api(found[1], found[2])
        elif found := re.fullmatch(rf"/{repository}/resolve/({COMMIT})/(.+)", path):
            self._answer_file(found[2])
        else:
            self._send(404, {"X-Error-Code": "RepoNotFound"}, b"")

    def _answer_api(self, kind: str, revision: str) -> None:
        hub = self.hub
        if hub.api_error:
            self._send(hub.api_error[0], {"X-Error-Code": hub.api_error[1]}, b"")
        elif revision not in (*hub.revisions, COMMIT):
            self._send(404, {"X-Error-Code": "RevisionNotFound"}, b"")
        elif kind == "revision":
            siblings = [{"rfilename": name} for name in hub.files]
            self._send_json({"id": hub.repository, "sha": COMMIT, "siblings": siblings})
        else:  # where later huggingface_hub versions list files
            self._send_json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                    for name, content in hub.files.items()
                ]
            )

    def _answer_file(self, name: str) -> None:
        hub = self.hub
        if hub.file_error:
            self._send(hub.file_error[0], {"X-Error-Code": hub.file_error[1]}, b"")
            return
        if name not in hub.files or name in hub.absent:
            self._send(404, {"X-Error-Code": "EntryNotFound"}, b"")
            return
        content = hub.files[name]
        headers = {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, body = 200, content
        if span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            start = int(span[1])
            status, body = 206, content[start:]
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and name in hub.short:
            body = body[: hub.short.pop(name)]
        stop = hub.reset_after.pop(name, None) if self.command == "GET" else None
        self._send(status, headers, body, stop)

    def _send_json(self, answer: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _send(self, status: int, headers: dict[str, str], body: bytes, stop: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[:stop])  # HTTP/1.0 closes afterwards: fewer bytes are a broken connection


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
