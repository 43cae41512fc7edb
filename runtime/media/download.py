"""An http(s) address streamed to a writer, within a limit of seconds and of bytes."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from typing import IO
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
from runtime.media.address import encoded_address

USER_AGENT = "qwen3vl-edge (+python-urllib)"
CHUNK_BYTES = 1 << 16
LONGEST_NAME = 160
LONGEST_TIMEOUT = 86400  # seconds; sockets take 24 days at most on some systems


class _Redirects(HTTPRedirectHandler):
    """Follows to international hosts too."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        try:
            address = encoded_address(newurl)
        except ValueError:
            fp.close()  # nobody else does: no response and no HTTPError goes out
            raise
        return super().redirect_request(req, fp, code, msg, headers, address)


# No ftp, file or data handler: a redirect must not leave http(s).
HANDLERS = (
    ProxyHandler,
    HTTPHandler,
    HTTPSHandler,
    HTTPDefaultErrorHandler,
    _Redirects,
    HTTPErrorProcessor,
    UnknownHandler,
)


@dataclass(frozen=True)
class FetchLimits:
    """What fetching one picture or video may cost: seconds, bytes, decoded pixels.

    `timeout`, a day at most, bounds each wait for the network and the body's whole download. `max_image_pixels`
    is where Pillow itself refuses a picture by default, so everything the reference can open is accepted.
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
    name = shortened(url)
    opener = OpenerDirector()
    for handler in HANDLERS:
        opener.add_handler(handler())
    try:
        # Browsers and `requests` accept spaces and accents in an address; urllib wants them escaped.
        request = Request(encoded_address(url), headers={"User-Agent": USER_AGENT})
        with opener.open(request, timeout=limits.timeout) as response:
            _copy(response, name, limits, write)
    except MediaError:
        raise
    except HTTPError as error:
        error.close()
        words = error.reason.partition("\n")[0].rstrip(".")  # urllib's own, of a redirect in a circle, has three lines
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
    deadline = time.monotonic() + limits.timeout
    # `length` is what Content-Length promised and counts down while reading; None for a chunked body.
    if response.length is not None and response.length > limits.max_bytes:
        raise _too_large(name, f"{response.length} bytes", limits)
    received = 0
    # read1 returns after one wait on the socket, so a server that drips bytes still meets the deadline.
    while piece := response.read1(CHUNK_BYTES):
        received += len(piece)
        if received > limits.max_bytes:
            raise _too_large(name, "more", limits)
        if time.monotonic() > deadline:
            raise _too_slow(name, limits)
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
