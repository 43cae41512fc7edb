"""An http(s) address streamed to a writer, within a limit of seconds and of bytes."""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPMessage, HTTPResponse, HTTPSConnection
from socket import socket
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from runtime.errors import InputError, MediaError
from runtime.media.address import encoded_address, without_credentials, without_password

USER_AGENT = "qwen3vl-edge (+python-urllib)"
CHUNK_BYTES = 1 << 16
LONGEST_NAME = 160
LONGEST_TIMEOUT = 86400  # seconds; sockets take 24 days at most on some systems


class _Timed(io.RawIOBase):
    """What a server sends, until `deadline`: each read waits as long as the socket does, however many there are."""

    def __init__(self, raw: io.RawIOBase, deadline: float):
        self._raw, self.deadline = raw, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if time.monotonic() > self.deadline:
            raise TimeoutError
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(HTTPResponse):
    """Its head, and then its body, take no longer than the socket's time-out.

    http.client reads any number of interim answers, of chunks' lines and of trailers, each of any slowness.
    """

    def __init__(self, sock: socket, *arguments: Any, **options: Any):
        super().__init__(sock, *arguments, **options)
        self._seconds = sock.gettimeout() or LONGEST_TIMEOUT
        self._timed = _Timed(self.fp.detach(), time.monotonic() + self._seconds)
        self.fp = io.BufferedReader(self._timed)

    def begin(self) -> None:
        super().begin()
        self._timed.deadline = time.monotonic() + self._seconds


def _connection(kind: type[HTTPConnection], *arguments: Any, **options: Any) -> HTTPConnection:
    connection = kind(*arguments, **options)
    connection.response_class = _Response
    return connection


class _Http(HTTPHandler):
    def http_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_connection, HTTPConnection), req)


class _Https(HTTPSHandler):
    def https_open(self, req: Request) -> HTTPResponse:
        return self.do_open(partial(_connection, HTTPSConnection), req)


class _Redirects(HTTPRedirectHandler):
    """Follows to international hosts too, and does not read what else a redirect says, of any length."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        fp.close()  # urllib would read it to its end
        address, _ = without_credentials(encoded_address(newurl))
        return super().redirect_request(req, fp, code, msg, headers, address)


# No ftp, file or data handler: a redirect must not leave http(s).
HANDLERS = (
    ProxyHandler,
    _Http,
    _Https,
    HTTPDefaultErrorHandler,
    _Redirects,
    HTTPErrorProcessor,
    UnknownHandler,
)


@dataclass(frozen=True)
class FetchLimits:
    """What fetching one picture or video may cost: seconds, bytes, decoded pixels.

    `timeout`, a day at most, bounds each wait for the network, and the whole head and the whole body of an answer.
    `max_image_pixels` is where Pillow itself refuses a picture by default, so everything the reference can open is
    accepted.
    """

    timeout: float = 20.0
    max_bytes: int = 512 * 1024 * 1024
    max_image_pixels: int = 178_956_970

    def __post_init__(self) -> None:
        for name in ("timeout", "max_bytes", "max_image_pixels"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise InputError(f"FetchLimits.{name} is {value!r}; give a number above zero.")
        if self.timeout > LONGEST_TIMEOUT:
            raise InputError(f"FetchLimits.timeout is over the limit of {LONGEST_TIMEOUT} seconds, a day; give fewer.")


def shortened(text: str, longest: int = LONGEST_NAME) -> str:
    """`text` cut to `longest` characters, with the length named where it was cut."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text)} characters)"


def download(url: str, limits: FetchLimits, write: Callable[[bytes], object]) -> None:
    """Hand the body of `url` to `write` piece by piece; MediaError names the address and what went wrong."""
    name = shortened(without_password(url))
    opener = OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    try:
        # Browsers and `requests` accept spaces and accents in an address; urllib wants them escaped.
        address, authorization = without_credentials(encoded_address(url))
        request = Request(address, headers={"User-Agent": USER_AGENT})
        if authorization:
            request.add_unredirected_header("Authorization", authorization)
        with opener.open(request, timeout=limits.timeout) as response:
            _copy(response, name, limits, write)
    except MediaError:
        raise
    except HTTPError as error:
        error.close()
        words = error.reason.partition("\n")[0].rstrip(".")  # urllib's own, of a redirect in a circle, has three lines
        words = "".join(filter(str.isprintable, words))  # a terminal obeys some of the others
        raise MediaError(
            f"{name} answered HTTP {error.code} {words}; check that the address exists and is public."
        ) from error
    except (OSError, HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, TimeoutError):
            raise _too_slow(name, limits) from error
        raise MediaError(
            f"{name} cannot be downloaded ({reason or type(reason).__name__}); "
            "check the address and the network, or pass a local file."
        ) from error


def _copy(response: HTTPResponse, name: str, limits: FetchLimits, write: Callable[[bytes], object]) -> None:
    # `length` is what Content-Length promised and counts down while reading; None for a chunked body.
    if response.length is not None and response.length > limits.max_bytes:
        raise _too_large(name, f"{response.length} bytes", limits)
    received = 0
    while piece := response.read1(CHUNK_BYTES):
        received += len(piece)
        if received > limits.max_bytes:
            raise _too_large(name, "more", limits)
        write(piece)
    if response.length:
        raise MediaError(f"{name} was cut short after {received} bytes, {response.length} are missing; try again.")
    if not received:
        raise MediaError(f"{name} has zero bytes; pass the address of a picture or a video.")


def _too_large(name: str, size: str, limits: FetchLimits) -> MediaError:
    return MediaError(
        f"{name} has {size}, over the limit of {limits.max_bytes} bytes; "
        "pass a smaller file or raise FetchLimits.max_bytes."
    )


def _too_slow(name: str, limits: FetchLimits) -> MediaError:
    return MediaError(
        f"{name} did not arrive within {limits.timeout:g} seconds; try again or raise FetchLimits.timeout."
    )
