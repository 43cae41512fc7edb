"""Drawings as a model may meet them: moved, turned, recoloured, outlined, on another ground, in several shapes."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from runtime.media.image import PatchGrid

PATCH = PatchGrid()
# (height, width) in pixels of a training picture, and how often.
SIZES = {(64, 64): 0.55, (96, 96): 0.25, (64, 96): 0.08, (96, 64): 0.08, (64, 128): 0.02, (128, 64): 0.02}
# Of the reranker, which looks closer.
LARGER = {(96, 96): 0.35, (128, 128): 0.45, (96, 128): 0.1, (128, 96): 0.1}
GREY = torch.tensor([0.299, 0.587, 0.114])[:, None, None]


def drawn_size(random: np.random.Generator, shares: dict[tuple[int, int], float]) -> tuple[int, int]:
    """One of the sizes, as often as `shares` says."""
    sizes = list(shares)
    return sizes[random.choice(len(sizes), p=list(shares.values()))]


def augmented(drawings: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 [B, H, W, 4], premultiplied → float32 [B, 3, *size] in 0 … 1, each changed in its own way."""
    layers = _moved(drawings.permute(0, 3, 1, 2).float() / 255, size)
    outlined = _some(len(layers), 0.35)
    layers[outlined] = _outlined(layers[outlined])
    colour, alpha = _recoloured(layers[:, :3], layers[:, 3:]), layers[:, 3:]
    ground = torch.ones(len(layers), 3, 1, 1, device=layers.device)
    tinted = _some(len(layers), 0.3)
    ground[tinted] -= torch.rand(len(tinted), 3, 1, 1, device=layers.device) * 0.5
    picture = colour + (1 - alpha) * ground
    noisy = _some(len(layers), 0.2)
    picture[noisy] += torch.randn(len(noisy), *picture.shape[1:], device=layers.device) * 0.04
    return picture.clamp(0, 1)


def on_white(drawings: Tensor, size: tuple[int, int]) -> Tensor:
    """As `augmented`, unchanged but for the size."""
    layers = drawings.permute(0, 3, 1, 2).float() / 255
    picture = layers[:, :3] + 1 - layers[:, 3:]
    return F.interpolate(picture, size, mode="bicubic", antialias=True).clamp(0, 1)


def patches(pictures: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """float32 [B, 3, H, W] in 0 … 1 → ([B, h*w, 1536] in the order of `runtime.media.image.patchify`, (h, w))."""
    count, channels, height, width = pictures.shape
    size, merge, pair = PATCH.patch_size, PATCH.spatial_merge_size, PATCH.temporal_patch_size
    rows, columns = height // size, width // size
    blocks = (pictures * 2 - 1).view(count, channels, rows // merge, merge, size, columns // merge, merge, size)
    # (b, c, H, mh, y, W, mw, x) → (b, H, W, mh, mw, c, y, x)
    ordered = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(count, rows * columns, channels, 1, size * size)
    return ordered.expand(-1, -1, -1, pair, -1).reshape(count, rows * columns, -1), (rows, columns)


def _some(count: int, share: float) -> Tensor:
    """The indexes of about a `share` of the pictures, on the host."""
    return (torch.rand(count) < share).nonzero().flatten()


def _moved(layers: Tensor, size: tuple[int, int]) -> Tensor:
    """Turned, scaled, stretched and shifted into a canvas of `size`; the drawing keeps its proportions in it."""
    count = len(layers)
    angle = torch.randn(count) * 0.12
    scale = torch.empty(count, 2).uniform_(0.9, 1.35) * torch.empty(count, 1).uniform_(0.95, 1.1)
    height, width = size
    fit = torch.tensor([width, height]) / min(size)
    cos, sin = torch.cos(angle), torch.sin(angle)
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], 1)
    matrix = turn * (scale * fit)[:, None, :]
    shift = torch.empty(count, 2, 1).uniform_(-0.08, 0.08)
    grid = F.affine_grid(torch.cat([matrix, shift], -1).to(layers.device), [count, 4, *size], align_corners=False)
    return F.grid_sample(layers, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _outlined(layers: Tensor) -> Tensor:
    """With the dark contour that many styles draw, outside and along inner edges; some are little more than lines."""
    colour, alpha = layers[:, :3], layers[:, 3:]
    wide, narrow = F.max_pool2d(layers, 3, 1, 1), -F.max_pool2d(-layers, 3, 1, 1)
    inner = (wide - narrow)[:, :3].amax(1, keepdim=True) * 1.5
    edge = (wide[:, 3:] - alpha + inner.clamp(0, 1) * alpha).clamp(0, 1)
    pale = torch.where(torch.rand(len(layers), 1, 1, 1, device=layers.device) < 0.3, 0.4, 1.0)
    inside = colour * pale + alpha * (1 - pale)
    return torch.cat([inside * (1 - edge), wide[:, 3:]], 1)


def _recoloured(colour: Tensor, alpha: Tensor) -> Tensor:
    """Hue, saturation, brightness and contrast, premultiplied throughout."""
    count, device = len(colour), colour.device
    mix = torch.eye(3) + torch.randn(count, 3, 3) * 0.12
    mix = mix / mix.sum(-1, keepdim=True).clamp(min=0.5)
    turned = torch.einsum("bij,bjhw->bihw", mix.to(device), colour)
    grey = (turned * GREY.to(device)).sum(1, keepdim=True)
    saturation = torch.empty(count, 1, 1, 1, device=device).uniform_(0.3, 1.4)
    saturation[_some(count, 0.15)] = 0
    gain, offset = (torch.empty(count, 1, 1, 1, device=device).uniform_(*each) for each in ((0.7, 1.25), (-0.15, 0.15)))
    changed = (grey + (turned - grey) * saturation) * gain + offset * alpha
    return torch.minimum(changed.clamp(min=0), alpha)
