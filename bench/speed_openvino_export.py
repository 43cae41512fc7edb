"""Converts the torch model to OpenVINO with nncf's int8 and int4 weights.

    python -m bench.speed_openvino_export CHECKPOINT FOLDER

In an environment with torch, transformers 4.57, openvino and nncf; about 20 GB of memory for 2B. The modules are
transformers' own; only the loops around them are written anew, since theirs would be traced for one length.
Written: decoder-int8.xml, decoder-int4.xml (groups of 64), vision-int8.xml, and the two tables for the host's look-ups.
"""

import gc
import sys
from pathlib import Path
from typing import Any

import nncf
import openvino
import torch
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision

from bench.speed_torch import load

INT4_GROUP = 64
TRACED = 16  # tokens or patches of the example input


class Decoder(torch.nn.Module):
    """Embedded tokens [B,S,D], M-RoPE cos and sin [B,S,H], DeepStack rows [L,B,S,D] (zeros for text) → [B,D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, hidden: Any, cos: Any, sin: Any, deepstack: Any) -> Any:
        """The hidden state of the last token after the last norm."""
        for index, layer in enumerate(self.model.layers):
            # Without a mask the layers attend causally.
            hidden = layer(hidden, position_embeddings=(cos, sin), attention_mask=None)
            if index < 3:
                hidden = hidden + deepstack[index]
        return self.model.norm(hidden)[:, -1]


class Vision(torch.nn.Module):
    """Patches [P,1536], position embedding [P,D], rotary cos and sin [P,H] → tokens [V,D], DeepStack [L,V,D]."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, patches: Any, positions: Any, cos: Any, sin: Any) -> Any:
        """One picture, every patch attends to every other."""
        hidden, deepstack = self.model.patch_embed(patches) + positions, []
        for index, block in enumerate(self.model.blocks):
            hidden = hidden + _attention(block.attn, block.norm1(hidden), cos, sin)
            hidden = hidden + block.mlp(block.norm2(hidden))
            if index in self.model.deepstack_visual_indexes:
                merger = self.model.deepstack_merger_list[self.model.deepstack_visual_indexes.index(index)]
                deepstack.append(merger(hidden))
        return self.model.merger(hidden), torch.stack(deepstack)


def _attention(attention: Any, x: Any, cos: Any, sin: Any) -> Any:
    heads = attention.qkv(x).reshape(x.shape[0], 3, attention.num_heads, -1).permute(1, 0, 2, 3)  # [3,P,heads,H]
    q, k = apply_rotary_pos_emb_vision(heads[0], heads[1], cos, sin)
    q, k, v = (each.transpose(0, 1).unsqueeze(0) for each in (q, k, heads[2]))
    mixed = torch.nn.functional.scaled_dot_product_attention(q, k, v)  # [1,heads,P,H]
    return attention.proj(mixed.squeeze(0).transpose(0, 1).reshape(x.shape[0], -1))


def convert(module: torch.nn.Module, example: tuple[Any, ...], dynamic: list[list[int]]) -> Any:
    """The traced module; each input keeps its example's sizes, -1 in `dynamic` where any will do."""
    with torch.no_grad():
        return openvino.convert_model(module.eval(), example_input=example, input=dynamic)


def main() -> None:
    """Convert, compress, save."""
    checkpoint, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    model = load(checkpoint, torch.float32)
    text, vision = model.config.text_config, model.config.vision_config
    head, width = vision.hidden_size // vision.num_heads, vision.hidden_size
    patch = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    shapes = [[-1, patch], [-1, width], [-1, head], [-1, head]]
    example = tuple(torch.randn([TRACED, *shape[1:]]) for shape in shapes)
    tower = nncf.compress_weights(
        convert(Vision(model.visual), example, shapes), mode=nncf.CompressWeightsMode.INT8_SYM
    )
    openvino.save_model(tower, folder / "vision-int8.xml", compress_to_fp16=False)
    torch.save(model.visual.pos_embed.weight.data, folder / "positions.pt")
    decoder, size = model.language_model, text.hidden_size
    torch.save(decoder.embed_tokens.weight.data.to(torch.bfloat16), folder / "embeddings.pt")
    del model, tower
    gc.collect()
    shapes = [[-1, -1, size], [-1, -1, text.head_dim], [-1, -1, text.head_dim], [3, -1, -1, size]]
    example = tuple(torch.randn([TRACED if side == -1 else side for side in shape]) for shape in shapes)
    for name in ("int8", "int4"):
        # Each from a fresh conversion: compress_weights works in place.
        graph = convert(Decoder(decoder), example, shapes)
        if name == "int8":
            graph = nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_SYM)
        else:
            graph = nncf.compress_weights(
                graph, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=INT4_GROUP, ratio=1.0, all_layers=True
            )
        openvino.save_model(graph, folder / f"decoder-{name}.xml", compress_to_fp16=False)
        del graph
        gc.collect()


if __name__ == "__main__":
    main()
