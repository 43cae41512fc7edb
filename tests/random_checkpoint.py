"""Random Qwen3-VL checkpoints for tests and benchmarks: real tensor names, any size, no torch.

In: a Shape and a seed. Out: a folder laid out like a published one, written one row block at a time.
`python tests/random_checkpoint.py DIR --shape tiny-2b --task embedding` writes one.
"""

import argparse
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from checkpoint_shapes import (
    SHAPE_2B,
    SHAPE_8B,
    SHAPES,
    TINY_2B,
    TINY_8B,
    Dims,
    Shape,
    config_json,
    tensor_shapes,
)
from numpy.typing import NDArray
from qwen_tokenizer import Task, write_tokenizer

__all__ = [
    "SHAPES",
    "SHAPE_2B",
    "SHAPE_8B",
    "TINY_2B",
    "TINY_8B",
    "Shape",
    "tensor_shapes",
    "write_checkpoint",
]

Dtype = Literal["bfloat16", "float16", "float32"]
# The name in a safetensors header, and numpy's.
DTYPES: dict[str, tuple[str, np.dtype[Any]]] = {
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float16": ("F16", np.dtype(np.float16)),
    "float32": ("F32", np.dtype(np.float32)),
}
# The products whose results are added to the hidden state.
RESIDUAL = ("o_proj.weight", "down_proj.weight", "attn.proj.weight", ".mlp.linear_fc2.weight")
PUBLISHED_ANSWERS = 9693, 2152  # "yes" and "no" of the published tokenizer
BLOCK_BYTES = 64 << 20  # the most float32 held at once


def write_checkpoint(
    folder: Path,
    shape: Shape,
    *,
    task: Task = "embedding",
    dtype: Dtype = "bfloat16",
    seed: int = 0,
    shard_bytes: int | None = None,
    gain: float = 1.0,
) -> None:
    """Write a checkpoint into a new or empty folder; the same arguments give the same bytes.

    `shard_bytes` splits the weights into files of at most that many tensor bytes, but of one tensor at least.
    `gain` scales what each layer adds to the hidden state. Random layers at full gain overwrite what came before and
    amplify rounding from layer to layer; trained ones add some ten or twenty per cent each, as a gain of 0.04 does.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise FileExistsError(f"{folder} is not empty; give a new folder, so that no older shard stays in it.")
    write_tokenizer(folder, task)
    write_json(folder / "config.json", config_json(shape, dtype))
    for name, content in companion_files(shape, task).items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, content)
    shards = _split(tensor_shapes(shape), DTYPES[dtype][1].itemsize, shard_bytes)
    if len(shards) == 1:
        _write_safetensors(folder / "model.safetensors", shards[0], dtype, (seed, gain))
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file_name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_safetensors(folder / file_name, shard, dtype, (seed, gain))
        weight_map |= dict.fromkeys(shard, file_name)
    total = sum(_nbytes(dims, DTYPES[dtype][1].itemsize) for shard in shards for dims in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)


def random_blocks(name: str, dims: Dims, seed: int, gain: float = 1.0) -> Iterator[NDArray[np.float32]]:
    """The values of one tensor as float32 row blocks of at most BLOCK_BYTES.

    Norm weights spread around 1, biases are not 0, products keep their input's variance: activations live on,
    and a skipped bias, norm or layer shows in the output. Embedding rows have norm 1 rather than entries of
    order 1, with which a tied head would score every pair 0 or 1.
    """
    generator = np.random.default_rng([seed, zlib.crc32(name.encode())])
    mean, deviation = _mean_and_deviation(name, dims)
    deviation *= gain if name.endswith(RESIDUAL) else 1.0
    rows = max(1, BLOCK_BYTES // (4 * math.prod(dims[1:])))
    for start in range(0, dims[0], rows):
        block = generator.standard_normal((min(rows, dims[0] - start), *dims[1:]), dtype=np.float32)
        block *= np.float32(deviation)
        block += np.float32(mean)
        yield block


def _mean_and_deviation(name: str, dims: Dims) -> tuple[float, float]:
    if name.endswith(".bias"):
        return 0.0, 0.1
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.5, 0.2  # attention sharp enough for a wrong position to show
    if len(dims) == 1:
        return 1.0, 0.2
    if name.endswith("pos_embed.weight"):
        return 0.0, 0.3
    return 0.0, 1 / math.sqrt(math.prod(dims[1:]))


def _split(tensors: dict[str, Dims], itemsize: int, limit: int | None) -> list[dict[str, Dims]]:
    shards: list[dict[str, Dims]] = [{}]
    used = 0
    for name, dims in tensors.items():
        nbytes = _nbytes(dims, itemsize)
        if limit is not None and shards[-1] and used + nbytes > limit:
            shards.append({})
            used = 0
        shards[-1][name] = dims
        used += nbytes
    return shards


def _write_safetensors(path: Path, tensors: dict[str, Dims], dtype: str, randomness: tuple[int, float]) -> None:
    """`randomness` is (seed, gain)."""
    code, numpy_dtype = DTYPES[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, dims in tensors.items():
        end = start + _nbytes(dims, numpy_dtype.itemsize)
        header[name] = {"dtype": code, "shape": dims, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format aligns its data to 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, dims in tensors.items():
            for block in random_blocks(name, dims, *randomness):
                file.write(block.astype(numpy_dtype).tobytes())


def companion_files(shape: Shape, task: Task, answers: tuple[int, int] = PUBLISHED_ANSWERS) -> dict[str, Any]:
    """By file name: the processor's settings, and sentence-transformers' modules after the transformer.

    `answers`: the ids of "yes" and "no".
    """
    half = [0.5, 0.5, 0.5]
    processor = {
        "processor_class": "Qwen3VLProcessor",
        "patch_size": shape.vision.patch_size,
        "temporal_patch_size": shape.vision.temporal_patch_size,
        "merge_size": shape.vision.spatial_merge_size,
        "image_mean": half,
        "image_std": half,
    }
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "min_pixels": 4096, "max_pixels": 1310720}
    video = {"video_processor_type": "Qwen3VLVideoProcessor"}
    pooling = {"word_embedding_dimension": shape.text.hidden_size, "pooling_mode_lasttoken": True}
    tail: dict[str, tuple[str, dict[str, Any]]] = {
        "embedding": ("Pooling", pooling),
        "reranker": ("LogitScore", dict(zip(("true_token_id", "false_token_id"), answers, strict=True))),
    }
    module, settings = tail[task]
    package = "sentence_transformers"
    kind = {"Pooling": f"{package}.models", "LogitScore": f"{package}.cross_encoder.modules.logit_score"}[module]
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": f"{package}.models.Transformer"},
        {"idx": 1, "name": "1", "path": f"1_{module}", "type": f"{kind}.{module}"},
    ]
    return {
        "preprocessor_config.json": processor | image,
        "video_preprocessor_config.json": processor | video,
        "modules.json": modules,
        f"1_{module}/config.json": settings,
    }


def _nbytes(dims: Dims, itemsize: int) -> int:
    return math.prod(dims) * itemsize


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8", newline="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write a random Qwen3-VL checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tiny-2b")
    parser.add_argument("--task", choices=get_args(Task), default="embedding")
    parser.add_argument("--dtype", choices=get_args(Dtype), default="bfloat16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--shard-bytes", type=int)
    options = parser.parse_args()
    write_checkpoint(
        options.folder,
        SHAPES[options.shape],
        task=options.task,
        dtype=options.dtype,
        seed=options.seed,
        shard_bytes=options.shard_bytes,
    )


if __name__ == "__main__":
    main()
