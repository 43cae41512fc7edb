"""Memory that cannot be had: an error that names the input and what to do, and the other inputs' vectors stay right."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from runtime import OutOfMemoryError, Qwen3VLEmbedder, Qwen3VLReranker, Skipped
from runtime.graphs.allocation import allocating
from runtime.graphs.graph import NOWHERE, Arrays, Graph

Packages = Callable[[Shape, Task], Path]
ROOT = Path(__file__).parent.parent
CLOSE = 1e-6
TEXTS: list[dict[str, Any]] = [{"text": f"{number} " + "stone " * number} for number in (3, 60, 1, 5, 200, 2)]
LONG, LARGE = 4, 3
PICTURES: list[dict[str, Any]] = [
    {"image": Image.effect_noise(size, 50).convert("RGB")} for size in ((64, 64), (96, 64), (64, 64), (256, 256))
]
# A process that may not grow by more than 64 MB once everything is open: what is asked for needs far more.
LIMITED = """
import resource, sys
import numpy as np
from PIL import Image
from runtime import OutOfMemoryError, Qwen3VLEmbedder

options = dict(max_length=32768, batch_tokens=32768, max_pixels=4096 * 4096)
model = Qwen3VLEmbedder(sys.argv[1], threads=2, memory=sys.argv[2], **options)
items = [{"text": "a"}, {"text": "stone " * 30000}, {"text": "b"}, {"image": Image.new("RGB", (4096, 4096))}]
small = Image.effect_noise((64, 64), 50).convert("RGB")
before = model.process([items[0], items[2], {"image": small}])
size = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (int(size.split()[1]) * 1024 + 64 * 2**20, resource.RLIM_INFINITY))
for index in (1, 3):
    try:
        model.process(items[: index + 1 : index])
    except OutOfMemoryError as error:
        print(error)
skipped = []
rows = model.process([*items, {"image": small}], on_error="skip", skipped=skipped)
print([each.index for each in skipped], {type(each.error).__name__ for each in skipped})
print(np.isnan(rows).all(axis=1).tolist(), float(np.abs(rows[[0, 2, 4]] - before).max()) < 1e-6)
"""


class Small:
    """A graph that is refused memory, in onnxruntime's words, where its inputs hold more numbers than `room`."""

    def __init__(self, graph: Graph, room: int):
        self.graph, self.room = graph, room
        self.sizes: list[int] = []

    def run(self, names: Sequence[str], feeds: Arrays, into: Arrays = NOWHERE) -> list[np.ndarray]:
        size = feeds["input_ids" if "input_ids" in feeds else "patches"].size
        self.sizes.append(size)
        with allocating():
            if size > self.room:
                raise RuntimeError("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer")
        return self.graph.run(names, feeds, into)


def shrink_decoder(model: Qwen3VLEmbedder | Qwen3VLReranker, tokens: int) -> Small:
    decoder = model.package.model.decoder
    decoder._graph = small = Small(decoder._graph, tokens)
    return small


@pytest.fixture
def embedder(package: Packages) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(package(TINY_2B, "embedding"))


@pytest.mark.skipif(sys.platform != "linux", reason="needs RLIMIT_AS and /proc")
@pytest.mark.parametrize("memory", ["normal", pytest.param("low", marks=pytest.mark.full)])
def test_a_process_at_its_limit(package: Packages, memory: str) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, package(TINY_2B, "embedding"), memory],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "inputs[1]: there is not enough memory for its 30,021 tokens, 32,768 in a call; "
        "pass a smaller batch_tokens or max_length, or memory='low'.",
        "inputs[1]: there is not enough memory to load its pictures and videos; "
        "pass a lower max_pixels, total_pixels or max_frames.",
        "[1, 3] {'OutOfMemoryError'}",
        "[False, True, False, True, False] True",
    ]


