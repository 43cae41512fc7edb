"""Model names against local folders and a fake hub; every download really goes through huggingface_hub."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import COMMIT, FakeHub
from huggingface_hub import constants

from export.source import PUBLISHED, SMALL, find_checkpoint
from runtime.errors import CheckpointError

ROOT = Path(__file__).parents[1]
REPOSITORY = "Qwen/Qwen3-VL-Embedding-2B"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
# Contents differ because the cache is addressed by content: equal files are fetched once.
NEEDED = {
    "config.json": b'{"is": "config"}',
    "tokenizer.json": b'{"is": "tokenizer"}',
    "tokenizer_config.json": b'{"is": "tokenizer_config"}',
    "modules.json": b'{"is": "modules"}',
    "1_Pooling/config.json": b'{"is": "1_Pooling"}',
    "preprocessor_config.json": b'{"is": "preprocessor"}',
    "processor_config.json": b'{"is": "processor"}',
    "defaults.json": b'{"is": "defaults"}',
    "video_preprocessor_config.json": b'{"is": "video_preprocessor"}',
    "chat_template.json": b'{"is": "chat_template"}',
    "model.safetensors.index.json": json.dumps({"weight_map": {"a": SHARDS[0], "b": SHARDS[1]}}).encode(),
    SHARDS[0]: bytes(3000),
    SHARDS[1]: bytes(range(250)) * 20,
}
UNNEEDED = {
    "README.md": b"# model",
    "pytorch_model.bin": b"pickle",
    "onnx/model.onnx": b"graph",
    "onnx/config.json": b"of the graph",
    "adapter/model.safetensors": b"other weights",
}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    # huggingface_hub reads its environment once, at import; these are what it reads at every call.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS_WARNING", True)  # Windows
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "127.0.0.1")
    monkeypatch.chdir(tmp_path)
    with FakeHub(REPOSITORY, NEEDED | UNNEEDED).serve() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint + "/")
        yield hub


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def sentence(model: str, **options: str) -> str:
    """The message of the expected error, which must be one sentence on one line."""
    with pytest.raises(CheckpointError) as caught:
        find_checkpoint(model, **options)
    message = str(caught.value)
    assert "\n" not in message and message.endswith(".") and ". " not in message
    return message


def test_an_existing_folder_wins(hub):
    folder = Path(REPOSITORY)
    folder.mkdir(parents=True)
    assert find_checkpoint(REPOSITORY) == folder
    assert find_checkpoint(str(folder.resolve())) == folder.resolve()
    assert hub.requests == []


def test_a_revision_of_a_folder_is_refused(hub):
    assert "--revision main" in sentence(".", revision="main")


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    assert find_checkpoint("~/weights") == tmp_path / "weights"


@pytest.mark.parametrize("model", ["./nowhere", "~/nowhere/at/all", "/no/where", "a/b/c", "..\\nowhere", "C:\\no"])
def test_a_path_that_is_not_there_is_named(hub, model):
    assert str(Path(os.path.expanduser(model))) in sentence(model)
    assert hub.requests == []


def test_a_file_is_refused(hub, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "model.safetensors is a file" in sentence("model.safetensors")


@pytest.mark.parametrize("model", ["Qwen3-VL-2B", "", "bert"])
def test_an_unknown_bare_name_lists_the_known_ones(hub, model):
    assert ", ".join((*PUBLISHED, *SMALL)) in sentence(model)
    assert hub.requests == []


@pytest.mark.parametrize("model", SMALL)
def test_the_small_model_is_installed(hub, tmp_path, model):
    found = find_checkpoint(model)
    assert (found / "model.safetensors").stat().st_size < 8_000_000
    assert hub.requests == []
    assert f"--revision main has no meaning for the folder {found}" in sentence(model, revision="main")
    (tmp_path / model).mkdir()
    assert find_checkpoint(model) == Path(model)  # a folder of that name comes first


def test_an_impossible_repository_is_named(hub):
    assert "a/b--c is no folder here and no possible repository" in sentence("a/b--c")
    assert hub.requests == []


@pytest.mark.parametrize("model", [REPOSITORY, "Qwen3-VL-Embedding-2B", "qwen3-vl-embedding-2b"])
def test_a_name_fetches_exactly_the_needed_files(hub, model):
    assert files_in(find_checkpoint(model)) == NEEDED
    assert hub.fetched() == set(NEEDED)


def test_a_single_file_checkpoint_is_complete(hub):
    hub.files = {name: content for name, content in NEEDED.items() if not name.startswith("model")}
    hub.files["model.safetensors"] = b"weights"
    assert files_in(find_checkpoint(REPOSITORY)) == hub.files


@pytest.mark.parametrize("weights", [True, False], ids=["beside weights", "alone"])
def test_a_repository_with_an_adapter_is_refused(hub, weights):
    hub.files = {"adapter_config.json": b"{}", "README.md": b"# adapter"} | (NEEDED if weights else {})
    assert "holds an adapter (adapter_config.json)" in sentence(REPOSITORY)
    assert "adapter_config.json" in hub.fetched()


def test_a_second_call_downloads_nothing(hub):
    first = find_checkpoint(REPOSITORY)
    hub.requests.clear()
    assert find_checkpoint(REPOSITORY) == first
    assert hub.fetched() == set()


def test_the_revision_is_passed(hub):
    hub.revisions = ("main", "v2")
    assert find_checkpoint(REPOSITORY, revision="v2").name == COMMIT
    asked = {path for _, path, _ in hub.requests if "/revision/" in path}
    assert asked == {f"/api/models/{REPOSITORY}/revision/v2"}


def test_an_unknown_revision_is_named(hub):
    assert "'v9'" in sentence(REPOSITORY, revision="v9")


@pytest.mark.parametrize("code", ["RepoNotFound", ""])
@pytest.mark.parametrize("status", [404, 401])  # the hub says 401 for what does not exist, too
def test_an_unknown_repository_is_named(hub, status, code):
    hub.api_error = (status, code)
    message = sentence("nobody/nothing")
    assert "nobody/nothing is no folder here and no public repository" in message
    assert "hf auth login" in message


@pytest.mark.parametrize("error", [(401, "GatedRepo"), (403, "GatedRepo"), (403, "")])
@pytest.mark.parametrize("where", ["api_error", "file_error"])
def test_a_gated_repository_says_how_to_get_access(hub, where, error):
    setattr(hub, where, error)
    message = sentence(REPOSITORY)
    assert "accept its conditions" in message and "hf auth login" in message


def test_a_broken_connection_resumes(hub, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept are whole chunks, of 10 MB
    hub.reset_after = {SHARDS[1]: 1234}
    try:
        folder = find_checkpoint(REPOSITORY)  # newer huggingface_hub resumes by itself
    except CheckpointError as error:
        assert "run this command again" in str(error)
        folder = find_checkpoint(REPOSITORY)
    assert files_in(folder) == NEEDED
    assert hub.ranges(SHARDS[1]) == [None, "bytes=1000-"]


def test_a_cut_download_says_that_running_again_resumes(hub):
    hub.short = {SHARDS[0]: 1000}
    message = sentence(REPOSITORY)
    assert "broke off" in message and "run this command again" in message and "resumes" in message
    assert files_in(find_checkpoint(REPOSITORY)) == NEEDED
    # Later huggingface_hub versions start an unfinished file anew in a second run.
    assert hub.ranges(SHARDS[0]) in ([None, "bytes=1000-"], [None, None])


def test_without_a_network_the_cache_serves(hub, monkeypatch):
    folder = find_checkpoint(REPOSITORY)
    monkeypatch.setenv("HF_ENDPOINT", unused_endpoint())
    assert find_checkpoint(REPOSITORY) == folder


def test_without_a_network_and_a_cache_it_says_what_to_download_and_pass(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", unused_endpoint())
    message = sentence(REPOSITORY)
    assert f"hf download {REPOSITORY} --local-dir DIR" in message
    assert f"modelscope download --model {REPOSITORY} --local_dir DIR" in message
    assert "--model DIR" in message


def test_a_hub_out_of_order_is_no_missing_repository(hub):
    hub.api_error = (500, "")
    assert re.search("cannot be reached .*500", sentence(REPOSITORY))


def test_the_environment_is_obeyed(hub, tmp_path):
    # In a fresh interpreter, because this is what huggingface_hub reads once at import.
    code = (
        "from export.source import find_checkpoint\n"
        "try:\n"
        f"    print(find_checkpoint({REPOSITORY!r}))\n"
        "except Exception as error:\n"
        "    print(type(error).__name__, error)\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    environment.pop("HF_HUB_CACHE", None)
    answers = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=environment | {"HF_HUB_OFFLINE": offline},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        ).stdout.strip()
        for offline in ("1", "0", "1")
    ]
    assert answers[0].startswith("CheckpointError") and "OfflineModeIsEnabled" in answers[0]
    assert files_in(Path(answers[1])) == NEEDED and Path(answers[1]).is_relative_to(tmp_path / "home")
    assert answers[2] == answers[1]


def test_a_half_filled_cache_is_refused_without_a_network(hub, monkeypatch):
    folder = find_checkpoint(REPOSITORY)
    (folder / SHARDS[1]).unlink()
    monkeypatch.setenv("HF_ENDPOINT", unused_endpoint())
    assert f"lacks {SHARDS[1]}" in sentence(REPOSITORY)


@pytest.mark.parametrize("name", [SHARDS[1], "config.json", "tokenizer.json", "model.safetensors.index.json"])
def test_a_file_the_repository_lacks_is_named(hub, name):
    hub.files = {key: content for key, content in NEEDED.items() if key != name}
    expected = "model.safetensors" if name.endswith("index.json") else name
    assert expected in sentence(REPOSITORY)


def test_a_shard_that_is_listed_but_not_there_is_named(hub):
    hub.absent = (SHARDS[0],)
    assert "lists a file that it does not hold" in sentence(REPOSITORY)


def unused_endpoint() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"
