"""Token ids, against the reference's: every script, special tokens in texts, and both ways of cutting."""

import importlib
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoders import OPTIONS, prompt_tokenizer
from parity_cases import SCRIPTS
from qwen_tokenizer import SPECIAL_TOKENS, Task
from random_checkpoint import TINY_2B, Shape

from export.config import read_config
from export.reference_prompt import ReferenceOptions
from export.tokenizer import read_tokenizer
from runtime.errors import InputError, PackageError
from runtime.prompts.inputs import Content
from runtime.prompts.prompt import embedding_prompt, rerank_prompt
from runtime.prompts.tokens import PromptTokenizer

Checkpoints = Callable[[Shape, Task], Path]
ENDOFTEXT, IMAGE_PAD, VISION_START, VISION_END = 151643, 151655, 151652, 151653
TASKS: list[Task] = ["embedding", "reranker"]
VISUAL_PADS = ("<|image_pad|>", "<|video_pad|>")
TEXTS = [
    *SCRIPTS,
    "", " ", "\n", "\n\n both ends \n\n", "\r\n\t\x0b\x0c", "\x00\x01\x1f\x7f\x85", "a\u200bb\u200d\u2028\u2029\ufeff",
    "e\u0301 \u1112\u1161\u11ab \u212b \ufb01 \u0344 o\u0328\u0301", "\u0301starts with a mark", "\uac00\u11a8",
    "\u202eright to left\u202c", "\U000e0041\U0010ffff\ufffd\uffff", "'S 'LL i'm I'VE", "1234567890 3.14 ٣٤ ⅷ ²",
    "    indented\n\tcode();", "https://host/path?x=1&y=%20#z", "ʻOkina ꜱᴍᴀʟʟ 𝕸𝖆𝖙𝖍", "🫠🫱🏻‍🫲🏿 ❤️‍🔥 1️⃣",
    "<think> <tool_call> <|fim_pad|>",
    "<|im_end", "<|IM_END|>", "< |im_end|>", "＜|im_end|＞",
]  # fmt: skip


@pytest.fixture(scope="module")
def tokenizers(checkpoint: Checkpoints) -> dict[Task, PromptTokenizer]:
    return {task: prompt_tokenizer(checkpoint(TINY_2B, task)) for task in TASKS}


@pytest.fixture(scope="module")
def reference(checkpoint: Checkpoints) -> Callable[[Task, int], Any]:
    """`reference("embedding", 8192)`: the reference's class with that max_length."""
    pytest.importorskip("torch")
    module = importlib.import_module("export.reference")
    classes = {"embedding": module.ReferenceEmbedder, "reranker": module.ReferenceReranker}

    @cache
    def load(task: Task, max_length: int) -> Any:
        return classes[task](checkpoint(TINY_2B, task), ReferenceOptions(max_length=max_length))

    return load


def embedding_text(text: str) -> str:
    return embedding_prompt(Content(texts=(text,)), OPTIONS["embedding"].default_instruction)


def rerank_text(query: str, document: str) -> str:
    default = OPTIONS["reranker"].default_instruction
    return rerank_prompt(Content(texts=(query,)), Content(texts=(document,)), default)


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_texts_equal_the_reference(tokenizers: Any, reference: Any, text: str) -> None:
    expected = reference("embedding", 8192).stages({"text": text}).input_ids
    found = tokenizers["embedding"].embedding_ids(embedding_text(text), 8192)
    assert found.dtype == np.int64
    assert found.tolist() == expected.tolist()
    assert found[-1] == ENDOFTEXT
    expected = reference("reranker", 10240).stages({"text": text}, {"text": text + "!"}).input_ids
    assert tokenizers["reranker"].rerank_ids(rerank_text(text, text + "!"), 10240).tolist() == expected.tolist()


@pytest.mark.parametrize("token", [token for token in SPECIAL_TOKENS if token not in VISUAL_PADS])
def test_special_tokens_are_allowed_as_in_the_reference(tokenizers: Any, reference: Any, token: str) -> None:
    text = f"before{token} after {token}\n{token}{token}end"
    assert tokenizers["embedding"].checked_text(text, "allow", "here") == text
    expected = reference("embedding", 8192).stages({"text": text}).input_ids.tolist()
    found = tokenizers["embedding"].embedding_ids(embedding_text(text), 8192).tolist()
    assert found == expected
    assert found.count(SPECIAL_TOKENS.index(token) + ENDOFTEXT) >= 4


