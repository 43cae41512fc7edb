"""Writes the language backbone of a checkpoint as GGUF for llama.cpp, with Q8_0 and Q4_0 weights.

    python -m bench.speed_llama_export CHECKPOINT FOLDER

Needs PyPI's `gguf` and what the export imports. Written: q8_0.gguf and q4_0.gguf, of the architecture `qwen3`: for text
alone M-RoPE is its rotation, and DeepStack adds nothing. Norms are float32; there is no vocabulary, token ids go in.
"""

import json
import sys
from pathlib import Path

import gguf
import numpy as np

from export.checkpoint import Checkpoint

PREFIX = "model.language_model"
ARCHITECTURE = "qwen3"
TYPES = {"q8_0": gguf.GGMLQuantizationType.Q8_0, "q4_0": gguf.GGMLQuantizationType.Q4_0}
TOP = {"embed_tokens": "token_embd", "norm": "output_norm"}
PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def tensors(layers: int) -> dict[str, str]:
    """Names in the checkpoint → names in the GGUF file."""
    found = {f"{PREFIX}.{ours}.weight": f"{theirs}.weight" for ours, theirs in TOP.items()}
    for layer in range(layers):
        for ours, theirs in PARTS.items():
            found[f"{PREFIX}.layers.{layer}.{ours}.weight"] = f"blk.{layer}.{theirs}.weight"
    return found


def write(checkpoint: Checkpoint, file: Path, kind: gguf.GGMLQuantizationType) -> None:
    """One file."""
    text = json.loads((checkpoint.folder / "config.json").read_text(encoding="utf-8"))["text_config"]
    writer = gguf.GGUFWriter(file, ARCHITECTURE, use_temp_file=True)
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_context_length(text["max_position_embeddings"])
    writer.add_embedding_length(text["hidden_size"])
    writer.add_feed_forward_length(text["intermediate_size"])
    writer.add_head_count(text["num_attention_heads"])
    writer.add_head_count_kv(text["num_key_value_heads"])
    writer.add_key_length(text["head_dim"])
    writer.add_value_length(text["head_dim"])
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_rope_freq_base(text["rope_theta"])
    writer.add_vocab_size(text["vocab_size"])
    writer.add_tokenizer_model("no_vocab")
    for ours, theirs in tensors(text["num_hidden_layers"]).items():
        shape = checkpoint.shape(ours)
        values = np.ascontiguousarray(checkpoint.tensor(ours, shape).rows(0, shape[0]), np.float32)
        if len(shape) == 1:
            writer.add_tensor(theirs, values)
        else:
            writer.add_tensor(theirs, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    """Write both."""
    source, folder = (Path(argument) for argument in sys.argv[1:])
    folder.mkdir(parents=True, exist_ok=True)
    with Checkpoint(source) as checkpoint:
        for name, kind in TYPES.items():
            write(checkpoint, folder / f"{name}.gguf", kind)


if __name__ == "__main__":
    main()
