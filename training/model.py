"""Qwen3-VL as a small torch module for training: transformers' arithmetic, in batches of equal shape.

Parameters have the checkpoint's names. All prompts of a batch begin with the same tokens, which are computed once, and
their pictures have one size; that makes a step on two cores several times faster. tests/test_training.py compares it
with transformers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.manifest import TextConfig, VisionConfig
from runtime.prompts.positions import text_rotary, token_positions
from training.rotation import Rotation, as_rotation, rotated
from training.vision import Pictures, Vision

Blocks = Sequence[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Prompts:
    """B prompts: tokens that all begin with, int64 [P], then their own, int64 [B, S], padded on the right.

    `last` int64 [B] is each one's final token among its own, or [B, K] several that are looked at. `is_visual` bool
    [B, S] marks the visual tokens, V in each prompt: those of pictures of `blocks` (rows, columns).
    """

    prefix: Tensor
    own: Tensor
    last: Tensor
    is_visual: Tensor
    blocks: Blocks


class Qwen3VL(nn.Module):
    """The whole model; `state_dict` has the published names."""

    def __init__(self, text: TextConfig, vision: VisionConfig):
        super().__init__()
        self.model = nn.ModuleDict({"language_model": Language(text), "visual": Vision(vision)})
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.5 * parameter[0].numel() ** -0.5)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def look(self, patches: Tensor, grid: tuple[int, int]) -> Pictures:
        """Pictures float32 [B, h*w, 1536] in the order of `runtime.media.image.patchify`, all of a grid (h, w)."""
        pictures: Pictures = self.model["visual"](patches, grid)
        return pictures

    def read(self, prompts: Prompts, pictures: Pictures | None = None) -> Tensor:
        """Hidden states [B, D], or [B, K, D], of the last tokens, after the final norm."""
        return self.read_twice(prompts, pictures, 0)[1]

    def read_twice(self, prompts: Prompts, pictures: Pictures | None, layers: int) -> tuple[Tensor, Tensor]:
        """The same after so many layers, without a norm, and in the end."""
        halfway, hidden = self.model["language_model"](prompts, pictures, layers)
        return halfway, hidden

    @property
    def table(self) -> Tensor:
        """The token table [vocabulary, D], which is the head too."""
        weight: Tensor = self.model["language_model"].embed_tokens.weight
        return weight


class Language(nn.Module):
    """The language backbone."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([Layer(config) for _ in range(config.num_hidden_layers)])
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, prompts: Prompts, pictures: Pictures | None, layers: int) -> tuple[Tensor, Tensor]:
        split, device = len(prompts.prefix), self.norm.weight.device
        cos, sin = self._rotary(prompts, device)  # [B, P + S, head_dim]
        before, here = (cos[:1, :split], sin[:1, :split]), (cos[:, split:], sin[:, split:])
        beginning = self.embed_tokens(prompts.prefix.to(device))[None]  # [1, P, D]
        hidden = self.embed_tokens(prompts.own.to(device))  # [B, S, D]
        places = tuple(each.to(device) for each in prompts.is_visual.nonzero(as_tuple=True))
        if pictures is not None:
            hidden = hidden.index_put(places, pictures.tokens.flatten(0, 1))
        last = prompts.last.to(device)
        rows = torch.arange(len(hidden), device=device).view(-1, *[1] * (last.dim() - 1))
        halfway = hidden
        for index, layer in enumerate(self.layers):
            if index == layers:
                halfway = hidden[rows, last]
            beginning, hidden = layer(beginning, hidden, before, here)
            if pictures is not None and index < len(pictures.deepstack):
                added = torch.zeros_like(hidden).index_put(places, pictures.deepstack[index].flatten(0, 1))
                hidden = hidden + added
        return halfway, self.norm(hidden[rows, last])

    def _rotary(self, prompts: Prompts, device: torch.device) -> Rotation:
        """Of all prompts, or [1, P + S, head_dim] where they hold no picture and are equal in this."""
        visual = prompts.is_visual.numpy() if prompts.blocks else np.zeros((1, prompts.own.shape[1]), bool)
        before = np.zeros(len(prompts.prefix), bool)
        different, which = np.unique(visual, axis=0, return_inverse=True)
        positions = [token_positions(np.concatenate([before, row]), prompts.blocks) for row in different]
        rotary = text_rotary(np.stack(positions, 1), self.config.rope_theta, self.config.mrope_section)
        cos, sin = as_rotation(rotary)
        rows = torch.from_numpy(which).to(device)
        return cos.to(device)[rows], sin.to(device)[rows]


class Layer(nn.Module):
    """A decoder layer: attention and gated MLP, each after its norm."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)

    def forward(self, beginning: Tensor, hidden: Tensor, before: Rotation, here: Rotation) -> tuple[Tensor, Tensor]:
        norm = self.input_layernorm
        first, past = self.self_attn(norm(beginning), before, None)
        second, _ = self.self_attn(norm(hidden), here, past)
        beginning, hidden = beginning + first, hidden + second
        return self._widened(beginning), self._widened(hidden)

    def _widened(self, hidden: Tensor) -> Tensor:
        result: Tensor = hidden + self.mlp(self.post_attention_layernorm(hidden))
        return result


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys; `past` are keys and values of the common beginning."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.heads = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        queries, keys, size = self.heads
        self.q_proj = nn.Linear(config.hidden_size, queries * size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys * size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys * size, bias=False)
        self.o_proj = nn.Linear(queries * size, config.hidden_size, bias=False)
        self.q_norm = nn.RMSNorm(size, config.rms_norm_eps)
        self.k_norm = nn.RMSNorm(size, config.rms_norm_eps)

    def forward(self, hidden: Tensor, rotation: Rotation, past: Rotation | None) -> tuple[Tensor, Rotation]:
        batch, length, _ = hidden.shape
        queries, keys, size = self.heads
        query = rotated(self.q_norm(self.q_proj(hidden).view(batch, length, queries, size)), rotation).transpose(1, 2)
        key = rotated(self.k_norm(self.k_proj(hidden).view(batch, length, keys, size)), rotation).transpose(1, 2)
        value = self.v_proj(hidden).view(batch, length, keys, size).transpose(1, 2)
        own = key, value
        if past is not None:
            key, value = (
                torch.cat([old.expand(batch, -1, -1, -1), new], 2) for old, new in zip(past, own, strict=True)
            )
        key, value = (each.repeat_interleave(queries // keys, 1) for each in (key, value))
        seen = torch.ones(length, key.shape[2], dtype=torch.bool, device=key.device).tril(key.shape[2] - length)
        mixed = F.scaled_dot_product_attention(query, key, value, seen)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, queries * size)), own


class Mlp(nn.Module):
    """The gated MLP."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.down_proj(F.silu(self.gate_proj(hidden)) * self.up_proj(hidden))
        return result
