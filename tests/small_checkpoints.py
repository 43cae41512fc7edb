"""Writers of tiny checkpoint folders, whole ones and damaged ones."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from export.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from runtime.errors import CheckpointError

FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def random_tensors() -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    # Every bit pattern of the two short types: zeros, subnormals, infinities and NaNs among them.
    patterns = np.arange(2**16, dtype=np.uint16)
    return {
        "layers.1.bf16": patterns.view(ml_dtypes.bfloat16).reshape(1024, 64),
        "layers.10.f16": patterns.view(np.float16).reshape(256, 16, 16),
        "layers.10.f32": generator.standard_normal((33, 7)).astype(np.float32),
        "vector": generator.standard_normal(5).astype(ml_dtypes.bfloat16),
        "scalar": np.array(1.5, np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }


def write_shards(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """Half of the tensors in each of two shards, and config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    names = list(tensors)
    shards = {FIRST: names[: len(names) // 2], SECOND: names[len(names) // 2 :]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    write_index(folder, {name: shard for shard, held in shards.items() for name in held})


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    (folder / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def write_single(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text("{}")
    save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})


def write_raw(folder: Path, header: object, size: int = 0) -> None:
    """A single file out of a header as given (an object, or its JSON) and `size` bytes of data."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    (folder / SINGLE_FILE).write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def refusal(folder: Path) -> str:
    """The message of the error that opening raises, one sentence on one line."""
    with pytest.raises(CheckpointError) as caught:
        Checkpoint(folder)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and ". " not in message
    return message
