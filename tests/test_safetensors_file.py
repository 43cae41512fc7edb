"""Tensors against what safetensors itself wrote and reads; damaged files by their error."""

import json
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from small_checkpoints import entry, random_tensors, refusal, write_raw, write_shards, write_single

from export.checkpoint import SINGLE_FILE, Checkpoint
from export.safetensors_file import MAX_READ_BYTES
from runtime.errors import CheckpointError

ROOT = Path(__file__).parents[1]


@pytest.fixture(params=[write_single, write_shards])
def written(request, tmp_path):
    request.param(tmp_path, random_tensors())
    return tmp_path


def test_every_tensor_is_read_exactly(written):
    stored = {name: array for path in written.glob("*.safetensors") for name, array in load_file(path).items()}
    with Checkpoint(written) as checkpoint:
        assert checkpoint.names == stored.keys() == random_tensors().keys()
        assert checkpoint.total_bytes == sum(array.nbytes for array in stored.values())
        for name, array in stored.items():
            tensor = checkpoint.tensor(name, array.shape)
            read = tensor.read()
            assert read.dtype == np.float32 and read.shape == array.shape == tensor.shape
            assert np.array_equal(read, array.astype(np.float32), equal_nan=True)
            assert (checkpoint.shape(name), checkpoint.nbytes(name)) == (array.shape, array.nbytes)
        assert checkpoint.dtype("layers.1.bf16") == "BF16"
        assert checkpoint.dtype("layers.10.f16") == "F16"
        assert checkpoint.dtype("vector") == "BF16"


def test_a_bf16_is_the_upper_half_of_its_float32(written):
    with Checkpoint(written) as checkpoint:
        read = checkpoint.tensor("layers.1.bf16", (1024, 64)).read()
    assert np.array_equal(read.view(np.uint32).ravel(), np.arange(2**16, dtype=np.uint32) << 16)


@pytest.mark.parametrize(("start", "stop"), [(0, 1), (5, 9), (1023, 1024), (3, 3)])
def test_rows_are_a_slice(written, start, stop):
    with Checkpoint(written) as checkpoint:
        tensor = checkpoint.tensor("layers.1.bf16", (1024, 64))
        assert np.array_equal(tensor.rows(start, stop), tensor.read()[start:stop], equal_nan=True)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 1025)])
def test_rows_outside_are_an_error(written, start, stop):
    with Checkpoint(written) as checkpoint, pytest.raises(ValueError, match="which has 1024"):
        checkpoint.tensor("layers.1.bf16", (1024, 64)).rows(start, stop)


@pytest.mark.parametrize("max_bytes", [256, 1000, 256 * 1024, 2**26])
def test_blocks_are_bounded_and_make_up_the_tensor(written, max_bytes):
    with Checkpoint(written) as checkpoint:
        tensor = checkpoint.tensor("layers.1.bf16", (1024, 64))
        blocks = list(tensor.blocks(max_bytes))
        assert np.array_equal(np.concatenate(blocks), tensor.read(), equal_nan=True)
        assert max(block.nbytes for block in blocks) <= max_bytes
        assert len(blocks) == -(-1024 // min(max_bytes // 256, 1024))


def test_blocks_of_vectors_and_scalars(written):
    with Checkpoint(written) as checkpoint:
        vector = checkpoint.tensor("vector", (5,))
        assert [len(block) for block in vector.blocks(8)] == [2, 2, 1]
        assert np.array_equal(np.concatenate(list(vector.blocks(8))), vector.read())
        assert [float(block) for block in checkpoint.tensor("scalar", ()).blocks()] == [1.5]
        assert list(checkpoint.tensor("empty", (0, 4)).blocks()) == []


def test_a_row_over_the_bound_is_an_error(written):
    with Checkpoint(written) as checkpoint, pytest.raises(ValueError, match="over max_bytes"):
        list(checkpoint.tensor("layers.1.bf16", (1024, 64)).blocks(255))


def test_more_than_one_piece_is_read_exactly(tmp_path):
    table = np.random.default_rng(1).standard_normal((3001, 1000)).astype(ml_dtypes.bfloat16)  # 6 MB
    write_single(tmp_path, {"table": table})
    with Checkpoint(tmp_path) as checkpoint:
        assert np.array_equal(checkpoint.tensor("table", (3001, 1000)).read(), table.astype(np.float32))


def test_read_refuses_a_large_tensor(tmp_path):
    rows = MAX_READ_BYTES // 4 + 1
    write_raw(tmp_path, {"table": entry([rows], 0, 2 * rows, "BF16")})
    with (tmp_path / SINGLE_FILE).open("r+b") as file:  # sparse where the file system can
        file.truncate((tmp_path / SINGLE_FILE).stat().st_size + 2 * rows)
    with Checkpoint(tmp_path) as checkpoint, pytest.raises(ValueError, match=r"blocks\(\)"):
        checkpoint.tensor("table", (rows,)).read()


@pytest.mark.skipif(sys.platform == "win32", reason="the peak resident set is read from /proc or getrusage")
def test_blocks_of_a_large_table_stay_small_in_memory(tmp_path):
    rows, width = 150_000, 1000
    write_raw(tmp_path, {"table": entry([rows, width], 0, 2 * rows * width, "BF16")})
    with (tmp_path / SINGLE_FILE).open("r+b") as file:
        file.truncate((tmp_path / SINGLE_FILE).stat().st_size + 2 * rows * width)
    # Linux: VmHWM and not ru_maxrss, which a child inherits from a parent that was larger.
    code = f"""
import resource, sys
from pathlib import Path
from export.checkpoint import Checkpoint

def peak():
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

with Checkpoint(Path({str(tmp_path)!r})) as checkpoint:
    tensor = checkpoint.tensor("table", ({rows}, {width}))
    before, count, total = peak(), 0, 0.0
    for block in tensor.blocks():
        count += len(block)
        total += float(block.sum())
    print(count, total, peak() - before)
"""
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True
    ).stdout.split()
    assert answer[:2] == [str(rows), "0.0"]
    growth = int(answer[2])
    assert 32e6 < growth < 150e6  # at least half a block: the measure itself works


