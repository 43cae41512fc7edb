"""The account a checkpoint keeps of its tensors, and the folders it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from small_checkpoints import FIRST, SECOND, random_tensors, refusal, write_index, write_shards, write_single

from export.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint
from runtime.errors import CheckpointError


@pytest.fixture(params=[write_single, write_shards])
def written(request, tmp_path):
    request.param(tmp_path, random_tensors())
    return tmp_path


def test_a_missing_tensor_names_its_nearest(written):
    with (
        Checkpoint(written) as checkpoint,
        pytest.raises(CheckpointError, match=r"no tensor vectr .*is vector\)"),
    ):
        checkpoint.tensor("vectr", (5,))


def test_a_wrong_shape_shows_both(written):
    with (
        Checkpoint(written) as checkpoint,
        pytest.raises(CheckpointError, match=r"vector in .* has shape \[5\] .* leads to \[6\]"),
    ):
        checkpoint.tensor("vector", (6,))


def test_leftovers_are_counted_and_named(written):
    with Checkpoint(written) as checkpoint:
        checkpoint.tensor("vector", (5,)).read()
        checkpoint.shape("scalar")  # looking is not using
        assert checkpoint.unused() == sorted(random_tensors().keys() - {"vector"})
        with pytest.raises(CheckpointError, match=r"holds 5 tensors .*\(empty, layers\.1\.bf16, "):
            checkpoint.require_all_used()


def test_only_five_leftovers_are_named(tmp_path):
    write_single(tmp_path, {f"t{number}": np.zeros(1, np.float32) for number in range(7)})
    with (
        Checkpoint(tmp_path) as checkpoint,
        pytest.raises(CheckpointError, match=r"7 tensors .*t4, \.\.\.\)"),
    ):
        checkpoint.require_all_used()


def test_ignored_tensors_are_no_leftovers(written):
    with Checkpoint(written) as checkpoint:
        checkpoint.ignore("layers.1", "matches neither layers.1.bf16 nor layers.10.f16")
        assert len(checkpoint.unused()) == 6
        checkpoint.ignore("layers.1.", "a prefix")
        assert checkpoint.ignored == {"layers.1.bf16": "a prefix"}
        checkpoint.ignore("layers.10.", "another")
        for name in ("empty", "scalar", "absent"):
            checkpoint.ignore(name, "a name")
        assert checkpoint.unused() == ["vector"]
        checkpoint.tensor("vector", (5,))
        checkpoint.require_all_used()


def fingerprint(folder: Path) -> str:
    with Checkpoint(folder) as checkpoint:
        return checkpoint.fingerprint()


def test_the_fingerprint_is_that_of_the_content(tmp_path):
    tensors = random_tensors()
    write_single(tmp_path / "single", tensors)
    write_shards(tmp_path / "shards", tensors)
    known = fingerprint(tmp_path / "single")
    assert len(known) == 64 and fingerprint(tmp_path / "shards") == known
    changed = {
        "value": tensors | {"scalar": np.array(1.25, np.float16)},
        "name": {name.replace("vector", "vektor"): array for name, array in tensors.items()},
        "shape": tensors | {"layers.10.f32": tensors["layers.10.f32"].reshape(7, 33)},
        "dtype": tensors | {"vector": tensors["vector"].view(np.float16)},
    }
    prints = {known}
    for case, case_tensors in changed.items():
        write_single(tmp_path / case, case_tensors)
        prints.add(fingerprint(tmp_path / case))
    (tmp_path / "single" / "config.json").write_text('{"a": 1}')
    prints.add(fingerprint(tmp_path / "single"))
    assert len(prints) == 6


def test_a_fingerprint_needs_the_config(written):
    (written / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config\.json cannot be read"):
        fingerprint(written)


def test_names_without_the_published_beginning_stand_for_the_published_ones(tmp_path):
    tensors = {"language_model.norm.weight": np.ones(3, np.float32), "visual.pos_embed.weight": np.ones(2, np.float32)}
    for write in (write_single, write_shards):
        write(tmp_path / write.__name__, tensors)
        write(tmp_path / f"{write.__name__}-published", {f"model.{name}": array for name, array in tensors.items()})
        with Checkpoint(tmp_path / write.__name__) as checkpoint:
            assert checkpoint.names == {f"model.{name}" for name in tensors}
            assert checkpoint.tensor("model.language_model.norm.weight", (3,)).read().tolist() == [1, 1, 1]
            assert checkpoint.unused() == ["model.visual.pos_embed.weight"]
    assert len({fingerprint(folder) for folder in tmp_path.iterdir()}) == 1


@pytest.mark.parametrize("other", ["model.visual.norm.weight", "model.language_model.norm.weight"])
def test_a_mixture_of_both_namings_is_refused(tmp_path, other):
    write_single(tmp_path, {name: np.zeros(2, np.float32) for name in ("language_model.norm.weight", other)})
    message = refusal(tmp_path)
    assert f"like {other} and some like language_model.norm.weight, without 'model.': files of two" in message


def test_closed_files_cannot_be_read(written):
    with Checkpoint(written) as checkpoint:
        tensor = checkpoint.tensor("vector", (5,))
    with pytest.raises(ValueError, match="closed"):
        tensor.read()


def test_a_folder_that_is_none(tmp_path):
    assert "nowhere is not a folder" in refusal(tmp_path / "nowhere")


def test_a_folder_without_weights(tmp_path):
    assert "holds none" in refusal(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"pickle")
    message = refusal(tmp_path)
    assert f"only {name}" in message and "convert" in message


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
@pytest.mark.parametrize("write", [write_single, write_shards, lambda *_: None], ids=["single", "shards", "none"])
def test_an_adapter_is_refused_with_and_without_weights(tmp_path, write, name):
    write(tmp_path, random_tensors())
    (tmp_path / name).write_bytes(b"{}")
    message = refusal(tmp_path)
    assert f"holds an adapter ({name})" in message and "merge_and_unload, then save_pretrained" in message


def test_shards_without_their_index(tmp_path):
    write_shards(tmp_path, random_tensors())
    (tmp_path / INDEX_FILE).unlink()
    assert f"holds {FIRST} but no {INDEX_FILE}" in refusal(tmp_path)


def test_weights_that_are_a_link_to_nothing(tmp_path):
    (tmp_path / SINGLE_FILE).symlink_to("../../blobs/0123")
    assert f"{SINGLE_FILE} is a folder or a link to nothing" in refusal(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    write_shards(tmp_path, random_tensors())
    (tmp_path / SECOND).unlink()
    message = refusal(tmp_path)
    assert f"{SECOND} is missing" in message and "download" in message


def test_the_same_tensor_in_two_shards(tmp_path):
    for shard in (FIRST, SECOND):
        save_file({"a": np.zeros(2, np.float32), shard: np.zeros(2, np.float32)}, tmp_path / shard)
    write_index(tmp_path, {"a": FIRST, FIRST: FIRST, SECOND: SECOND})
    message = refusal(tmp_path)
    assert "tensor a twice" in message and SECOND in message


@pytest.mark.parametrize("named", ["absent", "scalar"])
def test_a_tensor_that_is_not_where_the_index_says(tmp_path, named):
    tensors = random_tensors()
    write_shards(tmp_path, tensors)
    weight_map = json.loads((tmp_path / INDEX_FILE).read_text())["weight_map"]
    write_index(tmp_path, weight_map | {named: FIRST})
    assert f"names tensor {named} in {FIRST}" in refusal(tmp_path)


@pytest.mark.parametrize(
    "index",
    [
        "{not json",
        "{}",
        "[]",
        '{"weight_map": {}}',
        '{"weight_map": []}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": "nul\\u0000.safetensors"}}',
        pytest.param("[" * 10**5, id="deep"),
        '{"weight_map": {"a": "../other/model.safetensors"}}',
        '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}',
    ],
)
def test_an_index_that_is_none(tmp_path, index):
    (tmp_path / INDEX_FILE).write_text(index)
    assert "is not a safetensors index" in refusal(tmp_path)
