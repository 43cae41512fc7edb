"""Addresses with international hosts: what a server is asked for, and the sentence where a host cannot be encoded."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from test_media import LIMITS, PIXELS, encoded, failure

from runtime.media.address import encoded_address
from runtime.media.source import load_image


class Proxy(ThreadingHTTPServer):
    """Answers for every host, and notes the addresses and `Host` headers that it is asked for."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked: list[tuple[str, str]] = []


class Answer(BaseHTTPRequestHandler):
    """A picture, or a redirect to the host that the query names."""

    def do_GET(self) -> None:
        assert isinstance(self.server, Proxy)
        self.server.asked.append((self.path, self.headers["Host"]))
        _, moved, host = self.path.partition("?to=")
        self.send_response(302 if moved else 200)
        if moved:
            self.send_header("Location", HOSTS[host].encode().decode("latin-1"))
        else:
            self.send_header("Content-Length", str(len(encoded())))
        self.end_headers()
        if not moved:
            self.wfile.write(encoded())

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""


HOSTS = {"books": "http://bücher.example:81/ä.png", "street": "http://straße.example/a.png"}


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with Proxy() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{server.server_address[1]}")
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "path", "host"),
    [
        ("http://bücher.example/a.png", "/a.png", "xn--bcher-kva.example"),
        ("http://BÜCHER.example:8080/ä b.png?ö", "/%C3%A4%20b.png?%C3%B6", "xn--bcher-kva.example:8080"),
        ("http://例え.example/a.png", "/a.png", "xn--r8jz45g.example"),
        ("http://b%C3%BCcher.example/a.png", "/a.png", "xn--bcher-kva.example"),
        ("http://plain.example/a.png", "/a.png", "plain.example"),
    ],
)
def test_an_international_host_is_asked_for_by_its_encoded_name(url: str, path: str, host: str, proxy: Proxy) -> None:
    assert np.array_equal(np.asarray(load_image(url, LIMITS)), PIXELS)
    assert proxy.asked == [(f"http://{host}{path}", host)]


def test_a_redirect_may_lead_to_one(proxy: Proxy) -> None:
    assert np.array_equal(np.asarray(load_image("http://plain.example/?to=books", LIMITS)), PIXELS)
    host = "xn--bcher-kva.example:81"
    assert proxy.asked[1:] == [(f"http://{host}/%C3%A4.png", host)]
    assert "the host 'straße.example' has more than one" in failure("http://plain.example/?to=street")
    assert len(proxy.asked) == 3


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://me:secret@bücher.example:8443/a", "https://me:secret@xn--bcher-kva.example:8443/a"),
        ("http://bücher。example./?q=1#f", "http://xn--bcher-kva.example./?q=1#f"),
        ("http://[::1]:80/ä", "http://[::1]:80/%C3%A4"),
        ("http://[fe80::1%25eth0]/?", "http://[fe80::1%25eth0]/?"),
        ("http://a_b.example/%20 ", "http://a_b.example/%20%20"),
    ],
)
def test_the_rest_of_an_address_stays(url: str, expected: str) -> None:
    assert encoded_address(url) == expected


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://straße.example/a.png", "the host 'straße.example' has more than one encoded name, write the one that"),
        ("http://ü..example/a.png", "the host 'ü..example' is not an international name"),
        ("http://" + "ü" * 64 + ".example/a.png", "is not an international name"),
        ("http://ü%2f.example/a.png", "the host 'ü/.example' is not an international name"),
        ("http://b%FCcher.example/a.png", "is not an international name"),
    ],
)
def test_a_host_that_cannot_be_encoded_is_named(url: str, reason: str, proxy: Proxy) -> None:
    message = failure(url)
    assert message.startswith(f"{url} cannot be downloaded (") and reason in message
    assert proxy.asked == []
