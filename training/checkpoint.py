"""The pair on disk: sizes, and a checkpoint folder in the layout of the published ones."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from checkpoint_shapes import Shape, TextShape, VisionShape, config_json
from qwen_tokenizer import Task
from random_checkpoint import companion_files, write_json
from safetensors.torch import load_file, save_file

from export.blueprint import DEFAULTS_NAME
from export.config import read_config
from training.model import Qwen3VL
from training.tokenizer import added_id, write_tokenizer

TEACHER = Shape(  # an embedder from which both others begin
    text=TextShape(
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        mrope_section=(6, 5, 5),
        vocab_size=6144,
        rope_theta=10_000,  # prompts are short
    ),
    vision=VisionShape(
        hidden_size=96,
        intermediate_size=384,
        depth=6,
        num_heads=3,
        deepstack_visual_indexes=(1, 3, 4),
        num_position_embeddings=64,  # pictures are at most 8 × 8 patches, or little more
    ),
    tied=True,
)
# Wide and shallow: rounding exchanges fewer pictures than in the teacher (docs/training.md).
EMBEDDER = Shape(
    replace(TEACHER.text, hidden_size=256, intermediate_size=256, num_hidden_layers=4, vocab_size=4096),
    replace(TEACHER.vision, depth=5),
    tied=True,
)
RERANKER = replace(TEACHER, text=replace(TEACHER.text, num_hidden_layers=7))  # the last one compares
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
# A side of the largest picture. Beyond what it was trained on, a picture is only larger, not clearer.
SIDES: dict[Task, int] = {"embedding": 96, "reranker": 128}


def write_folder(folder: Path, vocabulary: dict[str, Any], task: Task, shape: Shape) -> None:
    """Everything of a checkpoint but its weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder, vocabulary, task)
    config = config_json(shape, "bfloat16") | {key: added_id(vocabulary, token) for key, token in TOKENS.items()}
    pixels = SIDES[task] ** 2
    budget = {"max_pixels": pixels, "total_pixels": 16 * pixels}
    answers = vocabulary["vocab"]["yes"], vocabulary["vocab"]["no"]
    files = companion_files(shape, task, answers) | {"config.json": config, DEFAULTS_NAME: budget}
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, content)


def read_vocabulary(folder: Path) -> dict[str, Any]:
    """The `model` of a folder's tokenizer.json."""
    vocabulary: dict[str, Any] = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    return vocabulary


def new_model(folder: Path) -> Qwen3VL:
    """Random weights in the sizes of the folder's config.json."""
    config = read_config(folder)
    return Qwen3VL(config.text, config.vision)


def write_weights(folder: Path, model: Qwen3VL) -> None:
    """model.safetensors in bfloat16."""
    tensors = {name: value.to(torch.bfloat16).contiguous() for name, value in model.state_dict().items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def read_weights(folder: Path, model: Qwen3VL, whole: bool = True) -> None:
    """The weights of a checkpoint into a model of its sizes, or, unless `whole`, of more layers."""
    tensors = load_file(folder / "model.safetensors")
    model.load_state_dict({name: value.float() for name, value in tensors.items()}, strict=whole)
