"""The data files of a tiny package: names, places and bytes of the weights, the same from every export."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx_files import NUMPY, constants, external, load, stored, weights
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, TINY_8B, Dtype, Shape, tensor_shapes, write_checkpoint
from safetensors import safe_open

from export.graph import LINE, PAGE, Graph
from export.options import ExportOptions
from export.package import export_package
from runtime.manifest import DECODER, GOLDEN, MANIFEST_NAME, TOKENIZER, VISION

Packages = Callable[[Shape, Task], Path]
SHAPES = pytest.mark.parametrize("shape", [TINY_2B, TINY_8B], ids=["2b", "8b"])
FILES = (DECODER, f"{DECODER}.data", VISION, f"{VISION}.data", TOKENIZER, GOLDEN, MANIFEST_NAME)


@SHAPES
def test_initializers_are_named_as_in_the_checkpoint(package: Packages, shape: Shape) -> None:
    folder = package(shape, "embedding")
    names = {weight.name for name in (DECODER, VISION) for weight in weights(load(folder, name))}
    split = {name for name in names if name.endswith("]")}
    whole = {name.partition("[")[0] for name in split}
    assert whole == {name for name in tensor_shapes(shape) if ".attn.qkv." in name}
    assert split == {f"{name}[{part}]" for name in whole for part in "qkv"}
    assert names - split | whole == tensor_shapes(shape).keys() - {"lm_head.weight"}


@pytest.mark.parametrize("name", [DECODER, VISION])
@SHAPES
def test_only_weights_are_in_the_data_file(package: Packages, shape: Shape, name: str) -> None:
    folder = package(shape, "reranker")
    model = load(folder, name)
    assert (folder / name).stat().st_size < 100_000
    for constant in constants(model):
        assert len(constant.raw_data) < 1024
    end = 0
    for weight in weights(model):
        location, offset, length = external(weight)
        alignment = PAGE if length >= PAGE else LINE
        assert location == f"{name}.data"
        assert offset == -(-end // alignment) * alignment, "aligned, and no further from the last than that"
        assert length == int(np.prod(weight.dims)) * NUMPY[weight.data_type].itemsize
        end = offset + length
    assert end == (folder / f"{name}.data").stat().st_size
    assert PAGE % 4096 == 0 and LINE % 64 == 0


def exported(folder: Path, dtype: Dtype = "bfloat16", shard_bytes: int | None = None) -> Path:
    """The package of a freshly written tiny checkpoint; always under the same name."""
    write_checkpoint(folder / "checkpoint", TINY_2B, dtype=dtype, shard_bytes=shard_bytes)
    export_package(folder / "checkpoint", folder / "package", ExportOptions("tiny"))
    return folder / "package"


def test_two_exports_are_equal_byte_by_byte(package: Packages, tmp_path: Path) -> None:
    first, second = package(TINY_2B, "embedding"), exported(tmp_path)
    assert sorted(path.name for path in second.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_shards_give_the_same_package(package: Packages, tmp_path: Path) -> None:
    first, second = package(TINY_2B, "embedding"), exported(tmp_path, shard_bytes=300_000)
    assert len(list((tmp_path / "checkpoint").glob("*.safetensors"))) > 3
    for name in FILES:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.mark.parametrize(
    ("dtype", "table"),
    [("bfloat16", np.uint16), ("float16", np.float16), ("float32", np.float32)],
    ids=["bf16", "f16", "f32"],
)
def test_weights_are_those_of_the_checkpoint(tmp_path: Path, dtype: Dtype, table: type) -> None:
    folder = exported(tmp_path, dtype=dtype)
    seen = set()
    with safe_open(tmp_path / "checkpoint" / "model.safetensors", "numpy") as checkpoint:
        for name, content in (*stored(folder, DECODER), *stored(folder, VISION)):
            whole, _, part = name.partition("[")
            expected = checkpoint.get_tensor(whole)
            if part:
                expected = np.split(expected, 3)["qkv".index(part[0])]
            expected = expected.reshape(content.shape)
            if whole.endswith("embed_tokens.weight"):
                assert content.dtype == table
                assert content.tobytes() == expected.tobytes()
            else:
                assert content.dtype == np.float32
                assert np.array_equal(content, expected.astype(np.float32)), name
            seen.add(whole)
        assert seen == set(checkpoint.keys())
    manifest = json.loads((folder / MANIFEST_NAME).read_text(encoding="utf-8"))
    assert manifest["matrices"]["model.language_model.embed_tokens.weight"] == "as-stored"


def test_a_weight_declared_twice_or_cut_is_our_own_mistake(tmp_path: Path) -> None:
    graph = Graph("model.onnx")
    graph.weight("w", "float32", (2, 3), lambda: iter([np.zeros((1, 3), np.float32)]))
    with pytest.raises(AssertionError, match="initializer w declared twice"):
        graph.weight("w", "float32", (2, 3), lambda: iter([]))
    with pytest.raises(AssertionError, match="w wrote 12 of 24 bytes"):
        graph.write(tmp_path, lambda count: None)


def test_equal_constants_are_stored_once() -> None:
    graph = Graph("model.onnx")
    one = graph.constant(np.array([1, 2], np.int64))
    assert graph.constant(np.array([1, 2], np.int64)) is one
    others: list[np.ndarray] = [np.array([[1, 2]], np.int64), np.array([1, 2], np.int32), np.array([1, 3], np.int64)]
    assert all(graph.constant(other) is not one for other in others)