def test_what_does_not_go_together_goes_one_by_one(embedder: Qwen3VLEmbedder) -> None:
    items = [{"text": f"{number} " + "stone " * 40} for number in range(5)]
    expected = embedder.process(items)
    small = shrink_decoder(embedder, 100)
    with pytest.warns(UserWarning, match="not enough memory for 5 inputs together, so they are computed one by one"):
        rows = embedder.process(items)
    assert np.abs(rows - expected).max() <= CLOSE
    assert small.sizes[0] > 100 and max(small.sizes[1:]) <= 100


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_an_input_that_does_not_go_alone_is_named(embedder: Qwen3VLEmbedder) -> None:
    expected = embedder.process(TEXTS)
    shrink_decoder(embedder, 100)
    message = (
        "inputs[4]: there is not enough memory for its 224 tokens, 512 in a call; "
        "pass a smaller batch_tokens or max_length, or memory='low'."
    )
    with pytest.raises(OutOfMemoryError) as caught:
        embedder.process(TEXTS)
    assert str(caught.value) == message
    assert isinstance(caught.value, MemoryError)
    skipped: list[Skipped] = []
    rows = embedder.process(TEXTS, on_error="skip", skipped=skipped)
    assert [(each.index, str(each.error)) for each in skipped] == [(LONG, message)]
    good = [index for index in range(len(TEXTS)) if index != LONG]
    assert np.isnan(rows[LONG]).all()
    assert np.abs(rows[good] - expected[good]).max() <= CLOSE


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_a_stream_gives_the_rows_before_it_first(embedder: Qwen3VLEmbedder) -> None:
    expected = embedder.process(TEXTS)
    shrink_decoder(embedder, 100)
    rows = []
    with pytest.raises(OutOfMemoryError, match=r"^inputs\[4\]: there is not enough memory for its 224 tokens"):
        for row in embedder.stream(TEXTS):
            rows.append(row)
    assert np.abs(np.stack(rows) - expected[:LONG]).max() <= CLOSE
    skipped: list[Skipped] = []
    rows = list(embedder.stream(TEXTS, on_error="skip", skipped=skipped))
    assert [each.index for each in skipped] == [LONG]
    assert np.isnan(rows).all(axis=1).tolist() == [index == LONG for index in range(len(TEXTS))]


@pytest.mark.filterwarnings("ignore:there is not enough memory")
@pytest.mark.parametrize("memory", ["normal", "low"])
def test_a_picture_too_large_for_the_vision_encoder(package: Packages, memory: Any) -> None:
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"), memory=memory)
    expected = embedder.process(PICTURES)
    vision = embedder.package.model.vision
    open_graph = vision._open_graph
    embedder.release_vision()
    vision._open_graph = lambda: Small(open_graph(), 100 * 1536)
    message = (
        "inputs[3]: there is not enough memory for 256 patches of its pictures; "
        "pass a lower max_pixels or total_pixels, or memory='low'."
    )
    skipped: list[Skipped] = []
    rows = embedder.process(PICTURES, on_error="skip", skipped=skipped)
    assert [(each.index, str(each.error)) for each in skipped] == [(LARGE, message)]
    assert np.isnan(rows[LARGE]).all()
    assert np.abs(rows[:LARGE] - expected[:LARGE]).max() <= CLOSE
    with pytest.raises(OutOfMemoryError) as caught:
        embedder.process(PICTURES)
    assert str(caught.value) == message
    assert vision.is_open == (memory == "normal")


@pytest.mark.filterwarnings("ignore:there is not enough memory")
def test_a_query_that_does_not_fit_beside_its_documents(package: Packages) -> None:
    """The beginning that all pairs share cannot be computed in one piece, nor can a long document."""
    reranker = Qwen3VLReranker(package(TINY_2B, "reranker"))
    documents = [{"text": "water"}, {"text": "stone " * 200}, {"text": "air"}]
    request = {"query": {"text": "bird " * 60}, "documents": documents}
    expected = reranker.process(request)
    shrink_decoder(reranker, 200)
    skipped: list[Skipped] = []
    scores = reranker.process(request, on_error="skip", skipped=skipped)
    assert [each.index for each in skipped] == [1]
    assert str(skipped[0].error).startswith("documents[1]: there is not enough memory for its ")
    assert [scores[0], scores[2]] == pytest.approx([expected[0], expected[2]], abs=CLOSE)
    with pytest.raises(OutOfMemoryError, match=r"^query: there is not enough memory for 256 patches of its pictures"):
        vision = reranker.package.model.vision
        open_graph = vision._open_graph
        vision._open_graph = lambda: Small(open_graph(), 100 * 1536)
        reranker.process({"query": PICTURES[LARGE], "documents": documents}, on_error="skip")


def test_other_errors_of_onnxruntime_pass(embedder: Qwen3VLEmbedder) -> None:
    graph = embedder.package.model.decoder._graph
    with pytest.raises(Exception, match="input_ids") as caught:
        graph.run(["embedding"], {})
    assert not isinstance(caught.value, MemoryError)


def test_what_was_skipped_keeps_no_pixels(embedder: Qwen3VLEmbedder) -> None:
    skipped: list[Skipped] = []
    embedder.process([{"image": b"no picture"}, {"text": "a"}], on_error="skip", skipped=skipped)
    (error,) = (each.error for each in skipped)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)
