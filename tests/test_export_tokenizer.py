"""What the exporter reads out of tokenizer.json, and how it tells an embedding from a reranker checkpoint."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_shapes import TINY_2B, TINY_8B, Shape, config_json
from qwen_tokenizer import BYTE_LEVEL, FIRST_ADDED_ID, SPECIAL_TOKENS, Task

from export.config import ModelConfig, read_config
from export.tokenizer import TokenizerFacts, decide_task, read_tokenizer
from runtime.errors import CheckpointError
from runtime.manifest import TokenIds

Checkpoints = Callable[[Shape, Task], Path]
Content = dict[str, Any]

POOLING = "sentence_transformers.models.Pooling"
LOGIT_SCORE = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
CAUSAL_SCORE_HEAD = "sentence_transformers.base.modules.causal_score_head.CausalScoreHead"


def template(last: str) -> Content:
    """A post-processor that ends on the token `last`."""
    single = [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": last, "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {}}


def content(post_processor: Content | None = None) -> Content:
    """A tokenizer.json of four words."""
    return {
        "added_tokens": [
            {"id": 9, "content": "<|im_end|>", "special": True},
            {"id": 7, "content": "<|endoftext|>", "special": True},
            {"id": 8, "content": "<think>", "special": False},
        ],
        "post_processor": post_processor,
        "model": {"type": "BPE", "vocab": {"a": 0, "no": 1, "yes": 2, "Ġyes": 3}, "merges": []},
    }


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    (tmp_path / "config.json").write_text(json.dumps(config_json(TINY_2B, "bfloat16")), encoding="utf-8")
    return read_config(tmp_path)


def read(folder: Path, config: ModelConfig, tokenizer: object) -> TokenizerFacts:
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return read_tokenizer(folder, config)


def refusal(folder: Path, config: ModelConfig, tokenizer: object) -> str:
    with pytest.raises(CheckpointError) as caught:
        read(folder, config, tokenizer)
    message = str(caught.value)
    assert message.startswith(str(folder / "tokenizer.json")) and message.endswith(".")
    return message


@pytest.mark.parametrize(("shape", "task"), [(TINY_2B, "embedding"), (TINY_8B, "reranker")])
def test_the_published_tokenizers(checkpoint: Checkpoints, shape: Shape, task: Task) -> None:
    folder = checkpoint(shape, task)
    special = tuple(range(FIRST_ADDED_ID, FIRST_ADDED_ID + len(SPECIAL_TOKENS)))
    ids = TokenIds(pad=151643, image=151655, video=151656, vision_start=151652, vision_end=151653, special=special)
    facts = read_tokenizer(folder, read_config(folder))
    assert facts == TokenizerFacts(ids, yes=9693, no=2152, appends_pad=task == "embedding")
    decision = decide_task(folder, facts)
    assert decision.task == task
    does = "appends" if task == "embedding" else "does not append"
    assert decision.reason == f"tokenizer.json {does} <|endoftext|>, modules.json says {task}"


def test_special_ids_are_sorted_and_ordinary_ones_left_out(tmp_path: Path, config: ModelConfig) -> None:
    facts = read(tmp_path, config, content())
    assert facts.tokens.special == (7, 9)
    assert (facts.tokens.pad, facts.yes, facts.no) == (7, 2, 1)


@pytest.mark.parametrize(
    ("post_processor", "appends"),
    [
        (None, False),
        (BYTE_LEVEL, False),
        (template("<|endoftext|>"), True),
        (template("<|im_end|>"), False),
        ({"type": "TemplateProcessing", "single": [], "pair": [], "special_tokens": {}}, False),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, template("<|endoftext|>")]}, True),
        ({"type": "Sequence", "processors": [BYTE_LEVEL, template("<|im_end|>")]}, False),
        ({"type": "Sequence", "processors": []}, False),
    ],
)
def test_whether_a_text_ends_on_the_pad(
    tmp_path: Path, config: ModelConfig, post_processor: Content | None, appends: bool
) -> None:
    assert read(tmp_path, config, content(post_processor)).appends_pad is appends


@pytest.mark.parametrize("word", ["yes", "no"])
def test_the_scored_words_must_be_there(tmp_path: Path, config: ModelConfig, word: str) -> None:
    tokenizer = content()
    del tokenizer["model"]["vocab"][word]
    assert f"has no token {word!r}" in refusal(tmp_path, config, tokenizer)


def test_the_pad_must_be_there(tmp_path: Path, config: ModelConfig) -> None:
    tokenizer = content()
    del tokenizer["added_tokens"][1]
    assert "has no token <|endoftext|>" in refusal(tmp_path, config, tokenizer)


@pytest.mark.parametrize("index", [151936, -1])
def test_an_added_token_without_a_row_in_the_token_table_is_refused(
    tmp_path: Path, config: ModelConfig, index: int
) -> None:
    tokenizer = content()
    tokenizer["added_tokens"].append({"id": index, "content": "<|mine|>", "special": False})
    message = refusal(tmp_path, config, tokenizer)
    assert f"gives the token '<|mine|>' the id {index}, and the token table of 151936 rows" in message
    tokenizer["added_tokens"][-1]["id"] = 151935
    read(tmp_path, config, tokenizer)


@pytest.mark.parametrize(("token", "key"), [("<|image_pad|>", "image_token_id"), ("<|video_pad|>", "video_token_id")])
def test_pads_with_another_id_than_the_config_s_are_refused(
    tmp_path: Path, config: ModelConfig, token: str, key: str
) -> None:
    tokenizer = content()
    tokenizer["added_tokens"].append({"id": 6, "content": token, "special": True})
    assert f"the token {token} the id 6, and config.json's {key} is {getattr(config, key)}:" in refusal(
        tmp_path, config, tokenizer
    )
    read(tmp_path, replace(config, **{key: 6}), tokenizer)


def test_words_without_a_row_in_the_token_table_are_refused(tmp_path: Path, config: ModelConfig) -> None:
    tokenizer = content()
    tokenizer["model"]["vocab"]["b"] = 151936
    assert "gives the token 'b' the id 151936, and" in refusal(tmp_path, config, tokenizer)
    tokenizer["model"]["vocab"]["c"] = 151937
    assert "gives the token 'b' the id 151936 (1 more as well), and" in refusal(tmp_path, config, tokenizer)


@pytest.mark.parametrize(
    "change",
    [
        lambda tokenizer: tokenizer.pop("added_tokens"),
        lambda tokenizer: tokenizer.pop("model"),
        lambda tokenizer: tokenizer["model"].pop("vocab"),
        lambda tokenizer: tokenizer["model"].update(vocab=[["yes", 0.5], ["no"]]),
        lambda tokenizer: tokenizer["added_tokens"][0].pop("special"),
        lambda tokenizer: tokenizer["added_tokens"][0].pop("id"),
        lambda tokenizer: tokenizer.update(post_processor={"single": ["text"]}),
    ],
    ids=["no added tokens", "no model", "no vocabulary", "vocabulary of pairs", "no flag", "no id", "no template"],
)
def test_a_tokenizer_with_wrong_content(tmp_path: Path, config: ModelConfig, change: Callable[[Content], Any]) -> None:
    tokenizer = content()
    change(tokenizer)
    assert "cannot be read" in refusal(tmp_path, config, tokenizer)


@pytest.mark.parametrize("raw", [b"{not json", b"\xff", b"[]", b"[" * 10**5], ids=["words", "bytes", "list", "deep"])
def test_a_tokenizer_that_is_none(tmp_path: Path, config: ModelConfig, raw: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be read .*download it again\."):
        read_tokenizer(tmp_path, config)


def test_a_folder_without_tokenizer(tmp_path: Path, config: ModelConfig) -> None:
    with pytest.raises(CheckpointError, match=r"has no tokenizer\.json; every checkpoint brings its own"):
        read_tokenizer(tmp_path, config)


def facts(tmp_path: Path, config: ModelConfig, task: Task) -> TokenizerFacts:
    return read(tmp_path, config, content(template("<|endoftext|>") if task == "embedding" else BYTE_LEVEL))


def write_modules(folder: Path, *types: str) -> None:
    modules = [{"idx": index, "type": kind} for index, kind in enumerate(types)]
    (folder / "modules.json").write_text(json.dumps(modules), encoding="utf-8")


@pytest.mark.parametrize("task", ["embedding", "reranker"])
def test_the_tokenizer_alone_decides(tmp_path: Path, config: ModelConfig, task: Task) -> None:
    decision = decide_task(tmp_path, facts(tmp_path, config, task))
    assert decision.task == task
    assert "modules.json" not in decision.reason
    write_modules(tmp_path, "sentence_transformers.models.Transformer")
    assert decide_task(tmp_path, facts(tmp_path, config, task)) == decision


@pytest.mark.parametrize(
    ("task", "other", "kind"),
    [
        ("embedding", "reranker", LOGIT_SCORE),
        ("embedding", "reranker", CAUSAL_SCORE_HEAD),
        ("reranker", "embedding", POOLING),
    ],
)
def test_a_disagreement_is_an_error(tmp_path: Path, config: ModelConfig, task: Task, other: Task, kind: str) -> None:
    write_modules(tmp_path, "sentence_transformers.models.Transformer", kind)
    message = f"a checkpoint for {task}, modules.json says {other}; say which with --task"
    with pytest.raises(CheckpointError, match=message):
        decide_task(tmp_path, facts(tmp_path, config, task))


@pytest.mark.parametrize("raw", ["{not json", "[1]", '[{"name": "0"}]', "1", "[" * 10**5], ids=lambda raw: raw[:9])
def test_modules_that_are_none(tmp_path: Path, config: ModelConfig, raw: str) -> None:
    (tmp_path / "modules.json").write_text(raw, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"modules\.json cannot be read .*download it again or remove it\."):
        decide_task(tmp_path, facts(tmp_path, config, "embedding"))
