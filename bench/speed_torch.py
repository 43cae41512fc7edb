"""Peer of the speed benchmark: transformers' Qwen3VLModel, sdpa, without a key-value cache.

python -m bench.speed_torch CHECKPOINT bfloat16|float32 THREADS

An environment whose torchvision does not fit its torch cannot import the model; one without torchvision can.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLModel

from bench.speed_cases import Case, input_ids, patches
from bench.speed_worker import Run, reply_channel, serve


def load(folder: Path, dtype: torch.dtype) -> Any:
    """The model; RuntimeError where the checkpoint lacks a tensor (its weights would be random, and fast)."""
    model, loading = Qwen3VLModel.from_pretrained(
        str(folder), dtype=dtype, attn_implementation="sdpa", key_mapping={r"^model\.": ""}, output_loading_info=True
    )
    if loading["missing_keys"]:
        raise RuntimeError(f"{folder} lacks {len(loading['missing_keys'])} tensors, {loading['missing_keys'][0]} first")
    return model.eval()


def prepare(model: Any, case: Case) -> Run:
    """From ids and patches to the last token's hidden state [B, D], or to the vision tower's tokens [V, D]."""
    ids = torch.from_numpy(input_ids(case))
    # As the reference passes it; without one, transformers takes a picture's positions for several packed prompts.
    prompt = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
    picture = {}
    if case.grid is not None:
        picture["pixel_values"] = torch.from_numpy(patches(case)).to(model.dtype)
        picture["image_grid_thw"] = torch.tensor([[1, *case.grid]])

    def forward() -> Any:
        if not case.decoder:
            return model.visual(picture["pixel_values"], grid_thw=picture["image_grid_thw"])[0]
        body = model if picture else model.language_model
        return body(**prompt, **picture).last_hidden_state[:, -1]

    def run() -> np.ndarray:
        with torch.inference_mode():
            output: np.ndarray = forward().float().numpy()
        return output

    return run


def main() -> None:
    """Serve the checkpoint named on the command line."""
    reply = reply_channel()
    torch.set_num_threads(int(sys.argv[3]))
    model = load(Path(sys.argv[1]), getattr(torch, sys.argv[2]))
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "dtype": sys.argv[2]}
    serve(reply, facts, lambda case: prepare(model, case))


if __name__ == "__main__":
    main()
