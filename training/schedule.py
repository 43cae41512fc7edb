"""One way to train both models: AdamW, warm-up and cosine, averaged weights, a point of the curve now and then."""

import copy
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from training.model import Qwen3VL

WARM_UP = 100
DECAY = 0.998  # of the averaged weights, which are what is kept

Point = dict[str, float]


@dataclass(frozen=True)
class Course:
    """How many steps, and how many between measurements."""

    steps: int
    every: int


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


@torch.no_grad()
def _follow(average: Qwen3VL, model: Qwen3VL, keep: float) -> None:
    get_ema_multi_avg_fn(keep)(list(average.parameters()), list(model.parameters()), 0)
