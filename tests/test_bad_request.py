"""Requests to the reranker that cannot be used: the message names the place and what was expected."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qwen_tokenizer import Task
from random_checkpoint import TINY_2B, Shape
from refusals import refusal

from runtime import Qwen3VLReranker, Skipped

Packages = Callable[[Shape, Task], Path]

A = {"text": "a"}
REQUESTS: list[tuple[Any, str]] = [
    ([], "inputs is an empty list, expected a dict with query, documents, instruction, fps, max_frames."),
    ({"query": "a", "documents": [A]}, "inputs: query is the string 'a', expected a dict with text, image or video."),
    ({"query": {}, "documents": [A]}, "inputs: query is an empty dict, expected a dict with text, image or video."),
    ({"query": A}, "inputs: documents is None, expected a list of dicts."),
    ({"query": A, "documents": A}, "inputs: documents is a dict of 1, expected a list of dicts."),
    ({"query": {"txt": "a"}, "documents": [A]}, "query has the unknown key 'txt'; known keys are text, image, video."),
    (
        {"query": A, "documents": [A], "top": 3},
        "inputs has the unknown key 'top'; known keys are query, documents, instruction, fps, max_frames.",
    ),
    (
        {"query": {"text": ("a",)}, "documents": [A]},
        "query: text is a tuple of 1, expected a string or a pair (instruction, text).",
    ),
    ({"query": A, "documents": [A], "fps": 0}, "inputs: fps is 0, expected a positive number."),
    # The instruction belongs to no document, so it is not skipped with each of them.
    (
        {"query": A, "documents": [A], "instruction": "<|image_pad|>"},
        "inputs: instruction contains the special token <|image_pad|>; remove it, or pass special_tokens='escape' "
        "to embed it as ordinary characters.",
    ),
]


@pytest.fixture(scope="module")
def reranker(package: Packages) -> Qwen3VLReranker:
    return Qwen3VLReranker(package(TINY_2B, "reranker"))


@pytest.mark.parametrize(("request_", "message"), REQUESTS, ids=[message[:44] for _, message in REQUESTS])
def test_wrong_requests_are_named(request_: Any, message: str, reranker: Qwen3VLReranker) -> None:
    assert refusal(lambda: reranker.process(request_)) == message
    assert refusal(lambda: reranker.process(request_, on_error="skip")) == message


def test_wrong_documents_are_named(reranker: Qwen3VLReranker) -> None:
    documents = ["a", None, {"text": ("a", "b")}, {"instruction": "a"}, {"text": "<|image_pad|>"}]
    skipped: list[Skipped] = []
    scores = reranker.process({"query": A, "documents": documents}, on_error="skip", skipped=skipped)
    assert np.isnan(scores).all()
    for each, beginning in zip(
        skipped,
        [
            "documents[0] is the string 'a', expected a dict with text, image, video; write {'text': 'a'}.",
            "documents[1] is None, expected a dict with text, image, video.",
            "documents[2]: text is a tuple of 2, expected a string or a list of strings.",
            "documents[3] has the unknown key 'instruction'; known keys are text, image, video.",
            "documents[4]: text contains the special token <|image_pad|>; remove it",
        ],
        strict=True,
    ):
        assert str(each.error).startswith(beginning)