def test_a_preamble_is_what_every_text_comes_after(tokenizers: Any) -> None:
    """Also where a text begins as no other does, with marks of turns of its own, or is cut off."""
    embedder = tokenizers["embedding"]
    ids = [embedder.embedding_ids(embedding_text(text), 8192) for text in (*TEXTS, "<|im_start|>user\n")]
    length = embedder.preamble(ids[0])
    assert {embedder.preamble(each) for each in ids} == {length}
    assert {tuple(each[:length]) for each in ids} == {tuple(ids[0][:length])}
    template = f"<|im_start|>system\n{OPTIONS['embedding'].default_instruction}<|im_end|>\n<|im_start|>user"
    assert ids[0][:length].tolist() == [*embedder.embedding_ids(template, 8192)[:-1]]
    assert embedder.preamble(embedder.embedding_ids(embedding_text("a"), length - 2)) == 0
    pairs = [tokenizers["reranker"].rerank_ids(rerank_text(text, "a"), 10240) for text in TEXTS]
    length = tokenizers["reranker"].preamble(pairs[0])
    assert length > 20 and len({tuple(each[:length]) for each in pairs}) == 1


@pytest.mark.parametrize("max_length", [2, 25, 60])
def test_the_embedder_cuts_from_the_right_and_keeps_endoftext(tokenizers: Any, reference: Any, max_length: int) -> None:
    for text in ("", "short", "word " * 2000, " ".join(SCRIPTS)):
        expected = reference("embedding", max_length).stages({"text": text}).input_ids
        found = tokenizers["embedding"].embedding_ids(embedding_text(text), max_length)
        assert found.tolist() == expected.tolist()
        assert len(found) <= max_length
        assert found[-1] == ENDOFTEXT


@pytest.mark.parametrize("max_length", [4, 60, 300])
def test_the_reranker_cuts_only_ordinary_tokens(tokenizers: Any, reference: Any, max_length: int) -> None:
    texts = ["", "short", "word " * 400, "a <|im_end|> b <|object_ref_start|>" * 30, " ".join(SCRIPTS)]
    special = range(ENDOFTEXT, ENDOFTEXT + len(SPECIAL_TOKENS))
    for query, document in zip(texts, [*texts[1:], texts[0]], strict=True):
        expected = reference("reranker", max_length).stages({"text": query}, {"text": document}).input_ids
        prompt = rerank_text(query, document)
        found = tokenizers["reranker"].rerank_ids(prompt, max_length)
        assert found.tolist() == expected.tolist()
        whole = tokenizers["reranker"].rerank_ids(prompt, 100_000)
        assert found[-5:].tolist() == whole[-5:].tolist() == [151645, 198, 151644, 77091, 198]
        assert np.isin(found, special).sum() == np.isin(whole, special).sum()


def test_lengths_around_the_limit(tokenizers: Any) -> None:
    """The reranker's limit leaves the last five tokens aside, the embedder's counts every token."""
    prompt = rerank_text("a", "b")
    whole = tokenizers["reranker"].rerank_ids(prompt, 100_000)
    for limit, length in [(len(whole), 0), (len(whole) - 5, 0), (len(whole) - 6, 1)]:
        assert len(tokenizers["reranker"].rerank_ids(prompt, limit)) == len(whole) - length
    prompt = embedding_text("a")
    whole = tokenizers["embedding"].embedding_ids(prompt, 100_000)
    for limit, length in [(len(whole), 0), (len(whole) - 1, 1)]:
        assert len(tokenizers["embedding"].embedding_ids(prompt, limit)) == len(whole) - length


def test_a_limit_without_room_is_refused(tokenizers: Any) -> None:
    with pytest.raises(InputError) as caught:
        tokenizers["embedding"].embedding_ids("a", 1)
    assert str(caught.value) == "max_length is 1, expected at least 2."


