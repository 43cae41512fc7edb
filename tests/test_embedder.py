"""`Qwen3VLEmbedder` from dicts to vectors; equality with the reference is in test_parity.py."""

import base64
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from file_server import served
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from video_files import write_video

from runtime import Qwen3VLEmbedder
from runtime.graphs.decoder import Decoder, Span
from runtime.graphs.past import Past

Packages = Callable[[Shape, Task], Path]
CLOSE = 1e-6  # float32 sums in another order
PIXELS = np.random.default_rng(3).integers(0, 256, (40, 72, 3), dtype=np.uint8)
TEXT = {"text": "a duck on a pond"}


def picture(seed: int, size: tuple[int, int] = (64, 64)) -> Image.Image:
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8))


ITEMS: list[dict[str, Any]] = [
    TEXT,
    {"image": picture(1)},
    {"text": "what is this?", "image": [picture(2, (40, 90)), picture(3)], "instruction": "Find the bird"},
    {},
    {"video": [picture(seed) for seed in range(3)]},
    {"text": ["one", " and two"]},
    {"text": "a much longer text, " * 20},
]


@pytest.fixture(scope="module")
def folder(package: Packages) -> Path:
    return package(TINY_2B, "embedding")


@pytest.fixture(scope="module")
def embedder(folder: Path) -> Qwen3VLEmbedder:
    return Qwen3VLEmbedder(folder)


