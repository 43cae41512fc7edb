"""A server on 127.0.0.1 for tests: one file, handed out well or badly as the path says."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# Answers without end, by the path that gives them: how they begin, and what comes then again and again.
BEGIN, CHUNKED = b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = {
    "header": (BEGIN + b"X: ", b"x"),
    "interim": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "chunk": (CHUNKED + b"1;", b"x"),
    "trailers": (CHUNKED + b"0\r\n", b"X: x\r\n"),
    "redirect": (b"HTTP/1.1 302 Found\r\nLocation: /ok.png\r\n\r\n", b"x"),
}


class Handler(BaseHTTPRequestHandler):
    """Serves the server's one file in the good or bad way that the path names."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        kind = self.path.strip("/").split("?")[0]
        body = {"empty": b"", "text": b"<html>no picture</html>"}.get(kind, self.server.content)
        if kind == "missing.png":
            self.send_error(404)
            return
        if kind in ENDLESS:
            self._repeat(*ENDLESS[kind])
            return
        if kind == "coloured":
            self.send_response(404, "\x1b[31mGone\x9b")
            self.end_headers()
            return
        authorization = self.headers["Authorization"]
        if (kind == "login" and authorization != "Basic dXNlcjpwQHNz") or (kind == "stranger" and authorization):
            self.send_error(401)
            return
        places = {"leave": "/stranger", "away": "/ok.png", "elsewhere": "ftp://127.0.0.1/ok.png", "circle": "/circle"}
        if kind in places:
            self.send_response(302)
            self.send_header("Location", places[kind])
            self.end_headers()
            return
        if kind == "agent":
            assert self.headers["User-Agent"].startswith("qwen3vl-edge")
        self.send_response(200)
        if kind != "endless":
            self.send_header("Content-Length", str({"short": 2, "announced": 10**9}.get(kind, 1) * len(body)))
        self.end_headers()
        try:
            if kind == "silent":
                time.sleep(1.5)
            for _ in range(30 if kind == "drip" else 0):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.1)
            for _ in range(10_000 if kind == "endless" else 1):
                self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client left, as it should

    def _repeat(self, begin: bytes, piece: bytes) -> None:
        """For two seconds, a piece every ten milliseconds."""
        try:
            self.wfile.write(begin)
            for _ in range(200):
                self.wfile.write(piece)
                time.sleep(0.01)
        except OSError:
            pass
        self.close_connection = True

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


class Server(ThreadingHTTPServer):
    """Hands out `content`."""

    daemon_threads = True
    content = b""

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves early is what some tests are about."""


@contextmanager
def served(content: bytes) -> Iterator[str]:
    """The address, http://127.0.0.1:port, of a running server of `content`."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.content = content
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
