"""Positions and rotary angles, against transformers' Qwen3-VL."""

import importlib
import platform
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from runtime.prompts.positions import patch_positions, text_rotary, token_positions

IMAGE, VIDEO, START, END, TEXT = 151655, 151656, 151652, 151653, 100
# (h, w) in patches: one row or column of cells, squares, and sizes with fractions that round both ways.
GRIDS = [(2, 2), (2, 64), (64, 2), (4, 6), (30, 40), (48, 48), (46, 50), (62, 34), (86, 82), (96, 12), (2, 330)]
MERGE = 2


@pytest.fixture(scope="module")
def modeling() -> Any:
    """transformers' own module; it needs no weights for what is compared here."""
    pytest.importorskip("torch")
    importlib.import_module("export.reference").prepare_reference_imports()
    return importlib.import_module("transformers.models.qwen3_vl.modeling_qwen3_vl")


def test_text_alone_counts_by_one() -> None:
    assert token_positions(np.zeros(4, bool), []).tolist() == [[0, 1, 2, 3]] * 3
    assert token_positions(np.zeros(0, bool), []).shape == (3, 0)


def test_a_picture_by_hand() -> None:
    """Two texts, 2 × 3 cells, two texts: the block moves the position on by 3, its longer side."""
    is_visual = np.array([0, 0, 1, 1, 1, 1, 1, 1, 0, 0], bool)
    assert token_positions(is_visual, [(2, 3)]).tolist() == [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6],
    ]


def test_neighbouring_blocks_and_ends_by_hand() -> None:
    assert token_positions(np.ones(5, bool), [(1, 1), (2, 2)]).tolist() == [
        [0, 1, 1, 1, 1],
        [0, 1, 1, 2, 2],
        [0, 1, 2, 1, 2],
    ]


@pytest.mark.parametrize("seed", range(20))
def test_token_positions_equal_get_rope_index(modeling: Any, seed: int) -> None:
    torch = importlib.import_module("torch")
    ids, blocks, images, videos = random_layout(np.random.default_rng(seed))
    expected = rope_index(modeling, torch.from_numpy(ids)[None], grids(torch, images), grids(torch, videos))
    found = token_positions(np.isin(ids, (IMAGE, VIDEO)), blocks)
    assert found.dtype == np.int64
    assert np.array_equal(found, expected[:, 0].numpy())


def random_layout(generator: np.random.Generator) -> tuple[Any, list[tuple[int, int]], list[Any], list[Any]]:
    """Token ids with up to six visuals among texts, their blocks in order, and the grids of each kind."""
    ids: list[int] = [TEXT] * int(generator.integers(1, 30))
    blocks: list[tuple[int, int]] = []
    images: list[tuple[int, int, int]] = []
    videos: list[tuple[int, int, int]] = []
    for _ in range(generator.integers(0, 7)):
        rows, columns = (int(side) for side in generator.integers(1, 9, 2))
        is_video = bool(generator.integers(2))
        frames = int(generator.integers(1, 5)) if is_video else 1
        for _ in range(frames):
            ids += [TEXT] * (int(generator.integers(1, 8)) if is_video else 0)
            ids += [START, *[VIDEO if is_video else IMAGE] * (rows * columns), END]
            blocks.append((rows, columns))
        (videos if is_video else images).append((frames, rows * MERGE, columns * MERGE))
        ids += [TEXT] * int(generator.integers(0, 5))
    return np.array([*ids, TEXT]), blocks, images, videos


def grids(torch: Any, sizes: list[Any]) -> Any:
    return torch.tensor(sizes) if sizes else None


def rope_index(modeling: Any, ids: Any, images: Any, videos: Any) -> Any:
    config = SimpleNamespace(
        vision_config=SimpleNamespace(spatial_merge_size=MERGE),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
    )
    return modeling.Qwen3VLModel.get_rope_index(SimpleNamespace(config=config), ids, images, videos)[0]


@pytest.mark.parametrize("section", [(24, 20, 20), (6, 5, 5)])
def test_text_rotary_is_close_to_transformers(modeling: Any, section: tuple[int, int, int]) -> None:
    """torch's float32 power is one bit off in a frequency; the angle multiplies that by the position."""
    torch = importlib.import_module("torch")
    half, theta = sum(section), 5_000_000.0
    rotary = modeling.Qwen3VLTextRotaryEmbedding(text_config(modeling, section, theta))
    generator = np.random.default_rng(0)
    for highest in (1, 100, 10_240, 262_144):
        positions = generator.integers(0, highest, (3, 400))
        cos, sin = (each[0, :, :half].numpy() for each in rotary(torch.zeros(1), torch.from_numpy(positions)[:, None]))
        found = text_rotary(positions, theta, section)
        assert found.cos.dtype == found.sin.dtype == np.float32
        angles = positions.max(0)[:, None] * theta ** -(np.arange(half) / half)
        bound = 2e-7 * np.maximum(1, angles)
        assert (np.abs(found.cos - cos) <= bound).all()
        assert (np.abs(found.sin - sin) <= bound).all()


