"""`memory="low"`: which sessions do without prepacking, what is given back, and that vectors stay what they were."""

import mmap
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from agreement_inputs import picture
from checkpoint_shapes import TINY_2B
from qwen_tokenizer import Task

import runtime.graphs.memory
from runtime import Qwen3VLEmbedder, Qwen3VLReranker
from runtime.errors import InputError
from runtime.graphs.memory import GraphMemory, memory_policy, resident
from runtime.graphs.target import TARGETS
from runtime.manifest import DECODER, DECODER_UINT8, VISION, Manifest

Packages = Callable[..., Path]
UNPACKED, PREPACKED = GraphMemory(prepack=False, shrink=True), GraphMemory(prepack=True, shrink=True)
TEXTS: list[dict[str, Any]] = [{"text": "a red car"}, {"text": "鸭 " * 300}]
PICTURES: list[dict[str, Any]] = [{"image": picture(1, (64, 96))}, {"image": picture(2, (320, 256)), "text": "two"}]
# Prepacked and not, a float32 product adds up in another order. In int8 that can move an activation of the patch
# embedding, which is float32, to the neighbouring code. Measured here: 4e-7 and 0; int8 is up to 0.2 from float32.
FLOAT32, ROUNDED = 1e-6, 0.02
# The int8 product itself and block products, which are prepacked in both modes, give the same bits.
BITS = 0.0


def embed(folder: Path, items: list[dict[str, Any]], **options: Any) -> np.ndarray:
    return Qwen3VLEmbedder(folder, threads=1, **options).process(items)


@pytest.mark.filterwarnings("ignore:this processor multiplies int8 inexactly")
@pytest.mark.parametrize(
    ("precision", "text", "visual"),
    [
        ("fp32", FLOAT32, FLOAT32),
        ("int8", BITS, ROUNDED),
        ("int8-portable", BITS, BITS),
        ("int4", BITS, ROUNDED),
        ("int4-portable", BITS, BITS),
    ],
)
def test_both_modes_give_the_same_vectors(package: Packages, precision: str, text: float, visual: float) -> None:
    folder = package(TINY_2B, "embedding", precision)
    # One piece in both: in the low mode chunks are shorter, which is not what is compared here.
    for items, bound in ((TEXTS, text), (PICTURES, visual)):
        normal, low = (embed(folder, items, memory=mode, batch_tokens=1024) for mode in ("normal", "low"))
        assert np.abs(low - normal).max() <= bound
    other = embed(folder, [{"text": "a blue bicycle"}])
    assert np.abs(other - embed(folder, TEXTS[:1])).max() > max(text, visual)


@pytest.mark.filterwarnings("ignore:this processor multiplies int8 inexactly")
@pytest.mark.parametrize(
    ("precision", "decoder", "vision"),
    [
        ("fp32", UNPACKED, UNPACKED),
        ("int8", UNPACKED, UNPACKED),
        ("int8-portable", PREPACKED, PREPACKED),
        ("int4", UNPACKED, UNPACKED),
        ("int4-portable", PREPACKED, PREPACKED),
    ],
)
def test_block_products_are_always_prepacked(
    package: Packages, monkeypatch: pytest.MonkeyPatch, precision: str, decoder: GraphMemory, vision: GraphMemory
) -> None:
    folder = package(TINY_2B, "embedding", precision)
    assert memory_policy("low", Manifest.read(folder).matrices).graphs == {DECODER: decoder, VISION: vision}
    opened = sessions(monkeypatch)
    embed(folder, PICTURES[:1], memory="low")
    assert [(name, entry(options, "session.disable_prepacking") != "1") for name, options in opened] == [
        (DECODER, decoder.prepack),
        (VISION, vision.prepack),
    ]
    opened.clear()
    embed(folder, PICTURES[:1])
    assert [(name, entry(options, "session.disable_prepacking")) for name, options in opened] == [
        (DECODER, None),
        (VISION, None),
    ]


def sessions(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ort.SessionOptions]]:
    """File name and options of every graph opened from now on, the probe aside; both decoders are the decoder."""
    opened: list[tuple[str, ort.SessionOptions]] = []
    original = ort.InferenceSession

    graphs = {DECODER: DECODER, DECODER_UINT8: DECODER, VISION: VISION}

    def spy(path: str, options: ort.SessionOptions, **more: Any) -> ort.InferenceSession:
        if Path(path).name in graphs:
            opened.append((graphs[Path(path).name], options))
        return original(path, options, **more)

    monkeypatch.setattr(ort, "InferenceSession", spy)
    return opened


def entry(options: ort.SessionOptions, name: str) -> str | None:
    try:
        return str(options.get_session_config_entry(name))
    except RuntimeError:
        return None


@pytest.mark.parametrize(("in_blocks", "prepack"), [(0, False), (4, False), (5, True), (32, True)])
def test_a_few_block_products_are_not_worth_a_copy_of_all_weights(in_blocks: int, prepack: bool) -> None:
    matrices = {
        f"model.language_model.layers.{layer}.mlp.down_proj.weight": (
            "int8-block128-symmetric" if layer < in_blocks else "int8-per-token"
        )
        for layer in range(32)
    }
    policy = memory_policy("low", {**matrices, "model.visual.merger.linear_fc1.weight": "int8-per-token"})
    assert policy.graphs == {DECODER: GraphMemory(prepack, shrink=True), VISION: UNPACKED}
    assert memory_policy("normal", matrices).graphs == {DECODER: GraphMemory(), VISION: PREPACKED}


