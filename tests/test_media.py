"""Paths, addresses, data URIs, bytes and arrays to pictures, and every way in which that can fail."""

import base64
import io
import math
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

import numpy as np
import pytest
from file_server import served
from PIL import Image
from refusals import refusal

from runtime.errors import InputError, MediaError
from runtime.media.download import FetchLimits
from runtime.media.source import content_name, load_image, local_file

LIMITS = FetchLimits()
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(suffix: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, suffix)
    return stream.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels and whose body holds none."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(encoded()) as found:
        yield found


def failure(source: Any, limits: FetchLimits = LIMITS) -> str:
    """The message of the MediaError that `source` raises, checked to be one sentence."""
    with pytest.raises(MediaError) as caught:
        load_image(source, limits)
    message = str(caught.value)
    assert message.endswith(".")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    "source",
    [
        encoded(),
        bytearray(encoded()),
        memoryview(encoded()),
        "data:image/png;base64," + base64.b64encode(encoded()).decode(),
        "DATA:image/png;base64,\n" + base64.encodebytes(encoded()).decode(),
        "data:image/png," + quote_from_bytes(encoded()),
        Image.fromarray(PIXELS),
        PIXELS,
        PIXELS[:, ::-1][:, ::-1],
    ],
    ids=["bytes", "bytearray", "memoryview", "base64", "wrapped", "percent", "pil", "array", "strided"],
)
def test_sources_in_memory(source: Any) -> None:
    assert np.array_equal(np.asarray(load_image(source, LIMITS)), PIXELS)


@pytest.mark.parametrize("as_source", [str, Path, lambda path: path.as_uri()], ids=["str", "Path", "file uri"])
def test_local_files(as_source: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "ein Bild é.png"
    path.write_bytes(encoded())
    assert np.array_equal(np.asarray(load_image(as_source(path), LIMITS)), PIXELS)
    path.unlink()  # no handle is left open, which Windows would refuse here


@pytest.mark.parametrize("kind", ["ok.png", "with space?q=ü", "away", "agent"])
def test_addresses(kind: str, address: str) -> None:
    assert np.array_equal(np.asarray(load_image(f"{address}/{kind}", LIMITS)), PIXELS)


@pytest.mark.parametrize(("shape", "mode"), [((5, 7), "L"), ((5, 7, 3), "RGB"), ((5, 7, 4), "RGBA")])
def test_arrays_of_each_shape(shape: tuple[int, ...], mode: str) -> None:
    image = load_image(np.zeros(shape, np.uint8), LIMITS)
    assert (image.mode, image.size) == (mode, (7, 5))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7, 3), np.float32),
        np.zeros((3, 5, 7), np.uint8),
        np.zeros((5, 7, 1), np.uint8),
        np.zeros((0, 7, 3), np.uint8),
        np.zeros(5, np.uint8),
    ],
)
def test_other_arrays_are_refused(array: Any) -> None:
    message = failure(array)
    assert f"array ({array.dtype}, shape {array.shape})" in message
    assert "[H, W, 3]" in message


