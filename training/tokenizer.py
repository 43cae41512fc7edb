"""The pair's own byte-level BPE, learnt from its texts, around Qwen's special tokens, split rule and chat template."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qwen_tokenizer import (
    CHAT_TEMPLATE,
    ORDINARY_TOKENS,
    SPECIAL_TOKENS,
    SPLIT_REGEX,
    Task,
    tokenizer_config,
    tokenizer_document,
)
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

ADDED = (*SPECIAL_TOKENS, *ORDINARY_TOKENS)


def learn_vocabulary(texts: Iterable[str], size: int) -> dict[str, Any]:
    """The `model` of a tokenizer.json: byte-level BPE on `texts`, of `size` tokens with Qwen's own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(SPLIT_REGEX), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size - len(ADDED), initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    model: dict[str, Any] = json.loads(tokenizer.to_str())["model"]
    return model


def write_tokenizer(folder: Path, model: dict[str, Any], task: Task) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja like those of the published checkpoints."""
    first = len(model["vocab"])
    contents = {
        "tokenizer.json": json.dumps(tokenizer_document(model, task, first), ensure_ascii=False),
        "tokenizer_config.json": json.dumps(tokenizer_config(first), indent=2, ensure_ascii=False),
        "chat_template.jinja": CHAT_TEMPLATE,
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8", newline="\n")


def added_id(model: dict[str, Any], token: str) -> int:
    """The id of one of Qwen's special tokens, which follow those of `model`."""
    return len(model["vocab"]) + ADDED.index(token)