@pytest.mark.parametrize("missing", [1, 100_000])
@pytest.mark.parametrize("write", [write_single, write_shards])
def test_a_cut_shard_is_named(tmp_path, write, missing):
    write(tmp_path, random_tensors())
    path = max(tmp_path.glob("*.safetensors"), key=lambda path: path.stat().st_size)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - missing)
    message = refusal(tmp_path)
    assert f"{path.name} has {size - missing} bytes" in message and str(size) in message


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    write_single(tmp_path, {"vector": np.ones(1000, np.float32)})
    with Checkpoint(tmp_path) as checkpoint:
        with (tmp_path / SINGLE_FILE).open("r+b") as file:
            file.truncate(2000)
        with pytest.raises(CheckpointError, match="ended while being read"):
            checkpoint.tensor("vector", (1000,)).read()


def test_bytes_after_the_last_tensor_are_refused(tmp_path):
    write_raw(tmp_path, {"a": entry([2], 0, 8)}, size=9)
    assert "leads to" in refusal(tmp_path)


def test_a_git_lfs_pointer_is_recognised(tmp_path):
    (tmp_path / SINGLE_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    assert "git lfs pull" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x08", b"\xff" * 64, b"\x04" + bytes(7) + b"{}"])
def test_a_file_without_a_header(tmp_path, content):
    (tmp_path / SINGLE_FILE).write_bytes(content)
    assert "no readable safetensors header" in refusal(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "{not json",
        "[]",
        pytest.param("[" * 10**5, id="deep"),
        {"a": [1]},
        {"a": {"dtype": "F32", "shape": [2]}},
        {"a": entry([2], 0, 4)},
        {"a": entry([-2], 0, -8)},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0]}},
        {"a": {"dtype": "F32", "shape": ["2"], "data_offsets": [0, 8]}},
        {"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}},
    ],
)
def test_a_damaged_header(tmp_path, header):
    write_raw(tmp_path, header, size=8)
    assert "no readable safetensors header" in refusal(tmp_path)


@pytest.mark.parametrize("start", [4, 12])
def test_tensors_that_overlap_or_leave_a_gap(tmp_path, start):
    write_raw(tmp_path, {"a": entry([2], 0, 8), "b": entry([2], start, start + 8)}, size=start + 8)
    assert "has tensor b at byte" in refusal(tmp_path)


def test_an_empty_tensor_may_be_named_after_its_neighbour(tmp_path):
    write_raw(tmp_path, {"a": entry([2], 0, 8), "empty": entry([0], 0, 0)}, size=8)
    assert len(load_file(tmp_path / SINGLE_FILE)) == 2
    with Checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names == {"a", "empty"}


def test_the_same_tensor_twice_in_one_file(tmp_path):
    one = json.dumps(entry([2], 0, 8))
    write_raw(tmp_path, f'{{"a": {one}, "a": {one}}}', size=8)
    assert "a stands in it twice" in refusal(tmp_path)


@pytest.mark.parametrize("dtype", ["I64", "F8_E4M3", "F64", "BOOL"])
def test_another_type_is_refused(tmp_path, dtype):
    write_raw(tmp_path, {"a": entry([1], 0, 8, dtype)}, size=8)
    assert f"Tensor a in {tmp_path / SINGLE_FILE} is {dtype}" in refusal(tmp_path)
