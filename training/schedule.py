"""One way to train both models: AdamW, warm-up and cosine, averaged weights, a point of the curve now and then."""

import copy
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from training.model import Qwen3VL

WARM_UP = 200
DECAY = 0.998  # of the averaged weights, which are what is kept

Point = dict[str, float]


def train(
    model: Qwen3VL,
    loss: Callable[[int], Tensor],
    measure: Callable[[Qwen3VL], Point],
    optimizer: torch.optim.Optimizer,
    steps: int,
    every: int,
) -> Iterator[Point]:
    """Train in place; the weights in the end are the averaged ones, and so are those measured every so many steps."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    average = copy.deepcopy(model)
    start, losses = time.perf_counter(), []
    for step in range(1, steps + 1):
        value = loss(step)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        _follow(average, model, min(DECAY, 1 - 10 / (step + 10)))
        losses.append(float(value.detach()))
        if step % every == 0 or step == steps:
            seconds = round(time.perf_counter() - start)
            yield {"step": step, "loss": sum(losses) / len(losses), "seconds": seconds} | measure(average)
            losses = []
    model.load_state_dict(average.state_dict())


def rate(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine to almost nothing."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - WARM_UP) / max(1, steps - WARM_UP)))


@torch.no_grad()
def _follow(average: Qwen3VL, model: Qwen3VL, keep: float) -> None:
    for mean, current in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(current, 1 - keep)
