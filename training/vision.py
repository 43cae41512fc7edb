"""The vision encoder as a torch module for training, with the checkpoint's names; see training/model.py."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from runtime.manifest import VisionConfig
from runtime.prompts.positions import patch_positions
from training.rotation import Rotation, as_rotation, rotated

EPSILON = 1e-6


@dataclass(frozen=True)
class Pictures:
    """Visual tokens [B, V, D] and what DeepStack adds after the first layers, each [B, V, D]."""

    tokens: Tensor
    deepstack: list[Tensor]

    def taken(self, index: Tensor) -> "Pictures":
        """Those of `index` int64 [N]."""
        return Pictures(self.tokens[index], [each[index] for each in self.deepstack])

    def followed_by(self, others: Sequence["Pictures"]) -> "Pictures":
        """Those and then the others, for prompts that hold several pictures."""
        deepstack = zip(self.deepstack, *(other.deepstack for other in others), strict=True)
        tokens = torch.cat([self.tokens, *(other.tokens for other in others)], 1)
        return Pictures(tokens, [torch.cat(level, 1) for level in deepstack])


class Vision(nn.Module):
    """Patches of pictures of one size → visual tokens."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.merger = Merger(config, norm_after=False)
        levels = len(config.deepstack_visual_indexes)
        self.deepstack_merger_list = nn.ModuleList([Merger(config, norm_after=True) for _ in range(levels)])

    def forward(self, patches: Tensor, grid: tuple[int, int]) -> Pictures:
        """`patches` float32 [B, h*w, 1536] in the order of `runtime.media.image.patchify`, `grid` = (h, w)."""
        config = self.config
        side = round(config.num_position_embeddings**0.5)
        places = patch_positions(grid, config.spatial_merge_size, config.hidden_size // config.num_heads, side)
        index, weight = (torch.from_numpy(each).to(patches.device) for each in (places.index, places.weight))
        neighbours = self.pos_embed(index)  # [4, h*w, D]
        hidden = self.patch_embed(patches) + (neighbours * weight).sum(0)
        cos, sin = as_rotation(places.rotary)
        rotation = cos.to(patches.device), sin.to(patches.device)
        deepstack = []
        for index, block in enumerate(self.blocks):
            hidden = block(hidden, rotation)
            if index in config.deepstack_visual_indexes:
                merger = self.deepstack_merger_list[config.deepstack_visual_indexes.index(index)]
                deepstack.append(merger(hidden))
        return Pictures(self.merger(hidden), deepstack)


class PatchEmbedding(nn.Module):
    """A linear map, stored as a three-dimensional convolution."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, kernel)

    def forward(self, patches: Tensor) -> Tensor:
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Block(nn.Module):
    """Attention between all patches of a picture, and an MLP."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, EPSILON)
        self.norm2 = nn.LayerNorm(config.hidden_size, EPSILON)
        self.attn = PatchAttention(config)
        self.mlp = TwoLayers(config.hidden_size, config.intermediate_size, config.hidden_size, "tanh")

    def forward(self, hidden: Tensor, rotation: Rotation) -> Tensor:
        hidden = hidden + self.attn(self.norm1(hidden), rotation)
        result: Tensor = hidden + self.mlp(self.norm2(hidden))
        return result


class PatchAttention(nn.Module):
    """Plain attention with rotary positions."""

    def __init__(self, config: VisionConfig):
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden: Tensor, rotation: Rotation) -> Tensor:
        batch, patches, size = hidden.shape
        query, key, value = self.qkv(hidden).view(batch, patches, 3, self.heads, -1).unbind(2)
        query, key, value = (each.transpose(1, 2) for each in (rotated(query, rotation), rotated(key, rotation), value))
        mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.proj(mixed.transpose(1, 2).reshape(batch, patches, size))
        return result


class TwoLayers(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, inside: int, between: int, outside: int, approximate: str):
        super().__init__()
        self.approximate = approximate
        self.linear_fc1 = nn.Linear(inside, between)
        self.linear_fc2 = nn.Linear(between, outside)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.linear_fc2(F.gelu(self.linear_fc1(hidden), approximate=self.approximate))
        return result


class Merger(TwoLayers):
    """2 × 2 patches → one token of the language backbone's width; DeepStack's normalise after putting them together."""

    def __init__(self, config: VisionConfig, norm_after: bool):
        self_width = config.hidden_size * config.spatial_merge_size**2
        super().__init__(self_width, self_width, config.out_hidden_size, "none")
        self.width, self.norm_after = self_width, norm_after
        self.norm = nn.LayerNorm(self_width if norm_after else config.hidden_size, EPSILON)

    def forward(self, hidden: Tensor) -> Tensor:
        batch = len(hidden)
        if self.norm_after:
            return super().forward(self.norm(hidden.view(batch, -1, self.width)))
        return super().forward(self.norm(hidden).view(batch, -1, self.width))
