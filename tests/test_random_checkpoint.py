import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import random_checkpoint
from PIL import Image
from qwen_tokenizer import Task
from random_checkpoint import (
    SHAPE_2B,
    SHAPE_8B,
    SHAPES,
    TINY_2B,
    TINY_8B,
    Shape,
    random_blocks,
    tensor_shapes,
    write_checkpoint,
)
from safetensors import safe_open

from export.reference import ReferenceEmbedder, prepare_reference_imports

Checkpoints = Callable[[Shape, Task], Path]


def file_hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_published_sizes() -> None:
    for shape, tensors, parameters in ((SHAPE_2B, 625, 2_127_532_032), (SHAPE_8B, 750, 8_767_123_696)):
        shapes = tensor_shapes(shape)
        assert len(shapes) == tensors
        assert sum(int(np.prod(dims)) for dims in shapes.values()) == parameters


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_shape_is_one_the_architecture_can_have(shape: Shape) -> None:
    assert shape.text.num_attention_heads % shape.text.num_key_value_heads == 0
    assert shape.vision.hidden_size % (4 * shape.vision.num_heads) == 0
    assert max(shape.vision.deepstack_visual_indexes) < shape.vision.depth
    assert len(shape.vision.deepstack_visual_indexes) <= shape.text.num_hidden_layers


def test_sections_that_do_not_fill_the_head_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mrope_section \(6, 5, 4\) must sum to half of head_dim 32"):
        replace(TINY_2B.text, mrope_section=(6, 5, 4))


def test_the_same_arguments_give_the_same_bytes(checkpoint: Checkpoints, tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "again", TINY_2B)
    write_checkpoint(tmp_path / "other", TINY_2B, seed=1)
    first, again, other = map(file_hashes, (checkpoint(TINY_2B, "embedding"), tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert {name for name in first if first[name] != other[name]} == {"model.safetensors"}


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(FileExistsError, match="is not empty"):
        write_checkpoint(tmp_path, TINY_2B)


def test_the_values_do_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = list(random_blocks("some.weight", (1000, 7), seed=3))
    monkeypatch.setattr(random_checkpoint, "BLOCK_BYTES", 4 * 7 * 64)
    blocks = list(random_blocks("some.weight", (1000, 7), seed=3))
    assert len(whole) == 1
    assert max(len(block) for block in blocks) == 64
    assert np.array_equal(np.concatenate(blocks), whole[0])


def test_shards_hold_what_one_file_holds(tmp_path: Path) -> None:
    limit = 10 << 20
    write_checkpoint(tmp_path / "whole", TINY_2B, dtype="float32")
    write_checkpoint(tmp_path / "shards", TINY_2B, dtype="float32", shard_bytes=limit)
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    files = sorted({*index["weight_map"].values()})
    assert files == [f"model-{i:05}-of-00002.safetensors" for i in (1, 2)]
    assert index["metadata"]["total_size"] == sum(4 * int(np.prod(dims)) for dims in tensor_shapes(TINY_2B).values())
    seen = set()
    with safe_open(tmp_path / "whole" / "model.safetensors", "numpy") as whole:
        for file in files:
            with safe_open(tmp_path / "shards" / file, "numpy") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dict
                    assert np.array_equal(shard.get_tensor(name), whole.get_tensor(name)), name
                    assert index["weight_map"][name] == file
                    seen.add(name)
        assert seen == set(whole.keys()) == set(tensor_shapes(TINY_2B))


@pytest.mark.parametrize(("shape", "task"), [(TINY_2B, "reranker"), (TINY_8B, "embedding")])
def test_transformers_finds_every_tensor_and_no_other(checkpoint: Checkpoints, shape: Shape, task: Task) -> None:
    prepare_reference_imports()
    from transformers import Qwen3VLForConditionalGeneration

    model, loading = Qwen3VLForConditionalGeneration.from_pretrained(checkpoint(shape, task), output_loading_info=True)
    assert {name: list(names) for name, names in loading.items()} == {
        "missing_keys": [],
        "unexpected_keys": [],
        "mismatched_keys": [],
        "error_msgs": [],
    }
    tied = model.lm_head.weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    assert tied == shape.tied
    assert model.config.text_config.rope_scaling["mrope_section"] == list(shape.text.mrope_section)


def without_deepstack(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(content[:8], "little")
    for name, tensor in json.loads(content[8:start]).items():
        if "deepstack_merger_list" in name and "linear_fc2" in name:
            first, last = tensor["data_offsets"]
            content[start + first : start + last] = bytes(last - first)
    path.write_bytes(content)


def with_height_and_width_ignored(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["rope_scaling"]["mrope_section"] = [16, 0, 0]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["tiny-2b", "tiny-8b"])
@pytest.mark.parametrize("damage", [without_deepstack, with_height_and_width_ignored])
def test_a_wrong_export_would_show(
    checkpoint: Checkpoints, tmp_path: Path, shape: Shape, damage: Callable[[Path], None]
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    item = {"image": Image.fromarray(noise), "text": "a duck"}
    damaged = shutil.copytree(checkpoint(shape, "embedding"), tmp_path / "damaged")
    damage(damaged)
    right, wrong = (ReferenceEmbedder(f).embed([item])[0] for f in (checkpoint(shape, "embedding"), damaged))
    assert 1 - right @ wrong > 1e-3
