"""One way to train both models: AdamW, warm-up and cosine, averaged weights, a point of the curve now and then."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.model import Qwen3VL

WARM_UP = 100
DECAY = 0.998  # of the averaged weights, which are what is kept
LEVELS, BLOCK = 15, 32  # of 4-bit codes, and the weights that share a scale

Point = dict[str, float]


@dataclass(frozen=True)
class Course:
    """How many steps, how many between measurements; `rounded`: every other one with weights as 4 bits hold them."""

    steps: int
    every: int
    rounded: bool = False


def train(
    model: Qwen3VL,
    loss: Callable[[int], Tensor],
    measure: Callable[[Qwen3VL], Point],
    optimizer: torch.optim.Optimizer,
    course: Course,
) -> Iterator[Point]:
    """Train in place; the weights in the end are the averaged ones, and so are those that are measured."""
    steps = course.steps
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    average = copy.deepcopy(model)
    start, losses = time.perf_counter(), []
    for step in range(1, steps + 1):
        optimizer.zero_grad(set_to_none=True)
        with rounded(model if course.rounded and step % 2 else None):
            value = loss(step)
            value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _follow(average, model, min(DECAY, 1 - 10 / (step + 10)))
        losses.append(value.detach())
        if step % course.every == 0 or step == steps:
            seconds = round(time.perf_counter() - start)
            yield {"step": step, "loss": float(torch.stack(losses).mean()), "seconds": seconds} | measure(average)
            losses = []
    model.load_state_dict(average.state_dict())


def record(points: Iterable[Point], path: Path, resumed: bool) -> None:
    """Print points and write them to a curve, behind those of the training that went before if `resumed`."""
    with path.open("a" if resumed else "w", encoding="utf-8") as curve:
        if resumed:
            print(json.dumps({"step": 0}), file=curve)  # `training.curves` counts on from here
        for point in points:
            print(json.dumps(point), file=curve, flush=True)
            print(point, flush=True)


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to almost nothing."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


@contextmanager
def rounded(model: Qwen3VL | None) -> Iterator[None]:
    """The decoder's products with weights that were rounded to 4 bits; afterwards the weights are what they were.

    The gradients found within are used for the unrounded weights (the straight-through estimator).
    """
    layers = [] if model is None else list(model.model["language_model"].layers.parameters())
    kept = [(weight, weight.data) for weight in layers if weight.dim() == 2]
    try:
        for weight, data in kept:
            weight.data = _in_4_bits(data)
        yield
    finally:
        for weight, data in kept:
            weight.data = data


def _in_4_bits(weight: Tensor) -> Tensor:
    """Plain asymmetric rounding in blocks of BLOCK, [N, K] → [N, K]."""
    blocks = weight.view(len(weight), -1, BLOCK)
    low, high = blocks.amin(-1, keepdim=True).clamp(max=0), blocks.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / LEVELS).clamp(min=1e-12)
    zero = (-low / scale).round()
    return (((blocks / scale + zero).round().clamp(0, LEVELS) - zero) * scale).view_as(weight)


@torch.no_grad()
def _follow(average: Qwen3VL, model: Qwen3VL, keep: float) -> None:
    get_ema_multi_avg_fn(keep)(list(average.parameters()), list(model.parameters()), 0)