@pytest.fixture(scope="module")
def png(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "ein Bild é.png"
    Image.fromarray(PIXELS).save(path)
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds."""
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", (64, 64), 60, 10)


def test_rows_are_unit_vectors_of_float32(embedder: Qwen3VLEmbedder) -> None:
    rows = embedder.process(ITEMS)
    assert rows.dtype == np.float32
    assert rows.shape == (len(ITEMS), 64)
    assert np.abs(np.linalg.norm(rows, axis=1) - 1).max() <= CLOSE
    pairs = np.triu(rows @ rows.T, 1)
    assert pairs.max() < 0.99  # every input has a vector of its own


def test_nothing_to_embed_gives_no_rows(embedder: Qwen3VLEmbedder) -> None:
    for rows in (embedder.process([], dimensions=16), embedder.process((), dimensions=16)):
        assert rows.dtype == np.float32
        assert rows.shape == (0, 16)


def test_without_normalising_the_length_stays(embedder: Qwen3VLEmbedder) -> None:
    raw, unit = embedder.process(ITEMS, normalize=False), embedder.process(ITEMS)
    lengths = np.linalg.norm(raw, axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.1
    assert np.abs(raw / lengths - unit).max() <= CLOSE
    assert np.array_equal(embedder.process(ITEMS, False), raw)


def test_dimensions_are_cut_and_then_normalised(embedder: Qwen3VLEmbedder, folder: Path) -> None:
    raw = embedder.process(ITEMS, normalize=False)
    expected = raw[:, :24] / np.linalg.norm(raw[:, :24], axis=1, keepdims=True)
    cut = embedder.process(ITEMS, dimensions=24)
    assert cut.shape == (len(ITEMS), 24)
    assert np.abs(cut - expected).max() <= CLOSE
    assert np.array_equal(embedder.process(ITEMS, normalize=False, dimensions=24), raw[:, :24])
    always = Qwen3VLEmbedder(folder, dimensions=24)
    assert np.array_equal(always.process(ITEMS), cut)
    assert always.process(ITEMS, dimensions=8).shape == (len(ITEMS), 8)


@pytest.mark.parametrize("batch_tokens", [7, 64, 4096])
def test_batches_change_neither_vectors_nor_their_order(
    batch_tokens: int, embedder: Qwen3VLEmbedder, folder: Path
) -> None:
    rows = Qwen3VLEmbedder(folder, batch_tokens=batch_tokens).process(ITEMS)
    assert np.abs(rows - embedder.process(ITEMS)).max() <= CLOSE
    assert np.abs(rows[::-1] - embedder.process(ITEMS[::-1])).max() <= CLOSE


def test_a_short_text_does_not_compute_the_preamble_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedder, pasts = Qwen3VLEmbedder(folder), list[int]()

    def pooled(decoder: Decoder, batch: Sequence[Span], past: Past | None = None) -> np.ndarray:
        pasts.append(0 if past is None else past.length)
        return compute(decoder, batch, past)

    compute = Decoder.pooled
    monkeypatch.setattr(Decoder, "pooled", pooled)
    vectors = [embedder.process([{"text": text}]) for text in ("a duck", "a cat", "a duck")]
    preamble = pasts[-1]
    assert preamble > 5 and pasts == [0, preamble, preamble]
    assert np.abs(vectors[2] - vectors[0]).max() < CLOSE
    asked = [embedder.process([TEXT | {"instruction": "Find the bird."}]) for _ in range(2)]
    assert pasts[3] == 0 and pasts[4] not in (0, preamble)
    assert np.abs(asked[1] - asked[0]).max() < CLOSE
    embedder.process([TEXT, {"image": picture(1, (400, 400))}])
    assert pasts[5] == 0, "a longer prompt goes without"


def test_every_form_of_a_picture_gives_the_same_vector(embedder: Qwen3VLEmbedder, png: Path) -> None:
    content = png.read_bytes()
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    with served(content) as address, Image.open(png) as opened:
        forms = [str(png), png, png.as_uri(), f"{address}/ok.png", uri, content, bytearray(content)]
        forms += [memoryview(content), opened, Image.fromarray(PIXELS), PIXELS, [png]]
        rows = np.concatenate([embedder.process([{"image": form}]) for form in forms])
    assert np.array_equal(rows, np.broadcast_to(rows[0], rows.shape))
    other = embedder.process([{"image": PIXELS[::-1]}])
    assert np.abs(other - rows[0]).max() > 1e-3


def test_every_form_of_a_video_gives_the_same_vector(embedder: Qwen3VLEmbedder, clip: Path) -> None:
    with served(clip.read_bytes()) as address:
        forms = [str(clip), clip, clip.as_uri(), f"{address}/clip.mp4", [clip]]
        rows = np.concatenate([embedder.process([{"video": form}]) for form in forms])
    assert np.array_equal(rows, np.broadcast_to(rows[0], rows.shape))


def test_a_list_of_frames_takes_every_form_of_a_picture(embedder: Qwen3VLEmbedder, png: Path) -> None:
    expected = embedder.process([{"video": [PIXELS, PIXELS]}])
    for frames in ([str(png), png], [png.read_bytes(), PIXELS], [Image.fromarray(PIXELS)] * 2):
        assert np.array_equal(embedder.process([{"video": frames}]), expected)


def test_several_videos_count_in_their_order(embedder: Qwen3VLEmbedder, clip: Path) -> None:
    frames = [picture(seed) for seed in range(4)]
    rows = embedder.process([{"video": video} for video in ([clip, frames], [frames, clip], [frames], [clip])])
    assert np.abs(rows[:, None] - rows[None])[np.triu_indices(4, 1)].max(axis=1).min() > 1e-3
    assert np.array_equal(embedder.process([{"video": frames}]), embedder.process([{"video": [frames]}]))


def test_sampling_options_of_item_and_constructor(embedder: Qwen3VLEmbedder, folder: Path, clip: Path) -> None:
    def tokens(embedder: Qwen3VLEmbedder, **options: Any) -> int:
        return int(next(embedder._entries([{"video": clip, **options}], None)).sequence.is_visual.sum())

    per_pair = tokens(embedder, max_frames=2)
    # Six seconds at one frame a second are three pairs.
    assert [tokens(embedder, **each) / per_pair for each in ({}, {"fps": 2}, {"max_frames": 4})] == [3, 6, 2]
    default, faster, fewer = (
        embedder.process([{"video": clip, **each}]) for each in ({}, {"fps": 2}, {"max_frames": 4})
    )
    assert np.abs(faster - default).max() > 1e-3 and np.abs(fewer - default).max() > 1e-3
    assert np.array_equal(Qwen3VLEmbedder(folder, fps=2).process([{"video": clip}]), faster)
    assert np.array_equal(Qwen3VLEmbedder(folder, max_frames=4).process([{"video": clip}]), fewer)


def test_a_pixel_budget_changes_a_picture(embedder: Qwen3VLEmbedder, folder: Path) -> None:
    large = {"image": picture(9, (256, 256))}
    small = Qwen3VLEmbedder(folder, max_pixels=128 * 128)
    assert next(small._entries([large], None)).sequence.is_visual.sum() == 16
    assert np.abs(small.process([large]) - embedder.process([large])).max() > 1e-3


def test_the_vision_encoder_waits_for_the_first_picture(folder: Path) -> None:
    embedder = Qwen3VLEmbedder(folder)
    embedder.process([TEXT, {}])
    assert not embedder.package.model.vision.is_open
    embedder.process([{"image": PIXELS}])
    assert embedder.package.model.vision.is_open


@pytest.mark.parametrize("shown", [True, False])
def test_progress_goes_to_stderr_only(shown: bool, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Qwen3VLEmbedder(folder, show_progress=shown).process([TEXT] * 9)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("9/9" in captured.err) == shown
    assert bool(captured.err) == shown


def test_the_default_instruction_stands_in_for_a_missing_one(embedder: Qwen3VLEmbedder, folder: Path) -> None:
    asked = "Find the bird."
    given = embedder.process([{**TEXT, "instruction": asked}])
    assert np.abs(given - embedder.process([TEXT])).max() > 1e-3
    changed = Qwen3VLEmbedder(folder, default_instruction=asked)
    assert np.array_equal(changed.process([TEXT]), given)
    assert np.array_equal(changed.process([{**TEXT, "instruction": "  "}]), given)
    own = changed.process([{**TEXT, "instruction": "Represent the user's input."}])
    assert np.array_equal(own, embedder.process([TEXT]))


def test_the_options_are_the_references(embedder: Qwen3VLEmbedder, folder: Path) -> None:
    defaults = {
        "max_length": 8192,
        "min_pixels": 4 * 32 * 32,
        "max_pixels": 1800 * 32 * 32,
        "total_pixels": 10 * 768 * 32 * 32,
        "fps": 1,
        "max_frames": 64,
        "default_instruction": "Represent the user's input.",
    }
    options = embedder.package.encoder.options
    assert {name: getattr(options, name) for name in defaults} == defaults
    parameters = list(inspect.signature(Qwen3VLEmbedder).parameters)
    assert parameters[:8] == ["model_name_or_path", *defaults]
    explicit = Qwen3VLEmbedder(str(folder), *defaults.values())  # type: ignore[arg-type]
    assert np.array_equal(explicit.process(ITEMS), embedder.process(ITEMS))