def test_buffers_are_given_back_where_the_target_has_them(package: Packages, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = (memory_policy("low", {}, TARGETS[name]) for name in ("cpu", "cuda"))
    assert [(each.arena, each.batch_tokens) for each in (cpu, cuda)] == [("cpu:0", 512), ("gpu:0", 4096)]
    normal = memory_policy("normal", {}, TARGETS["cuda"])
    assert normal.batch_tokens == 8192 and set(normal.graphs.values()) == {GraphMemory()}
    given: list[tuple[str, bool]] = []
    monkeypatch.setattr(
        runtime.graphs.memory, "SessionGraph", lambda session, arena, shrink: given.append((arena, shrink))
    )
    path = package(TINY_2B, "embedding") / DECODER
    for policy in (cuda, normal):
        policy.open_graph(path, ["CPUExecutionProvider"], 1)
    assert given == [("gpu:0", True), ("gpu:0", False)]


def test_the_low_mode_releases_the_vision_encoder_after_each_picture(
    package: Packages, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = sessions(monkeypatch)
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"), memory="low")
    first, second = (embedder.process(PICTURES[:1]) for _ in range(2))
    assert np.array_equal(first, second)
    assert not embedder.package.model.vision.is_open
    assert [name for name, _ in opened] == [DECODER, VISION, VISION]


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_the_vision_encoder_is_released_on_request(package: Packages, task: Task) -> None:
    folder = package(TINY_2B, task)
    opened: Qwen3VLEmbedder | Qwen3VLReranker
    if task == "embedding":
        opened = embedder = Qwen3VLEmbedder(folder)
        run = lambda: embedder.process(PICTURES[:1]).tolist()  # noqa: E731
    else:
        opened = reranker = Qwen3VLReranker(folder)
        run = lambda: reranker.process({"query": {"text": "a"}, "documents": PICTURES[:1]})  # noqa: E731
    before = run()
    assert opened.package.model.vision.is_open
    opened.release_vision()
    assert not opened.package.model.vision.is_open
    assert run() == before


def test_threads_release_the_vision_encoder_of_each_other(package: Packages) -> None:
    embedder = Qwen3VLEmbedder(package(TINY_2B, "embedding"), memory="low", threads=1)
    expected = [embedder.process([item]) for item in PICTURES]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: embedder.process([PICTURES[index % 2]]), range(16)))
    for index, rows in enumerate(found):
        assert np.abs(rows - expected[index % 2]).max() <= FLOAT32


def test_long_inputs_go_in_shorter_pieces(package: Packages) -> None:
    folder = package(TINY_2B, "embedding")
    normal, low, chosen = (
        Qwen3VLEmbedder(folder, **options)  # type: ignore[arg-type]
        for options in ({}, {"memory": "low"}, {"memory": "low", "batch_tokens": 33})
    )
    assert (normal.batch_tokens, low.batch_tokens, chosen.batch_tokens) == (512, 512, 33)


@pytest.mark.parametrize(("mode", "tokens"), [("normal", 1024), ("low", 512)])
def test_weights_that_every_call_unpacks_are_unpacked_for_more_tokens(mode: str, tokens: int) -> None:
    schemes = {"model.language_model.layers.0.mlp.up_proj.weight": "int4-two-level-signed-block8"}
    assert memory_policy(mode, schemes).batch_tokens == tokens
    assert memory_policy(mode, {name: "int4-block32" for name in schemes}).batch_tokens == 512
    assert memory_policy(mode, {"model.visual.merger.linear_fc1.weight": "int8-per-token"}).batch_tokens == 512


@pytest.mark.parametrize("memory", ["high", "", None, 1])
def test_an_unknown_mode_is_refused(package: Packages, memory: Any) -> None:
    with pytest.raises(InputError) as caught:
        Qwen3VLEmbedder(package(TINY_2B, "embedding"), memory=memory)
    assert str(caught.value) == f"memory is {memory!r}, expected 'normal' or 'low'."


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells anonymous from mapped memory")
def test_resident_memory_is_told_apart(tmp_path: Path) -> None:
    size = 64 * 2**20
    before = resident(os.getpid())
    # Not from the heap, where earlier tests may have left as much room.
    own = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), np.uint8)
    own[:] = 1
    path = tmp_path / "file"
    path.write_bytes(own.tobytes())
    between = resident()
    mapped = np.memmap(path, np.uint8, "r")
    assert int(mapped[:: 2**12].sum()) == len(mapped) // 2**12
    after = resident()
    assert before and between and after
    assert between.anonymous - before.anonymous == pytest.approx(size, rel=0.1)
    assert after.mapped - between.mapped == pytest.approx(size, rel=0.1)


def test_a_process_that_is_not_there_has_no_memory() -> None:
    assert resident(2**30) is None
