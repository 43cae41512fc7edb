import hashlib
import json
from pathlib import Path

import pytest
from qwen_tokenizer import SPECIAL_TOKENS, Task, build_tokenizer_json, write_tokenizer
from tokenizers import Tokenizer

TASKS: list[Task] = ["embedding", "reranker"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    root = tmp_path_factory.mktemp("tokenizers")
    for task in TASKS:
        write_tokenizer(root / task, task)
    return {task: root / task for task in TASKS}


@pytest.mark.parametrize(
    ("task", "size", "sha256"),
    [("embedding", 11_423_705, "def76fb08697"), ("reranker", 11_422_654, "aeb13307a71a")],
)
def test_the_built_file_is_the_published_one(task: Task, size: int, sha256: str) -> None:
    built = build_tokenizer_json(task)
    assert len(built) == size
    assert hashlib.sha256(built).hexdigest().startswith(sha256)


@pytest.mark.parametrize("task", TASKS)
def test_known_tokens(folders: dict[Task, Path], task: Task) -> None:
    tokenizer = Tokenizer.from_file(str(folders[task] / "tokenizer.json"))
    assert [tokenizer.token_to_id(word) for word in ("yes", "no", "Ġyes", "Ġno")] == [9693, 2152, 9834, 902]
    assert [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS] == list(range(151643, 151657))
    assert tokenizer.get_vocab_size() == 151669
    assert tokenizer.encode("Hello, world!").ids[:4] == [9707, 11, 1879, 0]


def test_only_the_embedding_tokenizer_appends_endoftext(folders: dict[Task, Path]) -> None:
    text = "<|im_start|>assistant\n"
    ids = {task: Tokenizer.from_file(str(folders[task] / "tokenizer.json")).encode(text).ids for task in TASKS}
    assert ids["reranker"] == [151644, 77091, 198]
    assert ids["embedding"] == [151644, 77091, 198, 151643]


@pytest.mark.parametrize("text", ["", "naïve café", "e\u0301", "日本語 🦆", "a\r\n\n  b\t1234 'LL", "<think>x</think>"])
def test_decoding_gives_back_the_text_in_nfc(folders: dict[Task, Path], text: str) -> None:
    tokenizer = Tokenizer.from_file(str(folders["reranker"] / "tokenizer.json"))
    decoded = tokenizer.decode(tokenizer.encode(text).ids)
    assert decoded == text.replace("e\u0301", "é")


def test_a_damaged_cache_is_built_again(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "reranker-tokenizer.json").write_text("{}", encoding="utf-8")
    write_tokenizer(tmp_path / "model", "reranker", cache=cache)
    written = (tmp_path / "model" / "tokenizer.json").read_bytes()
    assert hashlib.sha256(written).hexdigest().startswith("aeb13307a71a")
    assert (cache / "reranker-tokenizer.json").read_bytes() == written


def test_the_config_names_every_added_token(folders: dict[Task, Path]) -> None:
    config = json.loads((folders["embedding"] / "tokenizer_config.json").read_text(encoding="utf-8"))
    added = config["added_tokens_decoder"]
    assert list(added) == [str(token) for token in range(151643, 151669)]
    assert [int(token) for token in added if added[token]["special"]] == list(range(151643, 151657))
    assert (config["eos_token"], config["pad_token"]) == ("<|im_end|>", "<|endoftext|>")
