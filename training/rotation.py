"""Rotary position embedding: runtime's angles as torch tensors, and their application."""

import torch
from torch import Tensor

from runtime.prompts.positions import Rotary

Rotation = tuple[Tensor, Tensor]  # cosines and sines [..., S, head size]


def as_rotation(rotary: Rotary) -> Rotation:
    """Angles of half a head, doubled as transformers does."""
    cos, sin = (torch.from_numpy(each) for each in (rotary.cos, rotary.sin))
    return torch.cat([cos, cos], -1), torch.cat([sin, sin], -1)


def rotated(values: Tensor, rotation: Rotation) -> Tensor:
    """float32 [B, S, heads, head size], each head turned by its token's angles."""
    cos, sin = (each.unsqueeze(-2) for each in rotation)
    first, second = values.chunk(2, -1)
    return values * cos + torch.cat([-second, first], -1) * sin
