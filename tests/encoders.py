"""The host side of the runtime for a checkpoint folder, without graphs: tokenizer and encoder with the defaults."""

from dataclasses import replace
from functools import cache
from pathlib import Path

from qwen_tokenizer import Task

from export.config import read_config
from export.reference_prompt import EMBEDDER_INSTRUCTION, RERANKER_INSTRUCTION
from export.tokenizer import read_tokenizer
from runtime.media.image import PatchGrid
from runtime.prompts.encode import EncodeOptions, Encoder
from runtime.prompts.tokens import PromptTokenizer

EMBEDDING = EncodeOptions(
    max_length=8192,
    min_pixels=4 * 1024,
    max_pixels=1800 * 1024,
    total_pixels=7680 * 1024,
    fps=1.0,
    max_frames=64,
    default_instruction=EMBEDDER_INSTRUCTION,
)
RERANKING = replace(EMBEDDING, max_length=10240, default_instruction=RERANKER_INSTRUCTION)
OPTIONS: dict[Task, EncodeOptions] = {"embedding": EMBEDDING, "reranker": RERANKING}


@cache
def prompt_tokenizer(folder: Path) -> PromptTokenizer:
    return PromptTokenizer(folder / "tokenizer.json", read_tokenizer(folder, read_config(folder)).tokens)


def encoder(folder: Path, options: EncodeOptions) -> Encoder:
    return Encoder(prompt_tokenizer(folder), PatchGrid(), options)