def test_bad_files_are_named(tmp_path: Path) -> None:
    bad = {
        "empty.png": b"",
        "text.png": b"no picture",
        "half.png": encoded()[:900],
        "half.jpg": encoded("JPEG")[:400],
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    missing = str(tmp_path / "missing.png")
    assert failure(missing).startswith(f"{missing} does not exist")
    assert failure(tmp_path).startswith(f"{tmp_path} is a directory")
    assert len(failure("A" * 100_000)) < 1000, "base64 without its data: in front"
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
        assert failure(tmp_path / "pipe.png").startswith(f"{tmp_path / 'pipe.png'} is a pipe or a device; ")
    assert failure(tmp_path / "empty.png").startswith(f"{tmp_path / 'empty.png'} has zero bytes")
    assert failure(tmp_path / "text.png").startswith(f"{tmp_path / 'text.png'} is not a picture")
    for name in ("half.png", "half.jpg"):
        assert failure(tmp_path / name).startswith(f"{tmp_path / name} is damaged or truncated")


def test_bad_sources_are_named() -> None:
    assert failure(b"").startswith("bytes (0 of them) has zero bytes")
    assert failure(b"no picture").startswith("bytes (10 of them) is not a picture")
    assert failure(encoded()[:900]).startswith("bytes (900 of them) is damaged or truncated")
    assert "unknown scheme 's3'" in failure("s3://bucket/picture.png")
    assert "names the host 'server'" in failure("file://server/picture.png")
    assert "has no comma" in failure("data:image/png;base64")
    assert "not valid base64" in failure("data:image/png;base64,a$b")
    assert "zero bytes" in failure("data:image/png;base64,")
    for uri in ("data:image/png;base64,AA\ud800", "data:image/png,AA\ud800"):
        assert failure(uri).endswith(f" holds a lone surrogate at position {len(uri) - 1}; encode the file again.")
    assert failure(3).startswith("int is not a picture")
    assert "cannot be read" in failure("nul\0byte.png")
    assert "no pixels" in failure(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize(
    "source",
    [
        "data:image/png;base64," + base64.b64encode(encoded()).decode(),
        "data:image/png;base64," + base64.encodebytes(encoded()).decode(),
        "data:image/png;base64," + quote_from_bytes(base64.b64encode(encoded()), safe=""),
        "data:image/png," + quote_from_bytes(encoded()),
    ],
    ids=["base64", "wrapped", "escaped", "percent"],
)
def test_the_content_of_a_data_uri_is_what_is_limited(source: str) -> None:
    limit = len(encoded())
    assert np.array_equal(np.asarray(load_image(source, FetchLimits(max_bytes=limit))), PIXELS)
    for smaller in (limit - 1, limit // 2, 1):
        message = failure(source, FetchLimits(max_bytes=smaller))
        assert message.endswith(f"is over the limit of {smaller} bytes; raise FetchLimits.max_bytes.")


def test_a_long_data_uri_is_cut_in_messages() -> None:
    assert content_name("data:image/png;base64," + "A" * 9978).endswith("… (10000 characters)")
    assert len(failure("data:image/png;base64," + "A" * 10000)) < 200


def test_decompression_bombs_are_refused_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    # Above Pillow's warning bound and above its error bound; a leaking warning would fail the test.
    for width, height in ((14_000, 13_000), (30_000, 30_000)):
        path.write_bytes(huge_png(width, height))
        message = failure(path)
        assert message.startswith(f"{path} decodes to {width}x{height} pixels, over the limit of 178956970")
    with pytest.raises(MediaError, match="30x20 pixels, over the limit of 500"):
        load_image(Image.fromarray(PIXELS), FetchLimits(max_image_pixels=500))


def test_a_large_picture_within_the_limit_does_not_warn() -> None:
    message = failure(huge_png(10_000, 9_000))  # over Pillow's warning bound; fails for its missing pixels only
    assert "is damaged or truncated" in message


def test_threads_share_nothing() -> None:
    sources = [encoded(), huge_png(30_000, 30_000), PIXELS] * 20
    with ThreadPoolExecutor(8) as pool:
        for source, future in [(source, pool.submit(load_image, source, LIMITS)) for source in sources]:
            if source is sources[1]:
                assert isinstance(future.exception(), MediaError)
            else:
                assert np.array_equal(np.asarray(future.result()), PIXELS)


def test_bad_addresses_are_named(address: str) -> None:
    assert failure(f"{address}/missing.png").startswith(f"{address}/missing.png answered HTTP 404")
    assert failure(f"{address}/text").startswith(f"{address}/text is not a picture")
    assert failure(f"{address}/empty").startswith(f"{address}/empty has zero bytes")
    assert failure(f"{address}/coloured").startswith(f"{address}/coloured answered HTTP 404 [31mGone; check")
    circle = failure(f"{address}/circle")
    assert circle.endswith(" would lead to an infinite loop; check that the address exists and is public.")
    assert "\n" not in circle
    assert failure(f"{address}/short").startswith(f"{address}/short was cut short")
    assert failure(f"{address}/elsewhere").startswith(f"{address}/elsewhere cannot be downloaded (unknown url")
    assert failure("http://127.0.0.1:1/a.png").startswith("http://127.0.0.1:1/a.png cannot be downloaded (")
    assert failure("http://").startswith("http:// cannot be downloaded (")
    assert "cannot be downloaded" in failure("http://[broken/a.png")


@pytest.mark.parametrize(
    ("kind", "wanted"), [("announced", "bytes, over the limit"), ("endless", "more, over the limit")]
)
def test_too_large_downloads_stop(kind: str, wanted: str, address: str) -> None:
    message = failure(f"{address}/{kind}", FetchLimits(max_bytes=200_000))
    assert message.startswith(f"{address}/{kind} has ")
    assert wanted in message


@pytest.mark.parametrize("kind", ["silent", "drip"])
def test_slow_downloads_stop(kind: str, address: str) -> None:
    begin = time.monotonic()
    message = failure(f"{address}/{kind}", FetchLimits(timeout=0.4))
    assert message.startswith(f"{address}/{kind} did not arrive within 0.4 seconds")
    assert time.monotonic() - begin < 1.4


def test_a_postscript_file_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("run"))
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{} loop\n"
    assert "is not a picture that Pillow can read; pass a PNG" in failure(program)


def test_a_password_is_for_its_host_alone_and_not_shown(address: str) -> None:
    for password in ("p@ss", "p%40ss"):
        user = address.replace("http://", f"http://user:{password}@")
        for kind in ("login", "leave"):
            assert np.array_equal(np.asarray(load_image(f"{user}/{kind}", LIMITS)), PIXELS)
        hidden = address.replace("http://", "http://user:***@")
        for kind in ("missing.png", "text"):
            assert failure(f"{user}/{kind}").startswith(f"{hidden}/{kind} ")
    assert "answered HTTP 401 Unauthorized" in failure(f"{address}/login")


@pytest.mark.parametrize("kind", ["header", "interim", "chunk", "trailers"])
def test_answers_without_end_stop(kind: str, address: str) -> None:
    begin = time.monotonic()
    message = failure(f"{address}/{kind}", FetchLimits(timeout=0.4))
    assert message.startswith(f"{address}/{kind} did not arrive within 0.4 seconds")
    assert time.monotonic() - begin < 1.4


def test_what_a_redirect_says_besides_is_not_read(address: str) -> None:
    begin = time.monotonic()
    load_image(f"{address}/redirect", LIMITS)
    assert time.monotonic() - begin < 1.4


def test_local_file_is_the_path_itself(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"film")
    for source in (path, str(path), path.as_uri()):
        with local_file(source, LIMITS) as found:
            assert Path(found) == path
    assert path.exists()
    with (
        pytest.raises(MediaError, match=r"gone\.mp4 does not exist"),
        local_file(tmp_path / "gone.mp4", LIMITS),
    ):
        pass


def test_local_file_downloads_and_cleans_up(address: str) -> None:
    with local_file(f"{address}/ok.png", LIMITS) as found:
        assert Path(found).read_bytes() == encoded()
    assert not Path(found).exists()
    with pytest.raises(MediaError, match="HTTP 404"), local_file(f"{address}/missing.png", LIMITS):
        pass


@pytest.mark.parametrize("name", ["timeout", "max_bytes", "max_image_pixels"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(InputError, match=f"FetchLimits.{name} is 0"):
        FetchLimits(**{name: 0})


@pytest.mark.parametrize("seconds", [math.inf, 1e12, 10**400, 86401])
def test_a_wait_is_no_longer_than_sockets_can_wait(seconds: float, address: str) -> None:
    message = refusal(lambda: FetchLimits(timeout=seconds))
    assert message == "FetchLimits.timeout is over the limit of 86400 seconds, a day; give fewer."
    load_image(f"{address}/ok.png", FetchLimits(timeout=86400))
