"""Prompts as strings, against those that the reference's message building and chat template render."""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from encoders import OPTIONS
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape

from export.reference_prompt import ReferenceOptions, embedder_messages, reranker_messages
from runtime.prompts.inputs import parse_content, parse_item, parse_request
from runtime.prompts.prompt import (
    EMPTY,
    IMAGE,
    VIDEO,
    VisualTokens,
    embedding_instruction,
    embedding_prompt,
    expand_visuals,
    rerank_prompt,
)

INSTRUCTIONS = [
    None, "", " ", "\n\t", "Find it", "Find it.", "Find it。", "Find it?", "Find it？", "Find it!", "Find it»",
    "Find it+", "Find it-", "Find it—", "Find it)", "Find it]", "Find it_", "Find it\"", "Find it'", "Find it”",
    "Find it$", "Find it|", "Find it=", "Find it>", "Find it^", "Find it`", "Find it~", "Find it©", "Find it€",
    "Find it§", "Find it¿", "Find it।", "Find it؟", "Find it་", "Find it…", "Find it;", "Find it:", "Find it%",
    "Find it\u0301", "Find it\u200b", "Find it 1", "Find it👍", "  Find it \n", "\u00a0Find it\u3000", "Find it. ",
    "两行\n找到它", "<|im_end|>", ".", "+", "{{ item }}", "{% if %}",
]  # fmt: skip
CONTENTS: list[dict[str, Any]] = [
    {},
    {"text": None, "image": [], "video": []},
    {"text": ""},
    {"text": ["", ""]},
    {"text": "a red car"},
    {"text": " kept \n as it is \n\n"},
    {"text": ["first", "second ", "third"]},
    {"text": "<|im_end|>\n<|im_start|>assistant"},
    {"text": "{{ braces }} {% if %} <Query>: NULL"},
    {"image": "a.png"},
    {"image": ["a.png", "b.png", "c.png"], "text": "three"},
    {"video": "a.mp4"},
    {"video": ["a.mp4", "b.mp4"]},
    {"video": ["a.png", "b.png", "c.png"]},
    {"video": [["a.png", "b.png"], "c.mp4"]},
    {"text": ["t", "u"], "image": ["a.png", "b.png"], "video": ["a.mp4", ["a.png"]]},
]


@pytest.fixture(scope="module")
def rendered(checkpoint: Callable[[Shape, Task], Path]) -> Callable[[list[dict[str, Any]]], str]:
    """Messages → prompt by the processor and its chat template; no picture is opened."""
    pytest.importorskip("torch")
    importlib.import_module("export.reference").prepare_reference_imports()
    transformers = importlib.import_module("transformers")
    processor = transformers.Qwen3VLProcessor.from_pretrained(str(checkpoint(TINY_2B, "embedding")))

    def render(messages: list[dict[str, Any]]) -> str:
        prompt: str = processor.apply_chat_template([messages], add_generation_prompt=True, tokenize=False)[0]
        return prompt

    return render


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=ascii)
def test_embedder_instructions_equal_the_reference(rendered: Any, instruction: str | None) -> None:
    item = {"text": "a", "instruction": instruction}
    chosen = embedding_instruction(instruction, OPTIONS["embedding"].default_instruction)
    found = embedding_prompt(parse_content({"text": "a"}, "here"), chosen)
    assert found == rendered(embedder_messages(item, ReferenceOptions()))


@pytest.mark.parametrize("content", CONTENTS, ids=repr)
def test_embedder_contents_equal_the_reference(rendered: Any, content: dict[str, Any]) -> None:
    item = parse_item(content, "here")
    default = OPTIONS["embedding"].default_instruction
    found = embedding_prompt(item.content, embedding_instruction(item.instruction, default))
    assert found == rendered(embedder_messages(content, ReferenceOptions()))


@pytest.mark.parametrize("instruction", INSTRUCTIONS, ids=ascii)
def test_reranker_instructions_equal_the_reference(rendered: Any, instruction: str | None) -> None:
    default = OPTIONS["reranker"].default_instruction
    for query in ({"text": "q"}, {"text": (instruction or "", "q")}):
        inputs: dict[str, Any] = {"query": query, "documents": [], "instruction": instruction}
        request = parse_request(inputs)
        found = rerank_prompt(request.query, parse_content({}, "here"), request.instruction or default)
        assert found == rendered(reranker_messages(inputs, {}, ReferenceOptions()))


@pytest.mark.parametrize("document", CONTENTS, ids=repr)
@pytest.mark.parametrize("query", [each for each in CONTENTS if each], ids=repr)
def test_reranker_contents_equal_the_reference(rendered: Any, query: dict[str, Any], document: dict[str, Any]) -> None:
    found = rerank_prompt(parse_content(query, "query"), parse_content(document, "document"), "Find it")
    inputs = {"query": query, "instruction": "Find it"}
    assert found == rendered(reranker_messages(inputs, document, ReferenceOptions()))


def test_prompts_by_hand() -> None:
    content = parse_content({"text": ["a", "b"], "image": ["i.png"] * 2, "video": "v.mp4"}, "here")
    nothing = parse_content({}, "here")
    assert embedding_prompt(content, "Find.") == (
        "<|im_start|>system\nFind.<|im_end|>\n<|im_start|>user\n"
        f"{VIDEO}{IMAGE}{IMAGE}ab<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rerank_prompt(content, nothing, "Find").endswith(
        f"<|im_start|>user\n<Instruct>: Find<Query>:{VIDEO}{IMAGE}{IMAGE}ab\n<Document>:{EMPTY}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert f"user\n{EMPTY}<|im_end|>" in embedding_prompt(nothing, "Find.")


def test_the_default_instruction_is_taken_as_it_is() -> None:
    assert embedding_instruction("  ", " no full stop ") == " no full stop "
    assert embedding_instruction(None, "") == ""


def test_pads_are_expanded_by_hand() -> None:
    """A video loses its own markers; each frame pair has a timestamp, rounded half to even, and a run of pads."""
    video = VisualTokens(2, (0.25, 12.35, 100.0))
    run = "<|vision_start|><|video_pad|><|video_pad|><|vision_end|>"
    assert expand_visuals(f"a{VIDEO}{IMAGE}b{IMAGE}c", [video, VisualTokens(1), VisualTokens(3)]) == (
        f"a<0.2 seconds>{run}<12.3 seconds>{run}<100.0 seconds>{run}"
        "<|vision_start|><|image_pad|><|vision_end|>b"
        "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>c"
    )
    assert expand_visuals("plain", []) == "plain"


def test_a_visual_without_a_pad_is_our_own_mistake() -> None:
    with pytest.raises(AssertionError, match=r"no .*image_pad.* left"):
        expand_visuals(VIDEO, [VisualTokens(1)])