def text_config(modeling: Any, section: tuple[int, int, int], theta: float) -> Any:
    return modeling.Qwen3VLTextConfig(
        hidden_size=8 * sum(section),
        num_attention_heads=4,
        head_dim=2 * sum(section),
        rope_theta=theta,
        rope_scaling={"rope_type": "default", "mrope_section": list(section), "mrope_interleaved": True},
    )


def test_height_and_width_overwrite_their_own_frequencies() -> None:
    """Each axis alone, section (2, 1, 1): frequencies 0 and 3 are T's, 1 is H's, 2 is W's."""
    for axis, turned in enumerate(
        [[True, False, False, True], [False, True, False, False], [False, False, True, False]]
    ):
        positions = np.zeros((3, 1), np.int64)
        positions[axis] = 1
        assert (text_rotary(positions, 100.0, (2, 1, 1)).sin[0] > 0).tolist() == turned


def test_patches_stand_in_merge_order_by_hand() -> None:
    """A 2 × 4 grid on a 4 × 4 table: two blocks of 2 × 2, rows on the table's first and last row."""
    found = patch_positions((2, 4), MERGE, head_dim=4, side=4)
    assert found.index[0].tolist() == [0, 1, 12, 13, 2, 3, 14, 15]
    assert found.weight[:, :, 0].tolist() == [[1] * 8, [0] * 8, [0] * 8, [0] * 8]
    assert found.rotary.sin.shape == (8, 2)
    rows, columns = [0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3]
    assert np.array_equal(found.rotary.sin, np.sin(np.array([rows, columns], np.float32)).T)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="linspace repeats the x86 build of torch")
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_table_neighbours_equal_fast_pos_embed_interpolate(modeling: Any, grid: tuple[int, int]) -> None:
    torch = importlib.import_module("torch")
    table, side, (height, width) = OneHotTable(torch), 48, grid
    tower = SimpleNamespace(num_grid_per_side=side, pos_embed=table, config=SimpleNamespace(spatial_merge_size=MERGE))
    frames = torch.tensor([[1, height, width]])
    weight = modeling.Qwen3VLVisionModel.fast_pos_embed_interpolate(tower, frames).numpy()  # [P, 4]
    index = table.index.view(4, height // MERGE, MERGE, width // MERGE, MERGE).transpose(2, 3).reshape(4, -1)
    found = patch_positions(grid, MERGE, head_dim=64, side=side)
    assert found.weight.dtype == np.float32
    assert np.array_equal(found.weight[:, :, 0], weight.T)
    assert found.index.dtype == np.int64
    assert np.array_equal(found.index, index.numpy())


class OneHotTable:
    """Instead of an embedding: corner i of each patch gives unit vector i, so the sum holds the four weights."""

    def __init__(self, torch: Any):
        self.torch, self.weight = torch, torch.zeros(1)

    def __call__(self, index: Any) -> Any:
        self.index = index  # [4, P], rows one after the other
        return self.torch.eye(4)[:, None].expand(4, index.shape[1], 4)


@pytest.mark.parametrize("head_dim", [16, 64, 72])
def test_patch_rotary_equals_rot_pos_emb(modeling: Any, head_dim: int) -> None:
    torch = importlib.import_module("torch")
    tower = SimpleNamespace(
        spatial_merge_size=MERGE, rotary_pos_emb=modeling.Qwen3VLVisionRotaryEmbedding(head_dim // 2)
    )
    for grid in GRIDS:
        angles = modeling.Qwen3VLVisionModel.rot_pos_emb(tower, torch.tensor([[1, *grid]]))
        found = patch_positions(grid, MERGE, head_dim, side=48).rotary
        assert found.cos.shape == (grid[0] * grid[1], head_dim // 2)
        # The angles are equal; numpy and torch differ in the last bit of a cosine.
        assert np.abs(found.cos - angles.cos().numpy()).max() <= 1.2e-7
        assert np.abs(found.sin - angles.sin().numpy()).max() <= 1.2e-7