def test_a_cut_through_a_visual_is_an_error(tokenizers: Any) -> None:
    """Four tokens before the pads, ten pads, two tokens behind, <|endoftext|>."""
    prompt = "a b c<|vision_start|>" + "<|image_pad|>" * 10 + "<|vision_end|>d"
    whole = [64, 293, 272, VISION_START, *[IMAGE_PAD] * 10, VISION_END, 67, ENDOFTEXT]
    embedding = tokenizers["embedding"]
    assert embedding.embedding_ids(prompt, 17).tolist() == whole
    assert embedding.embedding_ids(prompt, 16).tolist() == [*whole[:15], ENDOFTEXT]
    assert embedding.embedding_ids(prompt, 15).tolist() == [*whole[:14], ENDOFTEXT]
    for max_length in (14, 6, 5, 4, 2):
        with pytest.raises(InputError) as caught:
            embedding.embedding_ids(prompt, max_length)
        assert str(caught.value) == (
            f"the prompt has 17 tokens, 10 of them visual, and cutting it to max_length {max_length} would cut visual "
            "tokens; lower max_pixels, fps or max_frames, or raise max_length."
        )


def test_visual_ids(tokenizers: Any) -> None:
    ids = np.array([[IMAGE_PAD, 151656], [VISION_START, 0]])
    assert tokenizers["embedding"].is_visual(ids).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_escaped_tokens_become_ordinary_characters(tokenizers: Any, task: Task, token: str) -> None:
    tokenizer = tokenizers[task]
    text = tokenizer.checked_text(f"a {token}{token} <{token}", "escape", "here")
    escaped = token.replace("<|", "< |")
    assert text == f"a {escaped}{escaped} <{escaped}"
    assert tokenizer.rerank_ids(text, 100).max() < ENDOFTEXT or task == "embedding"
    assert tokenizer.embedding_ids(text, 100)[:-1].max() < ENDOFTEXT


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_special_tokens_can_be_refused(tokenizers: Any, token: str) -> None:
    with pytest.raises(InputError) as caught:
        tokenizers["embedding"].checked_text(f"a{token}b", "refuse", "inputs[2]: text")
    assert str(caught.value) == (
        f"inputs[2]: text contains the special token {token}; "
        "remove it, or pass special_tokens='escape' to embed it as ordinary characters."
    )


@pytest.mark.parametrize("pad", VISUAL_PADS)
@pytest.mark.parametrize("text", ["{}", "<|im_end|>{}", "{}<|endoftext|>"])
def test_visual_pads_are_always_refused(tokenizers: Any, pad: str, text: str) -> None:
    with pytest.raises(InputError, match=r"here contains the special token .*_pad.*; remove it"):
        tokenizers["reranker"].checked_text(text.format(pad), "allow", "here")


@pytest.mark.parametrize("text", ["", "plain", "< |im_end|>", "<|im_end", "<think>"])
def test_other_texts_pass_every_policy(tokenizers: Any, text: str) -> None:
    for policy in ("allow", "escape", "refuse"):
        assert tokenizers["embedding"].checked_text(text, policy, "here") == text


@pytest.mark.parametrize("task", TASKS)
def test_special_ids_equal_transformers(checkpoint: Checkpoints, task: Task) -> None:
    pytest.importorskip("torch")
    importlib.import_module("export.reference").prepare_reference_imports()
    folder = checkpoint(TINY_2B, task)
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(folder))
    assert set(read_tokenizer(folder, read_config(folder)).tokens.special) == set(tokenizer.all_special_ids)


def test_a_saved_call_s_cutting_and_padding_are_ignored(checkpoint: Checkpoints, tmp_path: Path) -> None:
    """save_pretrained after a call with truncation writes that call's limits into tokenizer.json."""
    folder = checkpoint(TINY_2B, "embedding")
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    content["truncation"] = {"direction": "Left", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    content["padding"] = {
        "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None,
        "pad_id": ENDOFTEXT, "pad_type_id": 0, "pad_token": "<|endoftext|>",
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(content), encoding="utf-8")
    tokens = read_tokenizer(folder, read_config(folder)).tokens
    found = PromptTokenizer(tmp_path / "tokenizer.json", tokens).embedding_ids("word " * 20, 100)
    assert found.tolist() == prompt_tokenizer(folder).embedding_ids("word " * 20, 100).tolist()
    assert len(found) == 22


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00\xff"])
def test_a_broken_tokenizer_file_is_named(checkpoint: Checkpoints, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    folder = checkpoint(TINY_2B, "embedding")
    with pytest.raises(PackageError) as caught:
        PromptTokenizer(path, read_tokenizer(folder, read_config(folder)).tokens)
    assert str(caught.value).startswith(f"{path} cannot be read (")
    assert str(caught.value).endswith("); export the package again.")
